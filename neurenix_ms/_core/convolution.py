"""A faster convolution of single small volumes on a CPU.

For a batch of one, and where channels times depth times height are at most 20,480, PyTorch does not
use oneDNN on a CPU (`use_mkldnn` in ATen's Convolution.cpp). It unfolds the volume, to 27 times its size
for a kernel of size 3, and multiplies matrices. Here such volumes go to oneDNN as well.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv3d_weight
from torch.nn.modules.utils import _triple as triple
from torch.overrides import handle_torch_function, has_torch_function

from neurenix_ms._core.tracing import is_jit_tracing

UNFOLDED = 20_480  # largest channels x depth x height that torch unfolds
# below one of these numbers the overhead of the calls exceeds the gain
FEW_VOXELS = 2**9
FEW_PRODUCTS = 2**20

Triple = tuple[int, int, int]
DENSE = (Tensor, nn.Parameter)  # neither fake tensors nor distributed ones


class Conv3d(nn.Conv3d):
    """`nn.Conv3d` that is up to ten times as fast on a CPU for one volume of up to about 32^3 voxels.

    Use it in place of `nn.Conv3d` for a batch of one small volume: crops, tiles, the deep levels of a
    network. All networks of this package use it. Arguments, weights and, up to rounding, results are
    those of `nn.Conv3d`, which also computes all other cases: larger batches and volumes, groups, other
    dtypes, GPUs, traced and compiled models.

    Shape:
        `(B, C, D, H, W)` -> as for `nn.Conv3d`

    Raises:
        RuntimeError: As for `nn.Conv3d`.

    Examples:
        >>> conv = Conv3d(8, 16, 3, padding=1)
        >>> conv(torch.zeros(1, 8, 24, 24, 24)).shape
        torch.Size([1, 16, 24, 24, 24])
    """

    def reset_parameters(self) -> None:
        super().reset_parameters()
        register_flops()  # also in `__setstate__`, for modules that are copied or unpickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        register_flops()

    def forward(self, x: Tensor) -> Tensor:
        padding = self.padding
        if isinstance(padding, str):
            return super().forward(x)
        if self.padding_mode != "zeros":
            edges = [width for axis in reversed(padding) for width in (axis, axis)]
            x, padding = F.pad(x, edges, mode=self.padding_mode), (0, 0, 0)
        return conv3d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve as `F.conv3d` does, by oneDNN also where `F.conv3d` would unfold the volume."""
    if has_torch_function((x, weight)):  # `__torch_function__` modes see a single call
        args = (x, weight, bias, stride, padding, dilation, groups)
        return handle_torch_function(conv3d, (x, weight), *args)
    named = isinstance(padding, str)
    if not named and groups == 1 and triple(stride) == (1, 1, 1) and is_unfolded(x, weight):
        padding, dilation = triple(padding), triple(dilation)
        if can_be_turned(x, weight, padding, dilation):
            y: Tensor = _Direct.apply(x, weight, bias, padding, dilation)
            return y
    return F.conv3d(x, weight, bias, stride, padding, dilation, groups)


def is_unfolded(x: Tensor, weight: Tensor) -> bool:
    """Return whether torch would unfold this volume, and is slower than oneDNN on it."""
    if torch.compiler.is_compiling() or is_jit_tracing():
        return False  # a traced model must work for inputs of any size
    return bool(
        x.ndim == weight.ndim == 5
        and x.shape[0] == 1 < x.shape[1] == weight.shape[1]
        and x.shape[1] * x.shape[2] * x.shape[3] <= UNFOLDED
        and x.shape[2:].numel() >= FEW_VOXELS
        and x.shape[2:].numel() * weight.numel() >= FEW_PRODUCTS
        and weight.shape[2] > 1
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and type(x) in DENSE
        and type(weight) in DENSE
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
    )


def can_be_turned(x: Tensor, weight: Tensor, padding: Triple, dilation: Triple) -> bool:
    """Return whether the gradient of the input is a convolution with the flipped kernel.

    The padding must be smaller than the kernel allows, and the kernel must fit into the volume.
    """
    axes = zip(x.shape[2:], weight.shape[2:], padding, dilation, strict=True)
    return all(p <= d * (k - 1) < n + 2 * p - 1 for n, k, p, d in axes)


class _Direct(torch.autograd.Function):
    """A convolution by oneDNN and its gradients."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, padding: Triple, dilation: Triple
    ) -> Tensor:
        y: Tensor = torch.mkldnn_convolution(x, weight, bias, padding, (1, 1, 1), dilation, 1)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, *ctx.options = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (padding, dilation) = ctx.saved_tensors, ctx.options
        of_x, of_weight, of_bias, *_ = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        if of_weight:
            grad_weight = _of_weight(x, grad, weight.shape, padding, dilation)
        if of_bias:
            grad_bias = grad.sum((0, 2, 3, 4))
        if of_x:
            axes = zip(dilation, weight.shape[2:], padding, strict=True)
            rest = tuple(d * (k - 1) - p for d, k, p in axes)
            grad_x = conv3d(grad, weight.flip(2, 3, 4).transpose(0, 1), None, 1, rest, dilation)
        return grad_x, grad_weight, grad_bias, None, None

    @staticmethod
    def jvp(ctx: Any, x_t: Any, weight_t: Any, bias_t: Any, *_: None) -> Tensor:
        (x, weight), options = ctx.saved_tensors, (1, *ctx.options)
        change: Any = 0 if bias_t is None else bias_t.view(-1, 1, 1, 1)
        if x_t is not None:
            change = change + F.conv3d(x_t, weight, None, *options)
        if weight_t is not None:
            change = change + F.conv3d(x, weight_t, None, *options)
        return change


def _of_weight(x: Tensor, grad: Tensor, shape: Any, padding: Triple, dilation: Triple) -> Tensor:
    """Return the gradient of the weight, from a batch of two halves, which torch gives to oneDNN."""
    half = -(-grad.shape[2] // 2)
    window = half + dilation[0] * (shape[2] - 1)
    x = _continued(x, padding[0], half + window)
    grad = _continued(grad, 0, 2 * half)
    halves = _halves(x, window, half), shape, _halves(grad, half, half)
    return conv3d_weight(*halves, 1, (0, *padding[1:]), dilation)


def _continued(x: Tensor, before: int, depth: int) -> Tensor:
    """Pad the volume with `before` zeros in front and with zeros behind, to the given depth."""
    return x if x.shape[2] == depth else F.pad(x, (0, 0, 0, 0, before, depth - before - x.shape[2]))


def _halves(x: Tensor, window: int, step: int) -> Tensor:
    """Return two windows of the depth as a batch; a view."""
    return x[0].unfold(1, window, step).permute(1, 0, 4, 2, 3)


@functools.cache
def register_flops() -> None:
    """Register a FLOP formula for `mkldnn_convolution`, for which `FlopCounterMode` has none."""
    # imported with the first convolution of volumes, because the import takes a tenth of a second
    from torch.utils.flop_counter import conv_flop_count, register_flop_formula

    @register_flop_formula(torch.ops.aten.mkldnn_convolution)
    def flops(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
        return conv_flop_count(x, weight, out_shape)
