"""Run `python -m neurenix_ms.recipes.sequences`."""

from neurenix_ms.recipes.sequences.command import main

if __name__ == "__main__":
    main()
