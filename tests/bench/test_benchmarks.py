"""The benchmarks of this project: held to what is stored, and who wins is read off correctly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import baseline
from benchmarks.summary import slopes, winners
from neurenix_ms.bench import stored


def test_peers_and_the_plain_way_are_not_ours():
    variants = ["ours", "plain", "monai", "plain, per axis", "torch.utils.checkpoint", "stacked"]
    assert [name for name in variants if baseline.is_ours(name)] == ["ours", "stacked"]


@pytest.mark.slow
def test_a_benchmark_fails_when_it_takes_more_than_is_stored(tmp_path: Path):
    figures_of = {
        name: {figure: int(0.98 * value) for figure, value in figures.items()}
        for name, figures in stored.load(baseline.STORED).items()
        if "SpatialPyramidPooling-ours-2-32" in name
    }
    assert figures_of
    path = tmp_path / "baseline.json"
    stored.store(figures_of, path)
    only = "SpatialPyramidPooling and ours and 2-32"
    run = [sys.executable, "-m", "pytest", "benchmarks/test_pooling.py", "-k", only]
    run += ["--benchmark-disable", f"--bench-file={path}"]
    result = subprocess.run(run, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert result.returncode == 1
    assert "tensor_peak_bytes was" in result.stdout


@pytest.fixture
def results(tmp_path: Path) -> Path:
    def case(group, variant, size, median, peak, dims=None, **extra):
        axes = {} if dims is None else {"dims": dims}
        return {
            "group": group,
            "name": variant,
            "fullname": f"{group}{variant}{size}",
            "params": {"size": size, "variant": variant, **axes},
            "stats": {"median": median, "iqr": median / 10},
            "extra_info": {"tensor_peak_bytes": peak, "flops": peak, **extra},
        }

    cases = [
        case("pool/forward", "plain", 8, 2.0, 100),
        case("pool/forward", "ours", 8, 9.0, 50, time_ratio=0.5),  # time on the wall does not count
        case("pool/forward", "monai", 8, 2.0, 200, time_ratio=0.75, same_result=True),
        case("pool/forward", "kornia", 8, 0.1, 1, time_ratio=0.01, same_result=False),
        *(case("unet", "plain", 8, 2.0, 100, dims) for dims in (3, 2)),
        *(case("unet", "ours", 8, 2.0, 100, dims, time_ratio=1 / dims) for dims in (3, 2)),
        case("growth/cells", "UNet", 10, 1.0, 10),
        case("growth/cells", "UNet", 100, 100.0, 10),
    ]
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps({"machine_info": {}, "benchmarks": cases}))
    resident = [
        {"name": "ours", "fullname": "pool/forwardours8", "extra_info": {"resident_peak_bytes": 7}}
    ]
    beside = path.with_name("benchmarks_resident.json")
    beside.write_text(json.dumps({"benchmarks": resident}))
    return path


def test_winners_are_told_from_pairs_and_from_peers_with_the_same_result(results: Path):
    line = winners(results).splitlines()[2]
    assert line == (
        "| pool/forward | ours | 1 | 0.50 (0.50) | 0.50 (0.50) | monai | 1.50 (1.50) | 0.25 (0.25) |"
    )


def test_numbers_of_axes_are_questions_of_their_own(results: Path):
    lines = winners(results).splitlines()[3:]
    assert lines == [
        "| unet, 2-D | ours | 1 | 0.50 (0.50) | 1.00 (1.00) | - | - | - |",
        "| unet, 3-D | ours | 1 | 0.33 (0.33) | 1.00 (1.00) | - | - | - |",
    ]


def test_growth_is_the_slope_of_the_logarithms(results: Path):
    assert (
        slopes(results, "growth/cells").splitlines()[-1]
        == "| UNet | 10 | 100 | 2.00 | 0.00 | 0.00 |"
    )
    assert (
        slopes(results, "growth/cells", 2)
        .splitlines()[-1]
        .startswith("| UNet | 100 | 10,000 | 1.00")
    )


def test_resident_memory_comes_from_the_run_beside(results: Path):
    from benchmarks.report import table

    assert "| 7 B |" in table(results, "pool/forward")


def test_groups_that_were_not_measured_are_said(results: Path):
    from benchmarks.report import measured, table

    assert measured(results, "unet") == table(results, "unet").partition("\n\n")[2]
    several = measured(results, "unet", "necks/forward", "pool/forward")
    assert [line for line in several.splitlines() if line.startswith("#")] == [
        "### unet",
        "### pool/forward",
    ]
    words = "*Not measured in this run:* `necks/forward`, `heads/forward`."
    assert measured(results, "necks/forward", "heads/forward") == words
