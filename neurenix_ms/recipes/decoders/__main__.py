"""Run `python -m neurenix_ms.recipes.decoders`."""

from neurenix_ms.recipes.decoders.command import main

if __name__ == "__main__":
    main()
