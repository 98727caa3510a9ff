"""Run `python -m neurenix_ms.recipes.ocean`."""

from neurenix_ms.recipes.ocean.command import main

if __name__ == "__main__":
    main()
