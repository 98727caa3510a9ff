"""Losses of several outputs and of regions, and averages over scales and mirror images."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from neurenix_ms import PyramidNetwork
from neurenix_ms.execution import TiledModel
from neurenix_ms.training import DeepSupervisionLoss, DiceLoss, MultiScaleInference


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_each_output_meets_the_target_averaged_to_its_size(spatial_dims):
    pool = getattr(F, f"avg_pool{spatial_dims}d")
    target = torch.randn(2, 3, *(8, 12, 4)[:spatial_dims])
    fine, coarse = torch.randn_like(target), torch.randn_like(pool(target, 2))
    loss = DeepSupervisionLoss(F.mse_loss, weights=[3, 1])
    expected = 0.75 * F.mse_loss(fine, target) + 0.25 * F.mse_loss(coarse, pool(target, 2))
    torch.testing.assert_close(loss([fine, coarse], target), expected)


def test_weights_halve_and_sum_to_one():
    outputs = [torch.zeros(1, 1, n) for n in (8, 4, 2)]
    values = iter([7.0, 0.0, 0.0])
    loss = DeepSupervisionLoss(lambda y, t: torch.tensor(next(values)))
    assert loss(outputs, torch.zeros(1, 1, 8)).item() == pytest.approx(4)


def test_classes_are_taken_from_the_middle_of_a_cell():
    classes = torch.arange(9).view(1, 9)
    seen = []
    loss = DeepSupervisionLoss(lambda y, t: seen.append(t) or torch.tensor(0.0))
    loss([torch.zeros(1, 2, 9), torch.zeros(1, 2, 3)], classes)
    loss([torch.zeros(1, 1, 3)], classes.unsqueeze(1))
    assert seen[0].tolist() == [[*range(9)]]
    assert seen[1].tolist() == [[1, 4, 7]]
    assert seen[2].tolist() == [[[1, 4, 7]]]


def test_every_level_of_a_pyramid_learns():
    network = PyramidNetwork(1, 3, 3, 4, return_pyramid=True)
    x, classes = torch.randn(2, 1, 21, 14), torch.randint(3, (2, 21, 14))
    DeepSupervisionLoss(nn.CrossEntropyLoss())(network(x), classes).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_dice_counted_by_hand():
    share = torch.tensor([[[0.5, 0.5, 1.0, 0.0]]], dtype=torch.float64)
    logits = torch.logit(share, 1e-12)
    truth = torch.tensor([[1, 1, 1, 0]])
    assert DiceLoss(0.0)(logits, truth).item() == pytest.approx(1 - 2 * 2 / (2 + 3))
    assert DiceLoss(1.0)(logits, truth).item() == pytest.approx(1 - 5 / 6)
    assert DiceLoss(0.0)(logits, truth.double().unsqueeze(1)).item() == pytest.approx(0.2)


def test_dice_ignores_how_large_a_class_is():
    classes = torch.zeros(1, 100, dtype=torch.long)
    classes[0, :2] = 1
    missed = 50.0 * F.one_hot(torch.zeros_like(classes), 2).movedim(-1, 1)
    assert DiceLoss(0.0)(missed, classes).item() == pytest.approx(0.5, abs=0.01)
    assert DiceLoss(0.0, include_background=False)(missed, classes).item() == pytest.approx(1)


def test_a_class_that_is_nowhere_costs_nothing():
    classes = torch.zeros(2, 6, dtype=torch.long)
    logits = 100.0 * F.one_hot(classes, 3).movedim(-1, 1)
    assert DiceLoss()(logits, classes).item() == pytest.approx(0, abs=1e-6)


def test_over_a_batch_the_overlap_is_one_fraction():
    classes = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]])
    logits = 2.0 * F.one_hot(classes, 2).movedim(-1, 1)
    joined = torch.cat([*logits], dim=-1).unsqueeze(0), classes.view(1, -1)
    whole = DiceLoss(batch=True)(logits, classes)
    torch.testing.assert_close(whole, DiceLoss()(*joined))
    assert whole != DiceLoss()(logits, classes)


def test_dice_has_the_right_gradient_and_survives_half_precision():
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    classes = torch.randint(3, (2, 4))
    assert torch.autograd.gradcheck(lambda x: DiceLoss()(x, classes), logits)
    large = torch.zeros(1, 1, 300, 300, dtype=torch.half)
    assert DiceLoss()(large, torch.ones(1, 300, 300, dtype=torch.long)).isfinite()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64])
def test_classes_of_any_integer_are_taken(dtype):
    logits = torch.randn(2, 2, 5, 4)
    classes = torch.randint(2, (2, 5, 4))
    expected = DiceLoss()(logits, F.one_hot(classes, 2).movedim(-1, 1).float())
    torch.testing.assert_close(DiceLoss()(logits, classes.to(dtype)), expected)
    one = torch.randn(2, 1, 5, 4)
    for target in (classes, classes.unsqueeze(1)):
        torch.testing.assert_close(
            DiceLoss()(one, target.to(dtype)), DiceLoss()(one, classes.unsqueeze(1).float())
        )


def test_without_smoothing_nothing_is_not_a_number():
    classes = torch.zeros(2, 6, dtype=torch.long)
    logits = (300.0 * F.one_hot(classes, 3).movedim(-1, 1)).requires_grad_()
    for options in ({}, {"jaccard": True}, {"squared": True}, {"batch": True}):
        value = DiceLoss(0.0, **options)(logits, classes)
        assert value.item() == pytest.approx(0, abs=1e-6)
        (slope,) = torch.autograd.grad(value, logits)
        assert slope.isfinite().all()
    none = DiceLoss(0.0, ignore_index=0)(logits, classes)
    assert none.isfinite()


def test_ignored_pixels_have_no_say():
    logits = torch.randn(2, 3, 5, 4, requires_grad=True)
    classes = torch.randint(3, (2, 5, 4))
    classes[:, 2:] = -1
    value = DiceLoss(ignore_index=-1)(logits, classes)
    torch.testing.assert_close(value, DiceLoss()(logits[:, :, :2], classes[:, :2]))
    (slope,) = torch.autograd.grad(value, logits)
    assert slope[:, :, 2:].count_nonzero() == 0


def test_masks_that_are_rounded_past_one_are_taken():
    logits = torch.randn(1, 1, 4)
    mask = torch.tensor([[[0.0, 1.0, 1.0 + 1e-6, -1e-6]]])
    torch.testing.assert_close(DiceLoss()(logits, mask), DiceLoss()(logits, mask.round()))
    assert DiceLoss()(torch.zeros(0, 2, 4), torch.zeros(0, 4, dtype=torch.long)).numel() == 1


@pytest.mark.parametrize("way", ["compile", "export", "vmap", "grad", "second"])
def test_dice_in_every_way_of_running(way):
    torch.compiler.reset()
    loss = DiceLoss()
    logits, classes = torch.randn(3, 4, 6, 5), torch.randint(4, (3, 6, 5))
    expected = loss(logits, classes)
    if way == "compile":
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(logits, classes), expected)
    elif way == "export":
        program = torch.export.export(loss, (logits, classes)).module()
        torch.testing.assert_close(program(logits, classes), expected)
    elif way == "vmap":
        one = torch.vmap(loss)(logits.unsqueeze(1), classes.unsqueeze(1))
        torch.testing.assert_close(one.mean(), expected)
    elif way == "grad":
        leaf = logits.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(loss(leaf, classes), leaf)
        torch.testing.assert_close(torch.func.grad(loss)(logits, classes), wanted)
    else:
        small = logits[:1, :, :2, :2].double().requires_grad_()
        few = classes[:1, :2, :2]
        assert torch.autograd.gradgradcheck(lambda x: loss(x, few), small)


def test_a_network_of_single_pixels_is_not_changed_by_mirrors():
    model = nn.Conv2d(3, 4, 1)
    x = torch.randn(2, 3, 7, 10)
    torch.testing.assert_close(MultiScaleInference(model, [1.0], flips=[0, 1])(x), model(x))
    flat = x.mean((2, 3), keepdim=True).expand_as(x)
    torch.testing.assert_close(MultiScaleInference(model, [0.5, 1, 1.6], [-1])(flat), model(flat))


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_the_average_commutes_with_its_mirrors(spatial_dims):
    conv = getattr(nn, f"Conv{spatial_dims}d")(1, 2, 3, padding=1)
    model = MultiScaleInference(
        conv, [0.5, 1.0], flips=[0, -1][: min(spatial_dims, 2)], spatial_dims=spatial_dims
    )
    x = torch.randn(1, 1, *(9, 6, 7)[:spatial_dims])
    torch.testing.assert_close(model(x.flip(2)), model(x).flip(2))
    assert len(model.mirrors) == (2 if spatial_dims == 1 else 4)


def test_it_is_the_mean_of_what_the_network_says():
    model = nn.Conv2d(1, 2, 3, padding=1)
    x = torch.randn(1, 1, 8, 6)
    small = F.interpolate(x, (4, 3), mode="bilinear")
    back = F.interpolate(model(small), (8, 6), mode="bilinear")
    torch.testing.assert_close(MultiScaleInference(model, [1.0, 0.5])(x), (model(x) + back) / 2)


def test_maps_of_a_lower_resolution_come_back_to_the_size_of_the_input():
    model = MultiScaleInference(nn.Conv2d(1, 2, 3, 2, 1), [1.0, 0.75])
    assert model(torch.zeros(1, 1, 9, 7)).shape == (1, 2, 9, 7)


def test_it_runs_a_model_in_tiles():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1))
    x = torch.randn(1, 1, 40, 33)
    whole = MultiScaleInference(model.eval(), [1.0, 0.75], flips=[-1])
    tiled = MultiScaleInference(TiledModel(model, 16), [1.0, 0.75], flips=[-1])
    with torch.no_grad():
        torch.testing.assert_close(tiled(x), whole(x))


def test_it_compiles():
    torch.compiler.reset()
    model = MultiScaleInference(nn.Conv2d(1, 2, 3, padding=1), [1.0, 0.5], flips=[-1])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for n in (8, 11, 13):
        x = torch.randn(1, 1, n, 6)
        torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DeepSupervisionLoss(F.mse_loss, [1, -1]), r"not all 0, got \[1.0, -1.0\]"),
        (lambda: DeepSupervisionLoss(F.mse_loss, []), r"not all 0, got \[\]"),
        (
            lambda: DeepSupervisionLoss(F.mse_loss)([], torch.zeros(1, 1, 2)),
            "expected one or more outputs, got 0",
        ),
        (
            lambda: DeepSupervisionLoss(F.mse_loss, [1, 2])([torch.zeros(1, 1, 2)], torch.zeros(1)),
            "expected 2 outputs, got 1",
        ),
        (lambda: DiceLoss(-1.0), "smooth must be 0 or more, got -1.0"),
        (lambda: DiceLoss(weight=[1, -1]), r"numbers of at least 0, got \[1.0, -1.0\]"),
        (lambda: DiceLoss(weight=[]), r"numbers of at least 0, got \[\]"),
        (
            lambda: DiceLoss(weight=[1.0])(
                torch.zeros(1, 2, 3), torch.zeros(1, 3, dtype=torch.long)
            ),
            "one number for each of the 2 classes, got 1",
        ),
        (
            lambda: DiceLoss(multi_label=True)(
                torch.zeros(1, 2, 3), torch.zeros(1, 3, dtype=torch.long)
            ),
            r"a value per channel, \(1, 2, 3\), got \(1, 3\)",
        ),
        (
            lambda: DiceLoss(ignore_index=0)(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)),
            "ignore_index needs a target of classes, one integer per pixel, got torch.float32",
        ),
        (
            lambda: DiceLoss(include_background=False)(
                torch.zeros(1, 1, 3), torch.zeros(1, 3, dtype=torch.long)
            ),
            "two classes or more, got 1",
        ),
        (
            lambda: DiceLoss()(torch.zeros(1, 2, 3), torch.zeros(1, 4, dtype=torch.long)),
            r"classes \(1, 3\) or probabilities \(1, 2, 3\), got torch.int64 \(1, 4\)",
        ),
        (
            lambda: DiceLoss()(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)),
            r"logits must be \(B, C, \*S\), got shape \(2, 3\)",
        ),
        (
            lambda: DiceLoss()(torch.zeros(1, 1, 3), torch.tensor([[0, 255, 255]])),
            r"in \[0, 1\] if .* one channel, got values from 0 to 255; divide a mask",
        ),
        (
            lambda: DiceLoss()(torch.zeros(1, 1, 3), torch.tensor([[[0, 1, -1]]])),
            "got values from -1 to 1",
        ),
        (
            lambda: DiceLoss()(torch.zeros(1, 1, 3), torch.tensor([[[0.0, 255.0, 7.0]]])),
            "got values from 0 to 255",
        ),
        (
            lambda: DiceLoss()(torch.zeros(1, 2, 3), torch.full((1, 2, 3), 1.5)),
            r"must be in \[0, 1\] if it holds probabilities .* from 1.5 to 1.5",
        ),
        (
            lambda: DiceLoss()(torch.zeros(1, 2, 3), torch.full((1, 2, 3), torch.nan)),
            "got values from nan to nan",
        ),
        (
            lambda: DiceLoss()(torch.zeros(1, 3, 3), torch.tensor([[0, 2, 3]])),
            "classes from 0 to 2, one per channel of the logits, got values from 0 to 3; relabel",
        ),
        (
            lambda: DiceLoss()(torch.zeros(1, 3, 3), torch.tensor([[0, -100, 2]])),
            "classes from 0 to 2, .*, got values from -100 to 2",
        ),
        (lambda: MultiScaleInference(nn.ReLU(), [0]), r"scales\[0\] must be above 0, got 0"),
        (lambda: MultiScaleInference(nn.ReLU(), [1], [2]), r"axes from 0 to 1, got \[2\]"),
        (lambda: MultiScaleInference(nn.ReLU(), [1], [1, -1]), r"axes from 0 to 1, got \[1, -1\]"),
        (
            lambda: MultiScaleInference(nn.Flatten())(torch.zeros(1, 1, 2, 2)),
            r"the model must return one tensor .*, got \(1, 1\)",
        ),
        (
            lambda: MultiScaleInference(lambda x: [x])(torch.zeros(1, 1, 2, 2)),
            "the model must return one tensor .*, got list",
        ),
    ],
)
def test_every_message(call, message):
    with pytest.raises(ValueError, match=message):
        call()
