"""Run `python -m neurenix_ms.recipes.demo`."""

from neurenix_ms.recipes.demo.command import main

if __name__ == "__main__":
    main()
