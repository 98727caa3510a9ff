"""Run a model on an array on disk, and write the result to disk."""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.io.atomic import naming
from neurenix_ms.datasets.arrays import DiskArray, open_array
from neurenix_ms.datasets.readers import files_in, number_dtype, state_of
from neurenix_ms.execution import TiledModel
from neurenix_ms.execution.plan.arguments import check_args, passing
from neurenix_ms.execution.plan.footprint import like_parameters
from neurenix_ms.execution.run.arrays import FEWER_BITS
from neurenix_ms.execution.run.ranks import Ranks, ranks_of
from neurenix_ms.execution.run.setting import check_rank_of, settle
from neurenix_ms.layers.conditioning import condition_name, keyword
from neurenix_ms.msnet import MSNet
from neurenix_ms.prediction.grids import said_of_images, time_step_of
from neurenix_ms.prediction.journal import Journal
from neurenix_ms.prediction.processes import check_one_machine
from neurenix_ms.prediction.results import MAPPED, Results, check_apart, give_back
from neurenix_ms.sharing.reading import read_network

MEMORY = 4 * 10**9  # bytes for a tile, if nothing else is asked for


@dataclass(frozen=True)
class Prediction:
    """The result of `predict_file`.

    Use it to see where the output is and what an earlier run contributed.

    Args:
        path: Path of the result.
        shape: Its shape.
        dtype: Its dtype.
        num_tiles: Number of tiles.
        num_resumed: Number of these that an earlier, interrupted run had finished.
        num_missing_chunks: Number of chunks of a zarr source that are not in the file. They were read as
            its fill value, which is wrong if they are lost.

    Examples:
        >>> Prediction(Path("labels.npy"), (1, 64, 64), "uint8", 4, 1).num_tiles
        4
    """

    path: Path
    shape: tuple[int, ...]
    dtype: str
    num_tiles: int
    num_resumed: int
    num_missing_chunks: int = 0


