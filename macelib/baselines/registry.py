"""The methods by name: what one is asked for, what it brings, how it is found and run."""

import dataclasses
import inspect
import itertools
import linecache
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ..concepts import Concept
from ..errors import MaceError, unknown
from ..reading import check_settings

Progress = Callable[[str, int, int, str], None]  # stage, done, total, detail
Grid = Mapping[str, Sequence] | Sequence[Mapping[str, Sequence]]  # field -> values; or several such products
KINDS = ("object", "celebrity", "style", "unsafe")  # of tasks that any method may be asked the settings for
SHARED = (__package__, "macelib.method")  # packages whose modules are part of a method's code
_METHODS: dict[str, "Method"] = {}


@dataclass(frozen=True)
class Settings:
    """Base of a method's settings: a value of another type than its field says, or below 0, is refused."""

    positive = ()  # names of fields that may not be 0 either

    def __post_init__(self):
        check_settings(self)
        for name, value in vars(self).items():
            if isinstance(value, (int, float)) and value < 0:
                raise MaceError(f"{name} is {value!r}; allowed: 0 or more.")
            if name in self.positive and not value:
                raise MaceError(f"{name} is {value!r}; allowed: more than 0.")


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
    grid: Grid = field(default_factory=dict)  # values tried for a tuned row
    trains: bool = False  # takes optimiser steps: minutes or hours for a list of concepts

    @property
    def code(self) -> str:
        """The source of the method, which may be edited under the same name, and of what it shares with others."""
        return source(self.make, *SHARED)

    def settings_for(self, task: str = "object") -> Any:
        """The published settings for one of `KINDS`, or for what else the method names; MaceError for another."""
        if task not in (known := dict.fromkeys([*KINDS, *self.published])):
            raise unknown(f"kind of settings for {self.name}", task, known)
        return self.published.get(task) or self.settings()

    def trials(self, task: str = "object", most: int | None = None) -> list[dict[str, Any]]:
        """The points of the grid, values by field; the first is what is published for the task.

        most: so many at most; each next one is the point that differs in the most fields from those before it.
        """
        grids = (self.grid,) if isinstance(self.grid, Mapping) else self.grid
        if not any(grids):
            return []
        start = vars(self.settings_for(task))
        every = [dict(zip(grid, values, strict=True)) for grid in grids for values in itertools.product(*grid.values())]
        chosen = [{name: start[name] for grid in grids for name in grid}]
        left = [point for point in every if {**start, **point} != start]
        while left and (most is None or len(chosen) < most):
            far = [sorted(_differing(point, other) for other in chosen) for point in left]
            chosen.append(left.pop(max(range(len(left)), key=lambda i: (far[i][0], sum(far[i])))))
        return chosen[:most]


def source(of: type | Callable, *packages: str) -> str:
    """The text of the file that a function is written in, or the methods of a class and of those it derives from.

    packages: the modules of these that the file uses follow, and those that they use in turn, as they were when first
    asked for. A cell of a notebook is a file here. Empty for what is typed at a prompt, or written in no Python.
    """
    parts = [part for c in of.__mro__ for part in vars(c).values()] if isinstance(of, type) else [of]
    functions = [inspect.unwrap(part) for part in parts if inspect.isfunction(part)]
    files = dict.fromkeys(function.__code__.co_filename for function in functions)
    for file in files:
        linecache.checkcache(file)  # it may have been edited and loaded anew
    own = "".join(line for file in files for line in linecache.getlines(file))
    return own + "".join(map(_text, sorted(_used([f.__globals__ for f in functions], packages))))


def _used(spaces: Iterable[Mapping[str, Any]], packages: Sequence[str]) -> set[str]:
    """The modules of these packages that what stands in namespaces comes from; then by theirs, and so on."""
    found, left, within = set(), list(spaces), tuple(f"{package}." for package in packages)
    while left:
        for value in left.pop().values():
            name = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
            if isinstance(name, str) and f"{name}.".startswith(within) and name in sys.modules and name not in found:
                found.add(name)
                left.append(vars(sys.modules[name]))
    return found


@cache
def _text(module: str) -> str:
    return inspect.getsource(sys.modules[module])


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> int:
    """In how many fields two points differ; one that a point leaves out differs from any value."""
    return sum(name not in a or name not in b or a[name] != b[name] for name in {**a, **b})


def register(
    name: str,
    settings: type,
    *,
    published: Mapping[str, Any] | None = None,
    grid: Grid | None = None,
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


def tunable() -> list[str]:
    """Names of the methods that have a grid."""
    return [name for name, method in _METHODS.items() if method.grid]


def method(name: str) -> Method:
    """A method by name; MaceError that lists near names for an unknown one."""
    if name not in _METHODS:
        raise unknown("method", name, _METHODS)
    return _METHODS[name]
