"""Extraction of feature maps from a network by tracing, as a module that can be copied."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import Tensor, fx, nn

from neurenix_ms._core.config import Configured
from neurenix_ms.backbones.measuring import evaluating

Code = tuple[str, dict[str, Any]]  # source of a forward, and the names that it reads


class Extractor(nn.Module):
    """A traced network with one graph for training and one for evaluation.

    The extractor of torchvision chooses between its two graphs only in calls of `train` and `eval`, so a
    copy of it is always in training mode. Here the flag `training` decides at every call, so that
    copies, pickles and averaged models behave like the original.

    Args:
        traced: A `DualGraphModule` of torchvision, whose submodules are shared with this one.

    Shape:
        `(B, C, *S)` -> a dict of feature maps
    """

    def __init__(self, traced: Any) -> None:
        super().__init__()
        self.name = traced._get_name()
        self._parameters.update(traced._parameters)
        self._buffers.update(traced._buffers)
        self._non_persistent_buffers_set.update(traced._non_persistent_buffers_set)
        self._modules.update(traced._modules)
        self.training = traced.training
        self._codes = {True: _code(traced.train_graph), False: _code(traced.eval_graph)}
        self._forwards = {mode: _compiled(code) for mode, code in self._codes.items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self._forwards[self.training](self, x)

    def _get_name(self) -> str:
        return self.name

    def __getstate__(self) -> dict[str, Any]:
        # compiled code and Python modules can neither be copied nor pickled
        codes = {mode: (source, _named(names)) for mode, (source, names) in self._codes.items()}
        return {**self.__dict__, "_codes": codes, "_forwards": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._codes = {
            mode: (source, _found(names)) for mode, (source, names) in self._codes.items()
        }
        self._forwards = {mode: _compiled(code) for mode, code in self._codes.items()}


class EncoderOf(nn.Module):
    """The encoder of a U-Net or a pyramid network of this library.

    Args:
        network: A network with `forward_features(x)`.

    Shape:
        `(B, C, *S)` -> a list of feature maps, finest first
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.network.forward_features(x)  # type: ignore[operator]
        return features


def is_encoder(network: nn.Module) -> bool:
    """Return whether `network` is a network of this library that can return its encoder features."""
    return isinstance(network, Configured) and hasattr(network, "forward_features")


def is_dual_graph(network: nn.Module) -> bool:
    """Return whether the network comes from torchvision's `create_feature_extractor`."""
    return isinstance(network, fx.GraphModule) and hasattr(network, "train_graph")


def extractor(network: nn.Module, paths: list[str]) -> Extractor:
    """Return the part of the network that computes the outputs of the submodules `paths`."""
    from torchvision.models.feature_extraction import create_feature_extractor

    mode = network.training
    try:
        with evaluating(network):
            traced = create_feature_extractor(network, {path: path for path in paths})
            return Extractor(
                traced.train(mode)
            )  # `evaluating` restores the modes of the submodules
    except Exception as error:
        raise ValueError(
            f"the feature maps of {type(network).__name__} cannot be extracted; make its forward "
            f"return them, got {type(error).__name__}: {error}"
        ) from error


def _code(graph: fx.Graph) -> Code:
    code = graph.python_code("self")
    return code.src, code.globals


def _compiled(code: Code) -> Callable[[nn.Module, Tensor], dict[str, Tensor]]:
    source, names = code
    namespace = dict(names)
    exec(compile(source, "<traced forward>", "exec"), namespace)
    forward: Callable[[nn.Module, Tensor], dict[str, Tensor]] = namespace["forward"]
    return forward


class _Module(str):
    """The name of a Python module."""


def _named(names: dict[str, Any]) -> dict[str, Any]:
    return {k: _Module(v.__name__) if isinstance(v, ModuleType) else v for k, v in names.items()}


def _found(names: dict[str, Any]) -> dict[str, Any]:
    return {
        k: importlib.import_module(v) if isinstance(v, _Module) else v for k, v in names.items()
    }
