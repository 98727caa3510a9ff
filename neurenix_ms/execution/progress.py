"""Progress reports for long searches of a plan and for long runs."""

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
LATER_MESSAGES = 4.0  # each message waits this many times as long as the one before


@dataclass
class _Search:
    model: str
    start: float
    next_message: float


_search: ContextVar[_Search | None] = ContextVar("search_for_a_plan", default=None)


@contextmanager
def search_for_a_plan(model: nn.Module) -> Iterator[None]:
    """Report a search that takes long inside the context.

    The message is a warning of the logger "neurenix_ms". Python prints warnings to stderr where no
    logging is set up, so a user learns why the first call takes long;
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


def report_long_search() -> None:
    """Log that a search is still running, after two seconds and then at growing intervals."""
    search = _search.get()
    if search is None:
        return
    seconds = time.monotonic() - search.start
    if seconds > search.next_message:
        search.next_message = LATER_MESSAGES * seconds
        LOGGER.warning(
            "still planning how %s runs in tiles, for %.0f s; the plan is cached for the next calls",
            search.model,
            seconds,
        )


@contextmanager
def progress_bar(
    wanted: bool, title: str, total: int, unit: str = "tile"
) -> Iterator[Callable[[], None]]:
    """Yield a function to call after every tile or step, which advances a progress bar if `wanted`."""
    if not wanted:
        yield lambda: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("a progress bar needs tqdm: pip install tqdm") from error
    with tqdm(total=total, desc=title, unit=unit) as bar:
        yield lambda: cast(None, bar.update())
