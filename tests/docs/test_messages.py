"""The troubleshooting page lists every error message of the package."""

import ast
import re

import pytest

from docs_tools.messages import messages, page, text_of
from docs_tools.source import PACKAGE, Source

# control flow inside the package, and methods that subclasses implement
INSIDE = {
    "self.raised",
    "NotImplementedError",
    "_ReachedError",
    "_ClosedError",
    "_CallError",
    "KeyboardInterrupt",
    "cause",
    "renamed",
}
# made elsewhere and raised here
MADE_BY = {"self.other_calls"}


@pytest.fixture(scope="module")
def source() -> Source:
    return Source()


def raised() -> list[tuple[str, int, str]]:
    """File, line and callee of every `raise` that makes an error."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Raise) and node.exc is not None:
                call = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                found.append((path.stem, node.lineno, ast.unparse(call)))
    return found


def test_every_raise_is_found(source: Source):
    public = [(file, line) for file, line, name in raised() if name not in INSIDE | MADE_BY]
    found = {(m.module.rpartition(".")[2], m.line) for m in messages(source)}
    inits = {line for file, line in public if file == "__init__"}
    assert [at for at in public if at not in found and at[0] != "__init__"] == []
    assert inits <= {line for _, line in found}


def test_every_message_is_on_the_page(source: Source):
    text = page()
    assert [m for m in messages(source) if " ".join(m.text.split()) not in text] == []
    assert not re.search(r"\n#### `…?`", text)  # a message without constant text


def test_a_helper_belongs_to_the_public_names_that_call_it(source: Source):
    users = source.documented_users(("neurenix_ms.layers.levels", "Up"))
    assert "neurenix_ms.multiscale.UNetDecoder" in users
    own = source.documented_users(("neurenix_ms.multiscale.unet", "UNet"))
    assert own == ["neurenix_ms.multiscale.UNet"]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("'plain'", "plain"),
        ("f'needs {n}, got {x!r}'", "needs …, got …"),
        ("'one ' 'two ' + f'{three:.1f}'", "one two …"),
        ("f'see {ADVICE}'", "see the manual"),
        ("message", "…"),
    ],
)
def test_the_text_of_a_message(code: str, text: str):
    node = ast.parse(code, mode="eval").body
    assert text_of(node, {"ADVICE": "the manual"}) == text
