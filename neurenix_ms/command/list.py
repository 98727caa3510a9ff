"""List the networks that neurenix_ms.create builds: name, class, parameters, description, source.

PATTERN is a part of the names, or a pattern with *, ? and [...], as in a shell. `neurenix-ms bench
models` and the configs of `neurenix-ms fit` take the same names.

Examples:

  neurenix-ms list
  neurenix-ms list 'nnunet*'
  neurenix-ms list unet --names
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `neurenix-ms list`."""
    parser.add_argument("pattern", nargs="?", metavar="PATTERN", help="such as unet or 'nnunet*'")
    parser.add_argument("--names", action="store_true", help="names only, one a line")


def run(options: argparse.Namespace) -> str:
    """Return the list."""
    import torch

    from neurenix_ms.registry import create, get_preset, list_models

    names = list_models(options.pattern)
    if not names:
        raise ValueError(
            f"PATTERN must fit a name, got {options.pattern!r}; without PATTERN all are listed"
        )
    if options.names:
        return "\n".join(names)
    lines = []
    for preset in map(get_preset, names):
        with torch.device("meta"):
            count = sum(p.numel() for p in create(preset.name).parameters())
        lines.append(f"{preset.name}  {preset.cls}, {count:,} parameters")
        lines.append(f"    {preset.description}")
        lines += [] if preset.source == "-" else [f"    source: {preset.source}"]
    return "\n".join(lines)
