"""Cache of plans, kept outside the models and valid until they change."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from neurenix_ms.execution.plan.fingerprint import Attribute, Fingerprint, fingerprint_of

MOST_STATES = 8  # of one model: train or eval, which parameters are frozen
MOST_FINDINGS = 64  # of one state: sizes, remainders, sets of parts

Finding = TypeVar("Finding")


@dataclass
class _State:
    """Findings about a model in one state, latest first."""

    fingerprint: Fingerprint
    findings: list[tuple[Hashable, Any]] = field(default_factory=list)


@dataclass
class _Entry:
    """States of one model, and the attributes that its forward writes."""

    states: list[_State] = field(default_factory=list)
    written: set[Attribute] = field(default_factory=set)  # such as counters and results

    def state(self, now: Fingerprint) -> _State:
        """Return the state of this fingerprint, and move it to the front."""
        known = (s for s in self.states if s.fingerprint.holds_for(now))
        state = next(known, None) or _State(now)
        self.states = [state, *(s for s in self.states if s is not state)][:MOST_STATES]
        return state


# keyed by identity, since a module may define equality; an entry is freed with its model
_entries = WeakIdKeyDictionary()


def cached(
    model: nn.Module,
    question: Hashable,
    find: Callable[[], Finding],
    fits: Callable[[Finding], bool] = lambda _: True,
) -> Finding:
    """Return what `find` returned for this question before, if the model is unchanged.

    Nothing is written into the model, so copies and pickles of it do not contain the cache.
    Attributes that change while `find` runs the model are ignored in later comparisons, so that a
    forward may count its calls.

    Args:
        model: The model that `find` runs.
        question: Everything else that the result depends on.
        find: Computes the result, which must not refer to the model.
        fits: Returns whether a cached result for the same question is valid now.
    """
    entry: _Entry = _entries.setdefault(model, _Entry())
    before = fingerprint_of(model)
    findings = entry.state(before.without(entry.written)).findings
    for index, (asked, found) in enumerate(findings):
        if asked == question and fits(found):
            findings.insert(0, findings.pop(index))
            return found
    found = find()
    after = fingerprint_of(model)
    entry.written |= before.changed(after)
    if after.structure != before.structure or entry.written:
        _ignore_written(entry)
    findings = entry.state(after.without(entry.written)).findings
    findings.insert(0, (question, found))
    del findings[MOST_FINDINGS:]
    return found


def _ignore_written(entry: _Entry) -> None:
    """Drop the attributes that the forward writes from all fingerprints."""
    for state in entry.states:
        state.fingerprint = state.fingerprint.without(entry.written)
