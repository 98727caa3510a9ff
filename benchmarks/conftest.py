"""The fixture `measure` of the plugin, with the settings of this project's benchmarks."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest

from benchmarks.baseline import STORED, is_ours
from neurenix_ms.bench.measure import Measure

KEPT = ("min", "max", "mean", "stddev", "median", "iqr", "rounds", "iterations", "ops", "outliers")
DEFAULT_FILE = "bench.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    help = "large sizes, compiled and low-precision forms too"
    parser.addoption("--full", action="store_true", help=help)


def pytest_configure(config: pytest.Config) -> None:
    config.option.bench_check = True
    if config.option.bench_file == DEFAULT_FILE:
        config.option.bench_file = str(STORED)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    cpu = machine_info["cpu"]  # without the name of the machine and the flags of the CPU
    machine_info["cpu"] = {key: cpu[key] for key in ("brand_raw", "count") if key in cpu}
    for key in ("node", "release", "python_build"):
        machine_info.pop(key, None)


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict) -> None:
    commit_info["project"] = "neurenix_ms"  # independent of the name of the folder


def pytest_benchmark_update_json(output_json: dict) -> None:
    for entry in output_json["benchmarks"]:  # without the single rounds
        entry["stats"] = {name: entry["stats"][name] for name in KEPT if name in entry["stats"]}
        entry.pop("options", None)


@pytest.fixture
def measure(
    measure: Measure, request: pytest.FixtureRequest
) -> Iterator[Callable[..., dict[str, Any]]]:
    """Check only our variants against the stored values, and create tensors on the device.

    Sizes that only a timed or a full run uses need not be stored.
    """
    option = request.config.getoption
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    trial = option("benchmark_disable") and not option("full")
    wanted = trial or option("bench_store") or measure.key in measure.stored
    held = wanted and is_ours(parameters.get("variant", "ours"))
    device = measure.device
    with nullcontext() if device.type == "cpu" else device:  # which slows down every call of torch
        yield partial(measure, held=held, resident=False)
