"""The MS-Net: a prediction on the coarsest scale that is upsampled and corrected scale by scale."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.fx import Proxy

from neurenix_ms._core.arguments import checked
from neurenix_ms._core.config import Configured
from neurenix_ms._core.dims import (
    CONVOLUTIONS,
    INSTANCE_NORMS,
    SpatialDims,
    check_channels,
    check_positive,
    check_rank,
    choose,
)
from neurenix_ms._core.sizes import spatial
from neurenix_ms._core.tracing import entries
from neurenix_ms.checkpointing import checkpointed, recomputes
from neurenix_ms.layers.blocks import ConvNormAct
from neurenix_ms.layers.conditioning import given_condition, keyword
from neurenix_ms.layers.naming import Act, Norm, check_normalizable
from neurenix_ms.layers.resize import doubled
from neurenix_ms.meter import format_parameter_table
from neurenix_ms.msnet.packed import can_pack, packed
from neurenix_ms.msnet.tiles import predicted_in_tiles
from neurenix_ms.msnet.volumes import coarsen, masks_of


class Stage(nn.Module):
    """The network of one scale: convolutions of equal width, then a 1x1 convolution to the output.

    Shape:
        `(B, C_in, *S)`, and the condition `(B, K)` of a conditioned stage -> `(B, C_out, *S)`
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        *,
        num_layers: int,
        spatial_dims: SpatialDims,
        kernel_size: int,
        norm: Norm,
        act: Act,
        padding_mode: str,
        condition_channels: int | None,
    ) -> None:
        super().__init__()
        if norm == "instance":  # as published, without weight, bias and running statistics
            norm = INSTANCE_NORMS[spatial_dims]
        layer = partial(
            ConvNormAct,
            spatial_dims=spatial_dims,
            kernel_size=kernel_size,
            act=act,
            conv_bias=True,
            padding_mode=padding_mode,
            condition_channels=condition_channels,
        )
        last = num_layers - 1
        self.layers = nn.Sequential(
            *(
                layer(width if i else in_channels, width, norm=None if i == last else norm)
                for i in range(num_layers)
            )
        )
        self.tail = CONVOLUTIONS[spatial_dims](width, out_channels, 1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is not None:
            for layer in self.layers:
                x = layer(x, condition)
            return self.tail(x)
        if can_pack(self.layers, self.tail, x):
            return packed(self.layers, self.tail, x)
        return self.tail(self.layers(x))


class MSNet(Configured, nn.Module):
    """Predict a field on a coarse copy of an array and correct it scale by scale.

    The stage of the coarsest scale has many channels and a large receptive field, but a small array. The
    stages of finer scales have few channels. Arrays of hundreds of voxels per axis therefore fit into
    memory, and the prediction depends on the whole array.

    Without gradients, in float32 on a CPU, stages of few channels run in a form that is twice as fast
    and has the same result up to rounding. Stages with hooks, autocast, tracing, export and a condition
    use the plain form.

    Args:
        num_scales: Number of scales; each coarser one has half the size.
        num_features: Channels of the input.
        num_filters: Channels of the finest stage.
        summary: Whether to print the table of parameters at construction.
        spatial_dims: Number of spatial axes.
        out_channels: Channels of the field.
        filter_growth: Ratio of the channels of a stage to those of the next finer one.
        num_layers: Number of convolutions of a stage, before its 1x1 convolution.
        kernel_size: Kernel size of these convolutions, odd.
        norm: "instance" (here without weights, as published), "batch", "group", None, or
            `callable(channels) -> Module`; the last convolution of a stage has none.
        act: "celu", "relu", "leaky_relu", "prelu", "gelu", "silu", "elu", "tanh", None or
            `callable() -> Module`.
        padding_mode: As in `nn.Conv3d`; "circular" for periodic media.
        mask_output: Whether to multiply the finest output by the mask of the pores.
        condition_channels: Length of the vector on which every convolution of a stage is conditioned, as
            in `UNet`; None: no condition.

    Shape:
        `(B, num_features, *S)`, or a list of `num_scales` such arrays, coarsest first, and a `condition`
        `(B, condition_channels)` if the network has one -> a list of `num_scales` arrays
        `(B, out_channels, *S)`, coarsest first

    Raises:
        ValueError: If a number is below 1, a list has the wrong length, its sizes do not double, an
            entry has the wrong number of channels, a mask the wrong size, or the condition does not fit;
            the message names it.

    Source: Santos et al. 2021, "Computationally Efficient Multiscale Neural Networks Applied to
    Fluid Flow in Complex 3D Porous Media", section 2.

    Examples:
        >>> import torch
        >>> from neurenix_ms.msnet import MSNet
        >>> model = MSNet(num_scales=3, num_filters=1)
        >>> [tuple(y.shape) for y in model(torch.ones(1, 1, 16, 16, 16))]
        [(1, 1, 4, 4, 4), (1, 1, 8, 8, 8), (1, 1, 16, 16, 16)]
        >>> model.predict(torch.ones(1, 1, 13, 9, 11)).shape
        torch.Size([1, 1, 13, 9, 11])
    """

    @checked
    def __init__(
        self,
        num_scales: int = 4,
        num_features: int = 1,
        num_filters: int = 2,
        summary: bool = False,
        *,
        spatial_dims: SpatialDims = 3,
        out_channels: int = 1,
        filter_growth: int = 4,
        num_layers: int = 5,
        kernel_size: int = 3,
        norm: Norm = "instance",
        act: Act = "celu",
        padding_mode: str = "zeros",
        mask_output: bool = False,
        condition_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_positive(
            num_scales=num_scales,
            num_features=num_features,
            num_filters=num_filters,
            out_channels=out_channels,
            filter_growth=filter_growth,
            num_layers=num_layers,
        )
        choose(CONVOLUTIONS, spatial_dims, "spatial_dims")
        self.stages = nn.ModuleList(
            Stage(
                num_features + (out_channels if k else 0),
                num_filters * filter_growth ** (num_scales - 1 - k),
                out_channels,
                num_layers=num_layers,
                spatial_dims=spatial_dims,
                kernel_size=kernel_size,
                norm=norm,
                act=act,
                padding_mode=padding_mode,
                condition_channels=condition_channels,
            )
            for k in range(num_scales)
        )
        if summary:
            print(format_parameter_table(self))

    @recomputes
    def forward(
        self,
        x: Tensor | Sequence[Tensor],
        masks: Sequence[Tensor] | None = None,
        condition: Tensor | None = None,
    ) -> list[Tensor]:
        scales, masks = self._prepared(x, masks)
        given = keyword("condition", given_condition(scales[0], condition, self.condition_channels))
        outputs = [checkpointed(self.stages[0], scales[0], **given)]
        for k in range(1, self.num_scales):
            coarse = doubled(outputs[-1])
            if masks is not None:
                coarse = coarse * masks[k - 1]
            stage = checkpointed(self.stages[k], torch.cat([scales[k], coarse], dim=1), **given)
            outputs.append(stage + coarse)
        if self.mask_output and masks is not None:
            outputs[-1] = outputs[-1] * masks[-1]
        return outputs

    @checked
    @torch.no_grad()
    def predict(
        self,
        x: Tensor,
        tile_size: int | None = None,
        *,
        condition: Tensor | None = None,
        mesh: DeviceMesh | None = None,
    ) -> Tensor:
        """Return the finest prediction for an array of any size, at its size, without gradients.

        Args:
            x: Array `(B, num_features, *S)`.
            tile_size: Size of a tile in voxels, for arrays that do not fit into memory: a stage with a
                larger array runs tile by tile, with the same result up to rounding.
            condition: Condition `(B, condition_channels)`, if the network has one.
            mesh: Processes that share the tiles, as in
                [`TiledModel`][neurenix_ms.execution.TiledModel]; each has all of x, and returns the
                whole prediction.

        Raises:
            ValueError: If x does not fit the network, or a mesh is given without a tile size.
        """
        if tile_size is None and mesh is not None:
            raise ValueError(f"mesh needs a tile_size, got tile_size {tile_size}")
        if tile_size is None:
            finest = self(x, condition=condition)[-1]
        else:
            check_rank(x, self.spatial_dims)
            check_channels(x, self.num_features)
            choices = tile_size, self.spatial_dims, self.mask_output, mesh
            condition = given_condition(x, condition, self.condition_channels)
            finest = predicted_in_tiles(list(self.stages), x, *choices, condition)
        return finest[(slice(None), slice(None), *(slice(n) for n in spatial(x)))]

    def _prepared(
        self, x: Tensor | Sequence[Tensor], masks: Sequence[Tensor] | None
    ) -> tuple[Sequence[Tensor], Sequence[Tensor] | None]:
        if isinstance(x, (Tensor, Proxy)):
            check_rank(x, self.spatial_dims)
            masks = masks_of(x, self.num_scales, masks)
            x = coarsen(x, self.num_scales)
        if isinstance(x, Proxy):
            return entries(x, self.num_scales), entries(masks, self.num_scales)
        if masks is not None:  # the published code makes masks without a batch axis
            masks = [m.unsqueeze(0) if m.ndim == self.spatial_dims + 1 else m for m in masks]
        self._check(x, masks)
        return x, masks

    def _check(self, scales: Sequence[Tensor], masks: Sequence[Tensor] | None) -> None:
        if len(scales) != self.num_scales:
            raise ValueError(f"expected {self.num_scales} scales, got {len(scales)}")
        for k, x in enumerate(scales):
            if x.ndim != self.spatial_dims + 2 or x.shape[1] != self.num_features:
                raise ValueError(
                    f"scale {k} must have {self.num_features} channels and {self.spatial_dims} "
                    f"spatial axes, got shape {tuple(x.shape)}"
                )
            wanted = tuple(n << k for n in spatial(scales[0]))
            if spatial(x) != wanted or x.shape[0] != scales[0].shape[0]:
                raise ValueError(
                    f"every scale must double the one before: scale {k} needs batch "
                    f"{scales[0].shape[0]} and size {wanted}, got shape {tuple(x.shape)}"
                )
        check_normalizable(self.norm, self.training, scales[0])
        if masks is None:
            return
        if len(masks) < self.num_scales - 1 + self.mask_output:
            raise ValueError(
                f"expected {self.num_scales} masks, one per upsampling and the pores, "
                f"got {len(masks)}"
            )
        for k, mask in enumerate(masks[: self.num_scales]):
            size = spatial(scales[min(k + 1, self.num_scales - 1)])
            if mask.ndim != len(size) + 2 or spatial(mask) != size or mask.shape[1] != 1:
                raise ValueError(
                    f"mask {k} must have 1 channel and size {size}, got shape {tuple(mask.shape)}"
                )
