"""Modules in ONNX, in low precision, deterministic and on several processes equal the plain call."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import CASES, Case, as_list, build, scalar
from torch.export import Dim

from docs_tools.running import LIMITS, WAYS, WITHOUT_PARAMETERS, modules, table
from neurenix_ms.layers.adaptive_pool import AdaptivePool

HERE = Path(__file__).parents[1] / "helpers"
EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
PLANE = pytest.mark.parametrize(
    "case", [c for c in CASES if c.spatial_dims == 2], ids=lambda case: case.name
)


def module_name(case: Case) -> str:
    return case.name.split("-")[0]


def to_onnx(case: Case, model: torch.nn.Module, size: tuple[int, ...]):
    """Return a function of the inputs that runs the exported file in onnxruntime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    dims = [Dim(f"axis{k}", min=8, max=256) for k in range(case.spatial_dims)]
    shapes = case.shapes(dims)
    program = torch.onnx.export(
        model,
        (case.inputs(size),),
        dynamo=True,
        verbose=False,
        dynamic_shapes=(shapes if case.is_list else shapes[0],),
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [node.name for node in session.get_inputs()]

    def run(maps):
        arrays = (x.numpy() for x in as_list(maps))
        return session.run(None, dict(zip(names, arrays, strict=True)))

    return run


def equal_in_onnx(case: Case, sizes: list[tuple[int, ...]]) -> None:
    model = build(case).eval()
    run = to_onnx(case, model, sizes[0])
    for size in sizes:
        maps = case.inputs(size)
        for out, y in zip(run(maps), as_list(model(maps)), strict=True):
            torch.testing.assert_close(torch.from_numpy(out), y, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@PLANE
def test_onnxruntime_equals_the_module_at_every_size(case: Case):
    equal_in_onnx(case, [(64, 48), (32, 40), *([] if case.is_list else [(19, 37)])])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "UNet-1d",
        "UNet-3d",
        "PyramidNetwork-1d",
        "MultiScalePooling-max-1d",
        "FeatureFusion-1d",
        "FeatureFusion-3d",
        "PyramidNetwork-3d",
        *(
            f"{name}-{dims}d"
            for dims in (1, 3)
            for name in (
                "BlurPool",
                "BlurPool-even",
                "PixelUnshuffle",
                "PixelUnshuffle-unequal",
                "PixelShuffle",
                "WaveletTransform",
                "WaveletTransform-db4",
                "InverseWaveletTransform",
                "InverseWaveletTransform-cdf97",
            )
        ),
    ],
)
def test_onnxruntime_equals_the_module_in_other_dimensions(name):
    case = next(case for case in CASES if case.name == name)
    sizes = [case.size(16), case.size(24)]
    if case.is_list:
        sizes = [(16,) * case.spatial_dims, (24,) * case.spatial_dims]
    equal_in_onnx(case, sizes)


@pytest.mark.parametrize("pool_type", ["avg", "max"])
@pytest.mark.parametrize("size", [(7,), (5, 12), (3, 1, 8)])
@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_bins_taken_axis_by_axis_are_those_of_adaptive_pooling(pool_type, size, bins):
    grid = AdaptivePool(bins, pool_type, len(size)).double()
    # few different numbers: where a bin has its maximum twice, the first gets the gradient
    x = torch.randint(4, (2, 3, *size)).double().requires_grad_()
    y = x
    for axis in reversed(range(2, x.ndim)):
        y = grid.along(y, axis)
    torch.testing.assert_close(y, grid(x))
    weights = torch.randn_like(y)
    (mine,), (theirs,) = (torch.autograd.grad((p * weights).sum(), x) for p in (y, grid(x)))
    torch.testing.assert_close(mine, theirs)


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_it_trains_in_low_precision(case: Case, dtype):
    model = build(case)
    x = case.inputs(case.size(16), requires_grad=True)
    with torch.autocast("cpu", dtype):
        out = model(x)
    for low, y in zip(as_list(out), as_list(copy.deepcopy(model)(x)), strict=True):
        assert (low.float() - y).abs().mean() <= 0.05 * y.abs().mean() + 1e-3
    sum(y.float().mean() for y in as_list(out)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(y.grad.isfinite().all() for y in as_list(x))


@EVERY
def test_deterministic_algorithms_are_enough_and_repeat_to_the_last_bit(case: Case):
    model = build(case)
    maps = case.inputs(case.size(13), requires_grad=True)
    runs = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(2):
            scalar(model(maps)).backward()
            leaves = [*model.parameters(), *as_list(maps)]
            runs.append([leaf.grad.clone() for leaf in leaves])
            for leaf in leaves:
                leaf.grad = None
            for module in model.modules():  # running statistics moved; outputs of a batch did not
                if hasattr(module, "reset_running_stats"):
                    module.reset_running_stats()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("wrap", ["ddp", "fsdp", "fsdp-layers", "fsdp-blocks"])
def test_two_processes_have_the_gradients_of_one(wrap, tmp_path):
    report = tmp_path / "report.txt"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = [str(HERE / "distributed_worker.py"), wrap, str(report)]
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command, *worker], check=True, env=environment, timeout=300)
    assert report.read_text() == ""


def test_the_table_names_every_module_and_every_limit():
    lines = table().splitlines()
    assert len(lines) == 2 + len(modules())
    assert {module for _, module in LIMITS} <= set(modules())
    assert {way for way, _ in LIMITS} <= set(WAYS)
    assert "| `PyramidPooling` | yes | yes | yes | yes | yes | yes | yes | yes | yes |" in table()
    assert {module_name(case) for case in CASES} == set(modules())


@PLANE
def test_modules_without_parameters_are_known(case: Case):
    without = not any(True for _ in case.build().parameters())
    if module_name(case) != "FeatureFusion":
        assert without == (module_name(case) in WITHOUT_PARAMETERS)
