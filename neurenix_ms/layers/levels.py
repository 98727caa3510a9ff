"""Nested levels of an encoder-decoder network."""

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
    """Upsample a coarse feature map by two, concatenate the skip connection, and apply a block.

    Shape:
        skip `(B, C, *S)` and coarse `(B, D, *S / 2)` -> `(B, C_out, *S)`
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
    """One resolution of an encoder-decoder network, which contains all coarser ones.

    A level encodes its input, runs the inner level at half the size, and decodes the two results. The
    input and the output of a level have its own resolution: pooling before the inner level and
    upsampling after it belong to the outer level.

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
        """Return the encoder feature maps of this level and all inner ones, without decoding."""
        features: list[Tensor] = []
        level: Level | None = self
        while level is not None:
            features.append(checkpointed(level.encode, x))
            x = features[-1] if level.pool is None else level.pool(features[-1])
            level = level.inner
        return features


class Trace:
    """The feature maps of a forward pass through nested levels.

    Args:
        decoded: Whether to keep the feature maps of the decoder too.
    """

    def __init__(self, decoded: bool = True) -> None:
        self.keeps_decoded = decoded
        self.encoded: list[Tensor | Kept] = []
        self.decoded: list[Tensor | Kept] = []

    def add(self, encoded: Tensor, decoded: Tensor) -> None:
        """Add the feature maps of a level; the innermost level comes first.

        The encoder's are stored finest first, the decoder's coarsest first.
        """
        self.encoded.insert(0, kept(encoded))
        if self.keeps_decoded:
            self.decoded.append(kept(decoded))
