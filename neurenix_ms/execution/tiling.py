"""Exact tiled inference for any module."""

from collections.abc import Callable, Container, Sequence
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._pytree import TreeSpec, tree_leaves, tree_map, tree_unflatten

from neurenix_ms._core.arguments import UNCHECKED, checked
from neurenix_ms._core.checks import shown
from neurenix_ms._core.config import Described
from neurenix_ms._core.dims import SpatialDims, check_positive
from neurenix_ms.execution.compiled import plain_module, uncompiled
from neurenix_ms.execution.plan.arguments import check_args, passing
from neurenix_ms.execution.plan.footprint import Place
from neurenix_ms.execution.progress import progress_bar
from neurenix_ms.execution.run.arrays import check_apart, check_outputs, check_writable, write
from neurenix_ms.execution.run.ranks import Index, Ranks, checksum, is_shared, ranks_of
from neurenix_ms.execution.run.refusals import check_chunks, check_plain_parallelism
from neurenix_ms.execution.run.setting import (
    Schedule,
    Setting,
    TileSize,
    Whole,
    check_choices,
    check_names,
    check_rank_of,
    check_same_calls,
    settle,
    settle_early,
)
from neurenix_ms.execution.run.tiles import TiledRun, in_one_piece

Reduce = Literal["argmax"] | None
REDUCES: dict[str | None, Callable[[Tensor], Tensor]] = {
    "argmax": lambda y: y.argmax(1),
    None: lambda y: y,
}


