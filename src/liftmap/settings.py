"""Settings as frozen dataclasses: to plain data and back, and a short name for what they say.

Plain data are what JSON holds. Reading refuses keys that the settings don't have, and fills in the
defaults of those that the data lack, so that a new setting leaves old files readable.
"""

import hashlib
import json
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from liftmap.errors import SettingsError

Settings = TypeVar("Settings")


def read_settings(kind: type[Settings], data: Any) -> Settings:
    """Settings of that kind from `dataclasses.asdict`'s plain data.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Size:
    ...     sides: tuple[int, int]
    >>> read_settings(Size, {"sides": [3, 4]})
    Size(sides=(3, 4))

    Raises:
        SettingsError: an unknown key, a missing one, or a value of another type; and whatever the
            settings themselves refuse.
    """
    if not isinstance(data, dict):
        raise SettingsError(f"{kind.__name__} from {data!r}: need an object with its settings")
    hints = _hints(kind)
    if unknown := sorted(data.keys() - hints.keys()):
        raise SettingsError(
            f"{kind.__name__} has no {', '.join(unknown)}: need some of {', '.join(hints)}"
        )
    values = {}
    for name, value in data.items():
        values[name] = _read(hints[name], value, f"{kind.__name__}.{name}")
    try:
        return kind(**values)
    except TypeError as error:
        raise SettingsError(f"{kind.__name__}: {error}") from error


def _hints(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, without those that it makes itself."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind) if field.init}


def _read(hint: Any, value: Any, name: str) -> Any:
    """A value as the type hint has it."""
    if get_origin(hint) in (Union, UnionType):
        if value is None and NoneType in get_args(hint):
            return None
        [hint] = [part for part in get_args(hint) if part is not NoneType]
    if is_dataclass(hint) and isinstance(hint, type):
        return read_settings(hint, value)
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        inner = get_args(hint)
        each = inner[:1] * len(value) if inner[-1] is ... else inner
        return tuple(_read(part, v, name) for part, v in zip(each, value, strict=True))
    if hint is float and type(value) is int:
        return float(value)
    if hint in (float, int, str, bool) and type(value) is not hint:
        raise SettingsError(f"{name}={value!r}: need a {hint.__name__}")
    return value


def changed_settings(settings: Any) -> dict[str, Any]:
    """Plain data of what differs from the defaults, nested settings likewise.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Size:
    ...     width: int = 1
    ...     height: int = 1
    >>> changed_settings(Size(height=2))
    {'height': 2}
    """
    found: dict[str, Any] = {}
    for field in fields(settings):
        value, default = getattr(settings, field.name), field.default
        if field.default_factory is not MISSING:
            default = field.default_factory()
        if value != default:
            found[field.name] = changed_settings(value) if is_dataclass(value) else value
    return found


def settings_key(settings: Any) -> str:
    """A name for exactly these settings: a hash of what differs from the defaults.

    So settings that are added later, at their defaults, change no name.
    """
    text = json.dumps(changed_settings(settings), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
