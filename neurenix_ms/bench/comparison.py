"""All variants of a comparison in one form: checked against the reference, then measured."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from neurenix_ms._core.checks import check_flag, check_integer, check_number, shown
from neurenix_ms.bench.comparing import Results, call_of, first_tensor
from neurenix_ms.bench.costs import costs
from neurenix_ms.bench.forms import Form, check_device, in_words
from neurenix_ms.bench.results import BENCH_FORMAT
from neurenix_ms.bench.timing import Timed, timed_together
from neurenix_ms.execution.compiled import plain_module

Way = Callable[..., Any]


@dataclass(frozen=True)
class Question:
    """Options that hold for all forms.

    Args:
        reference: Name of the variant that the others are compared with.
        train: Measure a training step.
        equal: Do not measure a variant whose result differs.
        tolerance: Largest difference of results that count as equal, by dtype if None.
        rounds: Number of timed rounds; None runs as many as take about two seconds.
        items: Number of samples of a call; the length of the first tensor if None.
        timed: Measure time.
        resident: Measure resident memory.

    Raises:
        ValueError: If a number has the wrong type or is out of range.
    """

    reference: str
    train: bool = False
    equal: bool = True
    tolerance: float | None = None
    rounds: int | None = None
    items: int | None = None
    timed: bool = True
    resident: bool = False

    def __post_init__(self) -> None:
        for name in ("train", "equal", "timed"):
            check_flag(name, getattr(self, name))
        for name in ("rounds", "items"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)
        if self.tolerance is not None:
            check_number("tolerance", self.tolerance, minimum=0)


@dataclass(frozen=True)
class Found:
    """Measured figures of one variant."""

    name: str
    measured: dict[str, Any]
    timed: Timed | None


def check_ways(ways: Any, reference: str | None) -> tuple[dict[str, Way], str]:
    """Return the variants by name, and the name of the reference, by default the first one.

    Raises:
        ValueError: If there is no variant, or no such reference.
    """
    if not isinstance(ways, Mapping) or not ways:
        raise ValueError(f"ways must be modules or functions by name, got {shown(ways)}")
    for name, way in ways.items():
        if not callable(way):
            raise ValueError(f"ways[{name!r}] must be a module or a function, got {shown(way)}")
    first = next(iter(ways)) if reference is None else reference
    if first not in ways:
        raise ValueError(f"reference must be one of {list(ways)}, got {shown(first)}")
    return dict(ways), first


class Comparison:
    """Variants in one form.

    Args:
        question: Options of the comparison.
        form: Size, batch, dtype and so on.
    """

    def __init__(self, question: Question, form: Form) -> None:
        self.question, self.form = question, form
        self.problems: list[tuple[str, str]] = []  # of a way, in words

    def measured(self, ways: Mapping[str, Way], made: Any) -> list[Found]:
        """Return figures of each variant that runs and has the result of the reference.

        Errors of the others, of the device or of the inputs are added to `problems`. If the reference
        fails, nothing is returned.
        """
        inputs = self._inputs(made)
        if inputs is None:
            return []
        plain, final, compared = self._compared(ways, inputs)
        calls = {name: self._call(way, inputs) for name, way in final.items()}
        timed = self._timed(calls)
        first = first_tensor(inputs)
        common = {
            "shape": None if first is None else list(first.shape),
            "reference": self.question.reference,
            "train": self.question.train,
            "format": BENCH_FORMAT,
        }
        found = {}
        for name in self._reference_first(calls):
            way = plain[name]
            plain_way = plain_module(way) if isinstance(way, nn.Module) else way
            below = None if final[name] is plain_way else self._call(plain_way, inputs)
            try:
                figures = self._costs(calls[name], inputs, timed.get(name), way, below)
            except Exception as error:  # a user's module may raise any exception
                if self._failed(name, error, calls):
                    break
                continue
            ratio = timed[name].ratio if timed else None
            ratios = {} if ratio is None else {"time_ratio": ratio}
            measured = {**figures, **compared[name], **common, **ratios}
            found[name] = Found(name, measured, timed.get(name))
        return [found[name] for name in plain if name in found]

    def _inputs(self, made: Any) -> tuple[Any, ...] | None:
        """Return the arguments of a call, or None if the device or their function fails."""
        try:
            check_device(self.form.device)
            torch.manual_seed(0)
            return self.form.inputs(made)
        except ValueError as error:
            self._complain("", str(error))
        except Exception as error:  # a user's function may raise any exception
            self._complain("", f"inputs must be made without errors, got {in_words(error)}")
        return None

    def _compared(
        self, ways: Mapping[str, Way], inputs: tuple[Any, ...]
    ) -> tuple[dict[str, Way], dict[str, Way], dict[str, dict[str, Any]]]:
        """Return the variants that can be measured, also in their final form, and their differences.

        Results are those of the final form, which is compiled if `compile` is set.
        """
        reference = self.question.reference
        kept: dict[str, Way] = {}
        final: dict[str, Way] = {}
        compared: dict[str, dict[str, Any]] = {}
        wanted: Results | None = None
        for name in self._reference_first(ways):
            try:
                way = self.form.way(ways[name], self.question.train)
                final[name] = self._compiled(way)
                results = Results(final[name], inputs, self.question.train)
                wanted = wanted or results
                words, error_size = self._difference(results, wanted)
            except Exception as error:  # a user's module may raise any exception
                if self._failed(name, error, ways):
                    return {}, {}, {}
                continue
            if words is not None and self.question.equal:
                self._complain(name, f"{words}; pass equal=False to compare costs all the same")
                continue
            kept[name] = way
            error_size = None if name == reference else error_size
            compared[name] = {"same_result": words is None, "error": error_size}
        names = [name for name in ways if name in kept]
        return {n: kept[n] for n in names}, {n: final[n] for n in names}, compared

    def _difference(self, results: Results, wanted: Results) -> tuple[str | None, float | None]:
        if words := results.differs_from(wanted):
            return words, None
        error = results.error(wanted)
        given = self.question.tolerance
        limit = wanted.tolerance() if given is None else given
        if error <= limit:
            return None, error
        words = (
            f"the result must be that of {self.question.reference!r} within {limit:.0e} of its "
            f"largest value, got a difference of {error:.1e}"
        )
        return words, error

    def _compiled(self, way: Way) -> Way:
        if not self.form.compile or not isinstance(way, nn.Module):
            return way
        compiled: Way = torch.compile(way)
        return compiled

    def _call(self, way: Way, inputs: tuple[Any, ...]) -> Callable[[], object]:
        return call_of(way, inputs, self.question.train)

    def _timed(self, calls: dict[str, Callable[[], object]]) -> dict[str, Timed]:
        """Time all calls alternately; if one fails, drop it from `calls` and time the others again."""
        asked = self.question
        rounds = 1 if asked.resident else asked.rounds
        while asked.timed and calls:
            watched = {name: partial(_watched, name, call) for name, call in calls.items()}
            try:
                return timed_together(watched, asked.reference, self.form.device, rounds)
            except _CallError as failed:
                if self._failed(failed.name, failed.error, calls):
                    calls.clear()
                calls.pop(failed.name, None)
        return {}

    def _failed(self, name: str, error: Exception, ways: Iterable[str]) -> bool:
        """Add a variant that has failed to `problems`, and all others if it is the reference."""
        self._complain(name, f"raised {in_words(error)}")
        if name != self.question.reference:
            return False
        for other in ways:
            if other != name:
                self._complain(other, f"is not measured, as the reference {name!r} has failed")
        return True

    def _reference_first(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=lambda name: name != self.question.reference)

    def _costs(
        self,
        call: Callable[[], object],
        inputs: tuple[Any, ...],
        timed: Timed | None,
        way: Way,
        below: Callable[[], object] | None,
    ) -> dict[str, Any]:
        first = first_tensor(inputs)
        length = len(first) if first is not None and first.ndim else 1
        dtype = self.form.dtype or (torch.float32 if first is None else first.dtype)
        return costs(
            call,
            self.question.items or length,
            timed.median if timed else None,
            way if isinstance(way, nn.Module) else None,
            dtype if dtype.is_floating_point else torch.float32,
            self.form.device,
            self.question.resident,
            below,
        )

    def _complain(self, name: str, words: str) -> None:
        self.problems.append((name, words))


class _CallError(Exception):
    """An error of one of several calls that are timed together."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(name)
        self.name, self.error = name, error


def _watched(name: str, call: Callable[[], object]) -> None:
    try:
        call()
    except Exception as error:  # a user's module may raise any exception
        raise _CallError(name, error) from error