class TiledModel(Described, nn.Module):
    """Run a model tile by tile, with the same result as on the whole input.

    Use it for inference on images and volumes larger than memory: x and out may be memory-mapped or zarr
    arrays. There is no blending and nothing to tune: the halo is measured on the model, normalizations
    get the statistics of the whole input, and deep levels, which are small, run whole. A model that
    cannot run exactly in tiles raises an error. Where the whole input fits into memory, the plain call
    is simpler.

    The plan for running in tiles is made at the first call and cached, outside the model, until the
    model changes (see [`footprint`][neurenix_ms.execution.footprint]). If that takes more than two
    seconds, the logger "neurenix_ms" emits a warning, which Python prints where no logging is set up;
    `logging.getLogger("neurenix_ms").setLevel(logging.ERROR)` silences it.

    Input and output tensors and arrays follow one rule: real numbers and booleans are converted to the
    model's dtype, whatever their byte order and strides; complex numbers for a real model, masked
    values, strings and objects raise an error. A model that works in place does not change the caller's
    tensor. A compiled model runs uncompiled, because every new tile size would trigger another
    compilation.

    Args:
        model: Any module that takes one tensor, and perhaps arguments without spatial axes (`args` of
            the call), and returns tensors; it is not modified.
        tile_size: Edge length of a tile in pixels or voxels, or one per axis, without the halo. It is
            rounded down to a multiple of the stride. "auto" takes the largest size that fits
            `memory_limit`. If the whole input fits, it runs in one call, which every model supports.
        spatial_dims: Number of spatial axes.
        in_channels: Channels of the input. If given, a model that cannot run in tiles raises here
            rather than at the first call; not for models with further arguments.
        whole: Names of submodules that run once, on their whole feature map of lower resolution;
            "auto" takes the shallowest that fit into memory, `()` none. On a mesh with a tile for every
            rank and no `memory_limit`, "auto" shares the shallowest (see `shared`), and within them all
            levels. A submodule that cannot run in tiles, gets further arguments, or has cores shorter
            than its halo then runs whole on every rank, if that takes less than a tenth of the
            operations of the model in all; otherwise deeper ones are shared, or none.
        memory_limit: Bytes for what runs at a time: a tile, a part run whole, or the inputs on which
            receptive fields are measured (at least 256 MiB for these). With None, a part run whole
            may take as much as one tile. Results of the model and of the parts are not included. Tiles
            that wait for others (`schedule`) are.
        reduce: "argmax" returns the index of the largest channel instead of all channels.
        progress: Show a progress bar (needs tqdm), on the first rank of a mesh.
        mesh: A one-dimensional device mesh whose ranks share the tiles. Every rank calls with the same
            model and input, and gets the same result: the merged statistics are those of the whole
            input. A result in memory is sent to all ranks; into an array on disk, every rank writes
            its own tiles. `tile_size="auto"` then needs no limit and makes one tile per rank. If a
            rank fails, all ranks raise its error. With None, this process runs all tiles, also where
            torch.distributed is initialized.
        schedule: How tiles get the statistics of normalizations and the results of parts run whole. With
            "passes", one tile is in memory at a time; the tiles run again for every such layer. With
            "in_step", all tiles run up to such a layer, wait there, and continue: nothing is computed
            twice, but the feature maps that waiting tiles still need stay in memory. "auto" takes
            "in_step" if the tiles of a process, at most 64, need no more than `memory_limit`; with None,
            no more than 256 MiB or twice the memory of one tile. On a mesh with a tile for every rank it
            always takes "in_step". With a limit and `tile_size="auto"`, smaller tiles in step are taken
            instead of larger ones in passes. In step, the code of the model runs in one thread per tile,
            never two at a time; attributes, lists and dicts of modules are kept apart, but a variable
            outside of the modules that a forward writes before such a layer and reads after it is not.
        shared: Names of submodules that the ranks of a mesh share: every rank runs them on a window of
            its own, with the halo of the submodule alone, and exchanges windows of input and result
            with its neighbors. Names may lie inside others, as in
            `("level.inner", "level.inner.inner")`, so that each level has a small halo. They must be
            called with one feature map only. This holds in step, with at most one tile per rank; else,
            and without a mesh, they run whole. If names are given, `whole="auto"` adds none.

    Shape:
        `(B, C, *S)` -> that of the model; with `reduce`, without its channels

    Raises:
        ValueError: If an argument is out of range; if a layer depends on the whole input, is not
            shift-equivariant by the stride or is random (the message names it); if a submodule in
            `shared` cannot run in tiles; or if x or out has another shape. With a mesh, also if the
            ranks have different models or inputs, or would write to the same chunk of out.
        RankError: If another rank failed with an error that cannot be pickled.
        ImportError: If a progress bar is requested and tqdm is missing.

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

    @checked
    def __init__(
        self,
        model: nn.Module,
        tile_size: TileSize,
        *,
        spatial_dims: SpatialDims = 2,
        in_channels: int | None = None,
        whole: Annotated[Whole, UNCHECKED] = "auto",
        memory_limit: int | None = None,
        reduce: Reduce = None,
        progress: bool = False,
        mesh: DeviceMesh | None = None,
        schedule: Schedule = "auto",
        shared: Annotated[Sequence[str], UNCHECKED] = (),
    ) -> None:
        super().__init__()
        ranks_of(mesh)
        plain = plain_module(model)
        whole = check_choices(plain, tile_size, whole, spatial_dims, memory_limit, mesh)
        shared = check_names(plain, "shared", shared)
        self.model = model
        self.tile_size = tile_size
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.whole = whole
        self.memory_limit = memory_limit
        self.reduce = reduce
        self.progress = progress
        self.mesh = mesh
        self.schedule = schedule
        self.shared = shared
        if in_channels is not None:
            check_positive(in_channels=in_channels)
            settle_early(plain, in_channels, spatial_dims, whole, memory_limit, shared)

    @torch.no_grad()
    def forward(
        self,
        x: Any,
        out: Any = None,
        *,
        args: Sequence[Any] = (),
        skip: Container[int] = (),
        on_tile: Callable[[int, int], None] = lambda number, total: None,
    ) -> Any:
        """Return the model's result for `x`, written into `out` if it is given.

        Args:
            x: A tensor, or an array that can be sliced (NumPy, memory-mapped, dask, zarr).
            out: A tensor or array of the result's shape, or the model's structure of them, which
                shares no memory with x; or a function that makes it from the shapes and the dtypes of
                all results, called when the first tile has run; with a mesh, on every rank, and the
                arrays must be on disk.
            args: Further arguments of the model, which every tile gets unchanged: tensors `(B, ...)`
                without spatial axes, such as a condition, and other values.
            skip: Numbers of tiles that are in `out` already, from an earlier call with the same model,
                x and arguments. Passes for statistics and for parts run whole are not shortened. With a
                mesh, they are the same on all ranks, and `out` is on disk.
            on_tile: Called with the number of a tile and the number of all tiles when the tile is in
                `out`.
        """
        model = plain_module(self.model)
        ranks = ranks_of(self.mesh)
        with ranks.agreeing(), uncompiled():
            check_plain_parallelism(model)
            if skip != () and not _makes_arrays(out):
                check_seen_by_all(ranks, tree_leaves(out))
            shape, like = check_rank_of(x, self.spatial_dims, model)
            choices = self.tile_size, self.whole, self.memory_limit
            with passing(check_args(args, shape)):
                setting = settle(
                    model, shape, like, *choices, ranks.size, self.schedule, shared=self.shared
                )
                tiles = 1 if setting is None else len(setting.grid)
                left_out = checksum([number for number in range(tiles) if number in skip])
                check_same_calls(ranks, model, x, setting, reduce=self.reduce, skip=left_out)
                if setting is None:
                    return self._in_one(model, x, like, out, ranks, skip, on_tile)
                return self._in_tiles(model, x, like, out, setting, ranks, skip, on_tile)

    def _in_one(
        self,
        model: nn.Module,
        x: Any,
        like: Tensor,
        out: Any,
        ranks: Ranks,
        skip: Container[int] = (),
        on_tile: Callable[[int, int], None] = lambda number, total: None,
    ) -> Any:
        if out is not None and 0 in skip:
            return out
        result = in_one_piece(model, x, like, ranks)
        if out is None:
            result = tree_map(REDUCES[self.reduce], result)
            on_tile(0, 1)
            return result
        pieces = tree_leaves(result)
        reduced = [REDUCES[self.reduce](y) for y in pieces]
        shapes = [tuple(y.shape) for y in reduced]
        if _makes_arrays(out):
            out = out(shapes, [y.dtype for y in reduced])
            check_seen_by_all(ranks, tree_leaves(out))
        leaves = check_outputs(out, shapes)
        for leaf, y in zip(leaves, pieces, strict=True):
            self._check_room(leaf, y)
        for leaf, y in zip(leaves, reduced, strict=True):
            if ranks.rank == 0 or not is_shared(leaf):
                write(leaf, (slice(None),), y)
        on_tile(0, 1)
        return out

    def _check_room(self, out: Any, y: Tensor) -> None:
        """Raise if `out` cannot hold the result, of which `y` is a piece."""
        if self.reduce is None:
            check_writable(out, y.dtype)
        else:
            check_writable(out, torch.int64, y.shape[1] - 1)

    def _in_tiles(
        self,
        model: nn.Module,
        x: Any,
        like: Tensor,
        out: Any,
        setting: Setting,
        ranks: Ranks,
        skip: Container[int] = (),
        on_tile: Callable[[int, int], None] = lambda number, total: None,
    ) -> Any:
        tiles = len(setting.grid)
        waiting = [number for number in range(tiles) if number not in skip]
        if out is None and len(waiting) < tiles:
            raise ValueError("out must hold the tiles that skip names, got None")
        if not waiting:
            return out
        shapes = [self._shape(place, x.shape) for place in setting.plan.outputs]
        make = out if _makes_arrays(out) else None
        leaves = None if out is None or make else check_outputs(out, shapes)
        check_apart(x, leaves or [])
        structure: TreeSpec | None = None
        visible = self.progress and ranks.rank == 0
        total = -(-len(waiting) // ranks.size) + -(-tiles // ranks.size) * setting.num_sites()
        with progress_bar(visible, type(model).__name__, total) as step:
            run = setting.run(model, x, like, step, ranks)
            pieces = [self._pieces(run, place) for place in setting.plan.outputs]
            for leaf, own in zip(leaves or [], pieces, strict=False):
                check_chunks(leaf, own)
            if setting.in_step and ranks.size > 1:  # a rank runs a tile at least
                here = [number for number, _ in run.tiles(setting.plan.output_halo())]
                if all(number in skip for number in here):
                    skip = {number for number in range(tiles) if number in skip} - {here[0]}
            with run.running():
                for number, tile, cores, layout in run.results(skip):
                    if structure is None and out is not None:
                        if make:
                            out = make(shapes, self._dtypes(cores))
                            leaves = check_outputs(out, shapes)
                            check_apart(x, leaves)
                            check_seen_by_all(ranks, leaves)
                            for leaf, own in zip(leaves, pieces, strict=True):
                                check_chunks(leaf, own)
                        for leaf, core in zip(leaves or [], cores, strict=True):
                            self._check_room(leaf, core)
                    structure = layout
                    if leaves is None:
                        leaves = self._room(cores, shapes, x)
                    for leaf, core, place in zip(leaves, cores, setting.plan.outputs, strict=True):
                        index = tile.core_of_whole(place.lines)
                        if core.numel():
                            write(leaf, self._reduced(index), REDUCES[self.reduce](core))
                    del cores, core
                    if any(stop > start for start, stop in tile.core):
                        on_tile(number, tiles)
                for leaf, own in zip(leaves or [], pieces, strict=True):
                    if not is_shared(leaf):
                        ranks.complete(leaf, own)
                ranks.agree()
            run.move_running()
        return out if out is not None else tree_unflatten(leaves or [], cast(TreeSpec, structure))

    def _pieces(self, run: TiledRun, place: Place) -> list[list[Index]]:
        """Return what every rank writes of a result."""
        return [[self._reduced(index) for index in own] for own in run.pieces(place.lines)]

    def _dtypes(self, cores: list[Tensor]) -> list[torch.dtype]:
        return [core.dtype if self.reduce is None else torch.int64 for core in cores]

    def _room(self, cores: list[Tensor], shapes: list[tuple[int, ...]], x: Any) -> list[Tensor]:
        """Allocate tensors for the whole results on the device of x."""
        device = x.device if isinstance(x, Tensor) else "cpu"
        pairs = zip(shapes, self._dtypes(cores), strict=True)
        return [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in pairs]

    def _shape(self, place: Place, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of a whole result for an input of this shape."""
        result = [shape[0], *place.result_shape[1:]]
        for line, n in zip(place.lines, shape[2:], strict=True):
            result[line.dim] = line.length(0, n, n)
        return tuple(result if self.reduce is None else (result[0], *result[2:]))

    def _reduced(self, index: tuple[slice, ...]) -> tuple[slice, ...]:
        return index if self.reduce is None else (index[0], *index[2:])


def check_seen_by_all(ranks: Ranks, arrays: Sequence[Any]) -> None:
    """Raise unless what one rank writes into these arrays is seen by all."""
    for array in arrays:
        if ranks.size > 1 and not is_shared(array):
            raise ValueError(
                "with a mesh, skip and a function in place of out need arrays on disk, got "
                f"{shown(array)}"
            )


def _makes_arrays(out: Any) -> bool:
    """Return whether `out` is a function that makes the arrays rather than arrays."""
    return callable(out) and not hasattr(out, "shape")
