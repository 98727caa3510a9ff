"""Run `python -m neurenix_ms.recipes.multirate`."""

from neurenix_ms.recipes.multirate.command import main

if __name__ == "__main__":
    main()
