"""The methods by name: what one is asked for, what it brings, how it is found and run."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..concepts import Concept
from ..errors import MaceError, unknown
from ..reading import check_settings

Progress = Callable[[str, int, int, str], None]  # stage, done, total, detail
_METHODS: dict[str, "Method"] = {}


@dataclass(frozen=True)
class Settings:
    """Base of a method's settings: a value of another type than its field says, or below 0, is refused."""

    def __post_init__(self):
        check_settings(self)
        for name, value in vars(self).items():
            if isinstance(value, (int, float)) and value < 0:
                raise MaceError(f"{name} is {value!r}; allowed: 0 or more.")


@dataclass(frozen=True)
class Request:
    """What a method is asked for, and where it puts what it has to say."""

    pipe: Any  # as loaded, nothing applied
    concepts: tuple[Concept, ...]
    kept: tuple[str, ...] = ()  # names that must stay
    seed: int = 0
    tell: Progress = lambda *_: None
    folder: str | None = None  # where a long job keeps what it has done
    notes: list[str] = field(default_factory=list)  # what was cut or left out
    report: dict[str, float] = field(default_factory=dict)  # numbers that say how loaded an edit is

    def note(self, text: str) -> None:
        """Say what the method could not do as asked; it stays with the edit."""
        self.notes.append(text)


@dataclass(frozen=True)
class Method:
    """One method: its published settings, the values it is tuned over, and the function that makes its change."""

    name: str
    settings: type  # a frozen dataclass, its defaults the published ones
    make: Callable[[Request, Any], Any]  # -> a Change, or an Erasure
    published: Mapping[str, Any] = field(default_factory=dict)  # by task, where they differ from the defaults
    grid: Mapping[str, Sequence] = field(default_factory=dict)  # field -> values tried for a tuned row
    trains: bool = False  # takes optimiser steps: minutes or hours for a list of concepts

    def settings_for(self, task: str = "object") -> Any:
        """The published settings for "object", "celebrity", "style", "unsafe" or what else the method names."""
        return self.published.get(task) or self.settings()

    def trials(self, task: str = "object") -> Iterator[Any]:
        """Every settings of the grid, the other fields as published for the task."""
        for values in itertools.product(*self.grid.values()):
            yield dataclasses.replace(self.settings_for(task), **dict(zip(self.grid, values, strict=True)))


def register(
    name: str,
    settings: type,
    *,
    published: Mapping[str, Any] | None = None,
    grid: Mapping[str, Sequence] | None = None,
    trains: bool = False,
) -> Callable:
    """Decorator: make(request, settings) becomes the method `name`; MaceError where that is taken."""

    if not dataclasses.is_dataclass(settings):
        raise MaceError(f"The settings of {name!r} must be a frozen dataclass with a default for each field.")

    def add(make: Callable) -> Callable:
        if name in _METHODS and _METHODS[name].make.__qualname__ != make.__qualname__:
            raise MaceError(f"There is a method {name!r} already: choose another name.")
        _METHODS[name] = Method(name, settings, make, published or {}, grid or {}, trains)
        return make

    return add


def methods() -> list[str]:
    """Names of the registered methods, in the order of their registration."""
    return list(_METHODS)


def method(name: str) -> Method:
    """A method by name; MaceError that lists near names for an unknown one."""
    if name not in _METHODS:
        raise unknown("method", name, _METHODS)
    return _METHODS[name]
