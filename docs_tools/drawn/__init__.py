"""Data-flow drawings of the public modules."""

from functools import cache

from docs_tools.drawn import fields, maps, training
from docs_tools.drawn.sketch import draw

SKETCHES = {**maps.SKETCHES, **fields.SKETCHES, **training.SKETCHES}


@cache
def drawing(name: str) -> str:
    """Draw the data flow of a public module with the shapes of a real call, as HTML in one line.

    Args:
        name: Name of the module.
    """
    return draw(SKETCHES[name])
