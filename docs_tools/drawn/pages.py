"""mkdocstrings extension that adds the drawing of every module to its reference."""

from typing import Any

from griffe import Class, Extension

from docs_tools.drawn import SKETCHES, drawing


class Drawings(Extension):
    """Insert the drawing of a module after the summary of its docstring."""

    def on_class_instance(self, *, cls: Class, **kwargs: Any) -> None:
        """Add the drawing to the docstring of a class."""
        if cls.docstring is None or cls.name not in SKETCHES:
            return
        summary, _, rest = cls.docstring.value.partition("\n\n")
        cls.docstring.value = f"{summary}\n\n{drawing(cls.name)}\n\n{rest}"
