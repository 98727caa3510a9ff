"""The finest prediction of an MSNet, computed tile by tile.

The result is the only new tensor of the finest size. The input of a stage, which is the array and the
masked and upsampled coarser prediction, is computed for one tile at a time.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from neurenix_ms._core.dims import SpatialDims
from neurenix_ms._core.sizes import spatial
from neurenix_ms.execution import TiledModel
from neurenix_ms.layers.resize import doubled, halved
from neurenix_ms.msnet.volumes import coarsen

SLAB = 32  # voxels of the first axis that are computed together
THIN_SLAB = 8  # the same where several fields are computed from them


def predicted_in_tiles(
    stages: Sequence[nn.Module],
    x: Tensor,
    tile_size: int,
    spatial_dims: SpatialDims,
    mask_output: bool,
    mesh: DeviceMesh | None = None,
    condition: Tensor | None = None,
) -> Tensor:
    """Return the finest prediction, at the size of the padded array."""
    num_scales = len(stages)
    scales = coarsen(x, num_scales)
    shares: list[Tensor | None] = [None]  # porosities, finest first; the finest one is x > 0
    while len(shares) < num_scales:
        finer = shares[-1]
        shares.append(halved_pores(scales[-1]) if finer is None else halved(finer))
    shares.reverse()

    def tiled(stage: nn.Module) -> TiledModel:
        return TiledModel(stage, tile_size, spatial_dims=spatial_dims, whole=(), mesh=mesh)

    args = () if condition is None else (condition,)
    y = tiled(stages[0])(scales[0], args=args)
    for stage, fine, (coarse_share, share) in zip(
        stages[1:], scales[1:], pairwise(shares), strict=True
    ):
        joined = StageInput(fine, y, share, coarse_share)
        y = tiled(stage)(joined, args=args)  # the stage itself, so that its plan is reused
        correct(y, joined, mask_output and fine is scales[-1])
    return y


def correct(y: Tensor, joined: "StageInput", mask_output: bool) -> None:
    """Add the coarser prediction, which is part of the input of a stage, slab by slab."""
    features = joined.fine.shape[1]
    for start in range(0, y.shape[2], THIN_SLAB):
        slab = (slice(None), slice(None), slice(start, min(start + THIN_SLAB, y.shape[2])))
        y[slab] += joined[slab][:, features:]
        if mask_output:
            y[slab] *= joined.fine[slab][:, :1] > 0


class StageInput:
    """The input of a stage, computed window by window: the array and the upsampled prediction.

    Args:
        fine: The array at the scale of the stage.
        coarse: The prediction at the next coarser scale.
        share: Porosity of the voxels of `fine`; None if it is 0 or 1, given by the first channel.
        coarse_share: Porosity of the voxels of `coarse`.
    """

    def __init__(
        self, fine: Tensor, coarse: Tensor, share: Tensor | None, coarse_share: Tensor | None
    ) -> None:
        assert coarse_share is not None
        self.fine, self.coarse = fine, coarse
        self.share, self.coarse_share = share, coarse_share
        self.shape = (fine.shape[0], fine.shape[1] + coarse.shape[1], *spatial(fine))

    def __getitem__(self, index: tuple[slice, ...]) -> Tensor:
        ends = [w.indices(n) for w, n in zip(index[2:], self.shape[2:], strict=False)]
        ends += [(0, n, 1) for n in self.shape[2 + len(ends) :]]
        # the coarse voxels that cover the window, and the window within them
        around = tuple(slice(start // 2, -(-stop // 2)) for start, stop, _ in ends)
        inside = tuple(slice(start % 2, start % 2 + stop - start) for start, stop, _ in ends)
        window = (slice(None), slice(None), *(slice(start, stop) for start, stop, _ in ends))
        every = (slice(None), slice(None))
        fine = self.fine[window]
        share = (fine[:, :1] > 0).to(fine.dtype) if self.share is None else self.share[window]
        coarse_share = doubled(self.coarse_share[(*every, *around)])[(*every, *inside)]
        coarse = doubled(self.coarse[(*every, *around)])[(*every, *inside)]
        least = torch.finfo(fine.dtype).tiny
        mask = torch.where(coarse_share > 0, share / coarse_share.clamp(min=least), 0)
        return torch.cat([fine, coarse * mask], dim=1)


def halved_pores(x: Tensor) -> Tensor:
    """Return the porosity at half the size, slab by slab."""
    slabs = x[:, :1].split(SLAB, dim=2)
    return torch.cat([halved((slab > 0).to(x.dtype)) for slab in slabs], dim=2)
