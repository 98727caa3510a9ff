"""Run `python -m neurenix_ms.recipes.permeability`."""

from neurenix_ms.recipes.permeability.command import main

if __name__ == "__main__":
    main()
