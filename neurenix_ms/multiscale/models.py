"""A network that runs at several scales of its input and fuses the outputs."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import SpatialDims, check_rank
from neurenix_ms._core.inplace import call_intact
from neurenix_ms._core.sizes import (
    Target,
    check_scale,
    check_scales,
    check_target,
    spatial,
    target_size,
)
from neurenix_ms._core.tracing import entries, one_call
from neurenix_ms.backbones import Backbone
from neurenix_ms.checkpointing import checkpointed
from neurenix_ms.layers.conditioning import condition_name, keyword
from neurenix_ms.layers.resize import Resize
from neurenix_ms.multiscale.features import weighted
from neurenix_ms.multiscale.fusion import COMBINATIONS, METHODS, FusionMethod
from neurenix_ms.multiscale.scoring import score_head
from neurenix_ms.multiscale.transforms import MultiScaleTransform


class MultiScaleModel(Configured, nn.Module):
    """Apply one network to the input at several scales and fuse its outputs.

    Use it to give any network several resolutions of its input. A shared network has no parameters per
    scale, and scales can be added and removed after training.

    Args:
        scales: Factors relative to the input.
        base_model: Network applied at every scale; None fuses the scaled inputs themselves.
        fusion_method: "concat", "sum", "mean" (also "avg"), "max" or "attention".
        spatial_dims: Number of spatial axes.
        channels: Output channels of `base_model`, for the score head of "attention"; None measures
            them on fake tensors.
        share_weights: Whether all scales share one network; False copies it for each scale.
        mode: Interpolation of inputs and outputs.
        align_corners: As in `F.interpolate`.
        antialias: Low-pass filter before downsampling the inputs (2-D, "bilinear" or "bicubic").
        target: Size of the result: "largest" (that of the largest scale), "smallest", an index into
            `scales`, or a size.

    Shape:
        `(B, C, *S)` -> `(B, K * C_out, *T)` with "concat", else `(B, C_out, *T)`, where K is the
        number of scales and T the size of the network's output at the target scale; outputs
        `(B, C_out)` are fused without resizing; a `condition` `(B, K)`, for a base model whose `forward`
        takes one, reaches the network of every scale

    Raises:
        ValueError: If a scale is not finite and positive, is added twice or removed while it is the
            last one, a name is unknown, the network's outputs do not fit each other, or `channels` is
            needed and cannot be measured (without a base model, or if its control flow depends on
            values).

    Source: Chen et al. 2016, "Attention to Scale", section 3, for the shared network and "attention".

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from neurenix_ms import MultiScaleModel
        >>> model = MultiScaleModel([1.0, 0.5], nn.Conv2d(3, 8, 3, padding=1), "attention", channels=8)
        >>> model(torch.zeros(1, 3, 13, 9)).shape
        torch.Size([1, 8, 13, 9])
    """

    _version = 2  # of the state dict
    # in version 1 the score head was built in the first forward pass, perhaps after saving
    missing_in_version: ClassVar[dict[int, str]] = {1: "scores."}

    condition: str | None = None  # of models in files of earlier versions

    @checked
    def __init__(
        self,
        scales: Sequence[float] = (1.0, 0.5, 0.25),
        base_model: nn.Module | None = None,
        fusion_method: FusionMethod = "concat",
        *,
        spatial_dims: SpatialDims = 2,
        channels: int | None = None,
        share_weights: bool = True,
        mode: str = "bilinear",
        align_corners: bool = False,
        antialias: bool = False,
        target: Target = "largest",
    ) -> None:
        super().__init__()
        if fusion_method not in METHODS:
            raise ValueError(f"fusion_method must be one of {list(METHODS)}, got {fusion_method!r}")
        self._scales = check_scales(scales)
        self.target = check_target(target, spatial_dims)
        self.shrink = MultiScaleTransform(
            [1.0],
            mode,
            spatial_dims=spatial_dims,
            align_corners=align_corners,
            antialias=antialias,
        )
        self.align = Resize(mode, spatial_dims, align_corners)
        network = nn.Identity() if base_model is None else base_model
        count = 1 if share_weights else len(self._scales)
        self.networks = nn.ModuleList(
            network if i == 0 else copy.deepcopy(network) for i in range(count)
        )
        self.condition = condition_name(network)
        self.scores: nn.Sequential | None = None
        if fusion_method == "attention":
            self.channels, self.scores = score_head(channels, network, spatial_dims)

    @property
    def scales(self) -> list[float]:
        """The scales, in the order of fusion (a copy; see `add_scale` and `remove_scale`)."""
        return list(self._scales)

    @property
    def base_model(self) -> nn.Module | None:
        """The network of the first scale, or None if the scaled inputs themselves are fused."""
        network = self.networks[0]
        return None if type(network) is nn.Identity else network

    @checked
    def add_scale(self, scale: float) -> None:
        """Add a scale, which comes last in the order of fusion.

        Without shared weights, the network of the new scale starts as a copy of the first one.
        """
        check_scale(scale)
        if any(math.isclose(scale, known) for known in self._scales):
            raise ValueError(f"scales must differ, got {scale} which is one of {self._scales}")
        self._scales.append(float(scale))
        if not self.share_weights:
            self.networks.append(copy.deepcopy(self.networks[0]))

    @checked
    def remove_scale(self, scale: float) -> None:
        """Remove a scale."""
        index = next((i for i, s in enumerate(self._scales) if math.isclose(s, scale)), None)
        if index is None:
            raise ValueError(f"scale to remove must be one of {self._scales}, got {scale}")
        if len(self._scales) == 1:
            raise ValueError(f"the last scale cannot be removed, got {scale}")
        del self._scales[index]
        if not self.share_weights:
            del self.networks[index]

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        maps = self._aligned(x, condition)
        if self.fusion_method == "concat":
            return torch.cat(maps, dim=1)
        if self.fusion_method == "attention":
            weights = self._weights(maps).unsqueeze(2).unbind(dim=1)
            return weighted(entries(weights, len(maps)), maps)
        return COMBINATIONS[self.fusion_method](maps)

    def attention_weights(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the weight of every scale at every pixel, `(B, K, *T)`; they sum to 1 over K."""
        if self.fusion_method != "attention":
            raise ValueError(
                f"attention_weights needs fusion_method 'attention', got {self.fusion_method!r}"
            )
        return self._weights(self._aligned(x, condition))

    def _aligned(self, x: Tensor, condition: Tensor | None) -> list[Tensor]:
        check_rank(x, self.spatial_dims)
        check_taken(condition, self.condition)
        outputs = [
            self._run(network, self.shrink.at_scale(x, scale), condition)
            for network, scale in zip(self._network_per_scale(), self._scales, strict=True)
        ]
        channels = self.channels if self.fusion_method == "attention" else None
        check_alike(outputs, self.fusion_method == "concat", channels)
        if is_vector(outputs[0]):
            return outputs
        target = self.target
        if target == "largest":
            target = self._scales.index(max(self._scales))
        elif target == "smallest":
            target = self._scales.index(min(self._scales))
        size = target_size([spatial(y) for y in outputs], target)
        return [self.align(y, size) for y in outputs]

    def _network_per_scale(self) -> list[nn.Module]:
        networks = list(self.networks)
        return networks * len(self._scales) if self.share_weights else networks

    def _run(self, network: nn.Module, x: Tensor, condition: Tensor | None) -> Tensor:
        given = keyword(self.condition, condition)
        blocks = (m for m in network.modules() if isinstance(m, Configured))
        ours = any(not isinstance(m, Backbone) for m in blocks)
        if ours:
            return call_intact(network, x, **given)
        return checkpointed(network, x, foreign=True, **given)

    def _weights(self, maps: Sequence[Tensor]) -> Tensor:
        assert self.scores is not None
        pixels = maps
        if is_vector(maps[0]):  # a vector is a feature map of one pixel
            one = (1,) * self.spatial_dims
            pixels = [y.reshape(*y.shape, *one) for y in maps]
        scores = torch.cat([self.scores(y) for y in pixels], dim=1)
        return torch.softmax(scores.flatten(1) if is_vector(maps[0]) else scores, dim=1)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        named = any(name.startswith(f"{prefix}scores.") for name in state_dict)
        if self.scores is not None and local_metadata.get("version") == 1 and not named:
            # the model was saved before its first forward pass, which built the head in version 1
            for name, value in self.scores.state_dict().items():
                state_dict[f"{prefix}scores.{name}"] = value
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args, **kwargs)


