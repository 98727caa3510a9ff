"""The `measure` fixture: time first, then memory and FLOPs in passes of their own."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import baseline
from benchmarks.paired import paired
from neurenix_ms.meter import count_flops, parameter_table, peak_resident_bytes, peak_tensor_bytes

Measure = Callable[..., dict[str, Any]]
LONG = 5.0  # seconds, of a call that is not repeated for the sake of the median
KEPT = ("min", "max", "mean", "stddev", "median", "iqr", "rounds", "iterations", "ops", "outliers")


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.addoption
    add("--threads", type=int, default=1, help="threads of torch (default: 1)")
    add("--device", default=None, help="where everything runs (default: a GPU if there is one)")
    add("--full", action="store_true", help="large sizes, compiled and low-precision forms too")
    add("--store", action="store_true", help="store bytes and operations as the most that may be")
    add(
        "--baseline",
        type=Path,
        default=baseline.STORED,
        help="file of those (default: %(default)s)",
    )
    add(
        "--resident",
        action="store_true",
        help="measure resident memory where a benchmark asks for it, and skip the others; it changes "
        "how memory is given out, so times of such a run do not count",
    )


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    cpu = machine_info["cpu"]  # what a reader can use; not the name of the machine, not 100 flags
    machine_info["cpu"] = {key: cpu[key] for key in ("brand_raw", "count") if key in cpu}
    for key in ("node", "release", "python_build"):
        machine_info.pop(key, None)
    device = device_of(config)
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = config.getoption("--threads")
    machine_info["mkldnn"] = torch.backends.mkldnn.is_available()
    machine_info["gpu"] = torch.cuda.get_device_name(device) if device.type == "cuda" else None


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict) -> None:
    commit_info["project"] = "neurenix_ms"  # whatever the folder is called


def pytest_benchmark_update_json(output_json: dict) -> None:
    output_json["machine_info"]["matmul_flops_per_s"] = {
        str(dtype).removeprefix("torch."): rate for (dtype, _), rate in RATES.items()
    }
    for entry in output_json["benchmarks"]:  # what reports and comparisons read; not every round
        entry["stats"] = {name: entry["stats"][name] for name in KEPT if name in entry["stats"]}
        entry.pop("options", None)


def device_of(config: pytest.Config) -> torch.device:
    """Where everything runs."""
    return torch.device(
        config.getoption("--device") or ("cuda" if torch.cuda.is_available() else "cpu")
    )


@pytest.fixture(autouse=True)
def fixed_conditions(request: pytest.FixtureRequest) -> Iterator[None]:
    """The same numbers, threads and device for every benchmark."""
    threads = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    torch.manual_seed(0)
    device = device_of(request.config)
    with nullcontext() if device.type == "cpu" else device:  # which slows down every call of torch
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def stored(request: pytest.FixtureRequest) -> Iterator[dict[str, dict[str, int]]]:
    """The most bytes and operations that may be, by case; with `--store` what is put in is kept."""
    path = request.config.getoption("--baseline")
    figures = baseline.load(path)
    yield figures
    if request.config.getoption("--store"):
        baseline.store(figures, path)


@pytest.fixture
def measure(
    benchmark: Any, request: pytest.FixtureRequest, stored: dict[str, dict[str, int]]
) -> Measure:
    """Returns `measure(call, items, *, model, x, dtype, rounds, resident, against)`: records one case.

    `call` takes no arguments and handles `items` samples; `model` gives the number of parameters,
    `x` shape and dtype of the input; `dtype` is that of the products if it is another. With
    `resident=True` and `--resident` on the command line the resident memory is measured too.
    `against` is the plain way, to be timed in pairs with `call`. Bytes and operations of ours may not
    exceed those stored. What was recorded is returned.
    """
    option, device = request.config.getoption, device_of(request.config)

    def run(
        call: Callable[[], object],
        items: int,
        *,
        model: nn.Module | None = None,
        x: Tensor | None = None,
        dtype: torch.dtype | None = None,
        rounds: int = 10,
        resident: bool = False,
        against: Callable[[], object] | None = None,
    ) -> dict[str, Any]:
        if option("--resident") and not resident:
            pytest.skip("asks for no resident memory")

        def to_the_end() -> None:
            call()
            finish(device)

        once = option("--resident") or option("benchmark_disable") or seconds(to_the_end) > LONG
        benchmark.pedantic(to_the_end, rounds=1 if once else rounds, warmup_rounds=0 if once else 1)
        timed = benchmark.stats  # None under --benchmark-disable
        median = timed.stats.median if timed else None
        if dtype is None:
            dtype = x.dtype if x is not None and x.is_floating_point() else torch.float32
        flops = count_flops(call)
        measured = benchmark.extra_info
        measured.update(
            items=items,
            items_per_s=items / median if median else None,
            params=parameter_table(model)[-1][1] if model is not None else None,
            tensor_peak_bytes=peak_tensor_bytes(call),
            resident_peak_bytes=resident_bytes(call, device) if option("--resident") else None,
            flops=flops,
            share_of_matmul=flops / median / matmul_rate(dtype, device) if median else None,
            shape=list(x.shape) if x is not None else None,
            dtype=str(dtype).removeprefix("torch."),
        )
        if against is not None and not option("--resident"):
            pairs = max(1 if median > LONG else 3, min(9, int(1.5 / median))) if median else 1
            measured["time_ratio"] = paired(call, against, pairs, device)
        if device.type == "cpu" and not option("--resident"):
            _hold(request.node, measured)
        return measured

    def _hold(case: pytest.Item, measured: dict[str, Any]) -> None:
        parameters = case.callspec.params if hasattr(case, "callspec") else {}
        if not baseline.is_ours(parameters.get("variant", "ours")):
            return
        name = f"{case.path.stem}::{case.name}"
        if option("--store"):
            stored[name] = {figure: measured[figure] for figure in baseline.FIGURES}
        elif name not in stored and (option("full") or not option("benchmark_disable")):
            return  # sizes that only a timed or a full run takes
        elif complaint := baseline.complaint(name, measured, stored):
            pytest.fail(complaint)

    return run


RATES: dict[tuple[torch.dtype, torch.device], float] = {}


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of a product of two matrices of 1024 x 1024, the median of nine."""
    if (dtype, device) not in RATES:
        a = torch.randn(1024, 1024, device=device).to(dtype)
        times = []
        for _ in range(9):
            times.append(seconds(lambda: (a @ a, finish(device))))
        RATES[dtype, device] = 2 * 1024**3 / statistics.median(times)
    return RATES[dtype, device]


def seconds(call: Callable[[], object]) -> float:
    """Time of one call, on the wall."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def finish(device: torch.device) -> None:
    """Wait for what a GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def resident_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Memory of the process that a call adds at most; on a GPU, of torch's allocator."""
    if device.type != "cuda":
        return peak_resident_bytes(call)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    finish(device)
    return torch.cuda.max_memory_allocated(device) - before
