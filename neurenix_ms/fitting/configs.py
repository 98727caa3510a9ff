"""Configs of `fit`: read from YAML, changed by overrides, and checked before anything is imported."""

import copy
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from neurenix_ms._core.checks import shown
from neurenix_ms._core.config import check_plain
from neurenix_ms._core.io.atomic import write_atomically

try:
    import yaml
except ImportError as error:
    raise ImportError("configs need PyYAML: pip install 'neurenix_ms[fit]'") from error

READY = Path(__file__).parent / "ready"
KEYS = ("seed_everything", "model", "data", "trainer", "out", "description", "license")
CLASSES = ("model", "data")  # sections that name a class
PARTS = ("class_path", "init_args")  # of what names one
# where the classes of a config may be defined, besides `neurenix_ms`
ALLOWED = (
    "torch.nn",
    "torch.optim",
    "torchmetrics",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.profilers",
)
OWN = "neurenix_ms"
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
LARGEST = 2**20  # bytes of a config
Config = dict[str, Any]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Loader of plain values; 1e-3 is a number, and no part refers to another."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # a short file of aliases can stand for gigabytes
            raise ValueError("aliases (*name) must not be used in a config")
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"),
    list("-+.0123456789"),
)


def parsed(text: str) -> Any:
    """Return the value of a YAML text."""
    return yaml.load(text, _Loader)  # a subclass of the safe loader


def ready_configs() -> dict[str, str]:
    """Return the configs of the package: name, and the first line of their comment."""
    found = sorted(READY.glob("*.yaml"))
    return {path.stem: path.read_text("utf-8").splitlines()[0].lstrip("# ") for path in found}


