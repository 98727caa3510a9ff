"""The fixture `measure` in a test suite of its own, as a user has it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from _pytest import pytester as in_process

HEAD = """
import pytest, torch
from torch import nn

conv = nn.Conv2d(3, 4, 3, padding=1)
same = nn.Sequential(conv, nn.Identity())
other = nn.Conv2d(3, 4, 3, padding=1)
x = torch.ones(2, 3, 8, 8)

def broken(x):
    raise RuntimeError("it is broken\\nin many ways")
"""
PEAK = 2 * 4 * 64 * 4  # bytes of the result
FLOPS = 2 * (3 * 9) * (2 * 4 * 64)


class OfTestsOnly(in_process.SysModulesSnapshot):
    """Forgets modules of inner test suites alone: torch cannot be imported twice."""

    def restore(self) -> None:
        for name in [n for n in sys.modules if n.startswith(("test_mine", "conftest"))]:
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _modules_stay(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(in_process, "SysModulesSnapshot", OfTestsOnly)


@pytest.fixture(autouse=True)
def _no_worker(monkeypatch: pytest.MonkeyPatch):
    """Let inner test suites take times where this one runs in several processes."""
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Run one test with this body; the result of the run."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(body: str, *options: str, disabled: bool = True) -> pytest.RunResult:
        code = f"{HEAD}\ndef test_it(measure):\n    {body}\n"
        pytester.path.joinpath("test_mine.py").write_text(code)
        plugins = ["-p", "pytest_benchmark.plugin", "-p", "neurenix_ms_bench"]
        trial = ["--benchmark-disable"] if disabled else []
        return pytester.runpytest_inprocess(*plugins, *trial, *options)

    return run


def cases(path: Path) -> dict[str, dict[str, Any]]:
    return {case["name"]: case for case in json.loads(path.read_text())["benchmarks"]}


def test_every_way_is_recorded_under_its_name(suite, pytester: pytest.Pytester):
    body = 'measure.compare({"a": conv, "b": same}, x, reference="b", rounds=3)'
    result = suite(body, "--benchmark-json=run.json", disabled=False)
    result.assert_outcomes(passed=1)
    found = cases(pytester.path / "run.json")
    assert list(found) == ["test_it[a]", "test_it[b]"]
    a, b = (case["extra_info"] for case in found.values())
    assert {case["group"] for case in found.values()} == {"it"}
    assert found["test_it[a]"]["params"] == {"variant": "a"}
    assert found["test_it[a]"]["stats"]["rounds"] == 3
    assert (a["tensor_peak_bytes"], a["flops"], a["params"]) == (PEAK, FLOPS, 3 * 4 * 9 + 4)
    assert a["items"] == 2
    assert a["items_per_s"] == pytest.approx(2 / found["test_it[a]"]["stats"]["median"])
    assert 0 < a["time_ratio"] < 10
    assert "time_ratio" not in b
    assert (a["error"], a["same_result"], b["error"]) == (0, True, None)
    assert 0 < a["share_of_matmul"] < 1
    about = json.loads((pytester.path / "run.json").read_text())["neurenix_ms_bench"]
    assert (about["format"], about["threads"]) == (1, 1)
    assert about["torch"] == torch.__version__
    result.stdout.fnmatch_lines(["*variant * time * live tensors * FLOPs *", "  b * 2 KiB *"])


def test_a_training_step_counts_backward_and_leaves_modules_alone(suite):
    body = """
    x.requires_grad_()
    found = measure.compare({"a": conv, "f": lambda x: conv(x)}, x, train=True)
    assert [one["flops"] for one in found] == 2 * [3 * FLOPS]
    assert x.grad is None
    assert all(p.grad is None for p in conv.parameters())
    """.replace("FLOPS", str(FLOPS))
    suite(body).assert_outcomes(passed=1)


def test_a_training_step_needs_something_to_train(suite):
    result = suite('measure.compare({"f": lambda x: x + 1}, x, train=True)')
    result.stdout.fnmatch_lines(
        ["*test_it?f?: raised ValueError: train=True needs a module with parameters, or an input *"]
    )


def test_unequal_and_broken_ways_are_named_and_the_others_measured(suite, pytester):
    ways = (
        '{"a": conv, "other": other, "broken": broken, "short": lambda x: conv(x)[:1], "b": same}'
    )
    result = suite(
        f"measure.compare({ways}, x, rounds=1)", "--benchmark-json=a.json", disabled=False
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*test_it?other?: the result must be that of 'a' within 1e-04 of its largest value, got "
            "a difference of *; pass equal=False to compare costs all the same",
            "*test_it?broken?: raised RuntimeError: it is broken",
            "*test_it?short?: outputs must have shapes *(2, 4, 8, 8)*, got *(1, 4, 8, 8)*",
        ]
    )
    # pytest-benchmark leaves out nothing of a test that has failed
    assert set(cases(pytester.path / "a.json")) == {"test_it[a]", "test_it[b]"}


def test_other_results_are_measured_where_that_is_meant(suite):
    body = """
    found = measure.compare({"a": conv, "b": other, "c": lambda x: x}, x, equal=False)
    assert [one["same_result"] for one in found] == [True, False, False]
    assert found[1]["error"] > 0.01
    assert found[2]["error"] is None  # of another shape
    loose = measure.compare({"a": conv, "b": other}, x, tolerance=100, name="loose")
    assert loose[1]["same_result"]
    """
    suite(body).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ('{"a": conv}, x, reference="b"', "reference must be one of ['a'], got 'b'"),
        ("{}, x", "ways must be modules or functions by name, got {}"),
        ("[conv], x", "ways must be modules or functions by name, got [Conv2d*"),
        ('{"a": 3}, x', "ways['a'] must be a module or a function, got 3"),
        (
            '{"a": conv}, x, sizes=[8]',
            "inputs must be a function of batch and size where these are given, got a tensor *",
        ),
        (
            '{"a": conv}, lambda batch: x, sizes=8',
            "inputs must have an argument 'size' where size is given, got a function of ['batch']",
        ),
        (
            '{"a": conv}, lambda size: x',
            "sizes must be given where inputs is a function of size, got None",
        ),
        ('{"a": conv}, torch.ones(1, 2, 8, 8)', "raised RuntimeError: Given groups=1, *"),
        (
            '{"a": broken, "b": conv}, x',
            "test_it?b?: is not measured, as the reference 'a' has failed",
        ),
    ],
)
def test_a_wrong_argument_is_named(suite, call: str, words: str):
    result = suite(f"measure.compare({call})")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*" + words.replace("[", "?").replace("]", "?") + "*"])


def test_two_comparisons_of_a_test_have_names(suite):
    body = """
    for name in "pq":
        found = measure.compare({"a": conv}, x, name=name)
        assert found[0]["comparison"] == name
    """
    suite(body).assert_outcomes(passed=1)
    result = suite(body.replace("name=name", "name='p'"))
    result.stdout.fnmatch_lines(
        ["*test_it?p-a?: each comparison of a test must have a name of its own, pass name="]
    )


def test_a_device_that_is_missing_stops_only_its_cases(suite):
    body = 'measure.compare({"a": conv}, x, device=["cpu", "xpu:7"])'
    result = suite(body)
    result.stdout.fnmatch_lines(
        ["*test_it?xpu:7?: device must be one of this machine, got 'xpu:7' (*", "*cpu *2 KiB*"]
    )


def test_forms_are_cases_of_their_own(suite):
    body = """
    def inputs(batch, size):
        return torch.ones(batch, 3, *size)
    found = measure.compare(
        {"a": conv}, inputs, sizes=[(4, 4), (4, 6)], batch=[1, 2], dtype=torch.float64,
        channels_last=True,
    )
    assert [one["shape"] for one in found] == [
        [1, 3, 4, 4], [2, 3, 4, 4], [1, 3, 4, 6], [2, 3, 4, 6]]
    assert {one["dtype"] for one in found} == {"float64"}
    assert [found[1][k] for k in ("size", "batch", "channels_last")] == ["4x4", 2, True]
    assert conv.weight.dtype is torch.float32
    """
    result = suite(body)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["  size  batch    dtype  channels_last  variant*"])


def test_the_command_line_chooses_forms(suite):
    body = """
    def inputs(batch, size=4):
        return torch.ones(batch, 3, size, size)
    found = measure.compare({"a": conv}, inputs, sizes=4, tolerance=1)
    keys = ("size", "batch", "dtype", "channels_last")
    assert [[one[key] for key in keys] for one in found] == [
        [size, 2, dtype, last]
        for size in (8, 16) for dtype in ("float32", "bfloat16") for last in (False, True)]
    """
    options = ["--bench-sizes=8,16", "--bench-batch=2", "--bench-dtype=float32,bfloat16"]
    suite(body, *options, "--bench-channels-last", "--bench-device=cpu").assert_outcomes(passed=1)


def test_a_compiled_way_has_the_operations_of_the_plain_one_and_no_peak(suite):
    body = """
    compiled = torch.compile(conv, backend="eager")
    found = measure.compare({"a": conv, "b": compiled}, x)
    assert found[0]["flops"] == found[1]["flops"] > 0
    assert [one["tensor_peak_bytes"] is None for one in found] == [False, True]
    """
    suite(body).assert_outcomes(passed=1)


@pytest.mark.slow
def test_the_command_line_compares_compiled_modules(suite, pytester: pytest.Pytester):
    body = """
    found = measure.compare({"a": conv, "b": same}, x, rounds=1)
    assert [one["compile"] for one in found] == [False, False, True, True]
    assert [one["tensor_peak_bytes"] is None for one in found] == [False, False, True, True]
    assert len({one["flops"] for one in found}) == 1
    assert all(one["same_result"] for one in found)
    """
    options = ["--bench-compile", "--benchmark-json=run.json"]
    result = suite(body, *options, disabled=False)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["  compile  variant *", "  False *a *", "  True *b *"])
    found = cases(pytester.path / "run.json")
    assert list(found)[2:] == ["test_it[compile-a]", "test_it[compile-b]"]
    assert found["test_it[compile-b]"]["stats"]["median"] > 0
    assert found["test_it[compile-b]"]["extra_info"]["time_ratio"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells of resident memory")
@pytest.mark.slow
def test_the_command_line_measures_resident_memory(suite, pytester: pytest.Pytester):
    body = """
    size = 2**24
    large = lambda x: torch.ones(size).sum()
    found = measure.compare({"small": lambda x: torch.ones(9).sum(), "large": large}, x, equal=False)
    small, large = (one["resident_peak_bytes"] for one in found)
    assert large - small > 0.9 * 4 * size
    """
    options = ["--bench-resident", "--benchmark-json=run.json", "--bench-store"]
    result = suite(body, *options, disabled=False)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["  variant*memory*", "  large *MiB*"])
    stats = cases(pytester.path / "run.json")["test_it[large]"]["stats"]
    assert stats["rounds"] == 1  # its times do not count
    assert not (pytester.path / "bench.json").exists()
    one = suite("measure(lambda: torch.ones(9), resident=False)", *options, disabled=False)
    one.assert_outcomes(skipped=1)


@pytest.mark.slow
def test_in_another_repository_the_installed_plugin_is_found(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    code = f"{HEAD}\ndef test_it(measure):\n    measure.compare({{'a': conv, 'b': same}}, x, rounds=1)\n"
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", raising=False)
    (pytester.path / "test_mine.py").write_text(code)
    options = ["--bench-threads=1", "--bench-store", "--benchmark-json=run.json"]
    result = pytester.runpytest_subprocess(*options)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["*plugins:*neurenix*", "*neurenix_ms.bench*", "*b *2 KiB (1.00x)*"]
    )
    assert set(cases(pytester.path / "run.json")) == {"test_it[a]", "test_it[b]"}
    assert "test_mine::test_it[a]" in json.loads((pytester.path / "bench.json").read_text())


def test_one_call_is_a_case(suite, pytester: pytest.Pytester):
    body = "measure(lambda: conv(x), 2, model=conv, x=x, rounds=2, against=lambda: same(x))"
    suite(body, "--benchmark-json=run.json", disabled=False).assert_outcomes(passed=1)
    found = cases(pytester.path / "run.json")["test_it"]
    assert found["stats"]["rounds"] == 2
    assert found["extra_info"]["flops"] == FLOPS
    assert found["extra_info"]["shape"] == [2, 3, 8, 8]
    assert found["extra_info"]["time_ratio"] > 0


def test_a_trial_run_times_nothing(suite):
    body = """
    measured = measure(lambda: conv(x), 2, model=conv, x=x, against=lambda: 1 / 0)
    assert measured["flops"] > 0
    assert "time_ratio" not in measured
    """
    suite(body).assert_outcomes(passed=1)


def test_what_no_count_holds_is_listed(suite):
    result = suite('measure.compare({"a": lambda x: torch.fft.rfft2(x).abs()}, x)')
    result.stdout.fnmatch_lines(["  Not in the FLOPs: a: _fft_r2c."])


def test_bytes_and_operations_are_stored_and_held(suite, pytester: pytest.Pytester):
    body = 'measure.compare({"a": conv, "b": same}, x)'
    suite(body, "--bench-check").stdout.fnmatch_lines(
        ["test_mine::test_it?a? has no stored figures; store them with pytest --bench-store", "*"]
    )
    suite(body, "--bench-store").assert_outcomes(passed=1)
    file = pytester.path / "bench.json"
    stored = json.loads(file.read_text())
    assert stored["test_mine::test_it[a]"] == {"tensor_peak_bytes": PEAK, "flops": FLOPS}
    suite(body, "--bench-check").assert_outcomes(passed=1)
    stored["test_mine::test_it[b]"]["flops"] = FLOPS // 2
    file.write_text(json.dumps(stored))
    result = suite(body, "--bench-check")
    result.assert_outcomes(failed=1)
    wanted = (
        f"test_mine::test_it?b?: flops was {FLOPS // 2:,} and is {FLOPS:,}; if that is meant, *"
    )
    result.stdout.fnmatch_lines([wanted])
    one = suite("measure(lambda: conv(x))", "--bench-check")
    one.stdout.fnmatch_lines(["test_mine::test_it has no stored figures; *"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "*bench.json must be a JSON file of pytest --bench-store, got *"),
        (
            "[]",
            "*bench.json must hold tensor_peak_bytes and flops of every case, got something else*",
        ),
    ],
)
def test_a_stored_file_of_another_kind_ends_the_run(suite, pytester, text: str, words: str):
    (pytester.path / "bench.json").write_text(text)
    result = suite("measure.compare({'a': conv}, x)", "--bench-check")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines([words])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--bench-threads=0", "--bench-threads: must be an integer of at least 1, got '0'"),
        ("--bench-sizes=8x", "--bench-sizes: must be an integer of at least 1, got ''"),
        ("--bench-dtype=float31", "dtype must be a dtype of torch, got 'float31'"),
        ("--bench-device=abacus", "device must be a device of torch, got 'abacus' ("),
    ],
)
def test_an_option_without_a_meaning_ends_the_run(suite, option: str, words: str):
    result = suite("measure(lambda: conv(x))", option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert words in result.stdout.str() + result.stderr.str()


def test_saved_runs_are_compared_and_drawn(suite, pytester: pytest.Pytester):
    body = 'measure.compare({"a": conv, "b": same}, x, rounds=1)'
    suite(body, "--benchmark-save=first", disabled=False).assert_outcomes(passed=1)
    result = suite(body, "--benchmark-compare", disabled=False)
    result.assert_outcomes(passed=1)
    result.stderr.fnmatch_lines(["*Comparing against benchmarks from: *first.json*"])
    result.stdout.fnmatch_lines_random(["test_it?a? (NOW)*", "test_it?a? (0001_first)*"])
    assert "machine_info is different" not in result.stderr.str()
    pytest.importorskip("pygal", reason="histograms need pygal")
    suite(body, "--benchmark-histogram", disabled=False).assert_outcomes(passed=1)
    assert list(pytester.path.glob("*.svg"))


def test_benchmarks_are_skipped_and_alone_by_the_options_of_pytest_benchmark(suite):
    body = "measure.compare({'a': conv}, x, rounds=1)"
    suite(body, "--benchmark-skip").assert_outcomes(skipped=1)
    suite(body, "--benchmark-only", disabled=False).assert_outcomes(passed=1)


def test_processes_side_by_side_take_no_times(suite, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    body = "assert measure.compare({'a': conv}, x)[0]['time'] is None"
    result = suite(body, disabled=False)
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["*PytestWarning: measure takes no times under xdist, as processes*"]
    )
    suite(body, disabled=True).assert_outcomes(passed=1, warnings=0)  # nobody expects times then
    result = suite(body, "--bench-store")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--bench-store needs one process, got xdist; run with `-n 0`"])


def test_threads_and_random_numbers_are_those_of_before(suite):
    body = """
    assert torch.get_num_threads() == 2
    measure(lambda: torch.randn(3))

