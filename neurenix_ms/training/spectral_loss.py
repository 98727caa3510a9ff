"""A loss of the energy in every band of wavenumbers."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integer, check_number
from neurenix_ms._core.config import Described
from neurenix_ms._core.sizes import spatial
from neurenix_ms.training.losses import check_same_shapes


class SpectralLoss(Described, nn.Module):
    """Compare the energy of prediction and target in every band of wavenumbers.

    Networks trained only with a loss per pixel lose the energy of small scales, which contribute little
    to the mean squared error. Add this loss to preserve the statistics of small scales. It does not
    depend on the positions of structures, so it cannot replace a loss per pixel.

    Args:
        num_bands: Number of bands of equal width up to the highest wavenumber of an axis; None has one
            per wavenumber of the longest axis.
        difference: "log" is the absolute logarithm of the ratio of energies, which treats all scales
            equally; "relative" is their difference over the energy of the target.
        weights: Weight of every band, lowest wavenumbers first; None weights all equally.
        epsilon: Fraction of the mean energy of a band that is added to both energies, so that empty
            bands do not give infinity.
        remove_mean: Ignore the mean of the fields.

    Shape:
        two of `(B, C, *S)` -> a scalar

    Raises:
        ValueError: If a number is out of range, or the target has another shape.

    Wavenumbers are in cycles per pixel times the longest axis; those beyond the last band, in the
    corners of the spectrum, are added to it. Fields are treated as periodic.

    Examples:
        >>> x = torch.randn(1, 1, 32, 32)
        >>> float(SpectralLoss(difference="relative", epsilon=0.0)(2 * x, x))  # 4 times the energy
        3.0
    """

    @checked
    def __init__(
        self,
        num_bands: int | None = None,
        *,
        difference: Literal["log", "relative"] = "log",
        weights: Sequence[float] | None = None,
        epsilon: float = 1e-6,
        remove_mean: bool = False,
    ) -> None:
        super().__init__()
        if num_bands is not None:
            check_integer("num_bands", num_bands, 1, 2**20)
        if weights is not None and (min(weights, default=0) < 0 or sum(weights) <= 0):
            raise ValueError(f"weights must be 0 or more, and not all 0, got {list(weights)}")
        if weights is not None and num_bands is not None and len(weights) != num_bands:
            raise ValueError(
                f"weights must have one for each of {num_bands} bands, got {len(weights)}"
            )
        self.num_bands = num_bands if weights is None else len(weights)
        self.difference = difference
        self.weights = None if weights is None else list(weights)
        self.epsilon = check_number("epsilon", epsilon, minimum=0)
        self.remove_mean = remove_mean

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        check_same_shapes([prediction], [target])
        bands = self.bands_of(prediction)
        found, wanted = (self._energies(x, *bands) for x in (prediction, target))
        tiny = torch.finfo(wanted.dtype).tiny ** 0.5
        floor = self.epsilon * wanted.mean(-1, keepdim=True) + tiny
        if self.difference == "log":
            losses = ((found + floor) / (wanted + floor)).log().abs()
        else:
            losses = (found - wanted).abs() / (wanted + floor)
        if self.weights is None:
            return losses.mean()
        weights = losses.new_tensor(self.weights)
        return (losses * weights).sum(-1).mean() / weights.sum()

    def energies(self, x: Tensor) -> Tensor:
        """Return the energy of every band, `(B, C, bands)`; their sum is the mean square of `x`."""
        return self._energies(x, *self.bands_of(x))

    def bands_of(self, x: Tensor) -> tuple[Tensor, int]:
        """Return the band of every entry of the half spectrum, and their number."""
        size = spatial(x)
        longest = max(size)
        count = longest // 2 + 1 if self.num_bands is None else self.num_bands
        waves = [torch.fft.fftfreq(n, device=x.device) for n in size[:-1]]
        waves.append(torch.fft.rfftfreq(size[-1], device=x.device))
        grid = torch.stack(torch.meshgrid(*waves, indexing="ij"))
        radius = grid.square().sum(0).sqrt()  # in cycles per pixel, up to a half along an axis
        whole = self.num_bands is None
        band = (radius * longest).round() if whole else (radius * 2 * count).floor()
        return band.long().clamp(max=count - 1).flatten(), count

    def _energies(self, x: Tensor, band: Tensor, count: int) -> Tensor:
        x = x.float() if x.dtype in (torch.half, torch.bfloat16) else x
        axes = tuple(range(2, x.ndim))
        if self.remove_mean:
            x = x - x.mean(axes, keepdim=True)
        power = torch.view_as_real(torch.fft.rfftn(x, dim=axes, norm="forward")).square().sum(-1)
        last = x.shape[-1]
        number = torch.arange(power.shape[-1], device=x.device)
        # of a real field; but for the mean and the highest one, waves come in pairs
        single = (number == 0) | (2 * number == last)
        power = power * torch.where(single, 1, 2)
        empty = power.new_zeros(*power.shape[:2], count)
        return empty.index_add(2, band, power.flatten(2))
