"""A loss between the Laplacian pyramids of two images."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.config import Described
from neurenix_ms._core.dims import SpatialDims
from neurenix_ms._core.sizes import spatial
from neurenix_ms.multiscale.pyramids import LaplacianPyramid
from neurenix_ms.training.losses import check_same_shapes


class LaplacianPyramidLoss(Described, nn.Module):
    """Compare prediction and target level by level of their Laplacian pyramids.

    Errors of all scales have equal weight, whereas a loss per pixel is dominated by the large scales.
    Results are sharper than with the mean squared error, at the cost of a pyramid. The pyramid is
    linear, so it is computed of the difference only.

    Args:
        num_levels: Number of levels: details, finest first, and the coarse residual last.
        loss: "l1" is the mean absolute difference of a level, "mse" the mean squared one.
        weights: Weight of every level, finest first; None adds the means of all levels.
        sigma: Standard deviation of the Gaussian in pixels; None uses the binomial weights.
        kernel_size: Number of weights of the Gaussian, odd.
        spatial_dims: Number of spatial axes.

    Shape:
        two of `(B, C, *S)` -> a scalar

    Raises:
        ValueError: If there is no level, the weights are of another number, negative or all 0, or the
            target has another shape.

    Source: Bojanowski et al. 2018, "Optimizing the Latent Space of Generative Networks", section 3.1:
    sums of a level times 4 to its number, which in 2-D are means of equal weight.

    Examples:
        >>> import torch
        >>> x = torch.zeros(1, 1, 13, 9)
        >>> LaplacianPyramidLoss()(x + 1, x)  # a constant is in the coarse residual alone
        tensor(1.)
    """

    @checked
    def __init__(
        self,
        num_levels: int = 3,
        loss: Literal["l1", "mse"] = "l1",
        *,
        weights: Sequence[float] | None = None,
        sigma: float | None = None,
        kernel_size: int = 5,
        spatial_dims: SpatialDims = 2,
    ) -> None:
        super().__init__()
        self.pyramid = LaplacianPyramid(num_levels, sigma, kernel_size, spatial_dims=spatial_dims)
        if weights is not None and (min(weights, default=0) < 0 or sum(weights) <= 0):
            raise ValueError(f"weights must be 0 or more, and not all 0, got {list(weights)}")
        if weights is not None and len(weights) != num_levels:
            raise ValueError(
                f"weights must have one for each of {num_levels} levels, got {len(weights)}"
            )
        self.num_levels = num_levels
        self.loss = loss
        self.weights = None if weights is None else list(weights)
        self.sigma = sigma
        self.kernel_size = kernel_size
        self.spatial_dims = spatial_dims

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        losses = self.per_level(prediction, target)
        weights = self.weights or [1.0] * len(losses)
        parts = [weight * loss for weight, loss in zip(weights, losses, strict=True)]
        return sum(parts[1:], start=parts[0])

    def per_level(self, prediction: Tensor, target: Tensor) -> list[Tensor]:
        """Return the unweighted loss of every level, finest first."""
        check_same_shapes([prediction], [target])
        *finer, coarsest = self.pyramid.gaussian(prediction - target)
        losses = []
        for fine, coarse in pairwise([*finer, coarsest]):  # details are released one by one
            losses.append(self._mean(fine - self.pyramid.resize(coarse, spatial(fine))))
        return [*losses, self._mean(coarsest)]

    def _mean(self, y: Tensor) -> Tensor:
        wide = torch.promote_types(
            y.dtype, torch.float32
        )  # a sum may be too large for half precision
        # norms make no tensor of absolute values or squares
        if self.loss == "l1":
            mean = torch.linalg.vector_norm(y, 1, dtype=wide) / y.numel()
        else:
            mean = torch.linalg.vector_norm(y, 2, dtype=wide).square() / y.numel()
        return mean.to(y.dtype)
