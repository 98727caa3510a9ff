"""The command `neurenix-ms` and its subcommands."""

import ast
import json
import re
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


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_the_help_waits_for_no_import(path: Path):
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.Import(names=[ast.alias(name=name)]) | ast.ImportFrom(module=str(name)):
                first = name.partition(".")[0]
                assert first in sys.stdlib_module_names or name == "neurenix_ms.command"


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
    assert "this must run without an error in" in capsys.readouterr().err


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
        "torch.nn.nothing at 1x3x16x16: ValueError: torch.nn must have what is asked for, got",
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
