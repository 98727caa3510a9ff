"""The version in the footer of every page: a mkdocs hook."""

import ast
from typing import Any

from docs_tools.source import ROOT


def version() -> str:
    """Return the version of the package, without importing it."""
    tree = ast.parse((ROOT / "neurenix_ms" / "__init__.py").read_text("utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__version__":
            return str(ast.literal_eval(node.value))
    raise ValueError("neurenix_ms/__init__.py must assign __version__, got no such line")


def on_config(config: Any, **kwargs: Any) -> Any:
    """Write the footer; called by mkdocs."""
    config.copyright = f"neurenix_ms {version()}, MIT license"
    return config
