"""Wrapper that scales physical parameters, points and values for an implicit field."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.config import Configured
from neurenix_ms._core.deprecation import renamed_classes
from neurenix_ms._core.dims import choose
from neurenix_ms.implicit.field import ImplicitField

METHODS = {"minmax": "minmax", "standard": "standard"}


class Normalizer(Configured, nn.Module):
    """Field in physical units around one in scaled units.

    Networks train best on numbers of magnitude one, while fields come in meters and seconds. `fit`
    computes the scales, which are saved with the model. Derivatives of this module are in physical
    units.

    Args:
        model: The field in scaled units, such as a `NIF`.
        method: "minmax" scales to -1 .. 1, "standard" to mean 0 and standard deviation 1, each
            parameter, coordinate and field value separately. Constant ones are only shifted.

    Shape:
        p `(N, P)`, x `(N, d)` -> `(N, out)`

    Raises:
        ValueError: If the method is unknown, or the data to fit are not finite or do not match the
            numbers of parameters, coordinates and channels of the model.

    Examples:
        >>> from neurenix_ms.implicit import NIF
        >>> field = Normalizer(NIF(1, 2))
        >>> t, x, u = torch.linspace(0, 900, 5)[:, None], 20 * torch.rand(50, 2), torch.rand(5, 50, 1)
        >>> field.fit(t, x, u).forward_grid(t, x).shape
        torch.Size([5, 50, 1])
    """

    @checked
    def __init__(
        self, model: ImplicitField, method: Literal["minmax", "standard"] = "minmax"
    ) -> None:
        super().__init__()
        self.model = model
        self.method = choose(METHODS, method, "method")
        for name, length in self._lengths().items():
            self.register_buffer(f"{name}_shift", torch.zeros(length))
            self.register_buffer(f"{name}_scale", torch.ones(length))

    def fit(
        self, p: Tensor, x: Tensor | Sequence[Tensor], u: Tensor | Sequence[Tensor]
    ) -> "Normalizer":
        """Compute the scales of data, whose last axes hold parameters, coordinates or values.

        Args:
            p: Parameters, `(..., P)`.
            x: Points, `(..., d)`, or a list of such meshes.
            u: Field values, `(..., out)`, or a list of such fields.
        """
        lengths = self._lengths()
        for name, given in (("p", p), ("x", x), ("u", u)):
            value = given if isinstance(given, Tensor) else torch.cat(list(given))
            check_finite(name, value)
            if value.shape[-1] != lengths[name]:
                raise ValueError(
                    f"the last axis of {name} must have length {lengths[name]}, "
                    f"got shape {tuple(value.shape)}"
                )
            rows = value.detach().flatten(0, -2)
            if self.method == "minmax":
                low, high = rows.amin(0), rows.amax(0)
                shift, scale = (low + high) / 2, (high - low) / 2
            else:
                shift, scale = rows.mean(0), rows.std(0, correction=0)
            self.get_buffer(f"{name}_shift").copy_(shift)
            rounding = torch.finfo(rows.dtype).eps * rows.abs().amax(0)
            self.get_buffer(f"{name}_scale").copy_(torch.where(scale > rounding, scale, 1))
        return self

    def scaled(self, name: Literal["p", "x", "u"], value: Tensor) -> Tensor:
        """Scale physical parameters, points or values for the model."""
        shift, scale = self._scales(name)
        return (value - shift) / scale

    def physical(self, u: Tensor) -> Tensor:
        """Convert values of the model to physical units."""
        shift, scale = self._scales("u")
        return u * scale + shift

    def forward(self, p: Tensor, x: Tensor, *, chunk_size: int | None = None) -> Tensor:
        u = self.model(self.scaled("p", p), self.scaled("x", x), chunk_size=chunk_size)
        return self.physical(u)

    def forward_grid(
        self, p: Tensor, x: Tensor | Sequence[Tensor], *, chunk_size: int | None = None
    ) -> Tensor | list[Tensor]:
        """Call `forward_grid` of the model with physical units."""
        scaled_p = self.scaled("p", p)
        if isinstance(x, Tensor):
            grid = self.model.forward_grid(scaled_p, self.scaled("x", x), chunk_size=chunk_size)
            return self.physical(grid)
        meshes = [self.scaled("x", mesh) for mesh in x]
        fields = self.model.forward_grid(scaled_p, meshes, chunk_size=chunk_size)
        return [self.physical(u) for u in fields]

    def latent(self, p: Tensor) -> Tensor:
        """Return the latent vectors of physical parameters."""
        return self.model.latent(self.scaled("p", p))

    def at(self, p: Tensor) -> nn.Module:
        """Return the field of one physical parameter vector as a module of physical coordinates."""
        scales = (*self._scales("x"), *self._scales("u"))
        return _Scaled(self.model.at(self.scaled("p", p)), *scales)

    def _scales(self, name: str) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"{name}_shift"), self.get_buffer(f"{name}_scale")

    def _lengths(self) -> dict[str, int]:
        model = self.model
        return {"p": model.parameter_dim, "x": model.coordinate_dim, "u": model.out_channels}


class _Scaled(nn.Module):
    """Network of scaled coordinates, called with physical ones."""

    def __init__(self, network: nn.Module, *scales: Tensor) -> None:
        super().__init__()
        self.network = network
        names = ("x_shift", "x_scale", "u_shift", "u_scale")
        for name, value in zip(names, scales, strict=True):
            self.register_buffer(name, value.clone())

    def forward(self, x: Tensor) -> Tensor:
        value = dict(self.named_buffers(recurse=False))
        u = self.network((x - value["x_shift"]) / value["x_scale"])
        return u * value["u_scale"] + value["u_shift"]


def check_finite(name: str, value: Tensor) -> None:
    """Raise with the position of the first value that is NaN or infinite, if there is one."""
    bad = ~value.isfinite()
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{name} must be finite, got {int(bad.sum())} of {value.numel()} numbers that are not, "
            f"the first {value[first].item()} at {first}"
        )


__getattr__ = renamed_classes(__name__, {"Normaliser": "Normalizer"})
