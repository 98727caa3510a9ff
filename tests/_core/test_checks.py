"""Arguments are converted to plain Python values, or raise with their name."""

import enum
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neurenix_ms._core import checks
from neurenix_ms._core.arguments import checked


class Color(enum.StrEnum):
    RED = "red"


class Whole(int):
    pass


@pytest.mark.parametrize(
    "value", [3, Whole(3), np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)]
)
def test_an_integer_becomes_a_plain_one(value):
    number = checks.check_integer("count", value)
    assert type(number) is int
    assert number == 3


@pytest.mark.parametrize(
    "value",
    [
        True,
        np.True_,
        torch.tensor(True),
        3.0,
        np.float64(3),
        "3",
        None,
        [3],
        torch.tensor([3]),
        torch.tensor(3.0),
        np.array([3]),
        {},
        torch.zeros(2, 2),
        torch.tensor(3, device="meta"),
    ],
)
def test_values_other_than_integers_raise(value):
    with pytest.raises(ValueError, match=r"^count must be an integer, got "):
        checks.check_integer("count", value)


def test_an_integer_out_of_range_raises():
    with pytest.raises(ValueError, match=r"^count must be at least 1, got 0$"):
        checks.check_integer("count", np.int64(0), minimum=1)
    with pytest.raises(ValueError, match=r"^count must be at most 5, got 6$"):
        checks.check_integer("count", 6, maximum=5)
    with pytest.raises(ValueError, match=r"^count must be at most 9223372036854775807, got "):
        checks.check_integer("count", 10**5000)


@pytest.mark.parametrize(
    "value", [0.5, np.float32(0.5), np.float16(0.5), np.array(0.5), torch.tensor(0.5)]
)
def test_a_number_becomes_a_plain_one(value):
    number = checks.check_number("rate", value)
    assert type(number) is float
    assert number == 0.5


@pytest.mark.parametrize(
    "value",
    [
        True,
        "0.5",
        None,
        [0.5],
        float("nan"),
        float("inf"),
        np.float64("nan"),
        10**400,
        1j,
        np.array([0.5]),
        torch.tensor([0.5]),
        torch.tensor(1j),
        np.datetime64("2020"),
        object(),
    ],
)
def test_values_other_than_finite_numbers_raise(value):
    with pytest.raises(ValueError, match=r"^rate must be a finite number, got "):
        checks.check_number("rate", value)


def test_a_number_out_of_range_raises():
    with pytest.raises(ValueError, match=r"^rate must be at least 0, got -1$"):
        checks.check_number("rate", -1, minimum=0)
    with pytest.raises(ValueError, match=r"^rate must be at most 1, got 2$"):
        checks.check_number("rate", 2, maximum=1)
    with pytest.raises(ValueError, match=r"^rate must be above 0, got 0$"):
        checks.check_number("rate", 0, above=0)
    with pytest.raises(ValueError, match=r"^rate must be below 1, got 1$"):
        checks.check_number("rate", 1, below=1)


def test_odd_flags_texts_and_names():
    assert checks.check_odd("kernel_size", np.int8(3)) == 3
    with pytest.raises(ValueError, match=r"^kernel_size must be odd and at least 1, got 2$"):
        checks.check_odd("kernel_size", 2)
    for value in (True, np.True_, torch.tensor(True), np.array(True)):
        assert checks.check_flag("bilinear", value) is True
    for value in (1, "True", None, torch.tensor([True]), np.array([True]), torch.tensor(1)):
        with pytest.raises(ValueError, match=r"^bilinear must be True or False, got "):
            checks.check_flag("bilinear", value)
    for value in ("red", np.str_("red"), Color.RED):
        assert type(checks.check_text("name", value)) is str
        assert checks.check_name("name", value, ["blue", "red"]) == "red"
        assert type(checks.check_name("name", value, ["blue", "red"])) is str
    for value in (["red"], {}, b"red", 1, True, np.array(["red"]), torch.zeros(1)):
        with pytest.raises(ValueError, match=r"^name must be one of \['red', 3, None\], got "):
            checks.check_name("name", value, ["red", 3, None])


def test_sequences():
    for value in ([4, 8], (4, 8), np.array([4, 8]), torch.tensor([4, 8]), range(4, 9, 4)):
        numbers = checks.check_integers("features", value)
        assert numbers == [4, 8]
        assert [type(n) for n in numbers] == [int, int]
        assert checks.check_numbers("features", value) == [4.0, 8.0]
    for value in ("48", b"48", 4, {4: 8}, {4, 8}, None, np.zeros((2, 2)), torch.tensor(4)):
        with pytest.raises(ValueError, match=r"^features must be a sequence of integers, got "):
            checks.check_integers("features", value)
    with pytest.raises(ValueError, match=r"^features\[1\] must be at least 1, got 0$"):
        checks.check_integers("features", [1, 0], minimum=1)
    with pytest.raises(ValueError, match=r"^features must have 3 entries, got \[1, 2\]$"):
        checks.check_integers("features", [1, 2], length=3)
    with pytest.raises(ValueError, match=r"at most 1048576 entries, got 1000000000$"):
        checks.check_integers("features", range(10**9))


