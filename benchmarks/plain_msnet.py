"""Plain implementation of the published MS-Net."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def stage(in_channels: int, width: int, num_layers: int = 5) -> nn.Sequential:
    """Build convolutions with instance norm and CELU, the last without norm, and a 1x1x1 convolution."""
    layers: list[nn.Module] = []
    for i in range(num_layers):
        layers.append(nn.Conv3d(width if i else in_channels, width, 3, padding=1))
        layers += [nn.InstanceNorm3d(width)] if i < num_layers - 1 else []
        layers.append(nn.CELU())
    return nn.Sequential(*layers, nn.Conv3d(width, 1, 1))


class MSNet(nn.Module):
    """Predict every scale, coarsest first; each is upsampled, masked and corrected by the next.

    Weights are registered in the order of ours, as in `benchmarks/plain.py`.
    """

    def __init__(self, num_scales: int = 4, num_features: int = 1, num_filters: int = 2) -> None:
        super().__init__()
        widths = [num_filters * 4**k for k in reversed(range(num_scales))]
        self.stages = nn.ModuleList(
            stage(num_features + (k > 0), width) for k, width in enumerate(widths)
        )

    def forward(self, x: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        outputs = [self.stages[0](x[0])]
        for k, finer in enumerate(self.stages[1:], start=1):
            coarse = F.interpolate(outputs[-1], scale_factor=2) * masks[k - 1]
            outputs.append(finer(torch.cat([x[k], coarse], dim=1)) + coarse)
        return outputs
