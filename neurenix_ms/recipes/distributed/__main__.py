"""Run `python -m neurenix_ms.recipes.distributed`."""

from neurenix_ms.recipes.distributed.command import main

if __name__ == "__main__":
    main()
