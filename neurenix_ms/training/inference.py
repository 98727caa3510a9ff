"""Test-time augmentation: average a network over scales and mirror images of its input."""

from collections.abc import Callable, Sequence
from itertools import combinations

from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.config import Described
from neurenix_ms._core.dims import SpatialDims, check_rank
from neurenix_ms._core.inplace import call_intact
from neurenix_ms._core.sizes import check_scales, scaled, spatial
from neurenix_ms.layers.resize import Resize


class MultiScaleInference(Described, nn.Module):
    """Run a network on its input at several scales and mirrored, and average its logits.

    Use it with a trained segmentation network if a more stable prediction is worth one run per scale
    and mirror image. Logits are averaged at the size of the input. If inputs do not fit into memory,
    wrap a `TiledModel`; a `TiledModel` cannot wrap it.

    Args:
        model: Network that takes an input of any size and returns one tensor of logits.
        scales: Scales of the input; 1.0 is the input itself.
        flips: Spatial axes along which the input is mirrored, counted from 0, or backwards from -1;
            the network runs on every combination of them and on the original.
        mode: Interpolation of input and logits.
        spatial_dims: Number of spatial axes.
        align_corners: As in `F.interpolate`.

    Shape:
        `(B, C, *S)` -> `(B, D, *S)` for a model that returns D channels

    Raises:
        ValueError: If a scale is not finite and positive, an axis does not exist or is repeated, or
            the model does not return one tensor of the input's rank.

    Examples:
        >>> import torch
        >>> model = MultiScaleInference(nn.Conv2d(3, 4, 1), [0.5, 1.0], flips=[-1])
        >>> model(torch.zeros(2, 3, 13, 9)).shape
        torch.Size([2, 4, 13, 9])
    """

    @checked
    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        scales: Sequence[float] = (0.75, 1.0, 1.25),
        flips: Sequence[int] = (),
        *,
        mode: str = "bilinear",
        spatial_dims: SpatialDims = 2,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.model = model
        self.scales = check_scales(scales)
        self.flips = list(flips)
        self.mode = mode
        self.spatial_dims = spatial_dims
        self.align_corners = align_corners
        self.resize = Resize(mode, spatial_dims, align_corners)
        axes = [axis % spatial_dims for axis in flips]
        known = all(-spatial_dims <= axis < spatial_dims for axis in flips)
        if not known or len(set(axes)) != len(axes):
            raise ValueError(
                f"flips must be different axes from 0 to {spatial_dims - 1}, got {list(flips)}"
            )
        self.mirrors = [
            [2 + axis for axis in some]
            for count in range(len(axes) + 1)
            for some in combinations(axes, count)
        ]

    def forward(self, x: Tensor) -> Tensor:
        check_rank(x, self.spatial_dims)
        total: Tensor | None = None
        for scale in self.scales:
            view = x if scale == 1.0 else self.resize(x, scaled(spatial(x), scale))
            for axes in self.mirrors:
                logits = self._logits(view, axes, x)
                total = logits if total is None else total + logits
        assert total is not None
        return total / (len(self.scales) * len(self.mirrors))

    def _logits(self, view: Tensor, axes: list[int], x: Tensor) -> Tensor:
        y = call_intact(self.model, view.flip(axes) if axes else view)
        if not isinstance(y, Tensor) or y.ndim != x.ndim:
            what = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"the model must return one tensor with the rank of its input, {x.ndim}, got {what}"
            )
        return self.resize(y.flip(axes) if axes else y, spatial(x))
