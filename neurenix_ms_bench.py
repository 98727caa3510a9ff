"""The pytest plugin of neurenix_ms: the fixture `measure`, its options, and their table at the end.

pytest imports this file in every run where the package is installed, so it imports nothing but pytest:
torch and the rest of `neurenix_ms.bench` come with the first test that asks for `measure`. That is
also why the file stands beside the package, whose import takes seconds, and not in it.
"""

import argparse
import os
from collections.abc import Iterator
from typing import Any

import pytest

SESSION: pytest.StashKey[Any] = pytest.StashKey()
FILE = "bench.json"
IN_PARALLEL = (
    "measure takes no times under xdist, as processes disturb each other; bytes and operations "
    "are measured. Run with `-n 0` for times"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the fixture `measure`."""
    group = parser.getgroup("neurenix_ms", "measuring modules (neurenix_ms.bench)")
    add = group.addoption
    add(
        "--bench-threads", type=_count, default=1, metavar="N", help="threads of torch (default: 1)"
    )
    add(
        "--bench-device",
        type=_names,
        metavar="DEVICE[,..]",
        help="where modules run, or several places to compare (default: a GPU if there is one)",
    )
    add("--bench-dtype", type=_names, metavar="DTYPE[,..]", help="such as float32,bfloat16")
    add("--bench-batch", type=_counts, metavar="N[,..]", help="batch sizes, such as 1,8")
    add("--bench-sizes", type=_sizes, metavar="N[,..]", help="sizes, such as 64,128 or 64x96")
    add("--bench-compile", action="store_true", help="compare compiled modules too")
    add("--bench-channels-last", action="store_true", help="compare that memory format too")
    add(
        "--bench-resident",
        action="store_true",
        help="measure resident memory too; it changes how memory is given out, so times of such a "
        "run do not count",
    )
    add("--bench-store", action="store_true", help="store bytes and operations")
    add("--bench-check", action="store_true", help="fail where they exceed what is stored by 1 %%")
    add(
        "--bench-file",
        default=FILE,
        metavar="FILE",
        help="file of those, relative to the root folder (default: %(default)s)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the fixture; without pytest-benchmark, one that says what is missing."""
    if config.getoption("bench_store") and _in_parallel(config):
        raise pytest.UsageError("--bench-store needs one process, got xdist; run with `-n 0`")
    there = config.getoption("benchmark_disable", None) is not None
    config.pluginmanager.register(_Fixture() if there else _Missing(), "neurenix_ms_measure")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what is to be stored."""
    if found := session.config.stash.get(SESSION, None):
        found.finish()


def pytest_terminal_summary(
    terminalreporter: "pytest.TerminalReporter", config: pytest.Config
) -> None:
    """Show a table of every comparison."""
    found = config.stash.get(SESSION, None)
    if found and found.cases:
        from neurenix_ms.bench.tables import as_text

        terminalreporter.section("neurenix_ms.bench")
        terminalreporter.write_line(as_text(found.content()))


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Add what torch says of the machine."""
    if found := config.stash.get(SESSION, None):
        output_json["neurenix_ms_bench"] = found.description()


class _Fixture:
    @pytest.fixture
    def measure(self, benchmark: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
        """Time, memory and operations of modules: `measure.compare({"a": a, "b": b}, inputs)`."""
        import torch

        from neurenix_ms.bench.measure import Measure
        from neurenix_ms.bench.session import Session

        config = request.config
        if SESSION not in config.stash:
            try:
                config.stash[SESSION] = Session(config)
            except ValueError as error:
                pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
        if _in_parallel(config) and not config.getoption("benchmark_disable"):
            request.node.warn(pytest.PytestWarning(IN_PARALLEL))
        session = config.stash[SESSION]
        threads = torch.get_num_threads()
        torch.set_num_threads(session.threads)
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(0)
            yield Measure(benchmark, request.node, session)
        torch.set_num_threads(threads)


class _Missing:
    @pytest.fixture
    def measure(self) -> None:
        """Time, memory and operations of modules; needs pytest-benchmark."""
        pytest.fail(
            "measure needs pytest-benchmark, which is not there: pip install 'neurenix_ms[bench]'",
            pytrace=False,
        )


def _in_parallel(config: pytest.Config) -> bool:
    return config.getoption("dist", "no") != "no" or "PYTEST_XDIST_WORKER" in os.environ


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _counts(text: str) -> list[int]:
    return [_count(part) for part in _names(text)]


def _count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def _sizes(text: str) -> list[int | tuple[int, ...]]:
    sizes: list[int | tuple[int, ...]] = []
    for part in _names(text):
        edges = tuple(_count(edge) for edge in part.split("x"))
        sizes.append(edges[0] if len(edges) == 1 else edges)
    return sizes
