"""Show the content of a file, and whether it is safe to load, without running anything in it.

FILE is a file of neurenix_ms.save, a folder of save_pretrained, weights (.safetensors), a pickle of
torch.save (.pt, .pth, .ckpt), or an array (.npy, .npz, .zarr, .h5, .nc, .tif, .nii, .raw). If a file has
several arrays, all are listed, and --key shows one. With --input, the memory of a network for that shape
is computed without running it.

Examples:

  neurenix-ms info model.nx
  neurenix-ms info model.nx --input 1x1x128x128x128 --train
  neurenix-ms info maps.nc --key density
  neurenix-ms info scan.raw --shape 40,36,44 --dtype uint8
"""

import argparse

from neurenix_ms._core.parsing import lengths
from neurenix_ms.command import _contents


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `neurenix-ms info`."""
    add = parser.add_argument
    add("file", metavar="FILE", help="a file or folder")
    add(
        "--input",
        type=lengths,
        metavar="BxCxHxW",
        help="shape of an input, for which the memory of a network is computed",
    )
    add(
        "--train",
        action="store_true",
        help="compute the memory of a training step, not of a forward pass",
    )
    add("--shape", type=lengths, metavar="N,N,...", help="shape of a raw binary file")
    add("--key", help="name of an array in a file with several; level of a TIFF pyramid")
    add("--dtype", help="type of a raw binary file, with its byte order, such as '>u2'")


def run(options: argparse.Namespace) -> str:
    """Return the rows of the table."""
    given = {"key": options.key, "shape": options.shape, "dtype": options.dtype}
    rows = _contents.contents(options.file, **{k: v for k, v in given.items() if v is not None})
    if options.input is not None:
        from neurenix_ms.bench import predict_memory
        from neurenix_ms.sharing.reading import read_network

        model = read_network(options.file)
        memory = predict_memory(model, options.input, train=options.train)
        kind = "training step" if options.train else "forward pass"
        rows.append((f"memory of a {kind} at {'x'.join(map(str, options.input))}", str(memory)))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
