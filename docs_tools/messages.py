"""List of all error messages of the package, for the troubleshooting page."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from docs_tools.source import PACKAGE, Source

SHARED = "neurenix_ms"  # section of files that are in no subpackage
MOST_USERS = 4


@dataclass(frozen=True)
class Message:
    """An error message of the package.

    Args:
        text: The message, with an ellipsis for every inserted value.
        error: Name of the exception.
        module: Module that raises it.
        owner: Top-level class or function of the module that contains it.
        line: Line number of the call.
    """

    text: str
    error: str
    module: str
    owner: str
    line: int

    @property
    def subpackage(self) -> str:
        """The subpackage, or the package itself for modules in no subpackage."""
        _, *inner = self.module.split(".")
        return f"{SHARED}.{inner[0]}" if inner and (PACKAGE / inner[0]).is_dir() else SHARED


def messages(source: Source) -> list[Message]:
    """Return every message of the package, file by file.

    Args:
        source: The parsed package.

    Examples:
        >>> any("must be at least 1" in message.text for message in messages(Source()))
        True
    """
    words = dict(pair for tree in source.trees.values() for pair in _constants(tree))
    return [m for module, tree in source.trees.items() for m in _of_file(module, tree, words)]


def page() -> str:
    """Return all messages as Markdown: a section per subpackage and a heading per message.

    The search of the site ranks headings first, so it finds the messages. Each links to the API
    pages of what raises it.
    """
    source = Source()
    subpackages: dict[str, dict[tuple[str, str], dict[str, None]]] = {}
    for message in messages(source):
        entry = subpackages.setdefault(message.subpackage, {}).setdefault(
            (message.text, message.error), {}
        )
        users = source.documented_users((message.module, message.owner))
        entry.update(dict.fromkeys(users))
    parts = []
    for name, entries in sorted(subpackages.items()):
        lines = [
            f"#### {_code(text)}\n\n{error}{_links(list(users))}"
            for (text, error), users in sorted(entries.items())
        ]
        parts.append(f"### {name}\n\n" + "\n\n".join(lines))
    return "\n\n".join(parts)


def text_of(node: ast.expr, words: dict[str, str]) -> str:
    """Return the text of an expression, with an ellipsis for every part that is not constant.

    Args:
        node: A string, an f-string, a concatenation of those, or any other expression.
        words: Values of the string constants that messages refer to by name.
    """
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(text_of(value, words) for value in values)
        case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
            return text_of(value, words)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left, words) + text_of(right, words)
        case ast.Name(id=name):
            return words.get(name, "…")
    return "…"


def _of_file(module: str, tree: ast.Module, words: dict[str, str]) -> Iterator[Message]:
    for top in tree.body:
        for node in ast.walk(top):
            # a function may also return an error for its caller to raise
            if not isinstance(node, ast.Raise | ast.Return):
                continue
            call = node.exc if isinstance(node, ast.Raise) else node.value
            if not isinstance(call, ast.Call) or not call.args:
                continue
            error = ast.unparse(call.func)
            if re.fullmatch(r"[A-Z]\w*Error", error):
                owner = getattr(top, "name", "")
                yield Message(text_of(call.args[0], words), error, module, owner, call.lineno)


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=str(text))):
                yield name, text


def _links(paths: list[str]) -> str:
    """Return links to the API pages of what raises the message, or nothing if unknown."""
    if not paths:
        return ""
    links = [f"[`{path.rpartition('.')[2]}`][{path}]" for path in paths[:MOST_USERS]]
    more = f" and {len(paths) - MOST_USERS} more" if len(paths) > MOST_USERS else ""
    return f" raised by {', '.join(links)}{more}"


def _code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    return f"{fence}{' '.join(text.split())}{fence}"
