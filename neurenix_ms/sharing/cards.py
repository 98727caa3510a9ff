"""The model card: what is known about a network, in Markdown."""

import json
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from neurenix_ms._core.checks import check_integers
from neurenix_ms._core.probing import memoryless_copy
from neurenix_ms.execution import footprint
from neurenix_ms.files import described
from neurenix_ms.meter import count_flops, peak_tensor_bytes
from neurenix_ms.registry import create, get_preset, list_models

Shapes = Sequence[int] | Sequence[Sequence[int]] | None
LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


def model_card(
    model: nn.Module, title: str, input_shape: Shapes, description: str | None, license: str | None
) -> str:
    """Return the text of `README.md`.

    Args:
        model: The network.
        title: Its heading.
        input_shape: Where its costs are measured; None for not at all.
        description: Text of the user.
        license: Name of the license, for the header that hubs read.

    Raises:
        ValueError: If the network does not run on `input_shape`, or the license is no name.
    """
    if license is not None and not LICENSE.fullmatch(license):
        raise ValueError(f"license must be a name such as 'mit', got {license!r}")
    name = type(model).__name__
    head = ["---", "library_name: neurenix_ms", f"tags: [pytorch, neurenix_ms, {name}]"]
    head += [] if license is None else [f"license: {license.lower()}"]
    rows = [("class", f"`{name}`"), *_origin(model), *_sizes(model), *costs(model, input_shape)]
    table = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)]
    config = json.dumps(described(model)["config"], indent=2)
    parts = [
        "\n".join([*head, "---"]),
        f"# {' '.join(title.split())}",
        *([] if description is None else [description]),
        "```python\nfrom neurenix_ms import from_pretrained\n\n"
        'model = from_pretrained("path or id of this folder")\n```',
        "\n".join(table),
        f"Arguments of the class:\n\n```json\n{config}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _origin(model: nn.Module) -> list[tuple[str, str]]:
    """Return the preset that a network was built by, its source, and which arguments differ."""
    name = getattr(model, "preset", None)
    if name not in list_models():
        return []
    preset = get_preset(name)
    with torch.device("meta"):
        original = described(create(name))["config"]
    config = described(model)["config"]
    changed = [key for key in config if config[key] != original.get(key)]
    note = f", with other {', '.join(f'`{k}`' for k in changed)}" if changed else ""
    return [("preset", f"`{name}`: {preset.description}{note}"), ("source", preset.source)]


def _sizes(model: nn.Module) -> list[tuple[str, str]]:
    values = list(model.state_dict().values())
    count = sum(p.numel() for p in model.parameters())
    kinds = sorted({str(v.dtype).removeprefix("torch.") for v in values if v.is_floating_point()})
    num_bytes = sum(v.numel() * v.dtype.itemsize for v in values)
    return [
        ("parameters", f"{count:,}"),
        ("weights", f"{num_bytes:,} bytes, {', '.join(kinds) or 'no numbers'}"),
    ]


def costs(model: nn.Module, shapes: Shapes) -> list[tuple[str, str]]:
    """Return FLOPs, peak memory and receptive field of a forward pass, computed from shapes.

    Args:
        model: The network; it is not run.
        shapes: Shape of the input, or of every input of a list; None for no rows.

    Raises:
        ValueError: If the network does not run on such an input.
    """
    if shapes is None:
        return []
    many = [shapes] if isinstance(shapes[0], int) else shapes
    sizes = [check_integers("input_shape", one, 1, min_length=2) for one in many]
    alone = isinstance(shapes[0], int)
    kinds = [p.dtype for p in model.parameters() if p.is_floating_point()]
    try:
        with memoryless_copy(model) as copied:
            inputs = [torch.empty(size, dtype=kinds[0] if kinds else None) for size in sizes]
            x: Any = inputs[0] if alone else inputs
            flops = count_flops(lambda: copied(x))
            peak = peak_tensor_bytes(lambda: copied(x), of_shapes=True)
    except Exception as error:  # of any kind, from inside of a network
        raise ValueError(f"the network must run on input_shape {sizes}, got {error}") from error
    at = " and ".join("x".join(map(str, size)) for size in sizes)
    rows = [
        (f"FLOPs of a forward pass at {at}", f"{flops:,}"),
        (f"peak of its tensors, beside input and weights, at {at}", f"{peak:,} bytes"),
    ]
    return [*rows, ("receptive field", _field(model, sizes[0]))] if alone else rows


def _field(model: nn.Module, size: Sequence[int]) -> str:
    try:
        training = model.training
        try:
            found = footprint(model.eval(), size[1], len(size) - 2)  # type: ignore[arg-type]
        finally:
            model.train(training)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        return f"not bounded or not measured: {str(error).splitlines()[0]}"
    widths = [before + 1 + after for before, after in found.halo]
    whole = f"; {', '.join(found.global_layers)} see the whole input" if found.global_layers else ""
    return (
        f"at most {' x '.join(map(str, widths))} pixels of the input per pixel of the output{whole}"
    )
