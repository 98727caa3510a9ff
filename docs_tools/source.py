"""The parsed source of the package, and which of its classes and functions call which."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "neurenix_ms"

PYTHON_BLOCK = re.compile(
    r"^( *)(`{3,})python\b[^\n]*\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE
)  # the third group is the code

Definition = tuple[str, str]  # module and name at its top level


class Source:
    """The parsed package.

    Examples:
        >>> users = Source().documented_users(("neurenix_ms.layers.levels", "Up"))
        >>> "neurenix_ms.multiscale.UNet" in users
        True
    """

    def __init__(self) -> None:
        self.trees = {
            _module(path): ast.parse(path.read_text("utf-8"))
            for path in sorted(PACKAGE.rglob("*.py"))
        }
        self.imported = {module: dict(_imports(tree)) for module, tree in self.trees.items()}
        self.defined: dict[Definition, ast.AST] = {
            (module, node.name): node
            for module, tree in self.trees.items()
            for node in tree.body
            if isinstance(node, ast.ClassDef | ast.FunctionDef)
        }
        self.steps = {path: self._steps(path) for path in documented()}

    def documented_users(self, definition: Definition) -> list[str]:
        """Return the documented paths that are this definition or use it, nearest first."""
        near = {
            path: steps[definition] for path, steps in self.steps.items() if definition in steps
        }
        users = sorted(near, key=lambda path: near[path])
        return [path for path in users if near[path] == 0] or users

    def _home(self, module: str, name: str) -> Definition:
        """Return where a name is defined that a module defines or imports."""
        following = self.imported.get(module, {}).get(name)
        if (module, name) in self.defined or following in (None, (module, name)):
            return module, name
        return self._home(*following)

    def _steps(self, path: str) -> dict[Definition, int]:
        """Return everything that a documented name may call, with the number of calls in between."""
        module, _, name = path.rpartition(".")
        steps: dict[Definition, int] = {}
        ends = {self._home(module, name)} & self.defined.keys()
        while ends:
            steps |= dict.fromkeys(ends, len(set(steps.values())))
            names = {(module, n.id) for module, name in ends for n in self._names(module, name)}
            ends = ({self._home(*name) for name in names} & self.defined.keys()) - steps.keys()
        return steps

    def _names(self, module: str, name: str) -> Iterator[ast.Name]:
        tree = ast.walk(self.defined[module, name])
        return (node for node in tree if isinstance(node, ast.Name))


def documented() -> list[str]:
    """Return the paths of all objects on the API pages, in order."""
    pages = sorted((ROOT / "docs/api").glob("*.md"))
    text = "\n".join(page.read_text("utf-8") for page in pages)
    return re.findall(r"^::: (\S+)$", text, re.MULTILINE)


def _module(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def _imports(tree: ast.Module) -> Iterator[tuple[str, Definition]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield alias.asname or alias.name, (node.module, alias.name)