@checked
def predict_file(
    model: str | os.PathLike[str],
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    key: str | int | None = None,
    shape: Sequence[int] | None = None,
    dtype: Any = None,
    offset: int = 0,
    fill: float | Literal["keep"] | None = None,
    spatial_dims: Literal[1, 2, 3] | None = None,
    first: Literal["channels", "batch"] = "channels",
    tile_size: int | Sequence[int] | Literal["auto"] = "auto",
    memory_limit: int = MEMORY,
    whole: Literal["auto"] | Sequence[str] = "auto",
    condition: Sequence[float] | None = None,
    reduce: Literal["argmax"] | None = None,
    out_dtype: Any = None,
    time_step: float | None = None,
    units: str | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    progress: bool = False,
    mesh: DeviceMesh | None = None,
) -> Prediction:
    """Run a model on an array on disk, tile by tile, and write the result to disk.

    Use it for images and volumes of any size, and if a run may be interrupted: the same call resumes,
    finished tiles do not run again, and the result has the same bytes as without the interruption. The
    result equals that of the whole input up to rounding, as with `TiledModel`. The target appears when
    it is complete; until then the tiles are in the hidden folder `.NAME.part` in the same folder. This
    is `neurenix-ms predict` on the command line.

    From NetCDF to NetCDF, the result has the coordinates of the source, with their attributes and
    bounds, along all axes whose length is that in the source. If the result is a forecast, give
    `time_step`, which is added to the time of the source; the unit of the values is that of the source.
    (A source of `DensityMaps.write_step` contains both.) If time is the axis of the channels, the result
    has the times after the last one.

    Args:
        model: A file of `neurenix_ms.save`, or a folder of `save_pretrained`.
        source: The input; see `open_array`.
        target: Path of the result, whose suffix selects the format, as for `create_array`.
        key: Name of the array in a file with several arrays.
        shape: Shape of a raw binary source.
        dtype: Type of a raw binary source.
        offset: Number of bytes before the values in a raw binary source.
        fill: Replacement of missing values; "keep" leaves them unchanged.
        spatial_dims: Number of spatial axes; that of the model by default.
        first: Meaning of the axis before the spatial axes, if there is one.
        tile_size: Edge length of a tile in pixels or voxels, or one per axis; "auto" takes the largest
            that fits `memory_limit`.
        memory_limit: Bytes for the tensors of a tile, as in `TiledModel`; the process itself and its
            convolutions need more in addition.
        whole: Names of submodules that run once, on their whole feature map, as in `TiledModel`.
        condition: The vector of a network with `condition_channels`, the same for all images.
        reduce: "argmax" writes the index of the largest channel instead of all channels.
        out_dtype: Type of the result; by default that of the model, with `reduce` uint8.
        time_step: Time from the source to the result, in the unit of the source's time.
        units: Unit of the result, for formats that store one.
        device: Device of the model.
        overwrite: Replace an existing target, and discard an interrupted run with another model, input
            or options.
        progress: Show a progress bar (needs tqdm).
        mesh: A one-dimensional device mesh of processes on one machine, which share the tiles. Every
            process calls with the same arguments. `tile_size="auto"` makes at least one tile for each.
            With a given `tile_size` the result has the same bytes as that of one process, except for
            rounding if a normalization takes statistics of the whole input. If one process fails, all
            raise its error. With None, this process runs all tiles.

    Raises:
        ValueError: If a file cannot be read, has another shape than the model takes or missing values;
            if `target` exists or would replace `source` or `model`; if an interrupted run had another
            model, input or options (the message says what differs); or if another process writes the
            same target.
        OSError: If the disk is full or the folder is read-only. Finished tiles stay.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> from neurenix_ms import UNet, save
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(UNet(1, 3, features=[4, 8]), f"{folder}/model.nx")
        ...     np.save(f"{folder}/image.npy", np.zeros((70, 50), "uint8"))
        ...     made = predict_file(
        ...         f"{folder}/model.nx",
        ...         f"{folder}/image.npy",
        ...         f"{folder}/labels.npy",
        ...         tile_size=32,
        ...         reduce="argmax",
        ...     )
        >>> made.shape, made.dtype, made.num_tiles
        ((1, 70, 50), 'uint8', 6)
    """
    check_apart(target, model, source)
    if out_dtype is not None:
        number_dtype("out_dtype", out_dtype)
    results, ranks = Results(Path(target)), ranks_of(mesh)
    with contextlib.ExitStack() as stack:
        stack.enter_context(naming(results.target, results.folder))
        with ranks.agreeing():
            check_one_machine(ranks)
            network = read_network(model, device)
            _check_kind(network)
            array = open_array(source, key, shape=shape, dtype=dtype, offset=offset, fill=fill)
            images = array.images(_dims(network, spatial_dims), first)
            _check_channels(network, images)
            time_step = time_step_of(images, time_step, Path(target))
            facts = {
                "model": digest(Path(model)),
                "input": [
                    str(Path(source).resolve()),
                    *state(Path(source)),
                    images.shape,
                    str(images.dtype),
                ],
                "options": [
                    key,
                    offset,
                    str(fill),
                    first,
                    tile_size,
                    memory_limit,
                    whole,
                    reduce,
                    str(out_dtype),
                    *([] if condition is None else [list(condition)]),
                ],
                "run": [
                    device.partition(":")[0] if mesh else device,
                    torch.get_num_threads(),
                    torch.__version__,
                    *([ranks.size] if mesh else []),
                ],
            }
            args = _arguments(network, condition, images)
            inner = Finest(network) if isinstance(network, MSNet) else network
            limit: int | None = memory_limit
            if mesh is not None and isinstance(tile_size, str):
                limit = _limit_of_ranks(inner, images, args, whole, memory_limit, ranks.size)
            tiled = TiledModel(
                inner,
                tile_size,
                spatial_dims=images.ndim - 2,  # type: ignore[arg-type]
                memory_limit=limit,
                whole=whole,
                reduce=reduce,
                progress=progress,
                mesh=mesh,
            )
            ranks.compare({name: json.dumps(value) for name, value in facts.items()})
            known = None
            if ranks.rank == 0:
                stack.enter_context(results.alone())
                known = _resumed(results, facts, overwrite)
            known = ranks.first(known)
            kind = "uint8" if reduce and out_dtype is None else out_dtype
            run = _Run(results, ranks, known, facts, kind)
        try:
            run.predict(tiled, images, args)
        except BaseException as error:
            run.end(error)
            raise
        with ranks.agreeing():
            made = run.prediction()
            if ranks.rank == 0:
                _check_unchanged(images, facts)
                axes = _axes(images, reduce)
                said = said_of_images(images, axes, made.shape, time_step, units, results.target)
                results.finish(said.arguments(results.target))
    made = dataclasses.replace(made, num_missing_chunks=array.num_missing_chunks)
    array.close()
    return made


def _check_unchanged(images: DiskArray, facts: Mapping[str, Any]) -> None:
    """Raise if the source is another than when the tiles were begun."""
    images.check_unchanged()
    path, *before = facts["input"][:-2]
    if state(Path(path)) != before:
        raise ValueError(
            f"{images.path} must not change while it is predicted, got another size or modification "
            "time of it or of a file in it; predict again with overwrite (--overwrite)"
        )


