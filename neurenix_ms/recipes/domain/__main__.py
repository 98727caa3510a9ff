"""Run `python -m neurenix_ms.recipes.domain`."""

from neurenix_ms.recipes.domain.command import main

if __name__ == "__main__":
    main()
