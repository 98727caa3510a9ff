"""Run a model on an array on disk, tile by tile, and write the result; an interrupted run resumes.

The result equals that of the whole array. OUT appears when it is complete; until then the tiles are in
the hidden folder .OUT.part in the same folder. Run the same command again after an interruption:
finished tiles do not run again. For an MS-Net, the finest output is written. With --steps, a
time-stepper forecasts the states in IN. With --coordinates and --values, an implicit field is evaluated
at the points of a table or mesh. Under torchrun (`torchrun --nproc-per-node 2 -m neurenix_ms.command
predict ...`), processes of one machine share the tiles.

Examples:

  neurenix-ms predict model.nx image.tif labels.tif --reduce argmax
  neurenix-ms predict model.nx scan.raw out.zarr --shape 900,900,900 --dtype uint8 --memory 8GB
  neurenix-ms predict stepper.nx states.npy forecast.npy --steps 100
  neurenix-ms predict field.nx points.csv values.csv --parameters t --coordinates x,y --values u
"""

import argparse
import os
import sys
from argparse import ArgumentTypeError
from typing import Any

from neurenix_ms._core.parsing import lengths

UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the arguments of `neurenix-ms predict`."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="a file of neurenix_ms.save or a folder of save_pretrained")
    add("source", metavar="IN", help=".npy, .npz, .zarr, .h5, .nc, .tif, .nii, .raw, TIFF folder")
    add("target", metavar="OUT", help="ends in .npy, .zarr, .h5, .nc, .tif or .raw")
    add("--key", help="name of the array in a file with several; level of a TIFF pyramid")
    add("--shape", type=lengths, metavar="N,N,...", help="shape of a raw binary file")
    add("--dtype", help="type of a raw binary file, with its byte order, such as '>u2'")
    add("--offset", type=int, default=0, metavar="BYTES", help="length of its header")
    add("--fill", type=filling, metavar="NUMBER", help="replacement of missing values, or 'keep'")
    add("--spatial-dims", type=int, choices=(1, 2, 3), help="by default those of the model")
    add(
        "--first",
        choices=("channels", "batch"),
        default="channels",
        help="meaning of the axis before the spatial axes",
    )
    add(
        "--tile",
        type=tile,
        default="auto",
        metavar="N|N,N,...|auto",
        help="edge length of a tile; auto takes the largest that fits --memory",
    )
    add(
        "--memory",
        type=num_bytes,
        default=4 * 10**9,
        metavar="SIZE",
        help="memory for the tensors of a tile, such as 500MB or 4GB (default); the process and "
        "its convolutions need more in addition",
    )
    add(
        "--whole",
        type=names,
        default="auto",
        metavar="NAME,...",
        help="layers of the model that run once, on their whole feature map",
    )
    add(
        "--condition",
        type=numbers,
        metavar="NUMBER,...",
        help="the vector of a network with condition_channels, such as --condition=-0.5,1",
    )
    add("--reduce", choices=("argmax",), help="write the index of the largest channel")
    add(
        "--out-dtype",
        metavar="DTYPE",
        help="dtype of OUT; by default that of the model, or uint8 with --reduce",
    )
    add(
        "--time-step",
        type=float,
        metavar="NUMBER",
        help="OUT is a forecast: add this to the time of a NetCDF file, in its unit",
    )
    add("--units", help="unit of the values in OUT; for a forecast by default that of IN")
    add("--device", default="cpu", help="device of the model, such as cuda:0")
    add("--threads", type=int, metavar="N", help="number of CPU threads")
    add(
        "--overwrite",
        action="store_true",
        help="replace OUT, and drop an interrupted run of another model, input or options",
    )
    add("--quiet", action="store_true", help="show no progress bar")
    states = parser.add_argument_group("forecasts of states (B, *D) in IN, by a time-stepper")
    states.add_argument("--steps", type=int, metavar="N", help="number of steps")
    states.add_argument(
        "--row",
        type=int,
        metavar="N",
        help="IN has trajectories (B, T, *D); start from this time step; -1 is the last",
    )
    points = parser.add_argument_group("values at points in IN (.csv, .parquet, .vtk, .vtu, .xdmf)")
    points.add_argument("--coordinates", type=words, metavar="NAME,...", help="columns, or x,y,z")
    points.add_argument("--values", type=words, metavar="NAME,...", help="names in OUT")
    points.add_argument("--parameters", type=words, default=[], metavar="NAME,...", help="columns")
    points.add_argument(
        "--parameter-values", type=numbers, metavar="NUMBER,...", help="the same for all points"
    )


