"""Arrays at several scales, coarsest first, and the masks for upsampling between them."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import shown
from neurenix_ms._core.dims import LINEAR_MODES, SpatialDims, check_positive, check_rank, choose
from neurenix_ms._core.sizes import fit, spatial
from neurenix_ms._core.tracing import one_call
from neurenix_ms.layers.resize import doubled, halved


def filled_up(x: Tensor, num_scales: int) -> Tensor:
    """Pad every axis of `x` at its end with solid (0) to a multiple of `2**(num_scales - 1)`."""
    block = 2 ** (num_scales - 1)
    # rounded up by addition, because ONNX rounds negative quotients towards zero
    return fit(x, tuple((n + block - 1) // block * block for n in spatial(x)))


@one_call
@checked
def coarsen(x: Tensor, num_scales: int) -> list[Tensor]:
    """Average pairs of voxels along every axis repeatedly.

    A size that is not a multiple of `2**(num_scales - 1)` is padded with solid (0) at the end.

    Args:
        x: An array with one, two or three spatial axes.
        num_scales: Number of scales, `x` itself included.

    Returns:
        `num_scales` arrays `(B, C, *S)`, **coarsest first** as in the papers of MS-Net.

    Raises:
        ValueError: If there is no scale, or `x` does not have one to three spatial axes.

    Examples:
        >>> [tuple(y.shape) for y in coarsen(torch.ones(1, 1, 8, 8, 8), 3)]
        [(1, 1, 2, 2, 2), (1, 1, 4, 4, 4), (1, 1, 8, 8, 8)]
    """
    check_positive(num_scales=num_scales)
    check_rank(
        x, choose({n: n for n in LINEAR_MODES}, x.ndim - 2, "the number of spatial axes of x")
    )
    scales = [filled_up(x, num_scales)]
    while len(scales) < num_scales:
        scales.insert(0, halved(scales[0]))
    return scales


@one_call
@checked
def scale_masks(x: Tensor, num_scales: int) -> list[Tensor]:
    """Return the masks that restrict upsampling to pores and keep the mean of every coarse voxel.

    With p the porosity of a voxel, the mask of a scale is the ratio of p at that scale to p of the
    coarser voxel. It is 0 in a coarse voxel without pores.

    Args:
        x: Array whose first channel is above 0 in pores, such as a distance transform.
        num_scales: Number of scales.

    Returns:
        One mask `(B, 1, *S)` for every upsampling, coarsest first, then the binary mask of the pores.

    Raises:
        ValueError: As for `coarsen`.

    Examples:
        >>> [tuple(m.shape) for m in scale_masks(torch.ones(1, 1, 8, 8), 3)]
        [(1, 1, 4, 4), (1, 1, 8, 8), (1, 1, 8, 8)]
    """
    if x.ndim < 3 or not x.is_floating_point():
        raise ValueError(
            f"x must be floating point, (B, C) and 1 to 3 spatial axes, got {shown(x)}"
        )
    shares = coarsen((x[:, :1] > 0).to(x.dtype), num_scales)
    masks = []
    for coarse, fine in pairwise(shares):
        share = doubled(coarse)
        masks.append(torch.where(share > 0, fine / share.clamp(min=torch.finfo(x.dtype).tiny), 0))
    return [*masks, shares[-1]]


@one_call
def masks_of(x: Tensor, num_scales: int, masks: Sequence[Tensor] | None) -> Sequence[Tensor]:
    """Return the given masks, or those of `x`."""
    return scale_masks(x, num_scales) if masks is None else masks


@checked
def random_volume(
    size: int,
    num_scales: int,
    spatial_dims: SpatialDims = 3,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """Return a volume of random pores and solid at several scales, as a test input for a network.

    Half of the voxels are pores, without any structure. For training use `PorousConduction`.

    Args:
        size: Voxels along each axis of the finest scale.
        num_scales: Number of scales.
        spatial_dims: Number of spatial axes.
        generator: Source of the random numbers.

    Returns:
        `num_scales` arrays `(1, 1, *S)`, coarsest first.

    Raises:
        ValueError: If a count is below 1.

    Examples:
        >>> len(random_volume(16, 3))
        3
    """
    check_positive(size=size)
    box = torch.rand(1, 1, *[size] * spatial_dims, generator=generator)
    return coarsen((box < 0.5).float(), num_scales)
