"""Train the network of a config on your own files; an interrupted run resumes.

CONFIG is a YAML file, or the name of a config of the package:

{ready}

--copy writes such a config to a file, to be edited. Options after CONFIG replace its values, by their
dotted names; class_path and init_args can be left out of a name.

The results are in the folder `out` of the config: the trained network as `model`, which predict, info
and export take; the scores of every epoch in `logs`; `checkpoints`; and `config.yaml`. Run the same
command again after an interruption: it continues after the last complete epoch, and the result is that
of an uninterrupted run. An earlier run of another config is not replaced, unless --overwrite is given.

A config holds plain values. The classes that it names (class_path) must be of neurenix_ms, torch.nn,
torch.optim, torchmetrics, or the callbacks, loggers and profilers of Lightning; they are imported and
created. It can name files to read and folders to write to. With --trust it can name any class, whose
code then runs.

Examples:

  neurenix-ms fit segment_images --copy mine.yaml
  neurenix-ms fit segment_images --data.inputs='images/*.tif' --data.targets='labels/*.tif'
  neurenix-ms fit mine.yaml --model.learning_rate=3e-4 --trainer.max_epochs=50 --out=runs/second
"""

import argparse
from pathlib import Path

ANY_OPTION = True  # those that are unknown here are values of the config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `neurenix-ms fit`."""
    parser.usage = "neurenix-ms fit CONFIG [--NAME.OF.VALUE=VALUE ...] [options]"
    rows = (f"  {path.stem:<16}  {first_line(path)}" for path in ready())
    parser.description = (__doc__ or "").format(ready="\n".join(rows))
    add = parser.add_argument
    add("config", metavar="CONFIG", help="a YAML file, or a name of the list above")
    add("--copy", metavar="FILE", help="write the config with its comments to FILE, and stop")
    add("--print_config", action="store_true", help="show the config with its overrides, and stop")
    add(
        "--overwrite",
        action="store_true",
        help="start from the beginning, and replace the result of an earlier run",
    )
    add("--trust", action="store_true", help="let the config name classes of any package")
    add("--threads", type=int, metavar="N", help="number of CPU threads")
    add("--quiet", action="store_true", help="show no progress bar")


def ready() -> list[Path]:
    """Return the configs of the package, for a help text that needs no extra."""
    return sorted((Path(__file__).parents[1] / "fitting" / "ready").glob("*.yaml"))


def first_line(path: Path) -> str:
    """Return what a config is for."""
    return path.read_text("utf-8").partition("\n")[0].lstrip("# ")


def run(options: argparse.Namespace) -> str:
    """Return where the network is, and its scores."""
    import torch

    from neurenix_ms.fitting.configs import config_path, copied, written
    from neurenix_ms.fitting.running import fit, prepared

    if options.copy is not None:
        return f"{copied(config_path(options.config), Path(options.copy))}"
    if options.print_config:
        return written(prepared(options.config, options.others, trust=options.trust))
    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    made = fit(
        options.config,
        options.others,
        overwrite=options.overwrite,
        trust=options.trust,
        progress=not options.quiet,
    )
    resumed = ", some of them by an earlier run" if made.resumed else ""
    scores = ", ".join(f"{name} {value:.4g}" for name, value in sorted(made.scores.items()))
    return "\n".join([f"{made.folder}: {made.epochs} epochs{resumed}; {scores}", *made.lines])
