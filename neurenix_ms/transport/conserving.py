"""A network whose predicted density has the mass of the input density."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.checks import check_integer, check_numbers
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import choose
from neurenix_ms._core.inplace import call_intact
from neurenix_ms.conservation import conserve_mass


class MassConserving(Configured, nn.Module):
    """Correct the density that a network predicts to the mass of the input density.

    Use it around a surrogate of one step, so that a forecast of many steps neither gains nor loses
    mass, in training, in files and in exports. `conserve_mass` is the correction; it moves mass over any
    distance, whereas `FluxConservation` conserves the mass of every region.

    Args:
        network: Takes the density in channel 0 and fields in the others, and returns the next density.
        method: "scale" multiplies the non-negative part, "shift" adds a constant; see `conserve_mass`.
        scales: Units of the channels, by which they are divided before the network; the output is
            multiplied by the unit of the density. None: no scaling.
        mask_channel: Channel of the input that is not 0 in the cells to include; all by default.
        area_channel: Channel of the input that holds the area of every cell, in any unit, such as the
            cosine of the latitude; all cells are equal by default. It may be the same channel as that of
            the mask.

    Shape:
        `(B, 1 + F, *S)` -> `(B, 1, *S)`

    Raises:
        ValueError: If the method is unknown, a scale is 0, or the network returns another shape.

    Examples:
        >>> model = MassConserving(nn.Conv2d(3, 1, 3, padding=1))
        >>> x = torch.rand(2, 3, 16, 16)
        >>> bool(model(x).sum().isclose(x[:, :1].sum()))
        True
    """

    @checked
    def __init__(
        self,
        network: nn.Module,
        method: Literal["scale", "shift"] = "scale",
        *,
        scales: Sequence[float] | None = None,
        mask_channel: int | None = None,
        area_channel: int | None = None,
    ) -> None:
        super().__init__()
        choose({"scale": 0, "shift": 0}, method, "method")
        for name, channel in (("mask_channel", mask_channel), ("area_channel", area_channel)):
            if channel is not None:
                check_integer(name, channel, 1)
        self.network = network
        units = None
        if scales is not None:
            self.scales = check_numbers("scales", scales, min_length=1)
            if 0 in self.scales:
                raise ValueError(f"scales must not hold 0, got {self.scales}")
            units = torch.tensor(self.scales)
        self.register_buffer("units", units, persistent=False)

    @property
    def spatial_dims(self) -> Any:
        """Return the number of spatial axes of the network, if it says it."""
        return getattr(self.network, "spatial_dims", None)

    @property
    def in_channels(self) -> Any:
        """Return the number of channels of the network, if it says it."""
        return getattr(self.network, "in_channels", None)

    def forward(self, x: Tensor) -> Tensor:
        density = x[:, :1]
        if self.units is None:
            y = call_intact(self.network, x)
        else:
            units = self.units.to(x.dtype).view(-1, *(1,) * (x.ndim - 2))
            y = self.network(x / units) * units[0]
        mask, area = None, None
        if self.mask_channel is not None:
            mask = x[:, self.mask_channel : self.mask_channel + 1] != 0
        if self.area_channel is not None:
            area = x[:, self.area_channel : self.area_channel + 1]
        return conserve_mass(y, density, mask, area, self.method)