before = torch.get_num_threads(), torch.get_rng_state()

def test_after():
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    """
    suite(body, "--bench-threads=2").assert_outcomes(passed=2)


def test_without_pytest_benchmark_it_is_said(suite, pytester: pytest.Pytester):
    pytester.path.joinpath("test_mine.py").write_text("def test_it(measure): pass")
    result = pytester.runpytest_inprocess("-p", "neurenix_ms_bench")
    result.stdout.fnmatch_lines(
        ["measure needs pytest-benchmark, which is not there: pip install 'neurenix_ms?bench?'"]
    )


def test_a_fixture_of_the_user_with_the_same_name_comes_first(suite, pytester: pytest.Pytester):
    own = "import pytest\n@pytest.fixture\ndef measure(): return 3\n"
    pytester.path.joinpath("conftest.py").write_text(own)
    suite("assert measure == 3").assert_outcomes(passed=1)


@pytest.mark.slow
def test_a_run_without_the_fixture_imports_nothing(pytester: pytest.Pytester):
    code = "import sys\ndef test_it():\n    assert not {'torch', 'neurenix_ms'} & {*sys.modules}\n"
    file = pytester.path / "test_mine.py"
    file.write_text(code)
    run = [sys.executable, "-m", "pytest", "-q", "-p", "neurenix_ms_bench", str(file)]
    result = subprocess.run(
        run, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
