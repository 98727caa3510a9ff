"""The command `neurenix-ms` and its subcommands."""

import argparse
import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import neurenix_ms.command
from neurenix_ms.bench.commits import measured_at
from neurenix_ms.command import main

PACKAGE = Path(neurenix_ms.command.__file__).parent


def case(name: str, time: float, peak: int | None = 64) -> dict[str, Any]:
    return {
        "group": "pool",
        "name": name,
        "fullname": f"test_pool.py::{name}",
        "params": {"variant": name},
        "stats": {"median": time},
        "extra_info": {"tensor_peak_bytes": peak, "flops": 100},
    }


def write(path: Path, *cases: dict[str, Any], **more: Any) -> str:
    path.write_text(json.dumps({"machine_info": {}, "benchmarks": cases, **more}))
    return str(path)


@pytest.fixture
def run(tmp_path: Path) -> str:
    return write(tmp_path / "run.json", case("plain", 2.0), case("ours", 1.0))


def test_the_help_names_every_subcommand(capsys: pytest.CaptureFixture):
    for words, found in {"": "bench", "bench": "report", "bench report": "RUN.json"}.items():
        with pytest.raises(SystemExit) as ended:
            main([*words.split(), "--help"])
        assert ended.value.code == 0
        assert found in capsys.readouterr().out


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of the command and of every subcommand, by its words."""
    found, waiting = {}, [("neurenix-ms", neurenix_ms.command._parser())]
    while waiting:
        words, parser = waiting.pop()
        found[words] = parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                waiting += [(f"{words} {name}", inner) for name, inner in action.choices.items()]
    return found


def test_every_subcommand_has_a_help():
    groups = {path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE}
    files = {path for path in PACKAGE.rglob("*.py") if not path.name.startswith("_")}
    assert len(parsers()) == 1 + len(files) + len(groups)
    assert {"neurenix-ms list", "neurenix-ms bench models"} <= set(parsers())


@pytest.mark.parametrize("words", sorted(parsers()))
def test_a_help_reads_like_a_manual(words: str):
    parser = parsers()[words]
    shown = parser.format_help()
    assert max(map(len, shown.splitlines())) <= 105
    usage, description, rest = shown.partition("Examples:\n\n")[0], parser.description, shown
    assert usage.startswith(f"usage: {words}")
    assert description is not None
    summary, _, paragraphs = description.partition("Examples:")[0].partition("\n\n")
    assert summary.endswith(".")
    assert len(summary.splitlines()) == 1
    assert len(paragraphs.split()) > 12  # more than the summary says
    headings = ["Examples:\n\n", "options:\n", "exit status:\n"]
    places = [rest.index(heading) for heading in headings]
    assert places == sorted(places)
    for status in ("0", "1", "2", "130"):
        assert re.search(rf"^  {status} +\w", rest[places[-1] :], re.M)


@pytest.mark.parametrize("words", sorted(parsers()))
def test_the_examples_of_a_help_are_arguments_it_takes(words: str):
    parser = parsers()[words]
    examples = [
        line.strip()
        for line in str(parser.description).partition("Examples:\n")[2].splitlines()
        if line.strip()
    ]
    assert len(examples) >= 2
    for example in examples:
        assert example.startswith(words)
        _, *arguments = shlex.split(example)
        if arguments[-1] != "--help":
            options, others = neurenix_ms.command._parser().parse_known_args(arguments)
            assert options.any_option or not others


@pytest.mark.parametrize("words", sorted(parsers()))
def test_every_argument_is_described(words: str):
    for action in parsers()[words]._actions:
        assert action.help or isinstance(action, argparse._SubParsersAction), action.dest


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_the_help_waits_for_no_import(path: Path):
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.Import(names=[ast.alias(name=name)]) | ast.ImportFrom(module=str(name)):
                first = name.partition(".")[0]
                light = ("neurenix_ms.command", "neurenix_ms._core.parsing")
                assert first in sys.stdlib_module_names or name in light


def test_a_report_is_written_in_every_format(run: str, tmp_path: Path, capsys):
    assert main(["bench", "report", run]) == 0
    assert "| ours | 1 s (0.50x) | 64 B (1.00x) |" in capsys.readouterr().out
    assert main(["bench", "report", run, "--group", "pool"]) == 0
    assert "###" not in capsys.readouterr().out
    assert main(["bench", "report", run, "--format", "csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("group,variant,time,tensor_peak_bytes,flops,time_ratio")
    assert lines[2].startswith("pool,ours,1.0,64,100,0.5")
    for name, start in {
        "a.html": "<!doctype html>",
        "a.md": "Measured on:",
        "a.csv": "group,",
    }.items():
        assert main(["bench", "report", run, "--out", str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_text().startswith(start)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "must be a file that pytest --benchmark-json has written, got Expecting"),
        ("[]", "must be a file that pytest --benchmark-json has written, got other JSON"),
        ('{"benchmarks": [1]}', "has written, got other JSON"),
        (
            '{"benchmarks": [], "neurenix_ms_bench": {"format": 9}}',
            "must have format 1, got 9; read it with the version of neurenix_ms that wrote it",
        ),
    ],
)
def test_another_file_is_refused(content: str, words: str, tmp_path: Path, capsys):
    path = tmp_path / "run.json"
    path.write_text(content)
    assert main(["bench", "report", str(path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("neurenix-ms bench report: ")
    assert words in said.err


def damaged(place: str, value: Any) -> dict[str, Any]:
    """A run with another value at a place, such as "benchmarks 0 stats"."""
    content: Any = {
        "machine_info": {"cpu": {}},
        "neurenix_ms_bench": {},
        "benchmarks": [case("plain", 2.0), case("ours", 1.0)],
    }
    *folders, last = place.split()
    inner = content
    for folder in folders:
        inner = inner[int(folder) if folder.isdecimal() else folder]
    inner[last] = value
    return content


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("machine_info", 3, "machine_info must be an object, got 3"),
        ("machine_info processor", [], "machine_info: processor must be a string, got []"),
        ("machine_info cpu", "x", "machine_info: cpu must be an object, got 'x'"),
        ("machine_info cpu brand_raw", 3, "cpu: brand_raw must be a string, got 3"),
        ("neurenix_ms_bench", [3], "neurenix_ms_bench must be an object, got [3]"),
        ("neurenix_ms_bench matmul_flops_per_s", 3, "matmul_flops_per_s must be an object, got 3"),
        ("neurenix_ms_bench matmul_flops_per_s", {"a": "b"}, "a must be a number, got 'b'"),
        ("benchmarks 0 name", 3, "benchmarks[0]: name must be a string, got 3"),
        ("benchmarks 0 name", None, "benchmarks[0]: name must be a string, got None"),
        ("benchmarks 1 group", {}, "benchmarks[1]: group must be a string, got {}"),
        ("benchmarks 1 fullname", 7, "benchmarks[1]: fullname must be a string, got 7"),
        ("benchmarks 1 params", "x", "benchmarks[1]: params must be an object, got 'x'"),
        ("benchmarks 1 stats", [1], "benchmarks[1]: stats must be an object, got [1]"),
        ("benchmarks 1 stats median", "1", "[1]: stats: median must be a number, got '1'"),
        ("benchmarks 1 stats median", True, "[1]: stats: median must be a number, got True"),
        (
            "benchmarks 1 stats iqr",
            float("nan"),
            "stats: iqr must be at least 0 and finite, got nan",
        ),
        ("benchmarks 1 extra_info", 3, "benchmarks[1]: extra_info must be an object, got 3"),
        ("benchmarks 1 extra_info flops", "x", "extra_info: flops must be a number, got 'x'"),
        ("benchmarks 1 extra_info flops", -1, "extra_info: flops must be at least 0 and finite"),
        ("benchmarks 1 extra_info error", [], "extra_info: error must be a number, got []"),
        ("benchmarks 1 extra_info time_ratio", {}, "time_ratio must be a number, got {}"),
        ("benchmarks 1 extra_info reference", 3, "extra_info: reference must be a string, got 3"),
        ("benchmarks 1 extra_info uncounted", 3, "uncounted must be an object or a list, got 3"),
        ("benchmarks 1 extra_info uncounted", [3], "uncounted must be names of operators, got 3"),
    ],
)
def test_a_damaged_file_is_refused(place: str, value: Any, words: str, tmp_path: Path, capsys):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(damaged(place, value)))
    for command in (["report", str(path)], ["compare", str(path), str(path)]):
        assert main(["bench", *command]) == 1
        said = capsys.readouterr()
        assert len(said.err.splitlines()) == 1
        assert f"run.json: {place.partition(' ')[0]}" in said.err
        assert words in said.err


@pytest.mark.parametrize("text", ["[" * 10**5, '{"benchmarks": ' + "9" * 5000 + "}", "\0"])
def test_a_file_that_is_no_json_is_refused(text: str, tmp_path: Path, capsys):
    (tmp_path / "run.json").write_text(text)
    assert main(["bench", "report", str(tmp_path / "run.json")]) == 1
    assert "run.json must be a file that pytest --benchmark-json" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["md", "html", "csv"])
def test_values_that_were_not_measured_are_left_out(kind: str, tmp_path: Path, capsys):
    content: Any = {
        "machine_info": None,
        "neurenix_ms_bench": None,
        "benchmarks": [
            {"name": "a", "params": None, "stats": None, "extra_info": None, "group": None},
            {"name": "b"},
            *(case(name, 2.0) for name in ("one", "two", "three")),
        ],
    }
    for size, entry in zip((1, float("inf"), 10**400), content["benchmarks"][2:], strict=True):
        entry["params"] = {"size": size, "variant": "plain"}
        entry["extra_info"]["error"] = float("nan")
    path = tmp_path / "run.json"
    path.write_text(json.dumps(content))
    assert main(["bench", "report", str(path), "--format", kind]) == 0
    assert "plain" in capsys.readouterr().out


def test_resident_memory_is_taken_from_the_file_beside(run: str, tmp_path: Path, capsys):
    beside = [case("ours", 1.0), case("plain", 1.0), {"name": "other"}]
    beside[0]["extra_info"]["resident_peak_bytes"] = 2**20
    write(tmp_path / "run_resident.json", *beside)
    assert main(["bench", "report", run]) == 0
    assert "1 MiB" in capsys.readouterr().out
    write(tmp_path / "run_resident.json", {"name": "a", "extra_info": 3})
    assert main(["bench", "report", run]) == 1
    assert "run_resident.json: benchmarks[0]: extra_info must be" in capsys.readouterr().err


def test_no_such_file_and_no_such_group_are_said(run: str, capsys):
    assert main(["bench", "report", "none.json"]) == 1
    assert "none.json must be a file that pytest" in capsys.readouterr().err
    assert main(["bench", "report", run, "--group", "pol"]) == 1
    assert "group must be one of ['pool'], got 'pol'" in capsys.readouterr().err


def test_two_runs_stand_side_by_side(run: str, tmp_path: Path, capsys):
    after = write(
        tmp_path / "after.json", case("ours", 1.01, 96), case("plain", 2.5), case("new", 1)
    )
    assert main(["bench", "compare", run, after]) == 0
    shown = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "test_pool.py::ours 1 s 1.01 s (1.01x) 64 B 96 B (1.50x) 100 100 (1.00x)" in lines
    assert "test_pool.py::plain 2 s 2.50 s (1.25x) 64 B 64 B (1.00x) 100 100 (1.00x)" in lines
    assert lines[-1] == "only after: test_pool.py::new"
    assert main(["bench", "compare", run, run]) == 0
    shown = capsys.readouterr().out
    assert "2 of 2 cases: no change of bytes, operations, or a tenth of time" in shown
    assert "test_pool.py" not in shown
    assert main(["bench", "compare", run, run, "--all"]) == 0
    assert "test_pool.py::ours" in capsys.readouterr().out


def test_figures_that_are_missing_are_no_numbers(tmp_path: Path, capsys):
    old = write(tmp_path / "a.json", case("x", 1, None), case("gone", 1))
    new = write(tmp_path / "b.json", case("x", 1, 64))
    assert main(["bench", "compare", old, new]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "test_pool.py::x 1 s 1 s (1.00x) - 64 B 100 100 (1.00x)" in lines
    assert "only before: test_pool.py::gone" in lines


def test_a_comparison_needs_two_runs(run: str, capsys):
    assert main(["bench", "compare", run]) == 1
    assert "two files must be given, or --base COMMIT, got [" in capsys.readouterr().err


BENCHMARK = (
    "def test_it(benchmark):\n    benchmark.extra_info.update(flops={}, tensor_peak_bytes=8)\n"
)
BENCHMARK += "    benchmark.pedantic(sum, ([1],))\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "test_it.py").write_text(BENCHMARK.format(5))
    git("add", "benchmarks/test_it.py")
    git("commit", "-m", "first")
    (tmp_path / "benchmarks" / "test_it.py").write_text(BENCHMARK.format(7))
    return tmp_path


@pytest.mark.slow
def test_a_commit_is_compared_with_this_tree(repository: Path, monkeypatch, capsys):
    monkeypatch.chdir(repository / "benchmarks")
    assert main(["bench", "compare", "--base", "HEAD"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "8 B 8 B (1.00x) 5 7 (1.40x)" in shown
    worktrees = subprocess.run(
        ["git", "worktree", "list"], capture_output=True, text=True, check=True
    )
    assert len(worktrees.stdout.splitlines()) == 1
    assert main(["bench", "compare", "--base", "nothing"]) == 1
    assert "the commit must be one of the repository" in capsys.readouterr().err
    (repository / "benchmarks" / "test_it.py").write_text("def test_it(): assert not 3\n")
    assert main(["bench", "compare", "--base", "HEAD"]) == 1
    first = capsys.readouterr().err.splitlines()[0]
    assert re.search(r"pytest .* must run without an error in .*, got: .*1 failed", first)


def test_a_commit_is_compared_in_a_repository_only(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert main(["bench", "compare", "--base", "HEAD"]) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "a commit can be compared only inside a working tree of git, got the folder" in said
    assert "not a git repository" in said


@pytest.mark.parametrize("base", ["nothing", "--help", ""])
def test_a_commit_that_is_not_there_is_named(base: str, repository: Path, monkeypatch, capsys):
    monkeypatch.chdir(repository)
    assert main(["bench", "compare", f"--base={base}"]) == 1
    said = capsys.readouterr().err
    assert f"the commit must be one of the repository {repository}, got {base!r}" in said


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"git must be installed to compare commits, got .*No such"
    ):
        measured_at("HEAD", ["benchmarks"], tmp_path)


def test_networks_are_measured_by_name(capsys):
    names = [
        "UNet(3, features=[4, 8], out_channels=2)",
        "torch.nn.Conv2d(3, 4, 3)",
        "UNet(1, 1, [4])",
    ]
    names += [
        "Nothing",
        "math.pi",
        "torch.nn.nothing",
        "nothing.at.all",
        "torch.nn.Conv2d(x, 4, 3)",
    ]
    names += ["torch.ones(1)", "builtins.list"]
    shapes = ["--shapes", "1x3x16x16", "2x3x8x8", "--threads", "1", "--device", "cpu"]
    assert main(["bench", "models", *names, *shapes]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("forward on cpu, torch ")
    conv = [line for line in lines if line.startswith("torch.nn.Conv2d(3, 4, 3) 1x3x16x16")]
    assert re.fullmatch(r".* 112 42.3 K .* 3.06 KiB 3.06 KiB 6.50 KiB", conv[0])
    assert len([line for line in lines if re.match("UNet.* (1x3x16x16|2x3x8x8) ", line)]) == 2
    assert any(line.startswith("Not in the FLOPs: UNet(3, ") for line in lines)
    for words in (
        "UNet(1, 1, [4]) at 2x3x8x8: ValueError: model must run on tensors of this shape",
        "Nothing at 1x3x16x16: ValueError: a network must be a class of neurenix_ms, in list_models()",
        "math.pi at 1x3x16x16: ValueError: a network must be a module or make one, got math.pi of",
        "builtins.list at 1x3x16x16: ValueError: a network must be a module or make one, got <class",
        "torch.nn.nothing at 1x3x16x16: ValueError: torch.nn must have an attribute",
        "nothing.at.all at 1x3x16x16: ModuleNotFoundError: No module named 'nothing'",
        "torch.nn.Conv2d(x, 4, 3) at 1x3x16x16: ValueError: a network must be a name, or a call of",
    ):
        assert any(line.startswith(words) for line in lines), words


def shown_models(capsys, *words: str) -> list[str]:
    """Run `bench models`, and return the lines of its table below the heads."""
    assert main(["bench", "models", *words, "--device", "cpu", "--predict"]) == 0
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()[2:]]


def test_networks_of_the_registry_are_measured_by_name(capsys):
    names = ["unet(features=[4, 8])", "unet_milesial", "unett", "unet(3)", "unet(feature=[3])"]
    lines = shown_models(capsys, *names, "--shapes", "1x3x16x16")
    assert lines[0].startswith("unet(features=[4, 8]) 1x3x16x16 4,325 ")
    assert lines[1].startswith("unet_milesial 1x3x16x16 31,037,698 ")
    assert "or a dotted name, got 'unett'; similar: 'unet', 'panet', 'msnet'" in lines[2]
    assert lines[3].endswith("ValueError: arguments of 'unet' must be given by name, got [3]")
    assert "got 'feature'; similar: 'features'" in lines[4]


def test_the_shape_gives_a_preset_its_number_of_axes(capsys):
    lines = shown_models(capsys, "unet(features=[4])", "--shapes", "1x3x8x8x8", "1x3x16")
    assert len(lines) == 2
    assert all(line.startswith("unet(features=[4]) 1x3x") for line in lines)


def test_networks_of_several_inputs_are_measured(capsys):
    lines = shown_models(capsys, "nif", "--shapes", "9x1,9x1")
    assert lines[0].startswith("nif 9x1,9x1 5,853 ")
    lines = shown_models(capsys, "FeatureFusion", "--shapes", "1x2x8x8+1x3x4x4")
    assert lines[0].startswith("FeatureFusion 1x2x8x8+1x3x4x4 7 ")
    assert main(["bench", "models", "nif", "--shapes", "9x1,9x1+9x1"]) == 1
    assert "only the first input may be a list of feature maps" in capsys.readouterr().err
    options = ["--call", "num_steps=3"]
    short = shown_models(capsys, "hits", "--shapes", "4x2", *options)[0].split()
    assert short[:2] == ["hits", "4x2"]
    assert main(["bench", "models", "hits", "--shapes", "4x2", *options, "--threads", "1"]) == 0
    assert "hits: sort" in capsys.readouterr().out


def test_the_status_is_1_if_no_network_ran(capsys):
    assert main(["bench", "models", "unett", "hits", "--shapes", "4x2"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    for words in ("a network must run at one of the shapes, got unett at 4x2: ", "; hits at 4x2: "):
        assert words in said.err


@pytest.mark.parametrize("value", ["num_steps", "=3", "num-steps=3"])
def test_an_argument_of_a_call_has_a_name(value: str, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "models", "hits", "--call", value])
    assert f"must be a name and a value such as num_steps=100, got '{value}'" in (
        capsys.readouterr().err
    )


def test_memory_of_networks_is_predicted_without_running_them(capsys):
    shapes = ["--shapes", "1x1x512x512x512"]
    assert (
        main(
            [
                "bench",
                "models",
                "UNet(1, 1, [8])",
                *shapes,
                "--predict",
                "--train",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    assert shown.startswith("training step on cpu")
    assert re.search(r"UNet.* +1x1x512x512x512 +[\d,]+ +- +- +- +[\d.]+ GiB +[\d.]+ GiB", shown)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "xpu:9"], "device must be one of this machine, got 'xpu:9'"),
        (["--device", "abacus"], "device must be a device of torch, got 'abacus'"),
        (["--threads", "0"], "threads must be at least 1, got 0"),
    ],
)
def test_an_option_without_a_meaning_is_named(options: list[str], words: str, capsys):
    assert main(["bench", "models", "UNet", *options]) == 1
    assert words in capsys.readouterr().err


def test_a_shape_is_numbers_between_crosses(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "models", "UNet", "--shapes", "1x3x4,1x3x-4"])
    assert "must be a shape such as 1x3x64x64, got '1x3x4,1x3x-4'" in capsys.readouterr().err
