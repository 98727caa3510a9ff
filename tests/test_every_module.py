"""One contract for every public module, in one, two and three dimensions."""

import copy
import importlib
import inspect
import io
import pickle

import pytest
import torch
from cases import CASES, Case, as_list, build, scalar, to_compile
from torch._dynamo.utils import counters
from torch.export import Dim, export

import neurenix_ms as nms
from neurenix_ms._core.config import Configured, is_plain

EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
PLANE = pytest.mark.parametrize("case", to_compile([2]), ids=lambda case: case.name)
LONG_TO_COMPILE = {  # made of parts that are compiled alone; their export is not marked as slow
    "BidirectionalFusion",
    "HighResolutionNetwork",
    "NestedUNet",
    "PyramidPooling",
    "UPerHead",
}
COMPILED = pytest.mark.parametrize(
    "case",
    [
        pytest.param(*p.values, marks=pytest.mark.slow)
        if p.values[0].name.split("-")[0] in LONG_TO_COMPILE
        else p
        for p in to_compile([2])
    ],
    ids=lambda case: case.name,
)


def equal(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(as_list(a), as_list(b), strict=True))


def close(a, b, **tolerance) -> None:
    for x, y in zip(as_list(a), as_list(b), strict=True):
        torch.testing.assert_close(x, y, **tolerance)


def test_every_public_module_has_a_case():
    public = {
        name
        for name in nms.multiscale.__all__
        if issubclass(getattr(nms.multiscale, name), torch.nn.Module)
        and not name.endswith("Loss")  # of two inputs
    }
    assert public | {"MSNet"} == {case.name.split("-")[0] for case in CASES}


@EVERY
def test_state_dict_pickle_and_deepcopy_give_the_same_module(case: Case):
    model = build(case).eval()
    x = case.inputs(case.size(13))
    expected = model(x)
    other = case.build().eval()
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert equal(other(x), expected)
    assert equal(pickle.loads(pickle.dumps(model))(x), expected)
    assert equal(copy.deepcopy(model)(x), expected)


@EVERY
def test_the_config_rebuilds_the_module(case: Case):
    model = build(case)
    assert isinstance(model, Configured)
    if not case.name.startswith("MultiScaleModel"):  # its base model is not plain
        assert is_plain(model.config)
    twin = type(model)(**model.config)
    assert [p.shape for p in twin.parameters()] == [p.shape for p in model.parameters()]
    assert repr(twin) == repr(model)


@EVERY
def test_float64_in_gives_float64_out(case: Case):
    model = build(case).double()
    for y in as_list(model(case.inputs(case.size(12), dtype=torch.float64))):
        assert y.dtype == torch.float64
        assert y.isfinite().all()


@EVERY
def test_bf16_autocast_stays_close(case: Case):
    model = build(case).eval()
    x = case.inputs(case.size(16))
    with torch.autocast("cpu", torch.bfloat16):
        low = model(x)
    for y, reference in zip(as_list(low), as_list(model(x)), strict=True):
        assert (y.float() - reference).abs().mean() <= 0.05 * reference.abs().mean() + 1e-3