@one_call
def check_taken(condition: Tensor | None, name: str | None) -> None:
    """Raise if there is a condition, and the base model has no argument for it."""
    if condition is not None and name is None:
        raise ValueError(
            "condition needs a base_model whose forward has an argument 'condition', got a condition of "
            f"shape {tuple(condition.shape)} and none"
        )


def is_vector(y: Tensor) -> bool:
    """Return whether `y` is `(B, C)`; always False under `torch.fx`, where shapes are unknown."""
    return not isinstance(y, Proxy) and y.ndim == 2


@one_call
def check_alike(outputs: Sequence[Tensor], any_channels: bool, channels: int | None = None) -> None:
    """Raise if outputs of a base model cannot be fused, or not by a score head for `channels`."""
    first = outputs[0]
    for index, y in enumerate(outputs):
        if not isinstance(y, Tensor):
            raise ValueError(
                f"the base model must return one tensor, got {type(y).__name__} at scale {index}"
            )
        if y.ndim != first.ndim:
            raise ValueError(
                f"the base model must give outputs of one rank, got shape {tuple(first.shape)} at "
                f"scale 0 and {tuple(y.shape)} at scale {index}"
            )
        if not any_channels and y.shape[1] != first.shape[1]:
            raise ValueError(
                f"the base model must give equal channels at every scale, got {first.shape[1]} at "
                f"scale 0 and {y.shape[1]} at scale {index}"
            )
        if channels is not None and y.shape[1] != channels:
            raise ValueError(
                f"the base model must give {channels} channels, as the score head was built for, "
                f"got {y.shape[1]} at scale {index}"
            )