def config_path(name: str) -> Path:
    """Return the path of a config, given by its path or by the name of a config of the package.

    Raises:
        ValueError: If there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    known = ready_configs()
    if name in known:
        return READY / f"{name}.yaml"
    raise ValueError(f"CONFIG must be a YAML file or one of {list(known)}, got {name!r}")


def copied(source: Path, target: Path) -> Path:
    """Copy a config with its comments to a new file.

    Raises:
        ValueError: If something is there.
    """
    if target.exists():
        raise ValueError(f"--copy must name a new file, got {target}, which exists")
    write_atomically(target, source.read_bytes())
    return target


def read_config(path: Path) -> Config:
    """Return the content of a YAML file of plain values.

    Raises:
        ValueError: If it is no such file.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} must have at most {LARGEST} bytes, got more")
    try:
        content = parsed(path.read_text("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        words = " ".join(str(error).split())
        raise ValueError(f"{path} must be a YAML file of plain values, got {words}") from error
    check_plain(str(path), content)
    return checked_sections(content, str(path))


def checked_sections(content: Any, name: str) -> Config:
    """Return a config whose sections are known."""
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{name} must hold the sections {list(KEYS)}, got {shown(content)}")
    for key in content:
        if key not in KEYS:
            close = get_close_matches(key, KEYS, n=1)
            hint = f"; similar: {close[0]!r}" if close else ""
            raise ValueError(f"{name} must hold the sections {list(KEYS)} only, got {key!r}{hint}")
    for key in CLASSES:
        value = content.get(key)
        if not isinstance(value, dict) or not isinstance(value.get("class_path"), str):
            raise ValueError(
                f"{name} must hold {key} with a class_path and init_args, got {shown(value)}"
            )
    if not isinstance(content.setdefault("trainer", {}), dict):
        raise ValueError(f"{name} must hold trainer as a mapping, got {shown(content['trainer'])}")
    return content


def overridden(config: Config, words: Sequence[str]) -> Config:
    """Return a config with values replaced by words such as `--data.size=64` or `--data.size 64`.

    Raises:
        ValueError: If a word is no such option, or a name leads to a value that has no parts.
    """
    config = copy.deepcopy(config)
    for name, text in options(words):
        try:
            value = parsed(text)
        except yaml.YAMLError as error:
            raise ValueError(f"--{name} must have a value in YAML, got {text!r}") from error
        check_plain(f"--{name}", value)
        section, *path = name.split(".")
        if section not in KEYS:
            raise ValueError(f"--{name} must begin with one of {list(KEYS)}, got {section!r}")
        place: Any = config
        for step in [section, *path][:-1]:
            place = entered(place, step, name)
        last = [section, *path][-1]
        if isinstance(place, dict) and "class_path" in place and last not in PARTS:
            place = place.setdefault("init_args", {})
        store(place, last, value, name)
    return checked_sections(config, "the config")


def options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield names and values of options."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ValueError(
                f"what follows CONFIG must be options such as --data.size=64, got {word!r}"
            )
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ValueError(f"--{name} must have a value, got none")
            value = rest.pop(0)
        yield name, value


def entered(place: Any, step: str, name: str) -> Any:
    """Return the part of a config that a step of a dotted name leads to, made if it is missing."""
    if isinstance(place, list) and step.isdecimal() and int(step) < len(place):
        return place[int(step)]
    if not isinstance(place, dict):
        raise ValueError(
            f"--{name} must lead to a value of the config, got {shown(place)} at {step!r}"
        )
    if "class_path" in place and step not in PARTS:
        place = place.setdefault("init_args", {})
    if place.get(step) is None:
        place[step] = {}
    return place[step]


def store(place: Any, last: str, value: Any, name: str) -> None:
    """Replace a value of a config."""
    if isinstance(place, list) and last.isdecimal() and int(last) < len(place):
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ValueError(f"--{name} must lead to a value of the config, got {shown(place)}")


def class_paths(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every part of a config that names a class, and where it is."""
    if isinstance(value, dict):
        if "class_path" in value:
            yield path, value
        for key, inner in value.items():
            yield from class_paths(inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from class_paths(inner, f"{path}[{i}]")


def check_classes(config: Config, short: Mapping[str, str], trust: bool = False) -> Config:
    """Return a config with full names of classes; raise if one is of another package.

    Args:
        config: The config; it is not changed.
        short: Full names of classes by their short names.
        trust: Allow classes of every package.

    Raises:
        ValueError: If a name is no dotted name, is not allowed, or does not name a class.
    """
    config = copy.deepcopy(config)
    for path, part in class_paths(config):
        given = part["class_path"]
        if not isinstance(given, str) or not NAME.fullmatch(given):
            raise ValueError(f"{path}.class_path must be the name of a class, got {shown(given)}")
        name = short.get(given, given)
        if "." not in name:
            close = get_close_matches(name, short, n=3)
            hint = f"; similar: {', '.join(close)}" if close else ""
            raise ValueError(
                f"{path}.class_path must be one of {sorted(short)} or a dotted name, got {given!r}{hint}"
            )
        if not trust:
            check_allowed(f"{path}.class_path", name)
        check_arguments(path, class_named(f"{path}.class_path", name), part)
        part["class_path"] = name
    return config


def class_named(path: str, name: str) -> type:
    """Return the class of a dotted name, whose module is imported."""
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path} must name a class, got {name!r}, which is not there") from error
    if not inspect.isclass(found):
        raise ValueError(f"{path} must name a class, got {name!r}")
    return found


def check_arguments(path: str, cls: type, part: Mapping[str, Any]) -> None:
    """Raise unless a class has all arguments that a part of a config names."""
    given = part.get("init_args") or {}
    if not isinstance(given, dict):
        raise ValueError(f"{path}.init_args must be a mapping, got {shown(given)}")
    parameters = inspect.signature(cls).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return
    for name in given:
        if name not in parameters:
            close = get_close_matches(name, parameters, n=3)
            hint = f"; similar: {', '.join(close)}" if close else ""
            raise ValueError(
                f"{path}.init_args must be among {list(parameters)} for {cls.__name__}, got "
                f"{name!r}{hint}"
            )
    missing = [
        name for name, one in parameters.items() if one.default is one.empty and name not in given
    ]
    if missing:
        raise ValueError(
            f"{path}.init_args must hold {missing} for {cls.__name__}, got {list(given)}"
        )


def allowed(name: str) -> bool:
    """Return whether a dotted name is inside of an allowed package."""
    return any(name.startswith(f"{prefix}.") for prefix in (OWN, *ALLOWED))


def check_allowed(path: str, name: str) -> None:
    """Raise unless a name is that of a class which an allowed package defines."""
    if not allowed(name):
        raise ValueError(
            f"{path} must name a class of {', '.join((OWN, *ALLOWED))}, got {name!r}; --trust allows "
            "others, whose code then runs"
        )
    found = class_named(path, name)
    if not allowed(f"{found.__module__}.{found.__name__}"):
        raise ValueError(
            f"{path} must name a class of its package, got {name!r}, which is from {found.__module__}"
        )


def differences(before: Config, after: Config, path: str = "") -> list[str]:
    """Return where two configs differ, as dotted names with both values."""
    found = []
    for key in sorted({*before, *after}):
        one, other = before.get(key), after.get(key)
        name = f"{path}.{key}".lstrip(".")
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, name)
        elif one != other:
            found.append(f"{name} was {shown(one)}, now {shown(other)}")
    return found


def written(config: Config) -> str:
    """Return the YAML text of a config."""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
