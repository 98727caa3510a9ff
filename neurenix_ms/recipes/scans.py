"""Labels of a porous medium of the user's own: their options, and parts to train and to test on."""

import argparse
from collections.abc import Sequence

from neurenix_ms.datasets.arrays import DiskArray
from neurenix_ms.datasets.planes import Planes
from neurenix_ms.recipes.options import add_data, own_array

HELD_OUT_PART = 0.2  # of the planes of a volume, or the rows of an image
NAMES = {2: ("pixels", "rows"), 3: ("voxels", "planes")}


def add_scan(parser: argparse.ArgumentParser, own: str) -> None:
    """Add `--data`, how the file is read, and the labels of its pores.

    Args:
        parser: Parser to extend.
        own: What such a file holds.
    """
    add_data(parser, own, "samples")
    parser.add_argument(
        "--pore-values", type=int, nargs="+", default=[1], help="labels of the pores in such a file"
    )


def own_scan(
    parser: argparse.ArgumentParser, options: argparse.Namespace, least: Sequence[int], why: str
) -> DiskArray | None:
    """Return the labels in a file that `--data` names; None for the folder of a cache.

    Exits with an error message if the file is not usable.

    Args:
        parser: Parser that exits.
        options: Parsed options.
        least: Smallest length of every axis.
        why: What so many pixels or voxels are for.
    """
    scan = own_array(parser, options)
    if scan is not None and (
        scan.ndim != len(least) or any(n < k for n, k in zip(scan.shape, least, strict=True))
    ):
        parser.error(
            f"--data must have at least {tuple(least)} {NAMES[len(least)][0]} {why}, got shape "
            f"{scan.shape} in {scan.path}"
        )
    return scan


def parts_of(scan: DiskArray, least: int) -> tuple[tuple[Planes, Planes], str]:
    """Return the planes of a scan to train on and its last ones, which are unseen, and say so.

    Args:
        scan: The labels.
        least: Smallest number of unseen planes.
    """
    planes = scan.shape[0]
    kept = max(least, round(HELD_OUT_PART * planes))
    said = (
        f"Boxes of {scan.path.name}; its last {kept} of {planes} {NAMES[scan.ndim][1]} are unseen. "
    )
    return (Planes(scan, 0, planes - kept), Planes(scan, planes - kept, planes)), said
