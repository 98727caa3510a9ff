"""Densify an implicit model: add input frequencies that are sums of those it has."""

from itertools import combinations_with_replacement
from typing import Any, TypeVar

import torch

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.dims import check_positive
from neurenix_ms.implicit.compacting import places, wrapped
from neurenix_ms.implicit.nif import MultiScaleNIF
from neurenix_ms.implicit.pruning import Prunable, node_scores, prunable

Model = TypeVar("Model", bound=Prunable)


@checked
@torch.no_grad()
def densify(model: Model, num_nodes: int, parameters: torch.Tensor) -> Model:
    """Return a model with more nodes in its first layer, which computes the same field at first.

    The nodes of the first layer of a `MultiScaleNIF` are waves `sin(omega_0 x W + b)`. Later layers
    produce waves with sums of their frequencies. Pruning removes some of both. This function adds waves
    with the frequencies that matter most: the weights and bias of a new node are the sums of those of
    two nodes, in the order of the product of their scores ("contribution" of `prune_nodes`; a node can
    be paired with itself). No other layer reads the new nodes until they are trained, so the field does
    not change.

    Use it after `compact` and some retraining, to give a pruned model input frequencies in place of
    some of the nodes removed.

    Args:
        model: A `MultiScaleNIF`, or a `Normalizer` around one; it is not modified.
        num_nodes: Number of new nodes.
        parameters: Sample of the parameters over which scores are averaged, `(N, parameter_dim)`.

    Raises:
        ValueError: If the model is not a `MultiScaleNIF`, has pruned nodes that `compact` has not
            removed, or has too few nodes for that number of sums.

    Source: Aldana et al. 2025, "Adaptive Training of INRs via Pruning and Densification" (AIRe), which
    adds frequencies to where a signal is fitted least.

    Examples:
        >>> from neurenix_ms.implicit import compact, prune_nodes
        >>> model = MultiScaleNIF(1, 1, shape_width=10)
        >>> prune_nodes(model, 0.5, torch.rand(20, 1), scope="layer")
        >>> wider = densify(compact(model), 3, torch.rand(20, 1))
        >>> wider.node_mask.sum(1).tolist()
        [8, 5, 5]
    """
    check_positive(num_nodes=num_nodes)
    field = prunable(model)
    if not isinstance(field, MultiScaleNIF):
        raise ValueError(
            "model must be a MultiScaleNIF, whose first layer has frequencies, "
            f"got {type(field).__name__}"
        )
    if not bool(field.node_mask.sum() == sum(map(len, field.shape.nodes))):
        raise ValueError("pruned nodes must be removed by compact first, got a model with a mask")
    pairs = _pairs(node_scores(model, parameters)[0].tolist(), num_nodes)
    nodes = field.shape.nodes
    taken = set().union(*nodes)  # by any layer, because nodes of one unit are added up
    units = [i for i in range(field.shape_width + num_nodes) if i not in taken][:num_nodes]
    width = max(field.shape_width, units[-1] + 1)
    config = field.config | {
        "shape_nodes": [[*nodes[0], *units], *nodes[1:]],
        "shape_width": width,
    }
    wide: Any = type(field)(**config)
    wide.to(field.last.weight).train(field.training)
    wide.parameter_net.load_state_dict(field.parameter_net.state_dict())
    old = places(wide.shape, field.shape).to(field.last.weight.device)
    for new, given in ((wide.last.weight, field.last.weight), (wide.last.bias, field.last.bias)):
        new.zero_()
        new[old] = given
        for columns in _columns(wide.shape):
            for i, (a, b) in enumerate(pairs, start=len(nodes[0])):
                new[columns[..., i]] = new[columns[..., a]] + new[columns[..., b]]
    return wrapped(model, wide)


def _pairs(scores: list[float], count: int) -> list[tuple[int, int]]:
    """Return the `count` pairs of nodes with the largest products of scores."""
    pairs = combinations_with_replacement(range(len(scores)), 2)
    ordered = sorted(pairs, key=lambda pair: -scores[pair[0]] * scores[pair[1]])
    if count > len(ordered):
        raise ValueError(
            f"num_nodes must be at most {len(ordered)}, the number of sums of two of "
            f"{len(scores)} nodes, got {count}"
        )
    return ordered[:count]


def _columns(shape: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices of the first layer's weights, `(inputs, nodes)`, and of its biases."""
    matrices, biases = shape.slices()
    number = torch.arange(shape.num_weights)
    return number[matrices[0]].view(shape.sizes[0]), number[biases[0]]
