"""Run `python -m neurenix_ms.recipes.conditioned`."""

from neurenix_ms.recipes.conditioned.command import main

if __name__ == "__main__":
    main()
