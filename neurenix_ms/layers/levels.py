"""Nested levels of an encoder-decoder network."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.config import Described
from neurenix_ms._core.dims import POOLS, SpatialDims
from neurenix_ms._core.recomputation import Kept, tensor_of
from neurenix_ms._core.sizes import fit, multiplied, spatial
from neurenix_ms.checkpointing import checkpointed, kept, recomputed, recomputes
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
        modules: dict[str, Any] = self._modules  # attributes of a module are slow to look up
        up, block, merge = modules["up"], modules["block"], modules.get("skip")
        given = keyword("condition", condition)
        if merge is None:
            return block(skip, up(deep), **given)
        return block(merge(skip, fit(up(deep), spatial(skip))), **given)


class Level(Described, nn.Module):
    """One resolution of an encoder-decoder network, which contains all coarser ones.

    Use it to build a network of your own from blocks of your own; `UNet` and `PyramidNetwork` are
    built from it. A level encodes its input, runs the inner level at half the size, and decodes the two
    results. The input and the output of a level have its own resolution: pooling before the inner level
    belongs to the outer level, and upsampling after it to `decode`. Checkpointing, tiles,
    `torch.compile` and export work as for `UNet`, as far as your modules allow.

    Args:
        encode: The block of this resolution, called with the input.
        inner: The coarser levels; None for the bottleneck.
        decode: Called with the encoded feature map and, if there is an inner level, its output; None
            returns the encoded feature map.
        spatial_dims: Number of spatial axes.
        pool: Brings the encoded feature map to the resolution of `inner`; by default max pooling by
            two.
        pool_is_cheap: Pool again in backward, while checkpointing is enabled, instead of keeping
            what was pooled.

    Shape:
        `(B, C_in, *S)` -> `(B, C_out, *S)`; `features`, if given, collects the feature maps of all
        levels; a `condition` `(B, K)` is passed to the modules whose `forward` has an argument for it

    Raises:
        ValueError: If there is an inner level and no `decode`, which is what returns to this resolution.

    Source: Ronneberger et al. 2015, "U-Net", figure 1, as nested levels.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from neurenix_ms import Level, LevelFeatures
        >>> class Decode(nn.Module):
        ...     def forward(self, skip, deep):
        ...         return torch.cat([skip, nn.functional.interpolate(deep, skip.shape[2:])], dim=1)
        >>> bottleneck = Level(nn.Conv2d(8, 16, 3, padding=1))
        >>> network = Level(nn.Conv2d(3, 8, 3, padding=1), bottleneck, Decode())
        >>> features = LevelFeatures()
        >>> network(torch.zeros(1, 3, 12, 10), features).shape
        torch.Size([1, 24, 12, 10])
        >>> [tuple(y.shape[1:]) for y in features.encoder()]
        [(8, 12, 10), (16, 6, 5)]
    """

    # of levels in files of earlier versions
    conditions: tuple[str | None, str | None] = (None, None)
    foreign: tuple[bool, bool] = (False, False)

    @checked
    def __init__(
        self,
        encode: nn.Module,
        inner: "Level | None" = None,
        decode: nn.Module | None = None,
        *,
        spatial_dims: SpatialDims = 2,
        pool: nn.Module | None = None,
        pool_is_cheap: bool = True,
    ) -> None:
        super().__init__()
        if inner is not None and decode is None:
            raise ValueError("a level with an inner level needs decode, got None")
        self.encode = encode
        self.inner = inner
        self.pool = pool
        if inner is not None and pool is None:
            self.pool = POOLS["max"][spatial_dims](2)
        self.spatial_dims = spatial_dims
        self.pool_is_cheap = pool_is_cheap
        self.decode = decode
        self.conditions = (
            condition_name(encode),
            None if decode is None else condition_name(decode, 1 if inner is None else 2),
        )
        self.foreign = is_foreign(encode), is_foreign(decode)

    @recomputes
    def forward(
        self,
        x: Tensor,
        features: "LevelFeatures | None" = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        modules: dict[str, Any] = self._modules  # attributes of a module are slow to look up
        inner, pool, decode = (modules.get(name) for name in ("inner", "pool", "decode"))
        encoding, decoding = (keyword(name, condition) for name in self.conditions)
        skip = checkpointed(modules["encode"], x, foreign=self.foreign[0], **encoding)
        parts = [skip]
        if inner is not None and pool is not None:
            half = recomputed(pool, skip) if self.pool_is_cheap else pool(skip)
            if features is None and condition is None:  # called with one tensor where that is all
                parts.append(inner(half))
            else:
                parts.append(inner(half, features, **keyword("condition", condition)))
        out = skip
        if decode is not None:
            out = checkpointed(decode, *parts, foreign=self.foreign[1], **decoding)
        if features is not None:
            features.add(skip, out)
        return out

    @recomputes
    def encoded(self, x: Tensor, condition: Tensor | None = None) -> list[Tensor]:
        """Return the encoder feature maps of this level and all inner ones, without decoding."""
        features: list[Tensor] = []
        level: Level | None = self
        while level is not None:
            given = keyword(level.conditions[0], condition)
            encoded = checkpointed(level.encode, x, foreign=level.foreign[0], **given)
            features.append(encoded)
            x = encoded if level.pool is None else level.pool(encoded)
            level = level.inner
        return features


def is_foreign(module: nn.Module | None) -> bool:
    """Return whether a module does not recompute its cheap results by itself, as those here do."""
    package = __name__.partition(".")[0]
    return type(module).__module__.partition(".")[0] not in (package, "builtins")


class LevelFeatures:
    """The feature maps of a forward pass through nested levels.

    Use it, as the second argument of a `Level`, for deep supervision or to inspect feature maps.

    Args:
        decoded: Whether to keep the feature maps of the decoder too.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from neurenix_ms import Level, LevelFeatures
        >>> features = LevelFeatures()
        >>> _ = Level(nn.Conv1d(1, 4, 3, padding=1), spatial_dims=1)(torch.zeros(1, 1, 9), features)
        >>> features.encoder()[0].shape, len(features.decoder())
        (torch.Size([1, 4, 9]), 1)
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

    def encoder(self) -> list[Tensor]:
        """Return the feature maps of the encoder, finest first."""
        return [tensor_of(y) for y in self.encoded]

    def decoder(self) -> list[Tensor]:
        """Return the feature maps of the decoder, coarsest first; those of the bottleneck are first."""
        return [tensor_of(y) for y in self.decoded]


Trace = LevelFeatures  # its former name
