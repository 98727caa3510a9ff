"""Tell how far a long search or a long run is."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import cast

from torch import nn

LOGGER = logging.getLogger("neurenix_ms")
FIRST_MESSAGE = 2.0  # seconds
LATER_MESSAGES = 4.0  # times the seconds of the one before


@dataclass
class _Search:
    model: str
    start: float
    next_message: float


_search: ContextVar[_Search | None] = ContextVar("search_for_a_plan", default=None)


@contextmanager
def search_for_a_plan(model: nn.Module) -> Iterator[None]:
    """While it is entered, a search that takes long is announced.

    The message is a warning of the logger "neurenix_ms": Python prints those to stderr where no
    logging is set up, so a user sees why the first call takes long, and
    `logging.getLogger("neurenix_ms").setLevel(logging.ERROR)` silences it.
    """
    if _search.get() is not None:
        yield
        return
    token = _search.set(_Search(type(model).__name__, time.monotonic(), FIRST_MESSAGE))
    try:
        yield
    finally:
        _search.reset(token)


def tell_of_a_long_search() -> None:
    """Say that a search goes on, after two seconds and then ever more rarely."""
    search = _search.get()
    if search is None:
        return
    seconds = time.monotonic() - search.start
    if seconds > search.next_message:
        search.next_message = LATER_MESSAGES * seconds
        LOGGER.warning(
            "still finding out how %s can run in tiles, for %.0f s; the result is kept for the "
            "next calls",
            search.model,
            seconds,
        )


@contextmanager
def progress_bar(wanted: bool, title: str, total: int) -> Iterator[Callable[[], None]]:
    """A function that is called after every tile."""
    if not wanted:
        yield lambda: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("a progress bar needs tqdm: pip install tqdm") from error
    with tqdm(total=total, desc=title, unit="tile") as bar:
        yield lambda: cast(None, bar.update())
