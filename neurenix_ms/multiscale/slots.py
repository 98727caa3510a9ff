"""Slots of a network: blocks, downsampling, upsampling and skips by name, or brought by the user."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, TypeVar

from torch import nn

from neurenix_ms._core.checks import check_integer, check_made, shown
from neurenix_ms._core.dims import (
    CONVOLUTIONS,
    POOLS,
    TRANSPOSED_CONVOLUTIONS,
    check_positive,
    choose,
)
from neurenix_ms.layers.blocks import ConvBlock, ConvSpec, Edge, edges_of
from neurenix_ms.layers.conditioning import FiLM
from neurenix_ms.layers.levels import Double, Level
from neurenix_ms.layers.residual import ConvNeXtBlock, InvertedBlock, PreActivationBlock
from neurenix_ms.multiscale.blurring import Blur, binomial_weights
from neurenix_ms.multiscale.given import Given, GivenBlock, GivenSkip
from neurenix_ms.multiscale.named import (
    AttentionGate,
    Bands,
    Shuffled,
    Stack,
    Sum,
    Synthesis,
    TransposedNormAct,
)
from neurenix_ms.multiscale.shuffling import PixelUnshuffle

BlockName = Literal["single", "double", "residual", "preactivation", "convnext", "inverted"]
DownName = Literal["max", "avg", "conv", "blur", "wavelet", "unshuffle", "strided"]
UpName = Literal["linear", "nearest", "transposed", "transposed_norm", "shuffle", "wavelet"]
SkipName = Literal["concat", "sum", "attention"]
Block = BlockName | Callable[[int, int], nn.Module]
Down = DownName | Callable[[int], nn.Module]
Upsampling = UpName | Callable[[int], nn.Module]
Skip = SkipName | Callable[[int, int], nn.Module]
Edges = int | Sequence[Edge]
Value = TypeVar("Value")

RESIDUAL: dict[str, Callable[[int, int, ConvSpec], nn.Module]] = {
    "preactivation": PreActivationBlock,
    "convnext": ConvNeXtBlock,
    "inverted": InvertedBlock,
}
WIDE_KERNEL = 7  # of a ConvNeXt block
STRIDED = ("single", "double", "residual")  # blocks whose first convolution can have a stride
CHEAP = ("max", "avg", "blur", "wavelet", "unshuffle")  # pooled again in backward, if asked to


@dataclass(frozen=True)
class Slots:
    """What one level of a network is made of.

    Args:
        spec: The convolutions.
        block: The block, before and after the coarser levels.
        depth: Number of blocks.
        down: How the next coarser level is reached.
        up: How that is undone.
        skip: How both are merged.
        stride: Pixels per pixel of the next coarser level, along every axis.
        decoder_block: The block after the coarser levels; "same" takes `block`.
        decoder_spec: Its convolutions; None takes `spec`.
    """

    spec: ConvSpec
    block: Block = "double"
    depth: int = 1
    down: Down = "max"
    up: Upsampling = "linear"
    skip: Skip = "concat"
    stride: tuple[int, ...] = (2, 2)
    index: int = 0
    entry: tuple[int, ...] | None = None  # stride of the first convolution of the encoder
    decoder_block: Block | Literal["same"] = "same"
    decoder_spec: ConvSpec | None = None
    block_slot: str = "block"  # its name in messages

    @property
    def keeps_channels(self) -> bool:
        """Return whether upsampling has no weights of its own that choose the channels."""
        return callable(self.up) or self.up in ("linear", "nearest")

    @property
    def is_pooled_again(self) -> bool:
        """Return whether downsampling is cheap enough to be done again in backward."""
        return self.down in CHEAP

    def make_encoder(self, in_channels: int, out_channels: int) -> nn.Module:
        """Return the block of the encoder, which begins with a strided convolution if asked to."""
        if self.entry is None:
            return self.make_block(in_channels, out_channels)
        if self.block not in STRIDED:
            raise ValueError(
                f"down 'strided' needs one of the blocks {list(STRIDED)} on the next coarser level, "
                f"got {shown(self.block)}"
            )
        return self.make_block(in_channels, out_channels, stride=self.entry)

    def make_block(
        self,
        in_channels: int,
        out_channels: int,
        middle_channels: int | None = None,
        stride: Edge = 1,
    ) -> nn.Module:
        """Return the block, or a stack of them; it concatenates what it is called with."""
        first = self._one_block(in_channels, out_channels, middle_channels, stride)
        if self.depth == 1:
            return first
        more = (self._one_block(out_channels, out_channels) for _ in range(self.depth - 1))
        return Stack(first, *more)

    def make_decoder(
        self, in_channels: int, out_channels: int, middle_channels: int | None = None
    ) -> nn.Module:
        """Return the block of the decoder, or a stack of them."""
        slots = replace(self, spec=self.decoder_spec or self.spec)
        if self.decoder_block != "same":
            slots = replace(slots, block=self.decoder_block, block_slot="decoder_block")
        return slots.make_block(in_channels, out_channels, middle_channels)

    def _one_block(
        self,
        in_channels: int,
        out_channels: int,
        middle_channels: int | None = None,
        stride: Edge = 1,
    ) -> nn.Module:
        if callable(self.block):
            module = check_made(self.block_slot, self.block, in_channels, out_channels)
            dims, condition_channels = self.spec.spatial_dims, self.spec.condition_channels
            return GivenBlock(
                module, in_channels, out_channels, dims, condition_channels, self.block_slot
            )
        if self.block in RESIDUAL:
            return RESIDUAL[self.block](in_channels, out_channels, self.spec)
        return ConvBlock(
            in_channels,
            out_channels,
            middle_channels,
            block=self.block,  # type: ignore[arg-type]
            spec=self.spec,
            stride=stride,
        )

    def make_down(self, channels: int) -> tuple[nn.Module, int]:
        """Return the downsampling, and its channels."""
        dims, stride = self.spec.spatial_dims, self.stride
        if callable(self.down):
            module = check_made("down", self.down, channels)
            given = Given(module, "down", channels, dims, stride, shrinks=True)
            return given, given.out_channels
        if self.down in POOLS:
            window = stride[0] if len(set(stride)) == 1 else stride
            return POOLS[self.down][dims](window), channels
        if self.down == "strided":  # by the first convolution of the next coarser level
            return nn.Identity(), channels
        if self.down == "conv":
            edges = tuple(3 if n > 1 else 1 for n in stride)
            padding = tuple(edge // 2 for edge in edges)
            return CONVOLUTIONS[dims](channels, channels, edges, stride, padding), channels
        if self.down == "blur":
            return Blur(binomial_weights(3), stride, dims), channels
        if self.down == "wavelet":
            self._check_halving("down")
            return Bands(), channels * 2**dims
        choose({"unshuffle": None}, self.down, "down")
        return PixelUnshuffle(stride, spatial_dims=dims), channels * prod(stride)

    def make_up(
        self, in_channels: int, out_channels: int, align_corners: bool = False
    ) -> tuple[nn.Module, int]:
        """Return the upsampling and its channels: `out_channels` if it has weights of its own."""
        dims, stride = self.spec.spatial_dims, self.stride
        if callable(self.up):
            module = check_made("up", self.up, in_channels)
            given = Given(module, "up", in_channels, dims, stride, shrinks=False)
            return given, given.out_channels
        if self.up in ("linear", "nearest"):
            return Double(dims, align_corners, self.up, stride), in_channels
        if self.up == "transposed":
            edge = stride[0] if len(set(stride)) == 1 else stride
            transposed = TRANSPOSED_CONVOLUTIONS[dims]
            return transposed(in_channels, out_channels, edge, stride=edge), out_channels
        if self.up == "transposed_norm":
            return TransposedNormAct(in_channels, out_channels, stride, self.spec), out_channels
        if self.up == "shuffle":
            return Shuffled(in_channels, out_channels, stride, self.spec), out_channels
        choose({"wavelet": None}, self.up, "up")
        self._check_halving("up")
        return Synthesis(in_channels, out_channels, self.spec), out_channels

    def make_skip(self, skip_channels: int, up_channels: int) -> tuple[nn.Module | None, int]:
        """Return the module that merges the two inputs, None to concatenate, and its channels."""
        if callable(self.skip):
            module = check_made("skip", self.skip, skip_channels, up_channels)
            given = GivenSkip(module, skip_channels, up_channels, self.spec.spatial_dims)
            return given, given.out_channels
        if self.skip == "concat":
            return None, skip_channels + up_channels
        if self.skip == "sum":
            if skip_channels != up_channels:
                raise ValueError(
                    f"skip 'sum' needs equal channels in the skip connection and the upsampled feature "
                    f"map, got {skip_channels} and {up_channels}; choose an up that has weights, or "
                    "equal widths"
                )
            return Sum(), skip_channels
        choose({"attention": None}, self.skip, "skip")
        return AttentionGate(skip_channels, up_channels, self.spec), skip_channels + up_channels

    def _check_halving(self, slot: str) -> None:
        if set(self.stride) != {2}:
            raise ValueError(f"{slot} 'wavelet' needs stride 2 on every axis, got {self.stride}")


def slots_of_levels(
    num_skips: int,
    spec: ConvSpec,
    kernel_size: Edges | None,
    **slots: Any,
) -> list[Slots]:
    """Return the slots of every level, finest first, the bottleneck last.

    Args:
        num_skips: Number of levels above the bottleneck.
        spec: What all convolutions have in common.
        kernel_size: One size for all levels, or a list with one, or one per axis, per level; None
            takes 7 for ConvNeXt blocks and 3 for others.
        **slots: Arguments of `Slots`: one value for all levels, or a list with one per level.

    Raises:
        ValueError: If a list has another length, or an entry is out of range.
    """
    counts = {"block": num_skips + 1, "depth": num_skips + 1}
    columns = {
        name: per_level(name, value, counts.get(name, num_skips)) for name, value in slots.items()
    }
    if kernel_size is None:
        kernels: list[Any] = [
            WIDE_KERNEL if columns["block"][i] == "convnext" else 3 for i in range(num_skips + 1)
        ]
    else:
        kernels = per_level("kernel_size", kernel_size, num_skips + 1)
    levels: list[Slots] = []
    for i in range(num_skips + 1):
        chosen = {name: column[min(i, len(column) - 1)] for name, column in columns.items()}
        chosen["stride"] = strides_of(chosen["stride"], spec.spatial_dims)
        check_integer("depth", chosen["depth"], 1)
        edges = edges_of(kernels[i], spec.spatial_dims)
        finer = levels[-1] if levels and levels[-1].down == "strided" else None
        entry = None if finer is None else finer.stride
        if chosen.get("decoder_spec") is not None:
            chosen["decoder_spec"] = replace(chosen["decoder_spec"], kernel_size=edges)
        levels.append(Slots(replace(spec, kernel_size=edges), index=i, entry=entry, **chosen))
    return levels


def nested(
    levels: Sequence[Slots],
    in_channels: int,
    widths: Sequence[int],
    decoders: Iterable[nn.Module | None],
) -> Level:
    """Nest levels of these widths, one inside the other.

    Args:
        levels: Slots of every level, finest first.
        in_channels: Channels of the input.
        widths: Channels of every encoded feature map.
        decoders: What every level decodes with, coarsest first; None ends with the encoded feature
            map.
    """
    downs: list[nn.Module | None] = []
    entering = [in_channels]
    for slots, width in zip(levels[:-1], widths, strict=False):
        down, channels = slots.make_down(width)
        downs.append(down)
        entering.append(channels)
    level: Level | None = None
    for slots, above, width, decoder, pool in zip(
        reversed(levels), reversed(entering), reversed(widths), decoders,
        reversed([*downs, None]), strict=True,
    ):  # fmt: skip
        level = Level(
            slots.make_encoder(above, width),
            level,
            decoder,
            spatial_dims=slots.spec.spatial_dims,
            pool=pool,
            pool_is_cheap=slots.is_pooled_again,
        )
    assert level is not None
    return level


def check_conditioned(network: nn.Module, condition_channels: int | None) -> None:
    """Raise if no block of a network takes the condition that it is to be conditioned on."""
    if condition_channels is None:
        return
    check_positive(condition_channels=condition_channels)
    given = [m for m in network.modules() if isinstance(m, GivenBlock)]
    films = any(isinstance(m, FiLM) for m in network.modules())
    if not films and all(m.condition is None for m in given):
        blocks = sorted({type(m.module).__name__ for m in given})
        raise ValueError(
            "condition_channels needs a block that takes the condition, as every named one does and one "
            f"of yours whose forward has an argument 'condition', got {blocks}"
        )


def products_of(levels: Sequence[Slots], spatial_dims: int) -> tuple[int, ...]:
    """Return the product of the strides of levels, along every axis."""
    return tuple(prod(level.stride[axis] for level in levels) for axis in range(spatial_dims))


def kernels_of(levels: Sequence[Slots]) -> int | list[int]:
    """Return the kernel size of every level, one number if they are equal."""
    edges = [level.spec.kernel_size[0] for level in levels]  # type: ignore[index]
    return edges[0] if len(set(edges)) == 1 else edges


def per_level(name: str, value: Value | Sequence[Value], count: int) -> list[Value]:
    """Return one value for every level."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * max(count, 1)
    if len(value) != count:
        raise ValueError(
            f"{name} must be one value or a list of {count}, one per level, got {shown(value)}"
        )
    return list(value)


def strides_of(stride: Edge, spatial_dims: int) -> tuple[int, ...]:
    """Return the stride along every axis."""
    strides = [stride] * spatial_dims if isinstance(stride, int) else list(stride)
    if len(strides) != spatial_dims:
        raise ValueError(f"stride must be one number or {spatial_dims}, got {strides}")
    for n in strides:
        check_integer("stride", n, 1)
    return tuple(strides)
