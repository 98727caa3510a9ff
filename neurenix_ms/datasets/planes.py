"""Part of an array on disk along its first axis."""

from typing import Any


class Planes:
    """Part of an array along its first axis, of which nothing is read until it is sliced.

    Args:
        array: The array.
        start: First plane.
        stop: Plane after the last one.
    """

    def __init__(self, array: Any, start: int, stop: int) -> None:
        self.array, self.start, self.dtype = array, start, array.dtype
        self.shape = (stop - start, *array.shape[1:])

    def __getitem__(self, index: Any) -> Any:
        first, *rest = index if isinstance(index, tuple) else (index,)
        start, stop, _ = first.indices(self.shape[0])
        return self.array[(slice(start + self.start, stop + self.start), *rest)]
