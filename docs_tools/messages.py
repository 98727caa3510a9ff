"""Source of the package in, every error message that it can raise out, for the troubleshooting page."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from docs_tools.source import PACKAGE, Source

SHARED = "neurenix_ms"  # files that stand beside the rooms
MOST_USERS = 4


@dataclass(frozen=True)
class Message:
    """What one `raise` says.

    Args:
        text: The message; a value that is only known then is an ellipsis.
        error: Name of the exception.
        module: Where it stands.
        owner: The class or function of the module's top level that it stands in.
        line: Line of the call.
    """

    text: str
    error: str
    module: str
    owner: str
    line: int

    @property
    def room(self) -> str:
        """The folder of the package, or the package for files beside the folders."""
        _, *inner = self.module.split(".")
        return f"{SHARED}.{inner[0]}" if inner and (PACKAGE / inner[0]).is_dir() else SHARED


def messages(source: Source) -> list[Message]:
    """Every message of the package, file by file.

    Args:
        source: The parsed package.

    Examples:
        >>> any("must be at least 1" in message.text for message in messages(Source()))
        True
    """
    words = dict(pair for tree in source.trees.values() for pair in _constants(tree))
    return [m for module, tree in source.trees.items() for m in _of_file(module, tree, words)]


def page() -> str:
    """All messages as Markdown: a section per room, a heading per message, links to the API pages.

    As headings they are found by the search of the site, which looks there first.
    """
    source = Source()
    rooms: dict[str, dict[tuple[str, str], dict[str, None]]] = {}
    for message in messages(source):
        entry = rooms.setdefault(message.room, {}).setdefault((message.text, message.error), {})
        users = source.documented_users((message.module, message.owner))
        entry.update(dict.fromkeys(users))
    parts = []
    for room, entries in sorted(rooms.items()):
        lines = [
            f"#### {_code(text)}\n\n{error}{_links(list(users))}"
            for (text, error), users in sorted(entries.items())
        ]
        parts.append(f"### {room}\n\n" + "\n\n".join(lines))
    return "\n\n".join(parts)


def text_of(node: ast.expr, words: dict[str, str]) -> str:
    """What an expression says, as far as the source tells.

    Args:
        node: A string, an f-string, a sum of those, or anything else.
        words: Texts of the constants that are named in messages.
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
            # an error may also be made by a function and raised by the one that called it
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
    """Who raises it, with links to the API pages; nothing where all of a room does."""
    if not paths:
        return ""
    links = [f"[`{path.rpartition('.')[2]}`][{path}]" for path in paths[:MOST_USERS]]
    more = f" and {len(paths) - MOST_USERS} more" if len(paths) > MOST_USERS else ""
    return f" of {', '.join(links)}{more}"


def _code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    return f"{fence}{' '.join(text.split())}{fence}"
