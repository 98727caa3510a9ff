"""Multilayer perceptron for vectors such as states and coordinates."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import check_positive
from neurenix_ms.layers.naming import Act, make_act


class MLP(Configured, nn.Module):
    """Linear layers with an activation after each except the last.

    Use it for states of a few numbers, such as those of an ordinary differential equation. For images
    and fields use a `UNet`, because an MLP does not exploit the relation of neighboring pixels.

    Args:
        in_features: Length of the input vectors.
        out_features: Length of the output vectors.
        hidden: Widths of the hidden layers; empty for a single linear layer.
        act: "relu", "tanh", ..., or a callable without arguments that makes a module.
        shortcut: Add a linear layer from the input to the output, for functions that are nearly linear;
            `fit_hierarchy` fits it by least squares.

    Shape:
        `(..., in_features)` -> `(..., out_features)`

    Raises:
        ValueError: If a width is below 1, or the last axis of the input has another length.

    Examples:
        >>> import torch
        >>> network = MLP(2, 3, [128, 128])
        >>> network(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden: Sequence[int] = (128, 128, 128),
        *,
        act: Act = "relu",
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        check_positive(in_features=in_features, out_features=out_features)
        if any(width < 1 for width in hidden):
            raise ValueError(f"every hidden width must be at least 1, got {list(hidden)}")
        self.hidden = list(hidden)
        widths = [in_features, *hidden, out_features]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        if shortcut:
            self.linear = nn.Linear(in_features, out_features, bias=False)
        activation: Any = make_act(act)
        if hasattr(activation, "inplace") and not callable(act):
            activation.inplace = (
                True  # it overwrites the output of a linear layer, used nowhere else
            )
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"the last axis must have length {self.in_features}, got shape {tuple(x.shape)}"
            )
        *inner, last = self.layers
        y = x
        for layer in inner:
            y = self.activation(layer(y))
        return last(y) + self.linear(x) if self.shortcut else last(y)
