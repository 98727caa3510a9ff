"""Rescaled crops: equal to torchvision, exact for ramps, image and labels at one place."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from sizes_for import dims_and_sizes
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from neurenix_ms.datasets import RandomCrops, RandomScaledCrop


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def place_of(*options, size, shape, seed=0, **more):
    """The windows that a crop draws."""
    crop = RandomScaledCrop(size, *options, generator=seeded(seed), **more)
    edges = crop.size * len(shape) if crop.is_one_edge else crop.size
    return crop._drawn(shape, edges)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scales", [(0.2, 0.9), (1.1, 3.0), (0.5, 2.0)])
def test_in_the_plane_it_is_torchvisions_resize_and_crop(scales, seed):
    image, labels = torch.rand(3, 37, 53, dtype=torch.float64), torch.randint(9, (37, 53))
    crop = RandomScaledCrop([8, 10], scales, generator=seeded(seed))
    found, found_labels = crop(image, labels)
    rows, columns = place_of(scales, size=[8, 10], shape=(37, 53), seed=seed)
    size = [rows[0], columns[0]]
    whole = v2.functional.resize(image, size, antialias=True)
    classes = F.interpolate(labels[None, None].double(), size, mode="nearest-exact")[0, 0]
    if min(rows[1], columns[1]) < 0:  # smaller than the crop
        whole, classes = F.pad(whole, [20, 20, 20, 20]), F.pad(classes, [20, 20, 20, 20])
        rows, columns = (rows[0], rows[1] + 20, 8), (columns[0], columns[1] + 20, 10)
    at = (slice(rows[1], rows[1] + 8), slice(columns[1], columns[1] + 10))
    torch.testing.assert_close(found, whole[(..., *at)])
    assert torch.equal(found_labels, classes[at].long())


@given(dims_and_sizes(6, 14))
def test_an_enlarged_ramp_stays_a_ramp_and_labels_stay_in_place(shape):
    dims, size = shape
    for seed, axis in enumerate(range(dims)):
        options = {"seed": seed, "per_axis": True}
        rescaled, start, _ = place_of((1.0, 2.0), size=4, shape=size, **options)[axis]
        places = torch.arange(size[axis], dtype=torch.float64) + 0.5
        ramp = places.view([-1 if k == axis else 1 for k in range(dims)]).expand(size)
        crop = RandomScaledCrop(4, (1.0, 2.0), per_axis=True, generator=seeded(seed))
        found, labels = crop(ramp[None], ramp.floor().long())
        line, classes = (y.movedim(axis, 0).reshape(4, -1)[:, 0] for y in (found[0], labels))
        wanted = (torch.arange(start, start + 4, dtype=torch.float64) + 0.5) * size[axis] / rescaled
        wanted = wanted.clamp(0.5, size[axis] - 0.5)  # constant in the half pixel at a border
        torch.testing.assert_close(line, wanted)
        exact = (2 * torch.arange(start, start + 4) + 1) * size[axis] // (2 * rescaled)
        assert torch.equal(classes, exact)
        assert (line - classes - 0.5).abs().max() <= 0.5


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_a_ramp_shrunk_by_a_whole_factor_stays_a_ramp(parts):
    ramp = torch.arange(60.0, dtype=torch.float64)[None] + 0.5
    crop = RandomScaledCrop(60 // parts, (1 / parts, 1 / parts))
    found, labels = crop(ramp, ramp[0].floor().long())
    wanted = (torch.arange(60 // parts, dtype=torch.float64) + 0.5) * parts
    torch.testing.assert_close(found[0, 1:-1], wanted[1:-1])
    assert torch.equal(labels, wanted.floor().long())


@pytest.mark.parametrize("shape", [(30,), (20, 31), (9, 12, 10)])
def test_scale_one_is_a_plain_crop(shape):
    image = torch.randn(2, *shape)
    labels = torch.randint(5, shape)
    found, classes = RandomScaledCrop(6, (1, 1), generator=seeded(3))(image, labels)
    windows = place_of((1, 1), size=6, shape=shape, seed=3)
    at = tuple(slice(place, place + 6) for _, place, _ in windows)
    assert torch.equal(found, image[(slice(None), *at)])
    assert torch.equal(classes, labels[at])


@pytest.mark.parametrize("shape", [(5,), (5, 4), (3, 5, 4)])
def test_what_is_too_small_is_filled(shape):
    image, labels = torch.ones(2, *shape), torch.ones(shape, dtype=torch.long)
    crop = RandomScaledCrop(12, (1, 1), fill=-1.0, label_fill=255, generator=seeded())
    corners = set()
    for _ in range(10):
        found, classes = crop(image, labels)
        assert found.shape == (2, *(12,) * len(shape))
        assert torch.equal(found[0] == 1, classes == 1)
        assert torch.equal(found[0] == -1, classes == 255)
        assert (classes == 1).sum() == labels.numel()
        corners.add(tuple((classes == 1).nonzero()[0].tolist()))
    assert len(corners) > 3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.bool])
def test_images_of_integers_are_rounded(dtype):
    image = torch.randint(2 if dtype == torch.bool else 200, (1, 30, 22)).to(dtype)
    found = RandomScaledCrop(7, (0.4, 0.4), generator=seeded(1))(image)
    exact = RandomScaledCrop(7, (0.4, 0.4), generator=seeded(1))(image.double())
    assert found.dtype == dtype
    assert (found.double() - exact).abs().max() <= 0.5 + 1e-4


def test_factors_are_drawn_evenly_over_their_logarithms():
    factors = []
    crop = RandomScaledCrop(1, (0.25, 4.0), generator=seeded())
    for _ in range(2000):
        (rescaled, _, _), (other, _, _) = crop._drawn((4000, 4000), [1, 1])
        assert rescaled == other  # one factor for both axes
        factors.append(rescaled / 4000)
    drawn = torch.tensor(factors).log2()
    assert drawn.min() > -2.01
    assert drawn.max() < 2.01
    assert abs(float(drawn.mean())) < 0.08
    assert abs(float(drawn.std()) - 4 / 12**0.5) < 0.05


def test_floating_targets_are_rescaled_as_the_image():
    image = torch.rand(1, 20, 20)
    found, same = RandomScaledCrop(9, (0.5, 0.7))(image, image[0])
    torch.testing.assert_close(found[0], same)


def test_beside_transforms_of_torchvision():
    image = tv_tensors.Image(torch.rand(3, 20, 24))
    mask = tv_tensors.Mask(torch.rand(20, 24) > 0.5)
    chain = v2.Compose([v2.RandomHorizontalFlip(1.0), RandomScaledCrop(8), v2.RandomErasing(0.0)])
    found, classes = chain(image, mask)
    assert (type(found), type(classes)) == (tv_tensors.Image, tv_tensors.Mask)
    assert (found.shape, classes.dtype) == ((3, 8, 8), torch.bool)


def test_as_a_transform_of_crops_in_workers():
    x = torch.arange(900.0).reshape(1, 30, 30)
    crops = RandomCrops(
        x, x[0].long(), size=16, num_samples=8, transform=RandomScaledCrop(8, (0.5, 1.5))
    )
    loader = DataLoader(crops, batch_size=2, num_workers=2, generator=seeded(4))
    again = DataLoader(crops, batch_size=2, num_workers=2, generator=seeded(4))
    first, second = list(loader), list(again)
    assert [image.shape for image, _ in first] == [(2, 1, 8, 8)] * 4
    assert all(torch.equal(a, b) for a, b in zip(_flat(first), _flat(second), strict=True))


def _flat(batches) -> list[Tensor]:
    return [x for batch in batches for x in batch]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandomScaledCrop(0), "must be at least 1, got 0"),
        (lambda: RandomScaledCrop(4, (0.0, 1.0)), "scales must be .*above 0"),
        (lambda: RandomScaledCrop(4, (2.0, 1.0)), "a smallest and a largest factor, got"),
        (lambda: RandomScaledCrop(4, (1.0,)), "a smallest and a largest factor, got"),
        (lambda: RandomScaledCrop(4, generator=3), "must be a torch.Generator or None, got int"),
        (lambda: RandomScaledCrop([4, 4])(torch.zeros(1, 9)), "with 2 spatial axes, got shape"),
        (lambda: RandomScaledCrop(4)(torch.zeros(9)), "with one or more spatial axes, got shape"),
        (
            lambda: RandomScaledCrop(4)(torch.zeros(1, 9), torch.zeros(8)),
            r"the spatial size \(9,\) of the image, got shape \(8,\)",
        ),
        (lambda: RandomScaledCrop(4)([1.0]), "the image must be"),
    ],
)
def test_bad_input_is_refused_by_what_it_is(make, words):
    with pytest.raises(ValueError, match=words):
        make()
