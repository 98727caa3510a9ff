"""Compact a pruned implicit model into a smaller one with the same outputs."""

from typing import Any, TypeVar

import torch
from torch import Tensor

from neurenix_ms._core.arguments import checked
from neurenix_ms.implicit.nif import GeneratedField
from neurenix_ms.implicit.normalizer import Normalizer
from neurenix_ms.implicit.pruning import Prunable, prunable
from neurenix_ms.implicit.shape_net import Shape

Model = TypeVar("Model", bound=Prunable)


@checked
@torch.no_grad()
def compact(model: Model) -> Model:
    """Return a smaller model without the pruned nodes, equal to `model` up to rounding.

    A mask alone saves nothing, because masked weights are still generated and multiplied. This function
    removes the columns of pruned nodes and the rows of units without nodes from the ShapeNet's
    matrices, and the rows that generated them from the ParameterNet's last layer. So parameters,
    operations and time decrease. The result is a model of the same class, which can be trained, saved,
    loaded and pruned again.

    Args:
        model: A `NIF` or `MultiScaleNIF`, or a `Normalizer` around one; it is not modified.

    Raises:
        ValueError: If the model has no nodes that could be pruned.

    Examples:
        >>> from neurenix_ms.implicit import NIF, prune_nodes
        >>> model = NIF(1, 1, shape_width=10)
        >>> prune_nodes(model, 0.5, torch.rand(20, 1))
        >>> small = compact(model)
        >>> small.last.out_features < model.last.out_features / 2
        True
    """
    field = prunable(model)
    alive = field.node_mask.tolist()
    nodes = [
        [unit for unit, on in zip(units, row, strict=False) if on]
        for units, row in zip(field.shape.nodes, alive, strict=True)
    ]
    small: Any = type(field)(**field.config | {"shape_nodes": nodes})
    small.to(field.last.weight).train(field.training)
    small.parameter_net.load_state_dict(field.parameter_net.state_dict())
    rows = places(field.shape, small.shape).to(field.last.weight.device)
    small.last.weight.copy_(field.last.weight[rows])
    small.last.bias.copy_(field.last.bias[rows])
    return wrapped(model, small)


def wrapped(model: Any, field: GeneratedField) -> Any:
    """Return a field of other layers, in the scales of `model` if that is a `Normalizer`."""
    if not isinstance(model, Normalizer):
        return field
    outer: Any = (
        type(model)(**model.config | {"model": field}).to(field.last.weight).train(model.training)
    )
    for name, value in model.named_buffers(recurse=False):
        outer.get_buffer(name).copy_(value)
    return outer


def places(large: Shape, small: Shape) -> Tensor:
    """Return the indices of the small network's weights among those of the large one."""
    matrices, biases = large.slices()
    number = torch.arange(large.num_weights)
    kept_matrices, kept_biases = [], []
    outputs = list(range(large.sizes[-1][1]))
    for layer in range(large.num_layers):
        inputs = _positions(large.reads[layer], small.reads[layer])
        last = layer == large.num_layers - 1
        columns = outputs if last else _positions(large.nodes[layer], small.nodes[layer])
        matrix = number[matrices[layer]].view(large.sizes[layer])
        kept_matrices.append(matrix[inputs][:, columns].flatten())
        kept_biases.append(number[biases[layer]][columns])
    return torch.cat([*kept_matrices, *kept_biases])


def _positions(units: list[int], kept: list[int]) -> list[int]:
    place = {unit: i for i, unit in enumerate(units)}
    return [place[unit] for unit in kept]
