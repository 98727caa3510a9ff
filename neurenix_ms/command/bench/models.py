"""Measure time, memory and FLOPs of networks at given sizes on this machine.

NETWORK is a class of neurenix_ms, a name of `neurenix-ms list`, or a dotted name to be imported, also
with arguments. Arguments that follow from the shape (channels, number of axes) can be left out. The
error of a network that fails is below the table. If all fail, the exit status is 1.

Examples:

  neurenix-ms bench models UNet unet_convnext "UNet(3, 2, features=[8, 16])" --train
  neurenix-ms bench models torchvision.models.resnet18 --shapes 1x3x224x224
  neurenix-ms bench models UNet --shapes 1x1x256x256x256 --train --predict
  neurenix-ms bench models nif --shapes 1000x1,1000x1
  neurenix-ms bench models FeatureFusion --shapes 1x8x64x64+1x16x32x32
  neurenix-ms bench models hits --shapes 16x2 --call num_steps=1000
"""

import argparse
import ast
from argparse import ArgumentTypeError
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `neurenix-ms bench models`."""
    parser.add_argument(
        "networks",
        nargs="+",
        metavar="NETWORK",
        help='such as UNet, unet_milesial, "UNet(3, 2)" or torchvision.models.resnet18',
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=shapes,
        default=[[(1, 3, 64, 64)], [(1, 3, 128, 128)]],
        metavar="BxCxHxW",
        help="shapes of the input (default: 1x3x64x64 1x3x128x128); a comma separates several "
        "inputs, a plus the feature maps of a list",
    )
    parser.add_argument(
        "--call",
        nargs="+",
        type=named_value,
        default=[],
        metavar="NAME=VALUE",
        help="keyword arguments of a call that are not tensors, such as num_steps=100",
    )
    parser.add_argument(
        "--train", action="store_true", help="measure a training step, not a forward pass"
    )
    parser.add_argument(
        "--predict", action="store_true", help="predict memory from shapes, and run nothing"
    )
    parser.add_argument("--device", help="device of the networks (default: a GPU if there is one)")
    parser.add_argument(
        "--threads", type=int, help="number of torch threads (default: that of torch)"
    )


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
        kwargs=dict(options.call),
        train=options.train,
        only_predict=options.predict,
    )


Shape = tuple[int, ...]


def shapes(text: str) -> list[Shape | list[Shape]]:
    """Return the shapes of inputs such as 1x3x64x64, or lists of them, between commas."""
    return [
        [_shape(one, text) for one in part.split("+")] if "+" in part else _shape(part, text)
        for part in text.lower().split(",")
    ]


def named_value(text: str) -> tuple[str, Any]:
    """Return name and value of an argument such as num_steps=100."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ArgumentTypeError(f"must be a name and a value such as num_steps=100, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def _shape(part: str, text: str) -> Shape:
    lengths = part.split("x")
    if len(lengths) < 2 or not all(one.isdecimal() and int(one) for one in lengths):
        raise ArgumentTypeError(f"must be a shape such as 1x3x64x64, got {text!r}")
    return tuple(map(int, lengths))
