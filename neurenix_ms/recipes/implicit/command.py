"""Measure implicit fields and their pruning in four cases, with a table and a figure for each.

`python -m neurenix_ms.recipes.implicit wave` trains a field on a traveling wave and prunes it; `waves`
compares it with an MLP on Kuramoto-Sivashinsky waves of unseen parameters; `turbulence` compares it with
POD; `densified` compares pruned and densified fields with small ones. An interrupted run resumes;
existing results are only drawn again. With a file in `--data`, `turbulence` takes a field of your own.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.recipes.implicit import report
from neurenix_ms.recipes.implicit.cases import wave, waves
from neurenix_ms.recipes.implicit.compression import turbulence
from neurenix_ms.recipes.implicit.densified import densified
from neurenix_ms.recipes.implicit.own import OwnField
from neurenix_ms.recipes.options import add_data, check_at_least, own_array, readable

CASES = {
    "wave": (wave, report.wave_table, report.draw_wave),
    "waves": (waves, report.waves_table, report.draw_waves),
    "densified": (densified, report.densified_table, report.draw_densified),
    "turbulence": (turbulence, report.turbulence_table, report.draw_turbulence),
}


def main(argv: Sequence[str] | None = None) -> str:
    """Run one case and return its table.

    Args:
        argv: Command line without the name of the program; by default that of the process.
    """
    options = _options(argv)
    run, table, draw = CASES[options.case]
    options.out.mkdir(parents=True, exist_ok=True)
    folder = options.own.folder if options.own else options.case
    name = f"implicit_{folder}"
    note = options.out / f"{name}.json"
    if options.fresh or not note.exists():
        if options.fresh:
            for old in (options.runs / folder).glob("**/last.ckpt"):
                old.unlink()
        result = run(options)
        write_atomically(note, json.dumps(result).encode())
    result = json.loads(note.read_text(encoding="utf-8"))
    text = table(result)
    write_atomically(options.out / f"{name}.md", (text + "\n").encode())
    draw(options.out / f"{name}.png", result)
    print(f"\n{text}\n\n{options.out / name}.json, .md, .png")
    return text


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m neurenix_ms.recipes.implicit",
        description="Implicit fields: a pruned traveling wave, unseen parameters, compression.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("case", choices=list(CASES))
    parser.add_argument(
        "--steps", type=int, help="steps of Adam, a multiple of 100; by default by case"
    )
    parser.add_argument(
        "--iterations",
        type=int,
        default=500,
        help="of L-BFGS for the dense model of the wave, a multiple of 50",
    )
    parser.add_argument("--seed", type=int, default=0, help="for weights and order")
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        help="seeds of the cases densified and turbulence",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/implicit"), help="results")
    parser.add_argument("--runs", type=Path, default=Path("runs/implicit"), help="checkpoints")
    add_data(
        parser, "a field of your own (T, H, W), for the case turbulence", "solved waves and flows"
    )
    parser.add_argument("--fresh", action="store_true", help="ignore checkpoints and results")
    options = parser.parse_args(argv)
    check_at_least(parser, options, steps=100, seeds=0)
    if options.iterations % 50:
        parser.error(f"--iterations must be a multiple of 50, got {options.iterations}")
    array = own_array(parser, options)
    options.own = None
    if array is not None:
        if options.case != "turbulence":
            parser.error(
                f"a file in --data is for the case turbulence, got {array.path} and {options.case}"
            )
        with readable(parser):
            options.own = OwnField(array)
    torch.set_num_threads(1)  # the networks are small
    return options
