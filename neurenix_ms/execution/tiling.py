"""A model becomes one that runs tile by tile, with the result of the whole map."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from neurenix_ms.execution.arrays import expect_arrays, read, write
from neurenix_ms.execution.footprint import Place, like_parameters
from neurenix_ms.execution.passes import find_values
from neurenix_ms.execution.progress import progress_bar
from neurenix_ms.execution.setting import (
    Setting,
    TileSize,
    Whole,
    expect_asked,
    expect_map_of,
    settle,
)
from neurenix_ms.nd import LINEAR_MODES, SpatialDims, choose

Reduce = Literal["argmax"] | None
REDUCTIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    "argmax": lambda y: y.argmax(1),
    None: lambda y: y,
}
EARLY_SIZE = 256  # of a map on which a model is tried before there is one


class TiledModel(nn.Module):
    """Run a model tile by tile where its maps do not fit; the result is that of the whole map.

    Use it for inference on images and volumes larger than the memory: x and out may be memory-mapped
    or zarr arrays. There is no blending and nothing to tune: the halo is found by asking the model,
    normalisations get the statistics of the whole map in passes of their own, and deep levels, which
    are small, run whole. A model that cannot be cut exactly is refused. Where the whole map fits,
    the plain call is faster.

    Args:
        model: Any module that takes one tensor and returns tensors; it stays as it is.
        tile_size: Edge of a tile in cells, or one per axis; the halo comes on top. It is rounded down
            to a multiple of the stride. "auto" takes the largest that fits `memory_limit`.
        spatial_dims: Number of spatial axes.
        in_channels: Channels of the input, if a model that cannot run in tiles is to be refused now
            rather than at the first map.
        whole: Names of submodules that run once, on the whole map of lower resolution; "auto" takes
            the shallowest that fit the memory, `()` none.
        memory_limit: Bytes for what runs at a time, a tile or a part; None allows a part what one
            tile takes. The result and what the parts return come on top.
        reduce: "argmax" gives the number of the largest channel instead of all channels.
        progress: Show a progress bar (needs tqdm).

    Shape:
        `(B, C, *S)` -> that of the model; with `reduce`, without its channels

    Raises:
        ValueError: If an argument is out of range, a layer sees the whole map, treats places
            differently or is random (the message names it), or x or out has another shape.
        ImportError: If a progress bar is wanted and tqdm is missing.

    Source: halo and exactness as in Pinckaers et al. 2022, "Streaming convolutional neural networks";
    statistics merged as in Chan et al. 1979, "Updating formulae".

    Examples:
        >>> from neurenix_ms import UNet
        >>> model = UNet(1, 2, features=[4, 8], norm="instance").eval()
        >>> x = torch.randn(1, 1, 150, 97)
        >>> tiled = TiledModel(model, tile_size=48)
        >>> bool((tiled(x) - model(x)).abs().max() < 1e-5)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        tile_size: TileSize,
        *,
        spatial_dims: SpatialDims = 2,
        in_channels: int | None = None,
        whole: Whole = "auto",
        memory_limit: int | None = None,
        reduce: Reduce = None,
        progress: bool = False,
    ) -> None:
        super().__init__()
        choose(LINEAR_MODES, spatial_dims, "spatial_dims")
        choose(REDUCTIONS, reduce, "reduce")
        expect_asked(model, tile_size, whole, spatial_dims, memory_limit)
        self.model = model
        self.tile_size = tile_size
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.whole = whole if isinstance(whole, str) else tuple(whole)
        self.memory_limit = memory_limit
        self.reduce = reduce
        self.progress = progress
        if in_channels is not None:
            shape = (1, in_channels, *(EARLY_SIZE,) * spatial_dims)
            settle(model, shape, like_parameters(model), 1, whole, memory_limit)

    @torch.no_grad()
    def forward(self, x: Any, out: Any = None) -> Any:
        """The model's result for `x`, written into `out` if it is given.

        Args:
            x: A tensor, or an array that slices; tiles of an array take the model's dtype.
            out: A tensor or array of the result's shape, or the model's structure of them.
        """
        shape, like = expect_map_of(x, self.spatial_dims, self.model)
        setting = settle(self.model, shape, like, self.tile_size, self.whole, self.memory_limit)
        if setting is None:
            return self._in_one(x, like, out)
        return self._in_tiles(x, like, out, setting)

    def _in_one(self, x: Any, like: Tensor, out: Any) -> Any:
        result = tree_map(REDUCTIONS[self.reduce], self.model(read(x, (slice(None),), like)))
        if out is None:
            return result
        pieces = tree_flatten(result)[0]
        for leaf, y in zip(
            expect_arrays(out, [tuple(y.shape) for y in pieces]), pieces, strict=True
        ):
            write(leaf, (slice(None),), y)
        return out

    def _in_tiles(self, x: Any, like: Tensor, out: Any, setting: Setting) -> Any:
        shapes = [self._shape(place, x.shape) for place in setting.plan.outputs]
        leaves = None if out is None else expect_arrays(out, shapes)
        structure: TreeSpec | None = None
        total = len(setting.grid) * (1 + setting.num_sites())
        with progress_bar(self.progress, type(self.model).__name__, total) as step:
            passes = setting.passes(self.model, x, like, step)
            with passes.running():
                values = find_values(passes)
                for tile, cores, layout in passes.outputs():
                    structure = layout
                    if leaves is None:
                        leaves = self._room(cores, shapes, x)
                    for leaf, core, place in zip(leaves, cores, setting.plan.outputs, strict=True):
                        index = tile.core_of_whole(place.lines)
                        write(leaf, self._reduced(index), REDUCTIONS[self.reduce](core))
                    del cores, core
            values.move_running()
        return out if out is not None else tree_unflatten(leaves or [], cast(TreeSpec, structure))

    def _room(self, cores: list[Tensor], shapes: list[tuple[int, ...]], x: Any) -> list[Tensor]:
        """Tensors for the whole results, where x is."""
        device = x.device if isinstance(x, Tensor) else "cpu"
        dtypes = (core.dtype if self.reduce is None else torch.int64 for core in cores)
        pairs = zip(shapes, dtypes, strict=True)
        return [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in pairs]

    def _shape(self, place: Place, shape: Sequence[int]) -> tuple[int, ...]:
        """Of a whole result for a map of this shape."""
        result = [shape[0], *place.result_shape[1:]]
        for line, n in zip(place.lines, shape[2:], strict=True):
            result[line.dim] = line.length(0, n, n)
        return tuple(result if self.reduce is None else (result[0], *result[2:]))

    def _reduced(self, index: tuple[slice, ...]) -> tuple[slice, ...]:
        return index if self.reduce is None else (index[0], *index[2:])
