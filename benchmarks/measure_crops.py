"""Rate of random crops from files beside those from memory: `python benchmarks/measure_crops.py`.

Image and labels of 2048 x 2048 pixels, crops of 64 x 64, after an epoch that reads the files once.
"""

import statistics
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from neurenix_ms.datasets import RandomCrops, create_array, open_array

KINDS = ("memory", "npy", "zarr")
ROUNDS = 5


def loader_of(
    kind: str, maps: list[np.ndarray], folder: Path, rare: bool, workers: int
) -> DataLoader:
    """Return batches of crops from memory or from files."""
    arrays = maps
    if kind != "memory":
        arrays = []
        for number, values in enumerate(maps):
            path = folder / f"{number}.{kind}"
            if not path.exists():
                chunks = (*values.shape[:-2], 128, 128)
                create_array(path, values.shape, values.dtype, chunks=chunks)[...] = values
            arrays.append(open_array(path))
    weights = {0: 1.0, 1: 50.0} if rare else None
    crops = RandomCrops(*arrays, size=64, num_samples=2000, class_weights=weights)
    return DataLoader(crops, 8, num_workers=workers, persistent_workers=workers > 0)


def seconds(loader: DataLoader) -> float:
    """Return the time of an epoch."""
    start = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - start


def main(folder: Path) -> None:
    """Print rates in crops per second, and their ratio to memory: medians of rounds side by side."""
    random = np.random.default_rng(0)
    rare = np.kron(random.random((64, 64)) < 0.02, np.ones((32, 32), bool)).astype("uint8")
    maps = [random.random((3, 2048, 2048), dtype="float32"), rare]
    print("workers  class_weights  " + "".join(f"{kind:>16}" for kind in KINDS))
    for workers, weights in product((0, 2), (False, True)):
        loaders = [loader_of(kind, maps, folder, weights, workers) for kind in KINDS]
        for loader in loaders:
            seconds(loader)
        rounds = [[seconds(loader) for loader in loaders] for _ in range(ROUNDS)]
        words = []
        for took in zip(*rounds, strict=True):
            ratio = statistics.median(row[0] / own for row, own in zip(rounds, took, strict=True))
            words.append(f"{2000 / statistics.median(took):8.0f} ({ratio:.2f})")
        print(f"{workers:<9}{weights!s:<15}" + "".join(f"{word:>16}" for word in words), flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else folder))
