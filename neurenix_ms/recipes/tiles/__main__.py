"""Run `python -m neurenix_ms.recipes.tiles`."""

from neurenix_ms.recipes.tiles.command import main

if __name__ == "__main__":
    main()
