"""A reader of `save` files that rebuilds the model, with memory bounded by the size of the file."""

import importlib
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from neurenix_ms._core.checks import shown
from neurenix_ms._core.config import check_plain, library_classes
from neurenix_ms._core.deprecation import RENAMED_CLASSES
from neurenix_ms._core.io.records import (
    LONGEST_NAME,
    READ_ERRORS,
    TensorReader,
    TensorRecord,
    open_archive,
    tensor_record,
)

FORMAT = "neurenix_ms model"
VERSION = 1
KEYS = {"format", "version", "class", "config", "state_dict"}
PARTS = (
    *("multiscale", "msnet", "timestepping", "implicit", "backbones", "transport"),
    *("compat.ms_net", "layers.mlp"),
)
SPARE_BYTES = 2**20  # for constants that are not in the state dict
WHOLE_NETWORK = (
    2**30
)  # for the layers after the last level, which a backbone drops once it is built
SPARE_MODULES = 1000
COPIES = {Tensor.clone, Tensor.__deepcopy__}
FACTORIES = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.arange}
LARGEST_COUNT = 2**16  # in a config; a model with a larger width has more weights than this


@dataclass(frozen=True)
class Stored:
    """The content of a file, without the values of the weights.

    Args:
        name: Class of the model.
        config: Its constructor arguments; None if the library cannot build it from them.
        tensors: The entries of its state dict.
        versions: Versions of its layers, which torch keeps in the metadata of the state dict.
        fetch: A function that returns the bytes of a storage by its name.
    """

    name: str
    config: dict[str, Any] | None
    tensors: dict[str, TensorRecord]
    versions: dict[str, Any]
    fetch: Callable[[str], bytes]

    @property
    def has_backbone(self) -> bool:
        """Whether the model contains a `Backbone`, which is cut out of a larger network."""
        return "Backbone" in str((self.name, self.config))

    @property
    def num_bytes(self) -> int:
        """Number of bytes of all entries of the state dict."""
        return sum(math.prod(one.size) * one.dtype.itemsize for one in self.tensors.values())


def is_stored(file: IO[bytes]) -> bool:
    """Return whether a file is one of `save`, from its structure alone; its weights are not read."""
    try:
        root, _, _ = open_archive(file)
    except Exception:  # of any kind, on corrupted or foreign bytes
        return False
    return type(root) is dict and root.get("format") == FORMAT


def read_stored(file: IO[bytes], path: str | os.PathLike[str]) -> Stored:
    """Read and check everything in a file except its weights, without running any code of it.

    Args:
        file: Opened for reading.
        path: Its name, for the messages.

    Raises:
        ValueError: If the file is corrupted, was not written by `save`, has a newer version, or holds
            something that no model needs; the message names the entry.
    """
    try:
        root, fetch, sizes = open_archive(file)
    except Exception as error:  # corrupted bytes can raise any exception in the readers
        raise ValueError(
            f"{path} must be a file of neurenix_ms.save, got a corrupted or foreign file: {error}"
        ) from error
    if type(root) is not dict or root.get("format") != FORMAT:
        raise ValueError(f"{path} must be a file of neurenix_ms.save, got another torch.save file")
    version = root.get("version")
    if type(version) is not int or version > VERSION:
        raise ValueError(
            f"{path} must have a format version of at most {VERSION}, got {shown(version)}; "
            "upgrade neurenix_ms to read it"
        )
    name, state = root.get("class"), root.get("state_dict")
    if type(name) is not str or len(name) > LONGEST_NAME or not isinstance(state, dict):
        raise ValueError(f"{path} must hold a class name and a state dict, got {shown(list(root))}")
    if unknown := [key for key in root if type(key) is not str or key not in KEYS]:
        raise ValueError(f"{path} must hold {sorted(KEYS)} only, got {shown(unknown)} too")
    name = RENAMED_CLASSES.get(name, name)
    config = root.get("config")
    try:
        if config is not None:
            check_plain("config", config)
        if not isinstance(config, dict | None):
            raise ValueError(f"config must be a dict or None, got {shown(config)}")
        tensors = _tensors(state, sizes, os.fstat(file.fileno()).st_size)
        return Stored(name, config, tensors, _versions(state), fetch)
    except (ValueError, *READ_ERRORS) as error:
        raise ValueError(f"{path} does not hold a model: {error}") from error


def _tensors(
    state: Mapping[Any, Any], sizes: Mapping[str, int], file_bytes: int
) -> dict[str, TensorRecord]:
    """Return the entries of a state dict, after a check of the length of every storage."""
    found = {}
    for name, record in state.items():
        if type(name) is not str or len(name) > LONGEST_NAME:
            raise ValueError(f"state_dict must have short strings as keys, got {shown(name)}")
        one = found[name] = tensor_record(name, record)
        if sizes.get(one.key) != one.storage_bytes:
            raise ValueError(
                f"the storage of {name!r} needs {one.storage_bytes} bytes, "
                f"got {sizes.get(one.key, 'none')}"
            )
    total = sum(math.prod(one.size) * one.dtype.itemsize for one in found.values())
    if total > 4 * file_bytes:  # entries may share their storage, as tied weights do
        raise ValueError(f"state_dict has {total} bytes in a file of {file_bytes}")
    return found


