"""Fourier mixing written the plain way, with torch's fast transforms of all modes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.plain import CONV


class SpectralMixing(nn.Module):
    """Transform, multiply the kept modes by complex matrices, transform back, add a convolution."""

    def __init__(
        self, in_channels: int, out_channels: int, modes: Sequence[int], dims: int
    ) -> None:
        super().__init__()
        self.counts = [*(2 * m - 1 for m in modes[:-1]), modes[-1]]
        count = torch.tensor(self.counts).prod()
        self.lowest = [1 - m for m in modes[:-1]] + [0]
        self.weight = nn.Parameter(torch.randn(count, in_channels, 2 * out_channels))
        self.point = CONV[dims](in_channels, out_channels, 1)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.ndim))
        spectrum = torch.fft.rfftn(x, dim=axes, norm="forward")
        places = [
            torch.arange(first, first + count) % n
            for first, count, n in zip(self.lowest, self.counts, spectrum.shape[2:], strict=True)
        ]
        kept = torch.meshgrid(*places, indexing="ij")
        weight = torch.complex(*self.weight.chunk(2, dim=-1))
        mixed = torch.einsum("bik,kio->bok", spectrum[(..., *kept)].flatten(2), weight)
        out = spectrum.new_zeros(len(x), weight.shape[-1], *spectrum.shape[2:])
        out[(..., *kept)] = mixed.unflatten(2, self.counts)
        y = torch.fft.irfftn(out, x.shape[2:], dim=axes, norm="forward")
        return self.act(y + self.point(x))
