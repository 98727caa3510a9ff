"""Access to the weights of a dense layer without calling the layer."""

from torch import Tensor, nn


def weights_of(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a linear layer.

    The weights that a hypernetwork generates are computed from the weights of its last layer, not by
    calling it. So the layer must hold plain, unsharded tensors.

    Raises:
        ValueError: If the layer is quantized, or sharded separately from the model.
    """
    weight, bias = layer.weight, layer.bias
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor):
        raise ValueError(
            "an implicit model computes with the weights of its linear layers, which must be tensors, "
            f"got a quantized {type(layer).__name__}; leave the model out of quantization"
        )
    if hasattr(weight, "full_tensor"):
        raise ValueError(
            "an implicit model computes with the weights of its linear layers, which must not be "
            "sharded, got one that is; call fully_shard on the model, not on its layers"
        )
    return weight, bias
