"""Samples to train on and to test with: generated media, or boxes of a scan."""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from neurenix_ms._core.io.atomic import write_atomically
from neurenix_ms.datasets import PorousConduction, ScannedConduction
from neurenix_ms.datasets.arrays import DiskArray
from neurenix_ms.recipes.scans import parts_of

Kind = tuple[str, int]  # generator and radius
Samples = list[dict[str, Tensor]]

KINDS: list[Kind] = [
    (name, radius) for name in ("blobs", "overlapping_spheres") for radius in (4, 6, 8)
]
OTHER_RADII = (4, 6)  # of the media of other generators
NUM_TO_FIT = 36  # samples of the training by which a predicted conductance is corrected
HELD_OUT_SEED = 1  # added to that of the training samples


@dataclass(frozen=True)
class SampleSet:
    """Samples of one size, and whether they alternate between the kinds of the training."""

    samples: Samples
    of_seen_kinds: bool = True

    @property
    def size(self) -> int:
        """Cells along an axis."""
        return self.samples[0]["pores"].shape[-1]


def to_fit(seen: Sequence[Samples]) -> dict[str, SampleSet]:
    """Return samples of the training of every size, by which a predicted conductance is corrected."""
    sets = [SampleSet(samples[:NUM_TO_FIT]) for samples in seen]
    return {f"{one.size}\u00b3, seen": one for one in sets}


class Data:
    """Samples of all kinds, and the CPU time of computing them, including that of interrupted runs.

    Args:
        options: The command line.
    """

    title = ""
    num_kinds = len(KINDS)

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.root = options.data
        self.note = options.out / "data.json"
        self.facts: dict[str, Any] = {}
        made = json.loads(self.note.read_text()) if self.note.exists() else {}
        self.seconds: float = made.get("seconds", 0.0)
        self.left_out: int = made.get("left_out", 0)

    def seen(self) -> list[Samples]:
        """Return the samples to train on, of the size and, where there are any, of twice the size."""
        options = self.options
        counts = ((options.samples, options.size), (options.large_samples, 2 * options.size))
        return [self.samples(count, size, options.seed) for count, size in counts if count]

    def unseen(self) -> dict[str, SampleSet]:
        """Return the samples to test with, by the name of the set."""
        options, seed = self.options, self.options.seed + HELD_OUT_SEED
        sizes = {
            options.size: options.held_out,
            2 * options.size: options.larger,
            4 * options.size: options.largest,
        }
        sets = {
            f"{size}\u00b3": SampleSet(self.samples(count, size, seed))
            for size, count in sizes.items()
            if count
        }
        size = 2 * options.size
        for name in options.generators if options.other else []:
            kinds = [(name, radius) for radius in OTHER_RADII]
            title = f"{size}\u00b3, {name.replace('_', ' ')}"
            sets[title] = SampleSet(self.samples(options.other, size, seed, kinds), False)
        return sets

    def samples(
        self, count: int, size: int, seed: int, kinds: Sequence[Kind] | None = None
    ) -> Samples:
        """Return `count` samples, alternating between the kinds, by default those of the training."""
        kinds = KINDS if kinds is None else kinds
        each = [self._of_kind(*kind, -(-count // len(kinds)), size, seed) for kind in kinds]
        return [each[i % len(kinds)][i // len(kinds)] for i in range(count)]

    def _of_kind(self, generator: Any, radius: int, count: int, size: int, seed: int) -> Samples:
        def make() -> PorousConduction:
            return PorousConduction(
                self.root, count, size, 3, generator, seed=seed, grain_radius=radius
            )

        made = self._timed(make)
        return [made[i] for i in range(count)]

    def _timed(self, make: Callable[[], Any]) -> Any:
        """Return a dataset that is computed here, and note the CPU time and what was left out."""
        start = time.process_time()  # the solver runs in this process
        with warnings.catch_warnings(record=True) as reports:
            warnings.simplefilter("always")
            made = make()
        left_out = [one for one in reports if "is omitted" in str(one.message)]
        for one in left_out:
            print(one.message)
        if (took := time.process_time() - start) > 1 or left_out:  # less is the time of reading
            self.seconds += took
            self.left_out += len(left_out)
            note = {"seconds": self.seconds, "left_out": self.left_out}
            write_atomically(self.note, json.dumps(note).encode())
        return made


class Boxes(Data):
    """Boxes of a scan, those of its last planes unseen; see `Data`.

    Args:
        options: The command line.
        scan: The scan.
    """

    num_kinds = 1

    def __init__(self, options: argparse.Namespace, scan: DiskArray) -> None:
        super().__init__(options)
        self.root = options.out / "boxes"
        self.pores, self.held_out_seed = options.pore_values, options.seed + HELD_OUT_SEED
        self.parts, self.title = parts_of(scan, 2 * options.size)

    def samples(
        self, count: int, size: int, seed: int, kinds: Sequence[Kind] | None = None
    ) -> Samples:
        """Return boxes of the planes to train on, or with the seed of unseen ones of the last planes."""
        part = self.parts[seed == self.held_out_seed]
        made = self._timed(
            lambda: ScannedConduction(self.root, part, count, size, self.pores, seed=seed)
        )
        # of those trained on, which come first
        self.facts.setdefault("boxes", made.cache.folder.name)
        return [made[i] for i in range(count)]
