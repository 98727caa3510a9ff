"""Nested levels of an encoder-decoder network."""

from collections.abc import Sequence

from torch import Tensor, nn

from neurenix_ms._core.dims import POOLS, SpatialDims
from neurenix_ms._core.recomputation import Kept
from neurenix_ms._core.sizes import fit, multiplied, spatial
from neurenix_ms.checkpointing import checkpointed, kept, recomputed
from neurenix_ms.layers.conditioning import condition_name, keyword
from neurenix_ms.layers.resize import Resize


class Double(nn.Module):
    """Upsampling by a whole factor on every axis, by default two.

    Shape:
        `(B, C, *S)` -> `(B, C, *S * factor)`
    """

    def __init__(
        self,
        spatial_dims: SpatialDims,
        align_corners: bool,
        mode: str = "linear",
        factors: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.resize = Resize(mode, spatial_dims, align_corners)
        self.factors = tuple(factors) or (2,) * spatial_dims

    def forward(self, x: Tensor) -> Tensor:
        return recomputed(self._enlarged, x)

    def _enlarged(self, x: Tensor) -> Tensor:
        return self.resize(x, multiplied(spatial(x), self.factors))


class Up(nn.Module):
    """Upsample a coarse feature map, merge it with the skip connection, and apply a block.

    Args:
        up: Upsamples the coarse feature map.
        block: Called with the skip and the upsampled feature map, or with what `skip` returns.
        skip: Merges the two; None leaves it to the block, which concatenates.

    Shape:
        skip `(B, C, *S)` and coarse `(B, D, *S / 2)`, and the condition `(B, K)` of a conditioned block
        -> `(B, C_out, *S)`
    """

    def __init__(self, up: nn.Module, block: nn.Module, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.up = up
        self.block = block
        self.skip = skip

    def forward(self, skip: Tensor, deep: Tensor, condition: Tensor | None = None) -> Tensor:
        given = keyword("condition", condition)
        if self.skip is None:
            return self.block(skip, self.up(deep), **given)
        return self.block(self.skip(skip, fit(self.up(deep), spatial(skip))), **given)


class Level(nn.Module):
    """One resolution of an encoder-decoder network, which contains all coarser ones.

    A level encodes its input, runs the inner level at half the size, and decodes the two results. The
    input and the output of a level have its own resolution: pooling before the inner level and
    upsampling after it belong to the outer level.

    Args:
        encode: The block of this resolution, called with the input.
        inner: The coarser levels.
        decode: Called with the encoded feature map and that of the inner level; None ends here.
        spatial_dims: Number of spatial axes.
        pool: Brings the encoded feature map to the resolution of `inner`; by default max pooling by
            two.
        pool_is_cheap: Pool again in backward, while checkpointing is enabled, instead of keeping
            what was pooled.

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
        pool: nn.Module | None = None,
        pool_is_cheap: bool = True,
    ) -> None:
        super().__init__()
        self.encode = encode
        self.inner = inner
        self.pool = pool
        if inner is not None and pool is None:
            self.pool = POOLS["max"][spatial_dims](2)
        self.pool_is_cheap = pool_is_cheap
        self.decode = decode
        self.conditions = (
            condition_name(encode),
            None if decode is None else condition_name(decode),
        )

    def forward(
        self, x: Tensor, trace: "Trace | None" = None, condition: Tensor | None = None
    ) -> Tensor:
        encoding, decoding = (keyword(name, condition) for name in self.conditions)
        skip = checkpointed(self.encode, x, **encoding)
        maps = [skip]
        if self.inner is not None and self.pool is not None:
            half = recomputed(self.pool, skip) if self.pool_is_cheap else self.pool(skip)
            maps.append(self._run_inner(half, trace, condition))
        out = skip if self.decode is None else checkpointed(self.decode, *maps, **decoding)
        if trace is not None:
            trace.add(skip, out)
        return out

    def _run_inner(self, x: Tensor, trace: "Trace | None", condition: Tensor | None) -> Tensor:
        # called with one tensor and nothing else where that is all
        assert self.inner is not None
        if trace is None and condition is None:
            return self.inner(x)
        return self.inner(x, trace, **keyword("condition", condition))

    def encoded(self, x: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Return the encoder feature maps of this level and all inner ones, without decoding."""
        features: list[Tensor] = []
        level: Level | None = self
        while level is not None:
            given = keyword(level.conditions[0], condition)
            features.append(checkpointed(level.encode, x, **given))
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
