"""Constants of modules: kept by dtype, shared, freed, and absent from copies and recorded graphs."""

import copy
import gc
import pickle

import pytest
import torch

from neurenix_ms import BlurPool, SpectralMixing
from neurenix_ms._core import constants
from neurenix_ms._core.constants import kept_constants

MODULES = {
    "BlurPool": lambda: BlurPool(spatial_dims=2),
    "SpectralMixing": lambda: SpectralMixing(2, 2, 3),
}


def image() -> torch.Tensor:
    return torch.randn(1, 2, 9, 7)


def num_made(counts: list[int], module: torch.nn.Module, key: int) -> int:
    def make() -> tuple[torch.Tensor, ...]:
        counts.append(key)
        return (torch.zeros(key),)

    kept_constants(module, "x", ("test", key), make)
    return len(counts)


def test_they_are_made_once_per_key_and_shared():
    counts: list[int] = []
    a, b = torch.nn.Identity(), torch.nn.Identity()
    assert [num_made(counts, m, 3) for m in (a, a, b)] == [1, 1, 1]
    assert [num_made(counts, m, 4) for m in (a, a, b)] == [2, 2, 2]


def test_they_are_freed_with_the_last_module():
    gc.collect()
    before = len(constants._shared)
    module = torch.nn.Identity()
    num_made([], module, 5)
    assert len(constants._shared) == before + 1
    del module
    gc.collect()
    assert len(constants._shared) == before


@pytest.mark.parametrize("name", MODULES)
def test_another_dtype_gets_its_own(name: str):
    module, x = MODULES[name]().double(), image().double()
    expected = module(x)
    module.float()(x.float())
    torch.testing.assert_close(module.double()(x), expected)


@pytest.mark.parametrize("name", MODULES)
def test_inference_mode_first_does_not_break_training(name: str):
    module, x = MODULES[name](), image().requires_grad_()
    with torch.inference_mode():
        module(image())
    module(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", MODULES)
def test_copies_pickles_and_state_dicts_are_those_of_a_module_that_was_not_called(name: str):
    module, x = MODULES[name](), image()
    size = len(pickle.dumps(module))
    keys = list(module.state_dict())
    y = module(x)
    assert len(pickle.dumps(module)) == size
    assert list(module.state_dict()) == keys
    assert torch.equal(copy.deepcopy(module)(x), y)


@pytest.mark.parametrize("name", MODULES)
def test_a_transform_of_functions_leaves_nothing_behind(name: str):
    module, x = MODULES[name](), image()

    def total(x: torch.Tensor) -> torch.Tensor:
        return module(x).sum()

    gradient = torch.func.grad(total)(x)
    mapped: torch.Tensor = torch.func.vmap(module)(x[None])[0]
    torch.testing.assert_close(module(x), mapped)
    x.requires_grad_()
    total(x).backward()
    torch.testing.assert_close(x.grad, gradient)


@pytest.mark.parametrize("name", MODULES)
def test_an_export_after_an_eager_call_has_open_sizes(name: str):
    module, x = MODULES[name](), image()
    module(x)
    sizes = {2: torch.export.Dim("H", min=4), 3: torch.export.Dim("W", min=4)}
    exported = torch.export.export(module, (x,), dynamic_shapes=(sizes,))
    y = torch.randn(1, 2, 12, 15)
    torch.testing.assert_close(exported.module()(y), module(y))
