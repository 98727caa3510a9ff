"""Values and gradients of the losses equal MONAI's."""

import pytest
import torch

from neurenix_ms.training import DiceLoss

monai_losses = pytest.importorskip("monai.losses")

SHAPES = [(2, 17), (2, 12, 10), (2, 6, 5, 7)]


def value_and_gradient(loss, logits, target):
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, target)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value, gradient


def assert_equal(ours, theirs, logits, target, target_of_theirs):
    mine = value_and_gradient(ours, logits, target)
    others = value_and_gradient(theirs, logits, target_of_theirs)
    for a, b in zip(mine, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_classes", [2, 4, 19])
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("smooth", [1.0, 1e-5])
def test_dice_of_classes_is_monais(shape, num_classes, background, batch, smooth):
    logits = torch.randn(shape[0], num_classes, *shape[1:], dtype=torch.float64)
    classes = torch.randint(num_classes, shape)
    options = {"include_background": background, "batch": batch}
    theirs = monai_losses.DiceLoss(
        to_onehot_y=True, softmax=True, smooth_nr=smooth, smooth_dr=smooth, **options
    )
    ours = DiceLoss(smooth, **options)
    assert_equal(ours, theirs, logits, classes, classes.unsqueeze(1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [True, False])
def test_dice_of_one_channel_is_monais(shape, batch):
    logits = torch.randn(shape[0], 1, *shape[1:], dtype=torch.float64)
    theirs = monai_losses.DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0, batch=batch)
    ours = DiceLoss(batch=batch)
    labels = torch.randint(2, shape)
    assert_equal(ours, theirs, logits, labels, labels.unsqueeze(1).double())
    mask = torch.rand(logits.shape, dtype=torch.float64)
    assert_equal(ours, theirs, logits, mask, mask)


def test_dice_of_probabilities_is_monais():
    logits = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    share = torch.rand(2, 3, 8, 6, dtype=torch.float64).softmax(1)
    theirs = monai_losses.DiceLoss(softmax=True, smooth_nr=1.0, smooth_dr=1.0)
    assert_equal(DiceLoss(), theirs, logits, share, share)
