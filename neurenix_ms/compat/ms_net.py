"""The spellings of je-santos/ms_net, so that its usage example runs with the import lines changed."""

from torch import Tensor

from neurenix_ms.msnet import MSNet, random_volume, scale_masks

__all__ = ["MS_Net", "get_masks", "rnd_array"]


class MS_Net(MSNet):  # noqa: N801  (the name there)
    """An `MSNet` with the original's argument names.

    Args:
        num_scales: Number of scales.
        num_features: Channels of the input.
        num_filters: Width of the finest stage.
        summary: Print the table of parameters once.
        f_mult: Factor of the width from a stage to the next coarser one.

    Shape:
        As MSNet: a list of arrays coarsest first -> the list of predictions

    Examples:
        >>> net = MS_Net(num_scales=3, num_features=1, num_filters=1)
        >>> x = rnd_array(size=16, scales=3)
        >>> y = net(x, get_masks(x[-1], scales=3))
        >>> y[-1].shape
        torch.Size([1, 1, 16, 16, 16])
    """

    def __init__(
        self,
        num_scales: int = 4,
        num_features: int = 1,
        num_filters: int = 2,
        summary: bool = False,
        f_mult: int = 4,
    ) -> None:
        super().__init__(num_scales, num_features, num_filters, summary, filter_growth=f_mult)
        self.f_mult = f_mult


def rnd_array(size: int, scales: int) -> list[Tensor]:
    """A random binary box at several scales, coarsest first.

    Args:
        size: Cells along each axis.
        scales: Number of scales.
    """
    return random_volume(size, scales)


def get_masks(x: Tensor, scales: int) -> list[Tensor]:
    """The masks of an array: one per upsampling, coarsest first, and the binary one.

    Args:
        x: Array that is above 0 in pores, at the finest scale.
        scales: Number of scales.
    """
    return scale_masks(x, scales)
