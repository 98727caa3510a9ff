"""Run `python -m neurenix_ms.recipes.adaptive`."""

from neurenix_ms.recipes.adaptive.command import main

if __name__ == "__main__":
    main()
