"""Read the Prelude in C by Bach as a sequence of sounding keys."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from neurenix_ms.datasets.cache import SampleCache

WORK = "bach/bwv846"
STEPS_PER_QUARTER = 4  # a row is a sixteenth
Note = tuple[float, float, tuple[int, ...]]  # start and duration in quarters, keys


def prelude(folder: Path) -> Tensor:
    """Return the Prelude in C, BWV 846, as a row per sixteenth, from a cache.

    Args:
        folder: Folder of the cache. The score is read only if the cache does not hold it.

    Raises:
        ImportError: If the score has to be read and music21 is missing.
    """
    parameters = {"work": WORK, "steps_per_quarter": STEPS_PER_QUARTER}
    cache = SampleCache(
        folder, "bach", parameters, lambda _: {"keys": sounding(_notes())}, ("music21",)
    )
    return cache[0]["keys"]


def sounding(notes: Iterable[Note]) -> Tensor:
    """Return for every sixteenth which keys sound, `(T, D)` of 0 and 1; D counts the keys that occur.

    Args:
        notes: Notes of a score, whose starts and durations are multiples of a sixteenth.

    Examples:
        >>> sounding([(0.0, 0.5, (60,)), (0.25, 0.25, (64, 67))])
        tensor([[1., 0., 0.],
                [1., 1., 1.]], dtype=torch.float64)
    """
    notes = list(notes)
    keys = sorted({key for _, _, chord in notes for key in chord})
    num_rows = max(round(STEPS_PER_QUARTER * (start + length)) for start, length, _ in notes)
    rows = torch.zeros(num_rows, len(keys), dtype=torch.float64)
    for start, length, chord in notes:
        first, last = (round(STEPS_PER_QUARTER * time) for time in (start, start + length))
        rows[first:last, [keys.index(key) for key in chord]] = 1
    return rows


def _notes() -> list[Note]:
    try:
        from music21 import corpus
    except ImportError as error:
        raise ImportError(
            "the sequence of Bach needs music21: pip install 'neurenix_ms[music]', or leave it out "
            "with --sequences"
        ) from error
    return [
        (
            float(note.offset),
            float(note.duration.quarterLength),
            tuple(int(pitch.midi) for pitch in note.pitches),
        )
        for note in corpus.parse(WORK).flatten().notes
    ]
