"""What a preset is: a name, a class, its arguments, a source."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A network by name: a class of the library and the values of its arguments.

    Use it to see what `create` builds, and where it is from. All of it is plain data, which can be
    written to a file as it is.

    Args:
        name: The name, in lower case.
        cls: Name of the class.
        description: One line: what it is, and how it differs from the network of its source.
        source: Publication or project, or "-" for a design of this library.
        arguments: Arguments of the class. A dict of "class" and "config" stands for a network inside.

    Examples:
        >>> from neurenix_ms.registry import get_preset
        >>> get_preset("bifpn_d0").arguments["repeats"]
        3
    """

    name: str
    cls: str
    description: str
    source: str = "-"
    arguments: dict[str, Any] = field(default_factory=dict)
