"""Record which tiles of a prediction are on disk, so that it can resume."""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from neurenix_ms._core.io.atomic import write_atomically

LONGEST_WAIT = 20  # waiting for the disk takes at most 1 / LONGEST_WAIT of the time


class Journal:
    """A file whose first line says what is predicted, and whose other lines number finished tiles.

    A number is written after the data of its tile is on the disk. If writing to the disk is slow,
    tiles are collected, so that it takes at most a twentieth of the time.

    Args:
        path: The file.
        facts: What is predicted: plain values by name.
        finished: Numbers of the tiles that are on disk.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], finished: set[int]) -> None:
        self.path = path
        self.facts = dict(facts)
        self.finished = finished
        self._waiting: list[int] = []
        self._next = 0.0

    @classmethod
    def start(cls, path: Path, facts: Mapping[str, Any], finished: Iterable[int] = ()) -> "Journal":
        """Write a journal, by default without tiles."""
        numbers = set(finished)
        lines = [json.dumps(dict(facts), sort_keys=True)]
        lines += [" ".join(map(str, sorted(numbers)))] if numbers else []
        write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
        return cls(path, facts, numbers)

    @classmethod
    def joined(cls, path: Path) -> "Journal | None":
        """Read a journal, and move those of other ranks into it, `of_rank`; None as in `read`."""
        journal = cls.read(path)
        others = sorted(path.parent.glob(f"{path.name}-*"))
        if journal is None or not others:
            return journal
        known = [one for one in map(cls.read, others) if one and one.facts == journal.facts]
        journal = cls.start(
            path, journal.facts, journal.finished.union(*(one.finished for one in known))
        )
        for other in others:
            other.unlink()
        return journal

    @staticmethod
    def of_rank(path: Path, rank: int) -> Path:
        """Return the journal of a rank; that of the first is the journal itself."""
        return path.with_name(f"{path.name}-{rank}") if rank else path

    @classmethod
    def read(cls, path: Path) -> "Journal | None":
        """Read a journal; None if there is none, or it is not readable.

        A last line without an end, of a machine that lost its power, is dropped.
        """
        try:
            text = path.read_text("utf-8")
            whole = text[: text.rindex("\n") + 1]
            first, *lines = whole.splitlines()
            facts = json.loads(first)
            finished = {int(word) for line in lines for word in line.split()}
        except (OSError, ValueError):
            return None
        if not isinstance(facts, dict):
            return None
        if whole != text:
            write_atomically(path, whole.encode())
        return cls(path, facts, finished)

    def differences(self, facts: Mapping[str, Any]) -> list[str]:
        """Return what differs between this prediction and another, in words."""
        return [
            f"{name} {self.facts.get(name)!r} before and {value!r} now"
            for name, value in json.loads(json.dumps(dict(facts))).items()
            if self.facts.get(name) != value
        ]

    def add(self, tile: int, save: Callable[[], None]) -> None:
        """Note a finished tile.

        Args:
            tile: Its number.
            save: Brings what is written to the disk.
        """
        self._waiting.append(tile)
        start = time.monotonic()
        if start >= self._next:
            self.save(save)
            end = time.monotonic()
            self._next = end + LONGEST_WAIT * (end - start)

    def save(self, save: Callable[[], None]) -> None:
        """Bring all finished tiles to the disk, and then their numbers."""
        if not self._waiting:
            return
        save()
        line = " ".join(map(str, self._waiting))
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())
        self.finished.update(self._waiting)
        self._waiting = []
