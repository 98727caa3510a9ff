"""Run `python -m neurenix_ms.recipes.hierarchy`."""

from neurenix_ms.recipes.hierarchy.command import main

if __name__ == "__main__":
    main()
