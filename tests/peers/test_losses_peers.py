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


def assert_equal(ours, theirs, logits, target, target_of_theirs, rtol=1e-9):
    mine = value_and_gradient(ours, logits, target)
    others = value_and_gradient(theirs, logits, target_of_theirs)
    for a, b in zip(mine, others, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * 1e-2)


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


@pytest.mark.parametrize("jaccard", [False, True])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("ignore_index", [None, 0, 2, 255])
def test_options_of_dice_are_monais(jaccard, squared, reduction, batch, ignore_index):
    logits = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    classes = torch.randint(4, (2, 7, 6))
    if ignore_index == 255:
        classes[torch.rand(2, 7, 6) < 0.3] = 255
    weight = [0.5, 2.0, 0.0]
    options = {
        "jaccard": jaccard,
        "reduction": reduction,
        "batch": batch,
        "weight": weight,
        "ignore_index": ignore_index,
        "include_background": False,
    }
    theirs = monai_losses.DiceLoss(
        to_onehot_y=True, softmax=True, squared_pred=squared, smooth_nr=1, smooth_dr=1, **options
    )
    ours = DiceLoss(squared=squared, **options)
    wanted = theirs(logits, classes.unsqueeze(1)).squeeze()
    torch.testing.assert_close(ours(logits, classes), wanted.view_as(ours(logits, classes)))
    if reduction != "none":
        single = 1e-5 if squared else 1e-9  # its norms of the true regions are in float32
        assert_equal(ours, theirs, logits, classes, classes.unsqueeze(1), single)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("jaccard", [False, True])
def test_dice_of_labels_that_overlap_is_monais(shape, jaccard):
    logits = torch.randn(shape[0], 3, *shape[1:], dtype=torch.float64)
    labels = torch.randint(2, logits.shape)
    theirs = monai_losses.DiceLoss(sigmoid=True, smooth_nr=1, smooth_dr=1, jaccard=jaccard)
    ours = DiceLoss(multi_label=True, jaccard=jaccard)
    assert_equal(ours, theirs, logits, labels, labels.double())


def test_dice_of_probabilities_is_monais():
    logits = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    share = torch.rand(2, 3, 8, 6, dtype=torch.float64).softmax(1)
    theirs = monai_losses.DiceLoss(softmax=True, smooth_nr=1.0, smooth_dr=1.0)
    assert_equal(DiceLoss(), theirs, logits, share, share)