def test_callables_modules_tensors():
    assert checks.check_callable("norm", nn.ReLU) is nn.ReLU
    with pytest.raises(ValueError, match=r"^norm must be callable, got 'relu'$"):
        checks.check_callable("norm", "relu")
    with pytest.raises(ValueError, match=r"^model must be a torch\.nn\.Module, got <class"):
        checks.check_module("model", nn.ReLU)
    with pytest.raises(ValueError, match=r"^mask must be a tensor, got \[1, 2\]$"):
        checks.check_tensor("mask", [1, 2])


class Hostile:
    def __repr__(self):
        raise RuntimeError


def test_what_came_is_shown_shortly():
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    for value in (nested, cyclic, "x" * 10**6, Hostile(), 10**10_000, list(range(10**6))):
        assert len(checks.shown(value)) < 200
    while nested:  # freeing the nest by recursion would overflow the stack
        nested = nested[0]
    assert checks.shown(torch.zeros(2, 3)) == "a tensor of shape (2, 3) and type torch.float32"
    assert checks.shown(np.zeros(2)) == "an array of shape (2,) and type float64"
    assert checks.shown(nn.Linear(1, 1)) == "a module Linear"


@checked
def every_kind(
    count: int = 1,
    *,
    rate: float = 0.5,
    flag: bool = True,
    text: str = "",
    name: Literal["a", 2] | None = None,
    widths: int | Sequence[int] = (1,),
    pair: tuple[int, float] = (1, 2.0),
    norm: Literal["batch"] | Callable[[int], nn.Module] | None = "batch",
    model: nn.Module | None = None,
    mask: Tensor | float | None = None,
    tensors: Sequence[Tensor] = (),
    by_stride: Mapping[int, Mapping[str, Any]] | None = None,
    anything: Any = None,
) -> dict[str, Any]:
    """All arguments."""
    return dict(locals())


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"count": np.int64(3)}, 3),
        ({"rate": 1}, 1.0),
        ({"rate": np.float32(0.5)}, 0.5),
        ({"flag": np.False_}, False),
        ({"text": np.str_("x")}, "x"),
        ({"name": np.int64(2)}, 2),
        ({"name": None}, None),
        ({"widths": np.int64(2)}, 2),
        ({"widths": np.array([2, 3])}, [2, 3]),
        ({"pair": np.array([2, 3])}, (2, 3.0)),
        ({"norm": np.str_("batch")}, "batch"),
        ({"norm": nn.BatchNorm2d}, nn.BatchNorm2d),
        ({"mask": np.float64(2)}, 2.0),
        ({"anything": ["x"]}, ["x"]),
        ({"by_stride": {np.int64(3): {"a": 1}}}, {3: {"a": 1}}),
    ],
)
def test_a_checked_function_gets_plain_values(given, plain):
    (name,) = given
    value = every_kind(**given)[name]
    assert value == plain
    assert type(value) is type(plain)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"count": 2.5}, "count must be an integer, got 2.5"),
        ({"rate": "x"}, "rate must be a finite number, got 'x'"),
        ({"flag": 1}, "flag must be True or False, got 1"),
        ({"name": ["a"]}, "name must be one of ['a', 2] or None, got ['a']"),
        ({"widths": "x"}, "widths must be an integer or a sequence of integers, got 'x'"),
        ({"widths": [1, "x"]}, "widths[1] must be an integer, got 'x'"),
        ({"pair": [1]}, "pair must be a sequence of 2 integers, got [1]"),
        (
            {"norm": ("instance", {"affine": True})},
            "norm must be one of ['batch'], a callable or None, got ('instance', {'affine': True})",
        ),
        ({"model": nn.ReLU}, "model must be a torch.nn.Module or None, got <class"),
        ({"mask": [1.0]}, "mask must be a tensor, a finite number or None, got [1.0]"),
        (
            {"tensors": torch.zeros(2, 3)},
            "tensors must be a sequence of tensors, got a tensor of shape (2, 3)",
        ),
        ({"tensors": [1]}, "tensors[0] must be a tensor, got 1"),
        ({"by_stride": [1]}, "by_stride must be a Mapping or None, got [1]"),
        ({"by_stride": {4: 1}}, "by_stride[4] must be a Mapping, got 1"),
        ({"by_stride": {"a": {}}}, "by_stride['a'] (the key) must be an integer, got 'a'"),
    ],
)
def test_a_checked_function_raises_with_the_name_of_the_argument(given, words):
    with pytest.raises(ValueError, match="^" + re.escape(words)):
        every_kind(**given)


def test_a_wrong_signature_is_a_type_error():
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'nonsense'"):
        every_kind(nonsense=1)


def test_a_tensor_for_a_tensor_or_a_number_is_unchanged():
    mask = torch.tensor(2.0)
    assert every_kind(mask=mask)["mask"] is mask


def test_a_checked_function_is_pickled_and_compiled():
    assert pickle.loads(pickle.dumps(every_kind)) is every_kind

    @checked
    def twice(x: Tensor, factor: float = 2.0) -> Tensor:
        return factor * x

    x = torch.ones(3)
    compiled = torch.compile(lambda x: twice(x, 3.0), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), 3 * x)
