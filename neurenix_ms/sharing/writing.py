"""Writing of a network to a folder: weights, config and model card."""

import json
import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import shown
from neurenix_ms._core.config import Configured, check_plain, library_classes
from neurenix_ms._core.io.atomic import replacing_folder
from neurenix_ms._core.io.safe import write_weights
from neurenix_ms.files import described, storable, versions_of
from neurenix_ms.sharing.cards import model_card

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
FILES = (WEIGHTS, CONFIG, CARD)
FORMAT = "neurenix_ms pretrained"
VERSION = 1


@checked
def save_pretrained(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    input_shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
    description: str | None = None,
    license: str | None = None,
) -> None:
    """Write a network to a folder that `from_pretrained` reads and a hub can show.

    Use it to hand a trained network to others. Weights are in `model.safetensors`, class and arguments
    in `config.json`, and what is known about the network in `README.md`; no file holds code. The folder
    is written under a temporary name and renamed, so an interrupted save leaves no incomplete folder.
    For a single file use `neurenix_ms.save`.

    Args:
        model: A network of this library; its arguments may be networks of the library too.
        folder: A new folder.
        overwrite: Replace a folder that holds such files and no others.
        input_shape: Shape `(B, C, *S)` of an input, or the shapes of a list of them; with it, the model
            card lists FLOPs, peak memory and receptive field for that shape.
        description: Text for the model card.
        license: Name for the model card, such as "mit".

    Raises:
        ValueError: If the network is not of this library, an argument of it is not a plain value, the
            format does not support a dtype, the folder is not empty, or the network does not run on
            `input_shape`. Nothing is written then.
        ImportError: If safetensors is missing.

    Examples:
        >>> import os, tempfile
        >>> from neurenix_ms import create, from_pretrained
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pretrained(create("unet", features=[4]), f"{folder}/mine")
        ...     sorted(os.listdir(f"{folder}/mine")), from_pretrained(f"{folder}/mine").features
        (['README.md', 'config.json', 'model.safetensors'], [4])
    """
    check_writable(type(model).__name__, model)
    if os.path.isdir(folder) and os.listdir(folder) and not overwrite:
        raise ValueError(
            f"{folder} must be a new or empty folder, got {sorted(os.listdir(folder))[:5]} in it; "
            "overwrite=True replaces a network that was saved there"
        )
    state = {name: storable(name, value) for name, value in model.state_dict().items()}
    card = model_card(
        model, os.path.basename(os.path.abspath(folder)), input_shape, description, license
    )
    with replacing_folder(folder, FILES) as made:
        content = {
            "format": FORMAT,
            "version": VERSION,
            **described(model),
            "preset": getattr(model, "preset", None),
            "versions": versions_of(model),
            "sha256": write_weights(state, made / WEIGHTS),
        }
        text = json.dumps(content, indent=2, allow_nan=False)
        (made / CONFIG).write_text(f"{text}\n", encoding="utf-8")
        (made / CARD).write_text(card, encoding="utf-8")


def check_writable(path: str, value: Any) -> None:
    """Raise unless a network, or an argument of one, can be rebuilt from plain values.

    Args:
        path: What it is called in the message.
        value: A network of the library, a list, or a plain value.
    """
    if isinstance(value, nn.Module):
        if not isinstance(value, Configured) or type(value) not in set(library_classes()):
            raise ValueError(
                f"{path} must be a network of neurenix_ms to be shared, got {type(value).__name__} of "
                f"{type(value).__module__}; neurenix_ms.save writes its weights"
            )
        for name, argument in value.config.items():
            check_writable(f"{path}.{name}", argument)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            check_writable(f"{path}[{i}]", item)
    elif callable(value):
        raise ValueError(
            f"{path} must be a name or another plain value to be shared, got {shown(value)}: code is "
            "not written; neurenix_ms.save writes the weights, for load(path, model=...)"
        )
    else:
        check_plain(path, value)
