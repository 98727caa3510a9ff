"""Comparisons in which something fails: it is a line of the report, and the others are measured."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neurenix_ms.bench import compare

CONV = nn.Conv2d(3, 4, 3)
X = torch.ones(1, 3, 8, 8)


class NoGradient(torch.autograd.Function):
    """The identity, without a backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise KeyError("no gradient")


def failing_after(calls: int) -> Callable[[Tensor], Tensor]:
    """A way that raises from some call on."""
    left = [calls]

    def way(x: Tensor) -> Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise MemoryError("out of memory\nin the second line")
        return CONV(x)

    return way


def measured(found: Any) -> list[str]:
    return [row.variant for rows in found.groups.values() for row in rows]


@pytest.mark.parametrize("timed", [False, True])
def test_an_error_in_backward_is_a_line_of_the_report(timed: bool):
    ways = {"a": CONV, "bad": lambda x: NoGradient.apply(CONV(x)), "b": CONV}
    found = compare(ways, X, train=True, timed=timed, rounds=2)
    assert found.problems == ["bad: raised KeyError: 'no gradient'"]
    assert measured(found) == ["a", "b"]
    assert "bad: raised KeyError" in str(found)


@pytest.mark.parametrize("calls", [0, 1, 2, 4, 9])
def test_an_error_in_a_later_call_is_a_line_of_the_report(calls: int):
    words = "raised MemoryError: out of memory"
    found = compare({"a": CONV, "bad": failing_after(calls), "b": CONV}, X, rounds=2)
    assert found.problems == [f"bad: {words}"]
    assert measured(found) == ["a", "b"]
    ratio = found.groups["forward"][1].value("time_ratio")
    assert 0 < ratio < math.inf


@pytest.mark.parametrize(("calls", "timed"), [(0, True), (1, True), (1, False), (2, False)])
def test_without_a_reference_nothing_is_measured(calls: int, timed: bool):
    ways = {"a": CONV, "bad": failing_after(calls), "b": CONV}
    found = compare(ways, X, reference="bad", timed=timed, rounds=2)
    left_out = "is not measured, as the reference 'bad' has failed"
    assert found.problems == [
        "bad: raised MemoryError: out of memory",
        f"a: {left_out}",
        f"b: {left_out}",
    ]
    assert not found.groups


class OtherWhenCompiled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + 1 if torch.compiler.is_compiling() else y


@pytest.mark.slow
def test_the_results_of_compiled_modules_are_compared():
    other = OtherWhenCompiled(3, 4, 3)
    other.load_state_dict(CONV.state_dict())
    found = compare({"a": CONV, "other": other}, X, compile=[False, True], timed=False)
    assert len(found.problems) == 1
    assert found.problems[0].startswith("other, compile True: the result must be that of 'a'")
    assert measured(found) == ["a", "other", "a"]


def test_an_error_in_making_inputs_is_a_line_of_the_report():
    def inputs(size: int) -> Tensor:
        if size == 4:
            raise IndexError
        return torch.ones(1, 3, size, size)

    found = compare({"a": CONV}, inputs, sizes=[4, 5], timed=False)
    assert found.problems == ["size 4: inputs must be made without errors, got IndexError"]
    assert [row.setting for row in found.groups["forward"]] == [{"size": 5}]


@pytest.mark.parametrize(
    ("device", "words"),
    [
        pytest.param(
            "cuda:77", "got 'cuda:77' (", marks=pytest.mark.filterwarnings("ignore:.*CUDA")
        ),
        ("mps", "got 'mps' ("),
        ("hpu", "got 'hpu' ("),
        ("meta", "device must be one that holds values, got 'meta'; predict_memory"),
    ],
)
def test_a_device_that_is_missing_is_a_line_of_the_report(device: str, words: str):
    alone = compare({"a": CONV}, X, device=device, timed=False)
    assert len(alone.problems) == 1
    assert words in alone.problems[0]
    assert len(alone.problems[0]) < 800
    assert not alone.groups
    beside = compare({"a": CONV}, X, device=["cpu", device], timed=False)
    assert beside.problems[0].startswith(f"device {device}: device must be one")
    assert measured(beside) == ["a"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"rounds": "x"}, "rounds must be an integer, got 'x'"),
        ({"items": 0}, "items must be at least 1, got 0"),
        ({"tolerance": "x"}, "tolerance must be a finite number, got 'x'"),
        ({"tolerance": math.nan}, "tolerance must be a finite number, got nan"),
        ({"tolerance": -1}, "tolerance must be at least 0, got -1"),
        ({"train": 3}, "train must be True or False, got 3"),
        ({"equal": None}, "equal must be True or False, got None"),
        ({"timed": "no"}, "timed must be True or False, got 'no'"),
        ({"compile": 3}, "compile must be True or False, got 3"),
        ({"channels_last": [True, "x"]}, "channels_last must be True or False, got 'x'"),
        ({"device": "abacus"}, "device must be a device of torch, got 'abacus'"),
        ({"device": ["cpu", "abacus"]}, "device must be a device of torch, got 'abacus'"),
        ({"dtype": "float31"}, "dtype must be a dtype of torch, got 'float31'"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_runs(options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words.replace("[", r"\[")):
        compare({"a": failing_after(0)}, X, **options)
