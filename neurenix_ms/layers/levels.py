"""Levels of a network: encode, the coarser levels inside, decode."""

from collections.abc import Callable

from torch import Tensor, nn

from neurenix_ms._core.dims import POOLS, TRANSPOSED_CONVOLUTIONS, SpatialDims
from neurenix_ms._core.recomputation import Kept
from neurenix_ms._core.sizes import spatial, twice
from neurenix_ms.checkpointing import checkpointed, kept, recomputed
from neurenix_ms.layers.resize import Resize


class Double(nn.Module):
    """Linear upsampling by exactly two on every axis.

    Shape:
        `(B, C, *S)` -> `(B, C, *2S)`
    """

    def __init__(self, spatial_dims: SpatialDims, align_corners: bool) -> None:
        super().__init__()
        self.resize = Resize("linear", spatial_dims, align_corners)

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(self._doubled, x)

    def _doubled(self, x: Tensor) -> Tensor:
        return self.resize(x, twice(spatial(x)))


class Up(nn.Module):
    """A deep map upsampled by two, joined to the skip of that resolution, and a block over both.

    Shape:
        skip `(B, C, *S)` and deep map `(B, D, *S / 2)` -> `(B, C_out, *S)`
    """

    def __init__(
        self,
        skip_channels: int,
        deep_channels: int,
        out_channels: int,
        block: Callable[..., nn.Module],
        *,
        spatial_dims: SpatialDims,
        bilinear: bool,
        align_corners: bool,
    ) -> None:
        super().__init__()
        self.up: nn.Module
        if bilinear:
            joined = skip_channels + deep_channels
            self.up = Double(spatial_dims, align_corners)
            self.block = block(joined, out_channels, joined // 2)
        else:
            transposed = TRANSPOSED_CONVOLUTIONS[spatial_dims]
            self.up = transposed(deep_channels, skip_channels, 2, stride=2)
            self.block = block(2 * skip_channels, out_channels)

    def forward(self, skip: Tensor, deep: Tensor) -> Tensor:
        return self.block(skip, self.up(deep))


class Level(nn.Module):
    """One resolution and all that is deeper: encode, the level inside at half the size, decode.

    Everything below a resolution is one submodule with one map in and one map out, both at its own
    resolution; pooling before it and upsampling after it belong to the level outside.

    Shape:
        `(B, C_in, *S)` -> `(B, C_out, *S)`
    """

    def __init__(
        self,
        encode: nn.Module,
        inner: "Level | None" = None,
        decode: nn.Module | None = None,
        *,
        spatial_dims: SpatialDims,
    ) -> None:
        super().__init__()
        self.encode = encode
        self.inner = inner
        self.pool: nn.Module | None = None if inner is None else POOLS["max"][spatial_dims](2)
        self.decode = decode

    def forward(self, x: Tensor, trace: "Trace | None" = None) -> Tensor:
        skip = checkpointed(self.encode, x)
        maps = [skip]
        if self.inner is not None and self.pool is not None:
            half = recomputed(self.pool, skip)
            maps.append(self.inner(half) if trace is None else self.inner(half, trace))
        out = skip if self.decode is None else checkpointed(self.decode, *maps)
        if trace is not None:
            trace.add(skip, out)
        return out

    def encoded(self, x: Tensor) -> list[Tensor]:
        """Return the encoded feature maps of this level and all deeper ones, without decoding."""
        features: list[Tensor] = []
        level: Level | None = self
        while level is not None:
            features.append(checkpointed(level.encode, x))
            x = features[-1] if level.pool is None else level.pool(features[-1])
            level = level.inner
        return features


class Trace:
    """The feature maps of one pass through nested levels.

    Args:
        decoded: Keep the decoded ones too.
    """

    def __init__(self, decoded: bool = True) -> None:
        self.keeps_decoded = decoded
        self.encoded: list[Tensor | Kept] = []
        self.decoded: list[Tensor | Kept] = []

    def add(self, encoded: Tensor, decoded: Tensor) -> None:
        """Levels report from the inside out: encoded maps fine to coarse, decoded ones the reverse."""
        self.encoded.insert(0, kept(encoded))
        if self.keeps_decoded:
            self.decoded.append(kept(decoded))
