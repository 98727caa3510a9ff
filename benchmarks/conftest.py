"""The `measure` fixture: time first, then memory and FLOPs in passes of their own."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neurenix_ms.meter import count_flops, parameter_table, peak_resident_bytes, peak_tensor_bytes

Measure = Callable[..., dict[str, Any]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, default=1, help="threads of torch (default: 1)")
    parser.addoption(
        "--resident",
        action="store_true",
        help="measure resident memory where a benchmark asks for it; it changes how memory is "
        "given out, so times of such a run do not count",
    )


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    cpu = machine_info["cpu"]  # what a reader can use; not the name of the machine, not 100 flags
    machine_info["cpu"] = {key: cpu[key] for key in ("brand_raw", "count") if key in cpu}
    for key in ("node", "release", "python_build"):
        machine_info.pop(key, None)
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = config.getoption("--threads")
    machine_info["mkldnn"] = torch.backends.mkldnn.is_available()


def pytest_benchmark_update_json(output_json: dict) -> None:
    for entry in output_json["benchmarks"]:  # every single round, which no report reads
        entry["stats"].pop("data", None)


@pytest.fixture(autouse=True)
def fixed_conditions(request: pytest.FixtureRequest) -> Iterator[None]:
    """The same numbers and the same threads for every benchmark."""
    threads = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def measure(benchmark: Any, request: pytest.FixtureRequest) -> Measure:
    """Returns `measure(call, items, *, model, x, rounds, resident)`, which records one case.

    `call` takes no arguments and handles `items` samples; `model` gives the number of parameters,
    `x` shape and dtype of the input. With `resident=True` and `--resident` on the command line the
    resident memory is measured too. What was recorded is returned.
    """

    def run(
        call: Callable[[], object],
        items: int,
        *,
        model: nn.Module | None = None,
        x: Tensor | None = None,
        rounds: int = 10,
        resident: bool = False,
    ) -> dict[str, Any]:
        benchmark.pedantic(call, rounds=rounds, warmup_rounds=2)
        timed = benchmark.stats  # None under --benchmark-disable
        resident = resident and request.config.getoption("--resident")
        benchmark.extra_info.update(
            items=items,
            items_per_s=items / timed.stats.median if timed else None,
            params=parameter_table(model)[-1][1] if model is not None else None,
            tensor_peak_bytes=peak_tensor_bytes(call),
            resident_peak_bytes=peak_resident_bytes(call) if resident else None,
            flops=count_flops(call),
            shape=list(x.shape) if x is not None else None,
            dtype=str(x.dtype).removeprefix("torch.") if x is not None else None,
        )
        return benchmark.extra_info

    return run