@EVERY
def test_a_batch_of_one_trains(case: Case):
    model = build(case).train()
    x = case.inputs(case.size(16), batch=1, requires_grad=True)
    scalar(model(x)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(y.grad is not None and y.grad.isfinite().all() for y in as_list(x))


@EVERY
def test_samples_of_a_batch_do_not_mix_in_eval(case: Case):
    model = build(case).double().eval()
    x = case.inputs(case.size(13), dtype=torch.float64)
    first = [y[:1] for y in x] if case.is_list else x[:1]
    close([y[:1] for y in as_list(model(x))], as_list(model(first)))


@EVERY
def test_strides_of_the_input_do_not_matter(case: Case):
    model = build(case).double().eval()
    x = case.inputs(case.size(13), dtype=torch.float64)
    strided = [y.transpose(-1, 1).contiguous().transpose(-1, 1) for y in as_list(x)]
    expected = model(x)
    close(model(strided if case.is_list else strided[0]), expected)
    if case.spatial_dims > 1:
        form = torch.channels_last if case.spatial_dims == 2 else torch.channels_last_3d
        last = [y.to(memory_format=form) for y in as_list(x)]
        close(model.to(memory_format=form)(last if case.is_list else last[0]), expected)


@EVERY
def test_the_input_is_left_as_it_was(case: Case):
    model = build(case)
    x = case.inputs(case.size(13))
    before = copy.deepcopy(x)
    model(x)
    assert equal(x, before)


@EVERY
def test_every_parameter_gets_a_gradient(case: Case):
    model = build(case)
    scalar(model(case.inputs(case.size(13), requires_grad=True))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@EVERY
def test_another_rank_raises_with_its_shape(case: Case):
    x = case.inputs((*case.size(13), 2))
    shape = tuple(as_list(x)[0].shape)
    words = rf"expected \(B, C\) and {case.spatial_dims} spatial axes, got shape "
    with pytest.raises(
        ValueError, match=words + str(shape).replace("(", r"\(").replace(")", r"\)")
    ):
        case.build()(x)


@COMPILED
def test_compiled_without_a_break_it_is_equal_at_every_size(case: Case):
    torch.compiler.reset()
    counters.clear()
    model = build(case)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for n in (16, 21, 18):
        x = case.inputs(case.size(n))
        close(compiled(x), copy.deepcopy(model)(x))
    assert counters["stats"]["unique_graphs"] <= 2  # one for the first size, one for all others


def equal_once_exported(case: Case) -> None:
    """Export one program at one size, and compare it with the module at other sizes."""
    model = build(case).eval()
    axes = [Dim(f"axis{k}", min=8, max=256) for k in range(case.spatial_dims)]
    shapes = case.shapes(axes)
    program = export(
        model,
        (case.inputs((64, 48, 32)[: case.spatial_dims]),),
        dynamic_shapes=(shapes if case.is_list else shapes[0],),
    ).module()
    for size in ((32, 40, 36), (44, 36, 32), *([] if case.is_list else [(19, 37, 21)])):
        x = case.inputs(size[: case.spatial_dims])
        close(program(x), model(x))


@PLANE
def test_exported_once_it_runs_on_other_sizes(case: Case):
    equal_once_exported(case)


@pytest.mark.parametrize("case", [c for c in CASES if c.spatial_dims != 2], ids=lambda c: c.name)
@pytest.mark.slow
def test_compiled_and_exported_in_other_dimensions(case: Case):
    torch.compiler.reset()
    counters.clear()
    model = build(case)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for n in (16, 21, 18):
        x = case.inputs(case.size(n))
        close(compiled(x), copy.deepcopy(model)(x))
    assert counters["stats"]["unique_graphs"] <= 2
    equal_once_exported(case)


@EVERY
def test_its_repr_names_what_was_chosen(case: Case):
    model = case.build()
    shown = model.extra_repr()
    parameters = inspect.signature(type(model)).parameters
    default = parameters["spatial_dims"].default
    assert f"spatial_dims={model.spatial_dims}" in shown or model.spatial_dims == default
    for name, parameter in parameters.items():
        assert parameter.default is not inspect.Parameter.empty or f"{name}=" in shown


def test_every_public_module_has_an_extra_repr():
    packages = (
        "",
        ".msnet",
        ".execution",
        ".training",
        ".timestepping",
        ".implicit",
        ".conservation",
        ".transport",
    )
    for package in packages:
        for value in vars(importlib.import_module(f"neurenix_ms{package}")).values():
            if isinstance(value, type) and issubclass(value, torch.nn.Module):
                ours = value.__module__.startswith("neurenix_ms")
                assert not ours or value.extra_repr is not torch.nn.Module.extra_repr, value
