"""Show time, memory and operations of networks at given sizes on this machine.

Networks are public names of neurenix_ms or dotted names, also with arguments: `UNet`,
`"UNet(3, 2, features=[8, 16])"`, `torchvision.models.resnet18`.
"""

import argparse
from argparse import ArgumentTypeError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `neurenix-ms bench models`."""
    parser.add_argument(
        "networks",
        nargs="+",
        metavar="NETWORK",
        help='such as UNet, "UNet(3, 2, features=[8, 16])" or torchvision.models.resnet18',
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=shape,
        default=[(1, 3, 64, 64), (1, 3, 128, 128)],
        metavar="BxCxHxW",
        help="shapes of the input (default: 1x3x64x64 1x3x128x128)",
    )
    parser.add_argument("--train", action="store_true", help="a training step, not a forward pass")
    parser.add_argument(
        "--predict", action="store_true", help="memory from shapes alone; nothing is run"
    )
    parser.add_argument("--device", help="where they run (default: a GPU if there is one)")
    parser.add_argument("--threads", type=int, help="threads of torch (default: as torch has them)")


def run(options: argparse.Namespace) -> str:
    """Return the table."""
    import torch

    from neurenix_ms._core.checks import check_integer
    from neurenix_ms.bench.forms import as_device, check_device, default_device
    from neurenix_ms.bench.networks import networks_table

    device = default_device() if options.device is None else as_device(options.device)
    check_device(device)
    if options.threads is not None:
        torch.set_num_threads(check_integer("threads", options.threads, 1))
    return networks_table(
        options.networks,
        options.shapes,
        device,
        train=options.train,
        only_predict=options.predict,
    )


def shape(text: str) -> tuple[int, ...]:
    """Return a shape such as 1x3x64x64."""
    parts = text.lower().split("x")
    if len(parts) < 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise ArgumentTypeError(f"must be a shape such as 1x3x64x64, got {text!r}")
    return tuple(map(int, parts))