def _limit_of_ranks(
    network: nn.Module,
    images: DiskArray,
    args: Sequence[torch.Tensor],
    whole: Any,
    memory_limit: int,
    num_ranks: int,
) -> int | None:
    """Return the limit by which tiles are chosen; None for one per rank, where larger ones would fit."""
    shape, like = check_rank_of(_Planes(images), None, network)
    with passing(check_args(args, shape)):
        setting = settle(network, shape, like, "auto", whole, memory_limit, num_ranks)
    return memory_limit if setting is not None and len(setting.grid) >= num_ranks else None


class _Planes:
    """An array on disk that is read some planes at a time, before whose memory others' is given back.

    The system maps more of a file into memory than is read, which would add up over a tile, and over
    tiles.
    """

    def __init__(self, images: DiskArray) -> None:
        self.images = images
        self.shape, self.dtype = images.shape, images.dtype
        self._size = images.dtype.itemsize * math.prod(images.shape) // max(1, images.shape[2])
        self._mapped = 0

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        if len(index) < 3:
            return self.images[index]
        start, stop, _ = index[2].indices(self.shape[2])
        count = max(1, MAPPED // max(1, self._size))
        if stop - start <= count:
            return self._read(index, start, stop)
        lengths = [len(range(*at.indices(n))) for at, n in zip(index, self.shape, strict=True)]
        result = np.empty(lengths, self.dtype)
        for first in range(start, stop, count):
            last = min(first + count, stop)
            result[:, :, first - start : last - start] = self._read(index, first, last)
        return result

    def _read(self, index: tuple[slice, ...], start: int, stop: int) -> np.ndarray:
        self._mapped += (stop - start) * self._size
        if self._mapped > MAPPED:
            self.images.release()
            self._mapped = (stop - start) * self._size
        return self.images[(*index[:2], slice(start, stop), *index[3:])]


class _Run:
    """A prediction that is under way.

    Args:
        results: Its files.
        ranks: The processes that share the tiles.
        known: What an interrupted run has left, if there is one.
        facts: What is predicted, for a new journal.
        dtype: Type of the result; None for that of the model.
    """

    def __init__(
        self,
        results: Results,
        ranks: Ranks,
        known: "_Left | None",
        facts: Mapping[str, Any],
        dtype: Any,
    ) -> None:
        self.results = results
        self.ranks = ranks
        self.known = known
        self.facts = facts
        self.dtype = dtype
        self.array: Any = None
        self.journal: Journal | None = None
        if known is not None:
            self.facts = known.facts
            if known.growing:
                self.array = results.open(self.facts["shape"], self.facts["dtype"])
            self._start(known.finished)

    def predict(self, tiled: TiledModel, images: DiskArray, args: Sequence[torch.Tensor]) -> None:
        """Run the tiles that are not finished."""
        if self.known is not None and not self.known.growing:  # all tiles were finished
            return

        def on_tile(number: int, total: int) -> None:
            if total == 1 and self.ranks.rank != 0:
                return  # all ranks run it, and the first one writes it
            assert self.journal is not None
            self.journal.add(number, self._save)
            give_back(self.array)

        tiled(
            _Planes(images),
            self._create if self.array is None else self.array,
            args=args,
            skip=self.known.finished if self.known is not None else frozenset(),
            on_tile=on_tile,
        )

    def prediction(self) -> Prediction:
        """Bring what this process has written to the disk, and return what all have made."""
        assert self.journal is not None
        self.journal.save(self._save)
        before = self.known.finished if self.known is not None else frozenset()
        finished = before.union(*self.ranks.gathered(sorted(self.journal.finished)))
        shape, dtype = self.facts["shape"], self.facts["dtype"]
        return Prediction(self.results.target, tuple(shape), dtype, len(finished), len(before))

    def end(self, error: BaseException) -> None:
        """Keep what is finished after an error; remove everything where nothing is."""
        finished = 0
        if self.journal is not None:
            with contextlib.suppress(OSError):
                self.journal.save(self._save)
            finished = len(self.journal.finished)
        counts = [finished]
        if self.ranks.size > 1:  # the positions of others are not known after an interruption
            counts = [1]
            with contextlib.suppress(Exception):  # of a process group in which one is gone
                counts = self.ranks.gathered(finished) if isinstance(error, Exception) else [1]
        if self.ranks.rank == 0 and not any(counts):
            self.results.remove()

    def _create(self, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[torch.dtype]) -> Any:
        if len(shapes) != 1:
            raise ValueError(f"the model must return one tensor, got {len(shapes)}")
        dtype = str(array_dtype(dtypes[0]) if self.dtype is None else np.dtype(self.dtype))
        self.array = self.results.create(shapes[0], dtype)
        self.facts = {**self.facts, "shape": shapes[0], "dtype": dtype}
        self._start(None)
        return self.array

    def _start(self, finished: frozenset[int] | None) -> None:
        """Begin the journal of this process; that of the first one is there if a run is resumed."""
        path = Journal.of_rank(self.results.journal, self.ranks.rank)
        if finished is not None and self.ranks.rank == 0:
            self.journal = Journal(path, self.facts, set(finished))
        else:
            self.journal = Journal.start(path, self.facts)

    def _save(self) -> None:
        self.results.save(self.array)


@dataclass(frozen=True)
class _Left:
    """What an interrupted run has left.

    Args:
        facts: What it predicted, with the shape and dtype of the result.
        finished: Numbers of the tiles that are on disk.
        growing: Whether tiles may be missing.
    """

    facts: dict[str, Any]
    finished: frozenset[int]
    growing: bool


def _resumed(results: Results, facts: Mapping[str, Any], overwrite: bool) -> _Left | None:
    """Return what an interrupted run has left; None if everything is to be made anew."""
    journal = Journal.joined(results.journal)
    if journal is not None and (different := journal.differences(facts)):
        if not overwrite:
            raise ValueError(
                f"an interrupted run for {results.target} must have the same model, input and options, "
                f"got {'; '.join(different)}; pass overwrite (--overwrite) to drop it"
            )
        journal = None
    unplaced = results.growing.exists() or results.complete.exists()
    if results.target.exists() and not overwrite and (unplaced or journal is None):
        if journal is None:
            results.remove()
        raise ValueError(
            f"target must be free, got {results.target}, which exists; pass overwrite (--overwrite) "
            "to replace it"
        )
    if journal is not None and (unplaced or results.target.exists()):
        return _Left(journal.facts, frozenset(journal.finished), results.growing.exists())
    results.clear()
    return None


def array_dtype(dtype: torch.dtype) -> np.dtype:
    """Return the type in which NumPy holds values of a dtype."""
    return torch.empty(0, dtype=FEWER_BITS.get(dtype, dtype)).numpy().dtype


def digest(path: Path) -> str:
    """Return a checksum of a file, or of all files in a folder."""
    total = hashlib.sha256()
    for file in files_in(path) if path.is_dir() else [path]:
        with open(file, "rb") as opened:
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()[:32]


def state(path: Path) -> list[int | str]:
    """Return size and time of the last change of a file; of a folder, and a checksum of its files."""
    size, last, files = state_of(path, None)
    return [size, last, *([files] if files else [])]


class Finest(nn.Module):
    """The finest of the outputs of a network from coarse to fine.

    Args:
        network: Returns a list, coarsest first.

    Shape:
        that of the network -> its last output
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        y: torch.Tensor = self.network(x, **keyword("condition", condition))[-1]
        return y


def _check_kind(network: nn.Module) -> None:
    """Raise for networks of vectors and of points."""
    if hasattr(network, "forecast"):
        raise ValueError(
            f"a {type(network).__name__} forecasts states: call forecast_file (--steps), got images"
        )
    if hasattr(network, "forward_grid"):
        raise ValueError(
            f"a {type(network).__name__} takes points: call evaluate_file (--coordinates, --values), "
            "got images"
        )


def _arguments(
    network: nn.Module, condition: Sequence[float] | None, images: DiskArray
) -> tuple[torch.Tensor, ...]:
    """Return the condition of all images as further arguments of a network."""
    if condition is None:
        return ()
    if condition_name(network) is None:
        raise ValueError(
            "condition must be left out for a network whose forward has no argument 'condition', got "
            f"{list(condition)} and a {type(network).__name__}"
        )
    like = like_parameters(network)
    return (like.new_tensor(list(condition)).expand(images.shape[0], -1),)


def _dims(network: nn.Module, asked: Any) -> Any:
    own = getattr(network, "spatial_dims", None)
    if asked is None and own is None:
        raise ValueError(
            f"spatial_dims must be given for a {type(network).__name__}, whose number of spatial axes "
            "is unknown, got none"
        )
    return own if asked is None else asked


def _axes(images: DiskArray, reduce: str | None) -> list[str] | None:
    """Return the names of the result's axes, where the input has names."""
    if images.axes is None:
        return None
    front = [name or other for name, other in zip(images.axes, ("batch", "channel"), strict=False)]
    return [*front[: 1 if reduce else 2], *(str(name) for name in images.axes[2:])]


def _check_channels(network: nn.Module, images: DiskArray) -> None:
    """Raise a message that is clearer than that of a convolution."""
    wanted = getattr(network, "in_channels", getattr(network, "num_features", None))
    if isinstance(wanted, int) and images.shape[1] != wanted:
        raise ValueError(
            f"{images.path} must fit a {type(network).__name__} of {wanted} channels, got shape "
            f"{images.shape} as (batch, channels, ...); first='batch' (--first batch) takes the first "
            "axis for the batch"
        )
