"""The interface of je-santos/ms_net, so that its usage example runs with other import lines."""

from torch import Tensor

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.dims import check_positive
from neurenix_ms.msnet import MSNet, random_volume, scale_masks

__all__ = ["MS_Net", "get_masks", "rnd_array"]


class MS_Net(MSNet):  # noqa: N801  (the name there)
    """An `MSNet` with the argument names of the original project.

    Args:
        num_scales: Number of scales.
        num_features: Channels of the input.
        num_filters: Channels of the finest stage.
        summary: Whether to print the table of parameters at construction.
        f_mult: Ratio of the channels of a stage to those of the next finer one.

    Shape:
        As for `MSNet`: a list of arrays, coarsest first -> the list of predictions

    Examples:
        >>> net = MS_Net(num_scales=3, num_features=1, num_filters=1)
        >>> x = rnd_array(size=16, scales=3)
        >>> y = net(x, get_masks(x[-1], scales=3))
        >>> y[-1].shape
        torch.Size([1, 1, 16, 16, 16])
    """

    @checked
    def __init__(
        self,
        num_scales: int = 4,
        num_features: int = 1,
        num_filters: int = 2,
        summary: bool = False,
        f_mult: int = 4,
    ) -> None:
        check_positive(num_features=num_features, num_filters=num_filters, f_mult=f_mult)
        super().__init__(num_scales, num_features, num_filters, summary, filter_growth=f_mult)
        self.f_mult = f_mult


@checked
def rnd_array(size: int, scales: int) -> list[Tensor]:
    """Return a random binary volume at several scales, coarsest first.

    Args:
        size: Voxels along each axis.
        scales: Number of scales.
    """
    return random_volume(size, scales)


@checked
def get_masks(x: Tensor, scales: int) -> list[Tensor]:
    """Return the masks of an array: one per upsampling, coarsest first, and the binary one.

    Args:
        x: Array that is above 0 in pores, at the finest scale.
        scales: Number of scales.
    """
    return scale_masks(x, scales)
