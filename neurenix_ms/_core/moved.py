"""An import hook that finds modules of earlier versions by their old names, with a warning."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGE = __name__.partition(".")[0]
MOVED = {
    "arguments": "_core.arguments",
    "blocks": "layers.blocks",
    "checks": "_core.checks",
    "config": "_core.config",
    "convolution": "_core.convolution",
    "grids": "layers.adaptive_pool",
    "hooks": "_core.hooks",
    "implicit.normaliser": "implicit.normalizer",
    "inplace": "_core.inplace",
    "mlp": "layers.mlp",
    "nd": "_core.dims",
    "opcodes": "_core.io.opcodes",
    "orders": "_core.orders",
    "probing": "_core.probing",
    "recomputation": "_core.recomputation",
    "records": "_core.io.records",
    "remember": "_core.remember",
    "resize": "layers.resize",
    "sizes": "_core.sizes",
    "stored": "_core.io.stored",
    "tracing": "_core.tracing",
}


class MovedModules(MetaPathFinder, Loader):
    """Find the modules of `MOVED`, which pickled models refer to."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        known = package == PACKAGE and name in MOVED
        return ModuleSpec(fullname, self) if known else None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new = f"{PACKAGE}.{MOVED[old.partition('.')[2]]}"
        warnings.warn(
            f"{old} has moved to {new}; the old name works until version 1.0",
            DeprecationWarning,
            stacklevel=2,
        )
        sys.modules[old] = importlib.import_module(new)


def install() -> None:
    """Add the finder of moved modules after all other finders."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
