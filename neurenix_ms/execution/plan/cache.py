"""What was found out about models, kept beside them for as long as they do not change."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from neurenix_ms.execution.plan.fingerprint import Attribute, Fingerprint, fingerprint_of

MOST_STATES = 8  # of one model: its modes, and what is frozen
MOST_FINDINGS = 64  # of one state: sizes, remainders, sets of parts

Finding = TypeVar("Finding")


@dataclass
class _State:
    """A model as it was at some time, and what was found about it then, latest first."""

    fingerprint: Fingerprint
    findings: list[tuple[Hashable, Any]] = field(default_factory=list)


@dataclass
class _Shelf:
    """Everything known about one model."""

    states: list[_State] = field(default_factory=list)
    written: set[Attribute] = field(default_factory=set)  # by the forward itself: counters, results

    def state(self, now: Fingerprint) -> _State:
        """The state of this fingerprint, first from now on."""
        known = (s for s in self.states if s.fingerprint.holds_for(now))
        state = next(known, None) or _State(now)
        self.states = [state, *(s for s in self.states if s is not state)][:MOST_STATES]
        return state


# by identity, since a module may define equality; a model that is gone takes its entry with it
_shelves = WeakIdKeyDictionary()


def kept(
    model: nn.Module,
    question: Hashable,
    find: Callable[[], Finding],
    fits: Callable[[Finding], bool] = lambda _: True,
) -> Finding:
    """Return what `find` returned for this question before, if the model is still the same.

    Nothing is written into the model, so it is copied and pickled without. Attributes that change
    while `find` runs the model are left out of the comparison from then on: a forward that counts its
    calls stays the same.

    Args:
        model: What is asked about.
        question: Everything else that the answer depends on.
        find: Makes the answer; it must not refer to the model.
        fits: Whether an answer to the same question serves now.
    """
    shelf: _Shelf = _shelves.setdefault(model, _Shelf())
    before = fingerprint_of(model)
    findings = shelf.state(before.without(shelf.written)).findings
    for index, (asked, found) in enumerate(findings):
        if asked == question and fits(found):
            findings.insert(0, findings.pop(index))
            return found
    found = find()
    after = fingerprint_of(model)
    shelf.written |= before.changed(after)
    if after.structure != before.structure or shelf.written:
        _relabel(shelf)
    findings = shelf.state(after.without(shelf.written)).findings
    findings.insert(0, (question, found))
    del findings[MOST_FINDINGS:]
    return found


def _relabel(shelf: _Shelf) -> None:
    """Leave open, in what is known, the attributes that the forward writes."""
    for state in shelf.states:
        state.fingerprint = state.fingerprint.without(shelf.written)
