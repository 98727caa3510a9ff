"""Results of several ways, compared, and the forms that inputs and modules are brought into."""

import pytest
import torch
from torch import nn

from neurenix_ms.bench.comparing import Results, call_of
from neurenix_ms.bench.forms import Form, check_device, forms

CPU = torch.device("cpu")


def results(*outputs: torch.Tensor) -> Results:
    return Results(lambda x: list(outputs), (torch.ones(1),), train=False)


def test_the_error_is_relative_to_the_largest_value():
    a, b = torch.tensor([1.0, 2.0, -4.0]), torch.tensor([1.0, 2.4, -4.0])
    assert results(b).error(results(a)) == pytest.approx(0.1)
    assert results(a, a).error(results(a, a)) == 0
    assert results(torch.ones(2)).error(results(torch.zeros(2))) == float("inf")


def test_equal_infinities_and_nan_are_equal_and_others_are_not():
    odd = torch.tensor([float("inf"), float("nan"), 1.0])
    assert results(odd).error(results(odd)) == 0
    assert not results(odd).error(results(torch.ones(3))) <= 1e9
    assert not results(torch.ones(3)).error(results(odd)) <= 1e9


def test_integers_complex_numbers_and_nothing_are_compared_too():
    n = torch.tensor([1, 2])
    assert results(n).error(results(n + 1)) == pytest.approx(1 / 3)
    z = torch.tensor([1 + 1j])
    assert results(z).error(results(z)) == 0
    assert results(z).tolerance() == 1e-4
    assert results(torch.ones(0)).error(results(torch.ones(0))) == 0
    assert results().error(results()) == 0


def test_gradients_of_inputs_are_compared():
    x = torch.tensor([2.0, 3.0], requires_grad=True)
    right, wrong = (Results(f, (x,), True) for f in (torch.square, lambda x: x.detach() * x))
    assert right.differs_from(wrong) is None
    assert right.error(wrong) == pytest.approx(1.0)  # half the gradient


def test_tolerance_follows_the_dtype():
    found = [results(torch.ones(1, dtype=t)).tolerance() for t in (torch.float64, torch.bfloat16)]
    assert found == [1e-9, 0.1]


def test_a_step_leaves_no_gradients():
    layer, x = nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
    call_of(lambda y: layer(y), (x,), train=True)()
    call_of(layer, (x,), train=True)()
    assert x.grad is None
    assert layer.weight.grad is None


def test_channels_last_is_a_matter_of_memory_alone():
    form = Form(CPU, channels_last=True)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    x = torch.ones(2, 3, 5, 5, requires_grad=True)
    (placed,) = form.inputs(x)
    assert placed.is_contiguous(memory_format=torch.channels_last)
    assert placed.requires_grad
    copied = form.way(layers, train=False)
    assert isinstance(copied, nn.Sequential)
    assert copied[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert layers[0].weight.is_contiguous()
    assert layers.training
    assert not copied.training
    volume = Form(CPU, channels_last=True).way(nn.Conv3d(2, 3, 3), train=True)
    assert volume.weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_arguments_are_a_tuple_and_keep_what_is_no_tensor():
    x = torch.ones(2, dtype=torch.int64)
    found = Form(CPU, torch.float64).inputs(([torch.ones(1), x], "name"))
    assert [y.dtype for y in found[0]] == [torch.float64, torch.int64]
    assert found[1] == "name"


def test_inputs_are_made_from_what_they_ask_for():
    def every(**given):
        return torch.ones(given["batch"], given["size"])

    assert Form(CPU, size=3, batch=2).inputs(every)[0].shape == (2, 3)
    assert Form(CPU).inputs(lambda batch: torch.ones(batch))[0].shape == (1,)
    assert Form(CPU).inputs(lambda: torch.ones(4))[0].shape == (4,)


def test_forms_are_all_combinations_and_name_what_was_asked_for():
    found = list(forms(CPU, sizes=[4, (4, 6)], compile=[False, True], device="cpu"))
    assert [form.params for form in found] == [
        {"size": 4, "compile": False},
        {"size": 4, "compile": True},
        {"size": "4x6", "compile": False},
        {"size": "4x6", "compile": True},
    ]
    assert [form.params for form in forms(CPU)] == [{}]


def test_a_check_device_is_described():
    check_device(CPU)
    with pytest.raises(ValueError, match=r"device must be one of this machine, got 'xpu:5' \("):
        check_device(torch.device("xpu:5"))