def run(options: argparse.Namespace) -> str:
    """Return where the result is."""
    import torch

    if options.threads is not None:
        if options.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    points = options.coordinates is not None or options.values is not None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (points or options.steps is not None):
        raise ValueError("torchrun shares tiles of images and volumes, got states or points")
    if options.steps is not None:
        return forecast(options)
    if points:
        return evaluate(options)
    return predict(options)


def forecast(options: argparse.Namespace) -> str:
    """Forecast states by a time-stepper."""
    from neurenix_ms.prediction import forecast_file

    shape = forecast_file(
        options.model,
        options.source,
        options.target,
        options.steps,
        row=options.row,
        key=options.key,
        shape=options.shape,
        dtype=options.dtype,
        offset=options.offset,
        time_step=options.time_step,
        device=options.device,
        overwrite=options.overwrite,
    )
    return f"{options.target}: shape {shape}, {options.steps} steps"


def evaluate(options: argparse.Namespace) -> str:
    """Evaluate an implicit field at points."""
    from neurenix_ms.prediction import evaluate_file

    if options.coordinates is None or options.values is None:
        raise ValueError("points need --coordinates and --values, got one of them")
    count = evaluate_file(
        options.model,
        options.source,
        options.target,
        coordinates=options.coordinates,
        values=options.values,
        parameters=options.parameters,
        parameter_values=options.parameter_values,
        device=options.device,
        overwrite=options.overwrite,
    )
    return f"{options.target}: {', '.join(options.values)} at {count} points"


def predict(options: argparse.Namespace) -> str:
    """Predict images or volumes in tiles."""
    from neurenix_ms.prediction.processes import joined_processes

    with joined_processes(options.device) as (mesh, device):
        try:
            text = predict_on(options, mesh, device)
        except (ImportError, OSError, RuntimeError, ValueError):
            if mesh is None or mesh.get_local_rank() == 0 or options.debug:
                raise
            sys.exit(1)  # the first process says what is wrong
        return text if mesh is None or mesh.get_local_rank() == 0 else ""


def predict_on(options: argparse.Namespace, mesh: Any, device: str) -> str:
    """Predict as one of the processes of a mesh, or as the only one."""
    from importlib.util import find_spec

    from neurenix_ms.prediction import predict_file

    made = predict_file(
        options.model,
        options.source,
        options.target,
        key=options.key,
        shape=options.shape,
        dtype=options.dtype,
        offset=options.offset,
        fill=options.fill,
        spatial_dims=options.spatial_dims,
        first=options.first,
        tile_size=options.tile,
        memory_limit=options.memory,
        whole=options.whole,
        condition=options.condition,
        reduce=options.reduce,
        out_dtype=options.out_dtype,
        time_step=options.time_step,
        units=options.units,
        device=device,
        mesh=mesh,
        overwrite=options.overwrite,
        progress=not options.quiet and find_spec("tqdm") is not None,
    )
    resumed = f", {made.num_resumed} of them by an earlier run" if made.num_resumed else ""
    tiles = "1 tile" if made.num_tiles == 1 else f"{made.num_tiles} tiles"
    text = f"{made.path}: shape {made.shape}, {made.dtype}, {tiles}{resumed}"
    if missing := made.num_missing_chunks:
        chunks = "1 chunk is" if missing == 1 else f"{missing} chunks are"
        text += f"\n{options.source}: {chunks} not in the file: read as its fill value"
    return text


def words(text: str) -> list[str]:
    """Return names separated by commas."""
    return text.split(",")


def numbers(text: str) -> list[float]:
    """Return numbers separated by commas."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ArgumentTypeError(f"must be numbers separated by commas, got {text!r}") from None


def names(text: str) -> str | list[str]:
    """Return "auto", or names separated by commas."""
    return text if text == "auto" else text.split(",")


def tile(text: str) -> str | int | list[int]:
    """Return "auto", or one length, or one per axis."""
    if text == "auto":
        return text
    found = lengths(text)
    return found[0] if len(found) == 1 else found


def filling(text: str) -> str | float:
    """Return "keep" or a number."""
    if text == "keep":
        return text
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(f"must be a number or 'keep', got {text!r}") from None


def num_bytes(text: str) -> int:
    """Return a number of bytes, given with or without a unit."""
    number = text.rstrip("BbGgIiKkMm")
    unit = text[len(number) :].lower()
    try:
        return int(float(number) * UNITS[unit])
    except (KeyError, ValueError):
        raise ArgumentTypeError(
            f"must be a number of bytes such as 500MB or 4GB, got {text!r}"
        ) from None
