"""The reference of a module gets its drawing: a step of mkdocstrings, named in mkdocs.yml."""

from typing import Any

from griffe import Class, Extension

from docs_tools.drawn import SKETCHES, drawing


class Drawings(Extension):
    """Put the drawing of a module below the first sentence of what is said of it."""

    def on_class_instance(self, *, cls: Class, **kwargs: Any) -> None:
        """A class was read from the source."""
        if cls.docstring is None or cls.name not in SKETCHES:
            return
        summary, _, rest = cls.docstring.value.partition("\n\n")
        cls.docstring.value = f"{summary}\n\n{drawing(cls.name)}\n\n{rest}"
