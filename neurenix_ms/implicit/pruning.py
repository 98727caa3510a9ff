"""Prune nodes of implicit models, in one step or in rounds with retraining."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from neurenix_ms._core.arguments import UNCHECKED, checked
from neurenix_ms._core.checks import check_integer, check_number, shown
from neurenix_ms._core.dims import choose
from neurenix_ms.implicit.field import check_rows
from neurenix_ms.implicit.nif import GeneratedField, with_one
from neurenix_ms.implicit.normalizer import Normalizer

Prunable = Annotated[GeneratedField | Normalizer, UNCHECKED]
Criterion = Literal["l2", "contribution"]
MOST_ROUNDS = 2**20
Scope = Literal["global", "layer"]


@checked
@torch.no_grad()
def prune_nodes(
    model: Prunable,
    sparsity: float,
    parameters: Tensor,
    criterion: Criterion = "l2",
    scope: Scope = "global",
) -> None:
    """Prune the least important nodes of the ShapeNet, in place.

    A node is one unit of the first or a hidden layer. A mask over the ParameterNet's output
    (`model.output_mask`) sets its incoming weights and its bias to zero for every parameter, so that
    its activation is zero; a shortcut around it is not affected. Pruned nodes stay pruned, and every
    layer keeps at least one node. Retrain afterwards.

    "l2" with all layers together is the published rule. By either criterion, layers with few inputs or
    few readers have nodes of low score and lose nearly all of them: the first layer by "l2", the last
    hidden one by "contribution". The narrowest layer limits a network, so use `scope="layer"` to prune
    more than about half of the nodes.

    Args:
        model: A `NIF` or `MultiScaleNIF`, or a `Normalizer` around one.
        sparsity: Ratio of pruned nodes to all nodes afterwards, 0 <= sparsity < 1.
        parameters: Sample of the parameters over which norms are averaged, `(N, parameter_dim)`.
        criterion: "l2" is the root of the mean over `parameters` of the sum of squared incoming weights,
            without biases. "contribution" is that times the same for all weights that read the node's
            unit.
        scope: "global" compares the nodes of all layers; instead of the last node of a layer, the next
            smallest of another one is pruned. "layer" prunes the same ratio of every layer.

    Raises:
        ValueError: If the ratio is out of range or below that of the nodes already pruned, of all
            nodes or with "layer" of any layer; if the ParameterNet does not generate the weights of
            the model; or if its activation of 0 is not 0.

    Source: Pan, Brunton and Kutz 2023; the nodal pruning published for it, with the biases left out.

    Examples:
        >>> from neurenix_ms.implicit import NIF
        >>> model = NIF(1, 1, shape_width=10)
        >>> prune_nodes(model, 0.5, torch.rand(20, 1))
        >>> model.node_mask.sum().item(), model.node_mask.numel()
        (15, 30)
        >>> model = NIF(1, 1, shape_width=10)
        >>> prune_nodes(model, 0.8, torch.rand(20, 1), scope="layer")
        >>> model.node_mask.sum(1).tolist()
        [2, 2, 2]
    """
    field = prunable(model)
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must lie in [0, 1), got {sparsity}")
    score = choose({"l2": _incoming, "contribution": _contribution}, criterion, "criterion")
    layers = range(len(field.shape.nodes))
    groups = {"global": [list(layers)], "layer": [[layer] for layer in layers]}
    together = choose(groups, scope, "scope")
    check_sample(field, parameters)
    if field.shape.act(torch.zeros(1)).abs().item() > 0:
        raise ValueError(
            "a pruned node must return 0, so the activation of 0 must be 0, "
            f"got {field.shape.act(torch.zeros(1)).item():g} from {type(field.shape.act).__name__}"
        )
    alive = field.node_mask.tolist()
    counts = [_num_to_prune(field, sparsity, alive, group) for group in together]
    if isinstance(model, Normalizer):
        parameters = model.scaled("p", parameters)
    scores = score(field, _mean_squares(field, parameters))
    for group, count in zip(together, counts, strict=True):
        for layer, node in _smallest(scores, alive, group, count):
            _prune(field, layer, node)


@checked
def sparsity(model: Prunable) -> float:
    """Return the ratio of pruned nodes to all nodes of the ShapeNet, which is 0 after `compact`.

    Pruned nodes still cost time and memory; `compact` returns a network without them.

    Args:
        model: A `NIF` or `MultiScaleNIF`, or a `Normalizer` around one.

    Raises:
        ValueError: If the model has no nodes that could be pruned.

    Examples:
        >>> from neurenix_ms.implicit import NIF
        >>> model = NIF(1, 1, shape_width=10, shape_depth=1)
        >>> prune_nodes(model, 0.5, torch.rand(5, 1))
        >>> sparsity(model)
        0.5
    """
    field = prunable(model)
    total = sum(map(len, field.shape.nodes))
    return 1 - int(field.node_mask.sum()) / total


@dataclass(frozen=True)
class PruningSchedule:
    """Sparsities of pruning rounds, evenly spaced from the first round to the last.

    Many small rounds lose less accuracy than few large ones, but each costs a retraining. Any list of
    increasing sparsities can replace it.

    Args:
        start: Sparsity after the first round.
        end: Sparsity after the last round.
        rounds: Number of rounds.

    Raises:
        ValueError: If not 0 <= start <= end < 1, or there is no round.

    Examples:
        >>> list(PruningSchedule(0.25, 0.75, 3))
        [0.25, 0.5, 0.75]
    """

    start: float
    end: float
    rounds: int

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            object.__setattr__(self, name, check_number(name, getattr(self, name)))
        object.__setattr__(self, "rounds", check_integer("rounds", self.rounds, 1, MOST_ROUNDS))
        if not 0 <= self.start <= self.end < 1:
            raise ValueError(
                f"start and end must be 0 <= start <= end < 1, got {self.start} and {self.end}"
            )

    def __iter__(self) -> Iterator[float]:
        steps = max(1, self.rounds - 1)
        span = self.end - self.start
        shares = [self.start + span * i / steps for i in range(self.rounds)]
        return iter([*shares[:-1], self.end])


@dataclass(frozen=True)
class PruningRound:
    """Sparsity and error after a round of `prune_and_retrain`.

    A list of them is the curve from which to choose how much to prune.

    Args:
        sparsity: Ratio of pruned nodes.
        error: Error that `fit` returned.

    Examples:
        >>> PruningRound(0.5, 0.01).sparsity
        0.5
    """

    sparsity: float
    error: float


@checked
def prune_and_retrain(
    model: Prunable,
    fit: Callable[[Prunable], float],
    schedule: PruningSchedule,
    parameters: Tensor,
    criterion: Criterion = "l2",
    scope: Scope = "global",
) -> list[PruningRound]:
    """Train, then prune and retrain in rounds, and return the error for every sparsity.

    Use it to find how small a field can be made. If the sparsity is known already, call `prune_nodes`
    and train once.

    Args:
        model: A `NIF` or `MultiScaleNIF`, or a `Normalizer` around one; it is modified.
        fit: Function that trains a model to convergence and returns its error.
        schedule: Sparsity after each round.
        parameters: Sample `(N, num_parameters)` of the parameters, over which importance is averaged.
        criterion: Importance of a node: "l2" or "contribution", see `prune_nodes`.
        scope: Whether nodes are compared over all layers, "global", or inside each "layer".

    Returns:
        The first training without pruning, then one entry per round.

    Raises:
        ValueError: As `prune_nodes`.

    Examples:
        >>> from neurenix_ms.implicit import NIF
        >>> rounds = prune_and_retrain(
        ...     NIF(1, 1), lambda model: 0.0, PruningSchedule(0.2, 0.8, 4), torch.rand(5, 1)
        ... )
        >>> [round(one.sparsity, 6) for one in rounds]
        [0.0, 0.2, 0.4, 0.6, 0.8]
    """
    results = [PruningRound(sparsity(model), fit(model))]
    for share in schedule:
        prune_nodes(model, share, parameters, criterion, scope)
        results.append(PruningRound(sparsity(model), fit(model)))
    return results


def node_scores(model: Prunable, parameters: Tensor) -> list[Tensor]:
    """Return the "contribution" of every node of every layer, as in `prune_nodes`."""
    field = prunable(model)
    check_sample(field, parameters)
    if isinstance(model, Normalizer):
        parameters = model.scaled("p", parameters)
    return _contribution(field, _mean_squares(field, parameters))


def check_sample(field: GeneratedField, parameters: Tensor) -> None:
    """Raise unless the parameters are one vector of the right length or more."""
    check_rows(parameters, field.parameter_dim, "parameters", "parameter_dim")
    if len(parameters) == 0:
        raise ValueError("parameters must be a sample of one or more, got 0")


def prunable(model: object) -> GeneratedField:
    """Return the field whose nodes can be pruned; raise if the model has none."""
    field = model.model if isinstance(model, Normalizer) else model
    if not isinstance(field, GeneratedField):
        raise ValueError(
            "model must be a NIF or MultiScaleNIF, whose ParameterNet generates the ShapeNet's weights, "
            f"to be pruned, got {shown(field)}"
        )
    return field


def _mean_squares(field: GeneratedField, parameters: Tensor) -> list[Tensor]:
    """Return the mean square of every weight over the parameters, one `(in, out)` matrix per layer.

    Weights are linear in the latent vector, so its second moments are enough.
    """
    z = with_one(field.latent(parameters)).double()
    table = field.table().double()
    squares = torch.einsum("kw,kl,lw->w", table, z.mT @ z / len(z), table).clamp(min=0)
    matrices, _ = field.shape.slices()
    return [squares[m].view(size) for m, size in zip(matrices, field.shape.sizes, strict=True)]


def _incoming(field: GeneratedField, squares: list[Tensor]) -> list[Tensor]:
    return [square.sum(0).sqrt() for square in squares[:-1]]


def _contribution(field: GeneratedField, squares: list[Tensor]) -> list[Tensor]:
    scores = []
    for layer, incoming in enumerate(_incoming(field, squares)):
        outgoing = torch.zeros_like(incoming)
        for reader in field.shape.readers(layer):
            place = {unit: row for row, unit in enumerate(field.shape.reads[reader])}
            rows = [place[unit] for unit in field.shape.nodes[layer]]
            outgoing += squares[reader].sum(1)[rows]
        scores.append(incoming * outgoing.sqrt())
    return scores


def _num_to_prune(
    field: GeneratedField, sparsity: float, alive: list[list[bool]], layers: list[int]
) -> int:
    """Return the number of nodes of these layers that are still to be pruned."""
    total = sum(len(field.shape.nodes[layer]) for layer in layers)
    present = total - sum(sum(alive[layer]) for layer in layers)
    if round(sparsity * total) < present:
        which = f"of layer {layers[0]} " if len(layers) < len(alive) else ""
        raise ValueError(
            f"sparsity must be at least {present / total:g}, as {present} of {total} nodes {which}"
            f"are pruned already, got {sparsity}"
        )
    return round(sparsity * total) - present


def _smallest(
    scores: list[Tensor], alive: list[list[bool]], layers: list[int], count: int
) -> list[tuple[int, int]]:
    """Return (layer, node) of the `count` smallest active nodes that are not the last of a layer."""
    order = sorted(
        (score, layer, node)
        for layer in layers
        for node, score in enumerate(scores[layer].tolist())
        if alive[layer][node]
    )
    left = [sum(row) for row in alive]
    chosen: list[tuple[int, int]] = []
    for _, layer, node in order:
        if len(chosen) < count and left[layer] > 1:
            left[layer] -= 1
            chosen.append((layer, node))
    return chosen


def _prune(field: GeneratedField, layer: int, node: int) -> None:
    matrices, biases = field.shape.slices()
    field.output_mask[matrices[layer]].view(field.shape.sizes[layer])[:, node] = 0
    field.output_mask[biases[layer]][node] = 0
