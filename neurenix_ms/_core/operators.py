"""A record of the operators in a call that the FLOP counter of torch does not count."""

from collections import Counter
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# at most one operation per value, which counts of FLOPs leave out by convention
BY_CONVENTION = {
    tag for tag in (getattr(torch.Tag, name, None) for name in ("pointwise", "reduction")) if tag
}
# operators that create, move or read values, without arithmetic
MOVING = {
    *(
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
        "zeros",
        "zeros_like",
    ),
    *(
        "new_zeros",
        "ones",
        "ones_like",
        "new_ones",
        "full",
        "full_like",
        "new_full",
        "scalar_tensor",
    ),
    *("arange", "linspace", "eye", "fill", "zero", "tril_indices", "triu_indices"),
    *("copy", "_to_copy", "clone", "_lazy_clone", "contiguous", "set", "resize", "resize_as"),
    *("lift", "lift_fresh", "lift_fresh_copy", "detach", "_local_scalar_dense", "item", "equal"),
    *("cat", "stack", "repeat", "repeat_interleave", "roll", "flip", "pixel_shuffle"),
    *("pixel_unshuffle", "channel_shuffle", "split_with_sizes_copy", "unbind_copy", "tril", "triu"),
    *("index", "index_put", "_index_put_impl", "_unsafe_index", "index_select", "index_copy"),
    *("index_fill", "gather", "scatter", "take", "masked_select", "masked_scatter", "nonzero"),
    *("select_backward", "slice_backward", "select_scatter", "slice_scatter", "diagonal_scatter"),
    *("as_strided_scatter", "embedding", "constant_pad_nd", "im2col", "unfold_copy", "view_copy"),
    *("_unsafe_view", "_reshape_alias", "_reshape_copy", "expand_copy", "permute_copy"),
    *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d"),
    *("replication_pad1d", "replication_pad2d", "replication_pad3d"),
}
SUMS = {"cumsum", "index_add", "scatter_add", "embedding_dense_backward", "col2im"}


GENERATORS = {
    *(
        "rand",
        "rand_like",
        "randn",
        "randn_like",
        "randint",
        "randint_like",
        "randperm",
        "bernoulli",
    ),
    *("normal", "uniform", "random", "exponential", "cauchy", "log_normal", "geometric", "poisson"),
    *("multinomial", "native_dropout", "native_dropout_backward"),
}


class Uncounted(TorchDispatchMode):
    """Count the calls of operators that do arithmetic but are not in the count of FLOPs.

    Enter it before the FLOP counter, so that it receives the operators into which the counter decomposes
    others. Views, copies, random numbers, elementwise operations and sums are left out.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if not _is_known(func):
            self.calls[_name(func)] += 1
        return func(*args, **(kwargs or {}))


def _is_known(func: Any) -> bool:
    if not isinstance(func, OpOverload):
        return func in flop_registry
    packet = func.overloadpacket
    name = packet.__name__.rstrip("_")
    return (
        packet in flop_registry
        or func.is_view
        or bool(BY_CONVENTION & set(func.tags))
        or (func.namespace == "aten" and name in MOVING | SUMS | GENERATORS)
        or func.namespace == "prim"
    )


def _name(func: Any) -> str:
    """Return the name of an operator, with its namespace if it is not an operator of torch."""
    if not isinstance(func, OpOverload):
        return str(func)
    name = func.overloadpacket.__name__
    return name if func.namespace == "aten" else f"{func.namespace}.{name}"
