"""Modules traced by `torch.fx` and `torch.jit.trace` compute the same at every size."""

import copy
import pickle
import warnings

import pytest
import torch
from cases import CASES, Case, as_list, build, plane_first
from torch.fx import symbolic_trace

from neurenix_ms import UNet
from neurenix_ms.msnet import MSNet, scale_masks

EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
PLANE_FIRST = pytest.mark.parametrize("case", plane_first(), ids=lambda case: case.name)


def assert_same_at_other_sizes(case: Case, model: torch.nn.Module, traced) -> None:
    for n in (16, 13, 21):
        x = case.inputs(case.size(n))
        for y, expected in zip(as_list(traced(x)), as_list(model(x)), strict=True):
            torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


@PLANE_FIRST
def test_fx_traces_a_graph_for_all_sizes(case: Case):
    model = build(case).eval()
    traced = symbolic_trace(model)
    assert_same_at_other_sizes(case, model, traced)
    assert_same_at_other_sizes(case, model, pickle.loads(pickle.dumps(traced)))


@EVERY
def test_fx_records_the_convolutions_and_norms(case: Case):
    called = {node.target for node in symbolic_trace(build(case)).graph.nodes}
    layers = (torch.nn.modules.conv._ConvNd, torch.nn.modules.batchnorm._BatchNorm)
    for name, module in build(case).named_modules():
        if type(module).__module__.startswith("torch.nn") and isinstance(module, layers):
            assert name in called


@EVERY
def test_fx_keeps_the_checks(case: Case):
    traced = symbolic_trace(build(case).eval())
    x = case.inputs((16,) * case.spatial_dims)
    wrong = [y.unsqueeze(2) for y in x] if case.is_list else x.unsqueeze(2)
    with pytest.raises(ValueError, match="spatial axes"):
        traced(wrong)


@PLANE_FIRST
def test_jit_traces_a_graph_for_all_sizes(case: Case):
    model = build(case).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, (case.inputs(case.size(16)),), check_trace=False)
    assert_same_at_other_sizes(case, model, traced)


def test_nothing_of_a_trace_stays_in_the_module():
    model = UNet(1, 1, [4]).eval()
    traced = symbolic_trace(model)
    copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="no cached features"):
        model.get_encoder_features()
    traced(torch.zeros(1, 1, 8, 8))


def test_masks_as_the_published_code_makes_them_are_taken():
    """Without the axis of the batch, one array at a time."""
    model, x = MSNet(3, 1, 1).eval(), torch.rand(1, 1, 16, 16, 16).round()
    masks = scale_masks(x, 3)
    expected = model(x, masks)
    assert all(
        torch.equal(y, e)
        for y, e in zip(model(x, [m.squeeze(0) for m in masks]), expected, strict=True)
    )
    with pytest.raises(ValueError, match="mask 0 must have 1 channel"):
        model(x, [m[0, 0] for m in masks])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@PLANE_FIRST
def test_modules_in_half_precision_run_and_train_on_a_cpu(case: Case, dtype):
    model = build(case).to(dtype)
    x = [y.to(dtype).requires_grad_() for y in as_list(case.inputs(case.size(16)))]
    out = as_list(model(x if case.is_list else x[0]))
    expected = as_list(
        copy.deepcopy(model).float()([y.float() for y in x] if case.is_list else x[0].float())
    )
    for y, wanted in zip(out, expected, strict=True):
        assert y.dtype == dtype
        assert (y.float() - wanted).abs().mean() <= 0.05 * wanted.abs().mean() + 1e-3
    sum(y.float().mean() for y in out).backward()
    assert all(y.grad.isfinite().all() for y in x)


def test_a_compiled_network_that_remembers_has_one_graph_for_all_calls():
    model = UNet(1, 1, [2, 4], spatial_dims=1).eval()
    torch.compiler.reset()
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=count)
    for size in (27, 37, 30):
        x = torch.randn(2, 1, size)
        torch.testing.assert_close(compiled(x), model(x))
    assert len(graphs) == 1