def _versions(state: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the metadata of a state dict: the version of every module."""
    attributes = getattr(state, "state", None) or {}
    versions = attributes.get("_metadata", {}) if isinstance(attributes, dict) else None
    if not isinstance(versions, dict) or set(attributes) - {"_metadata"}:
        raise ValueError(f"state_dict must have versions of layers only, got {shown(attributes)}")
    check_plain("versions", dict(versions))
    return dict(versions)


def read_weights(
    stored: Stored, device: str | torch.device | Mapping[str, str] | None
) -> dict[str, Tensor]:
    """Read all entries of the state dict.

    Args:
        stored: Content of the file.
        device: Device of the tensors, or a mapping to it from the device in the file; the CPU by
            default.

    Raises:
        ValueError: If a record is corrupted.
    """
    reader = TensorReader(stored.fetch)
    state: Any = OrderedDict()
    for name, record in stored.tensors.items():
        wanted = device.get(record.location, "cpu") if isinstance(device, Mapping) else device
        try:
            value = reader.read(name, record)
        except (ValueError, *READ_ERRORS) as error:
            raise ValueError(f"{name!r} cannot be read, {error}") from error
        state[name] = value.to(wanted or "cpu")
    state._metadata = OrderedDict(stored.versions)
    return state


def build(stored: Stored, path: str | os.PathLike[str]) -> nn.Module:
    """Build the model that a file describes, with newly initialized weights.

    Building stops as soon as the model needs more memory, or more modules, than the entries of the
    state dict account for. A small file can therefore not request a large model.

    Args:
        stored: Content of the file.
        path: Its name, for the messages.

    Raises:
        ValueError: If the config does not fit its class, or the model is larger than the file.
    """
    content = {"class": stored.name, "config": stored.config}
    values = sum(math.prod(one.size) for one in stored.tensors.values())
    _check_small("config", stored.config, max(LARGEST_COUNT, values), path)
    spare = WHOLE_NETWORK if stored.has_backbone else SPARE_BYTES
    most_modules = SPARE_MODULES + 20 * len(stored.tensors)
    with _Bounded(4 * stored.num_bytes + spare), _few_modules(most_modules):
        return _built(content, path)


def _check_small(name: str, value: Any, most: int, path: str | os.PathLike[str]) -> None:
    """Raise if a number or a length in the config requires a larger file.

    The recursion is bounded, because `check_plain` has limited the levels of the config.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if key != "seed":
                _check_small(f"{name}.{key}", item, most, path)
    elif isinstance(value, list | tuple):
        if len(value) > most:
            raise ValueError(f"{path} has too few weights for {name} of {len(value)} entries")
        for i, item in enumerate(value):
            _check_small(f"{name}[{i}]", item, most, path)
    elif isinstance(value, int) and abs(value) > most:
        raise ValueError(f"{path} has too few weights for {name} = {shown(value)}")


def _built(content: dict[str, Any], path: str | os.PathLike[str]) -> nn.Module:
    name, config = content.get("class"), content.get("config")
    if type(name) is not str or set(content) != {"class", "config"}:
        raise ValueError(
            f"{path} must describe a model by its class and config, got {shown(content)}"
        )
    if not isinstance(config, dict):
        raise ValueError(
            f"{path} holds a {name} that cannot be rebuilt from the file alone; "
            "build it and pass it as model="
        )
    cls = class_named(name, f"{path} must hold")
    renamed: dict[str, str] = getattr(vars(cls)["__init__"], "renamed_arguments", {})
    arguments = {
        str(renamed.get(key, key)): _built_inside(value, path) for key, value in config.items()
    }
    if cls.__name__ == "Backbone":  # the weights come from the file and need no download
        arguments["weights"] = None
    try:
        return cls(**arguments)
    except Exception as error:  # an unknown config can raise any exception
        raise ValueError(
            f"{path} has a config that does not fit its class {cls.__name__}: {error}"
        ) from error


def class_named(name: str, needed: str = "a class must be") -> type[nn.Module]:
    """Return a class of the library that is built from a config.

    Args:
        name: Its name, or a former one.
        needed: Start of the message.

    Raises:
        ValueError: If the library has no such class.
    """
    name = RENAMED_CLASSES.get(name, name)
    classes = {cls.__name__: cls for cls in library_classes()}
    if name not in classes:  # its subpackage may not be imported yet
        for part in PARTS:
            importlib.import_module(f"neurenix_ms.{part}")
        classes = {cls.__name__: cls for cls in library_classes()}
    if name not in classes:
        raise ValueError(f"{needed} one of {sorted(classes)}, got {shown(name)}")
    return classes[name]


def _built_inside(value: Any, path: str | os.PathLike[str]) -> Any:
    if isinstance(value, dict):
        return _built(value, path)
    return [_built_inside(item, path) for item in value] if isinstance(value, list) else value


class _Bounded(TorchFunctionMode):
    """Raise if more bytes of tensors are made than allowed, if possible before they are allocated."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self.most_bytes = most_bytes
        self.made = 0

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in FACTORIES:
            sizes = [n for n in tree_leaves((args, kwargs.get("size"))) if type(n) is int]
            kind = kwargs.get("dtype") or torch.get_default_dtype()
            self._check(math.prod(sizes) * kind.itemsize, kwargs.get("device"))
        made = func(*args, **kwargs)
        # other tensors, such as those by which a constructor measures its network, are temporary
        if (func in FACTORIES or func in COPIES) and type(made).__name__ != "FakeTensor":
            self._check(made.numel() * made.dtype.itemsize, made.device, count=True)
        return made

    def _check(self, num_bytes: int, device: Any, count: bool = False) -> None:
        if device is not None and torch.device(device).type == "meta":
            return
        if self.made + num_bytes > self.most_bytes:
            raise ValueError(
                f"the model needs more than the {self.most_bytes} bytes that its weights account for"
            )
        self.made += num_bytes if count else 0


@contextmanager
def _few_modules(most: int) -> Iterator[None]:
    """Raise if a constructor makes more than `most` modules."""
    count = 0

    def counted(module: nn.Module, name: str, child: nn.Module | None) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise ValueError(
                f"the model needs more than the {most} modules that its weights account for"
            )

    handle = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        handle.remove()
