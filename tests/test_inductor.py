"""Modules compiled by inductor equal the plain call, with one graph for all sizes."""

import copy
import os
import shutil
from collections.abc import Callable

import pytest
import torch
from cases import CASES, Case, as_list, build, scalar
from torch import Tensor, nn
from torch._dynamo.utils import counters

COMPILER = os.environ.get("CXX", "g++")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which(COMPILER) is None,
        reason=f"inductor needs a C++ compiler, and finds no {COMPILER}",
    ),
]
# one case of every module: the other cases capture the same operations, see test_every_module.py
FIRST = [case for case in CASES if case.name.count("-") == 1]
PLANE = [case for case in FIRST if case.spatial_dims == 2]
BESIDE = [case for case in FIRST if case.spatial_dims != 2]
# batch size and image size; torch unifies numbers that are equal in the first call
CALLS = ((2, 27), (3, 37), (4, 30))


def step(model: nn.Module, maps: Tensor | list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs, and the gradients of parameters and inputs."""
    out = model(maps)
    scalar(out).backward()
    leaves = [*model.parameters(), *as_list(maps)]
    gradients = [leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return [y.detach() for y in as_list(out)], gradients


def outputs(model: nn.Module, maps: Tensor | list[Tensor]) -> tuple[list[Tensor]]:
    """Outputs alone."""
    return (as_list(model(maps)),)


def close(found: list[Tensor], wanted: list[Tensor]) -> None:
    """Compare up to rounding, relative to the largest gradient: biases before a norm have gradient 0."""
    largest = max(y.abs().max() for y in wanted)
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() <= 1e-5 * largest


def num_graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch.compiler.reset()
    counters.clear()


def compared(
    case: Case, model: nn.Module, run: Callable[..., tuple[list[Tensor], ...]], *, train: bool
) -> list[int]:
    """Compare calls with the plain module, and return the number of graphs after each call."""
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    counts = []
    for batch, n in CALLS:
        maps = case.inputs(case.size(n), batch, requires_grad=train)
        for found, wanted in zip(run(compiled, maps), run(plain, maps), strict=True):
            close(found, wanted)
        counts.append(num_graphs())
    for found, wanted in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(found, wanted)  # equal running statistics
    return counts


@pytest.mark.parametrize("case", PLANE, ids=lambda case: case.name)
def test_it_trains_the_same_on_every_size(case: Case):
    first, second, third = compared(case, build(case), step, train=True)
    # inductor may compile a second graph above a threshold, but not one per size
    assert first == 1
    assert third == second <= 2


@pytest.mark.parametrize("case", BESIDE, ids=lambda case: case.name)
def test_it_predicts_the_same_in_other_dimensions(case: Case):
    with torch.no_grad():
        first, second, third = compared(case, build(case).eval(), outputs, train=False)
    assert first == 1
    assert third == second <= 2


@pytest.mark.parametrize("name", ["FeatureFusion-1d", "FeatureFusion-3d"])
def test_training_in_other_dimensions_takes_a_graph_per_size(name):
    """Inductor specializes the sizes in the backward of 1-D and 3-D convolutions, as documented."""
    case = next(case for case in BESIDE if case.name == name)
    assert compared(case, build(case), step, train=True) == [1, 2, 3]
