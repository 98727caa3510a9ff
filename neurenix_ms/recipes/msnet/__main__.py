"""Run `python -m neurenix_ms.recipes.msnet`."""

from neurenix_ms.recipes.msnet.command import main

if __name__ == "__main__":
    main()
