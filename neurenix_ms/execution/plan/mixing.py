"""Recognize the calls of torch that combine all values of an axis, such as pooling and attention."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

ADAPTIVE_POOLS = {
    getattr(F, f"adaptive_{kind}_pool{dims}d{suffix}")
    for kind in ("avg", "max")
    for dims in (1, 2, 3)
    for suffix in (("",) if kind == "avg" else ("", "_with_indices"))
}
REDUCING = {
    getattr(owner, name)
    for owner in (torch, Tensor)
    for name in ("mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean", "logsumexp")
    if hasattr(owner, name)
}
SOFTMAXES = {F.softmax, F.log_softmax, torch.softmax, torch.log_softmax}
SOFTMAXES |= {Tensor.softmax, Tensor.log_softmax}
PRODUCTS = {torch.matmul, torch.bmm, Tensor.matmul, Tensor.bmm, Tensor.__matmul__}
BATCH_FIRST = {
    torch._native_multi_head_attention: 1,
    torch._transformer_encoder_layer_fwd: 0,
}


def num_combined(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
) -> int:
    """Return the number of input values in one value of the result of such a call; 0 for others.

    If that number grows with the feature map, the receptive field of the layer is all of it.
    """
    given = [*args, *kwargs.values()]
    if not given or not isinstance(given[0], Tensor):
        return 0
    x = given[0]
    if function in ADAPTIVE_POOLS or function in REDUCING:
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return x.numel() // max(1, *sizes) if sizes else 0
    if function in SOFTMAXES:
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        return x.shape[dim] if isinstance(dim, int) and x.ndim else 0
    if function in PRODUCTS:
        return x.shape[-1] if x.ndim else 0
    if function is F.scaled_dot_product_attention:
        return _size(given, 1, -2)
    if function is F.multi_head_attention_forward:
        return _size(given, 1, 0)
    if function in BATCH_FIRST:
        return _size(given, BATCH_FIRST[function], 1)
    return 0


def _size(given: list[Any], number: int, dim: int) -> int:
    x = given[number] if number < len(given) else None
    return x.shape[dim] if isinstance(x, Tensor) and x.ndim > 1 else 0
