"""Run `python -m neurenix_ms.recipes.hybrid`."""

from neurenix_ms.recipes.hybrid.command import main

if __name__ == "__main__":
    main()
