"""Settings from plain values: each is checked against the annotation of its field, in a sentence that names it."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from ..errors import MaceError


def check_settings(config) -> None:
    """Make every field of a frozen dataclass of settings what its annotation says: a section from a mapping, too.

    MaceError for a value that it does not allow, at any depth.
    """
    for name, value in _values(config, "").items():
        object.__setattr__(config, name, value)


def check_ranges(config, ranges: Mapping[str, float | tuple]) -> None:
    """MaceError for a number ("section.field") out of its range; None is in every range.

    ranges: the least; (least, largest); or (least, end, "below") where the end is not allowed itself.
    """
    for name, limits in ranges.items():
        least, most, *below = limits if isinstance(limits, tuple) else (limits, None)
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        if value is not None and not (
            value >= least and (most is None or value < most or (value == most and not below))
        ):
            end = "or more" if most is None else f"or more, and less than {most}" if below else f"to {most}"
            raise MaceError(f"{name} is {value!r}; allowed: {least} {end}.")


def build_settings(cls, values: dict[str, Any]):
    """A dataclass of settings from plain values; MaceError: field, value and what is allowed."""
    return _build(cls, values, "")


def _build(cls, values: Any, prefix: str):
    """Dataclass from a mapping, each value checked against the field's annotation."""
    if not isinstance(values, dict):
        raise MaceError(f"{prefix.rstrip('.') or 'The settings'} is {values!r}; allowed: a mapping of fields.")
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise MaceError(f"{prefix}{name} is not a setting; choose from {', '.join(prefix + n for n in hints)}.")
    return cls(**{name: _value(hints[name], value, prefix + name) for name, value in values.items()})


def _values(config, prefix: str) -> dict[str, Any]:
    """The fields of a dataclass, each as its annotation says; MaceError for one that it does not allow."""
    hints = typing.get_type_hints(type(config))
    return {name: _value(hint, getattr(config, name), prefix + name) for name, hint in hints.items()}


def _value(hint: Any, value: Any, name: str) -> Any:
    """`value` as the type that `hint` says, or MaceError."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)  # the second where a Literal is part of it
    options = typing.get_args(hint) if union else (hint,)
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(value, option):
            return dataclasses.replace(value, **_values(value, name + "."))
        if dataclasses.is_dataclass(option):
            return _build(option, value, name + ".")
        is_word = isinstance(value, (str, int)) and not isinstance(value, bool)
        if typing.get_origin(option) is Literal and is_word and str(value) in typing.get_args(option):
            return str(value)
        if option is types.NoneType and value is None:
            return None
        of = typing.get_args(option)[0] if typing.get_origin(option) is tuple else str
        of = of if of in (int, float, dict) or typing.get_origin(of) is Literal else None
        if of and isinstance(value, (list, tuple)):
            return tuple(_value(of, v, f"{name}[{i}]") for i, v in enumerate(value))
        is_texts = not of and isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)
        if typing.get_origin(option) is tuple and is_texts:
            return tuple(value)
        if option in (bool, str, dict) and isinstance(value, option):
            return value
        if option is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if option is float and (number := _number(value)) is not None:
            return number
    allowed = " or ".join(_say(option) for option in options)
    hint = " in quotes" if "text" in allowed and not isinstance(value, str) else ""
    raise MaceError(f"{name} is {value!r}; allowed: {allowed}{hint}.")


def _number(value: Any) -> float | None:
    """A finite float from a number, or from text such as 1e-4, which YAML reads as text."""
    try:
        number = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return number if number is not None and abs(number) < float("inf") else None


def _say(hint: Any) -> str:
    """A type in words."""
    if typing.get_origin(hint) is Literal:
        return ", ".join(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        of = typing.get_args(hint)[0]
        lists = {str: "a list of text", dict: "a list of mappings"}
        return f"a list of {_say(of)}" if typing.get_origin(of) is Literal else lists.get(of, "a list of numbers")
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}.get(
        hint, "nothing (null)"
    )
