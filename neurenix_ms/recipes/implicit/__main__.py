"""Run `python -m neurenix_ms.recipes.implicit`."""

from neurenix_ms.recipes.implicit.command import main

if __name__ == "__main__":
    main()
