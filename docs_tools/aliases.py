"""mkdocstrings extension that replaces type aliases by their definitions in the reference."""

import dataclasses
from typing import Any

import griffe
from griffe import Expr, ExprName, ExprSubscript, ExprTuple


class Aliases(griffe.Extension):
    """Replace type aliases of the package in the annotations of parameters."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Replace the aliases in a package that was read from the source."""
        self.package = pkg
        self._visit(pkg)

    def _visit(self, parent: griffe.Module | griffe.Class) -> None:
        for member in parent.members.values():
            if isinstance(member, griffe.Function):
                for parameter in member.parameters:
                    parameter.annotation = self.expanded(parameter.annotation)
            elif isinstance(member, griffe.Module | griffe.Class):
                self._visit(member)

    def expanded(self, annotation: Any) -> Any:
        """Return an annotation in which every alias is replaced by its definition."""
        if isinstance(annotation, ExprName):
            definition = self._definition(annotation.canonical_path)
            return annotation if definition is None else self.expanded(definition)
        if (
            isinstance(annotation, ExprSubscript)
            and annotation.canonical_path == "typing.Annotated"
        ):
            inner = annotation.slice
            return self.expanded(inner.elements[0] if isinstance(inner, ExprTuple) else inner)
        if isinstance(annotation, list | tuple):
            return type(annotation)(self.expanded(item) for item in annotation)
        if not isinstance(annotation, Expr):
            return annotation
        fields = [field.name for field in dataclasses.fields(annotation)]
        return dataclasses.replace(
            annotation, **{name: self.expanded(getattr(annotation, name)) for name in fields}
        )

    def _definition(self, path: str) -> Expr | None:
        """Return the right-hand side of an alias of the package; None for anything else."""
        package, _, name = path.partition(".")
        if package != self.package.name:
            return None
        try:
            found = self.package[name]
            if found.is_alias:
                found = found.final_target
        except (KeyError, griffe.AliasResolutionError, griffe.CyclicAliasError):
            return None
        named = found.is_attribute and found.name[:1].isupper() and not found.name.isupper()
        return found.value if named and isinstance(found.value, Expr) else None
