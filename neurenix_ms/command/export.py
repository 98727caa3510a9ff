"""Export a network to ONNX or to a program of torch.export, and check it against the network.

The program takes inputs of any batch size and any size if torch can export it in this way; --fixed
exports for one size. It is run at two sizes (with --fixed at one), and its output is compared with that
of the network: programs of torch.export always, ONNX files if onnxruntime is installed. If they differ
by more than --tolerance, nothing is written.

Examples:

  neurenix-ms export model.nx --pt2 model.pt2 --size 64x64
  neurenix-ms export model.nx --onnx model.onnx --size 64x64 --fixed
"""

import argparse

from neurenix_ms._core.parsing import lengths
from neurenix_ms.command import _exporting, _reading


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `neurenix-ms export`."""
    add = parser.add_argument
    add("file", metavar="FILE", help="a file of neurenix_ms.save, or a folder of save_pretrained")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--onnx", metavar="OUT", help="write a file for onnxruntime and others")
    kind.add_argument("--pt2", metavar="OUT", help="write a file for torch.export.load")
    add("--size", type=lengths, required=True, metavar="HxW", help="size of the example")
    add(
        "--channels",
        type=int,
        metavar="N",
        help="channels of the input; by default those of the network",
    )
    add("--fixed", action="store_true", help="export for this size and a batch of one only")
    add(
        "--tolerance",
        type=float,
        default=1e-4,
        metavar="NUMBER",
        help="largest difference to the network, relative to its largest output (default: 1e-4)",
    )


def run(options: argparse.Namespace) -> str:
    """Return what was written, and how far it is from the network."""
    from neurenix_ms.sharing.reading import read_network

    model = read_network(_reading.existing(options.file))
    channels = options.channels
    for name in ("in_channels", "num_features"):
        found = getattr(model, name, None)
        if channels is None and type(found) is int:
            channels = found
    if channels is None:
        raise ValueError(
            f"--channels must be given for a {type(model).__name__}, whose channels are unknown, "
            "got none"
        )
    kind, target = ("onnx", options.onnx) if options.onnx else ("pt2", options.pt2)
    return _exporting.exported(
        model, target, kind, (1, channels, *options.size), options.fixed, options.tolerance
    )
