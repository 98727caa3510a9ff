"""A drawing per public module: what goes in, through which parts, what comes out."""

from functools import cache

from docs_tools.drawn import fields, maps, training
from docs_tools.drawn.sketch import draw

SKETCHES = {**maps.SKETCHES, **fields.SKETCHES, **training.SKETCHES}


@cache
def drawing(name: str) -> str:
    """The data flow of a public module, with the shapes of a real call, as HTML in one line.

    Args:
        name: Name of the module.
    """
    return draw(SKETCHES[name])
