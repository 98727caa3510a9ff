"""The reference shows the definitions of type aliases."""

import griffe
import pytest

from docs_tools.aliases import Aliases
from docs_tools.source import PACKAGE


@pytest.fixture(scope="module")
def package():
    return griffe.load(
        "neurenix_ms",
        search_paths=[PACKAGE.parent],
        extensions=griffe.load_extensions(Aliases),
        resolve_aliases=True,
    )


@pytest.mark.parametrize(
    ("path", "parameter", "shown"),
    [
        (
            "multiscale.unet.UNet.__init__",
            "norm",
            "Literal['batch', 'instance', 'group'] | Callable",
        ),
        ("multiscale.decoder.UNetDecoder.__init__", "encoder_channels", "Sequence[int] | Backbone"),
        (
            "execution.tiling.TiledModel.__init__",
            "tile_size",
            "int | Sequence[int] | Literal['auto']",
        ),
        ("implicit.pruning.prune_nodes", "model", "GeneratedField | Normalizer"),
        ("multiscale.unet.UNet.__init__", "spatial_dims", "Literal[1, 2, 3]"),
    ],
)
def test_an_alias_is_replaced_by_its_definition(package, path, parameter, shown):
    assert str(package[path].parameters[parameter].annotation).startswith(shown)


def test_classes_and_plain_types_stay(package):
    parameters = package["multiscale.unet.UNet.__init__"].parameters
    assert str(parameters["in_channels"].annotation) == "int"
