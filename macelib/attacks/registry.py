"""The attacks by name: what one is asked for, what it brings, how it is found."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..errors import MaceError, unknown

_ATTACKS: dict[str, "Attack"] = {}


@dataclass(frozen=True)
class Try:
    """One thing that an attack tried: the pictures that it kept the best of, and what they were drawn from."""

    pictures: list[Image.Image]
    variant: str  # what tells it from the attack's other tries: "eta 1", "level short"
    prompt: str
    token: str = ""  # what was found beside the prompt: tokens, or what is said of an embedding
    alone: bool = False  # of a prompt of its own: it counts by itself, whatever the given prompt shows un-attacked


Run = Callable[[Any, str, int], Iterator[Try]]  # (scene that is attacked, prompt, seed) -> tries


@dataclass(frozen=True)
class Attack:
    """One attack: its settings, what it takes from the original model, and whether it needs pictures."""

    name: str
    settings: type  # a frozen dataclass, its defaults ours
    prepare: Callable[[Any, Any], Run]  # (scene of the original, settings) -> run on what is attacked
    pictures: bool = False  # whether it needs pictures of the concept
    search: bool = False  # its tries are one search, left out where the concept shows without it, ended where it shows
    best_of: Callable[[Any], int] = lambda settings: 2  # pictures behind a row's verdict: un-attacked and tried


def register(name: str, settings: type, **about) -> Callable:
    """Decorator: prepare(scene, settings) becomes the attack `name`; MaceError where that is taken.

    about: further fields of `Attack`.
    """

    def add(prepare: Callable) -> Callable:
        if name in _ATTACKS and _ATTACKS[name].prepare.__qualname__ != prepare.__qualname__:
            raise MaceError(f"There is an attack {name!r} already: choose another name.")
        _ATTACKS[name] = Attack(name, settings, prepare, **about)
        return prepare

    return add


def attacks() -> list[str]:
    """Names of the registered attacks, in the order of their registration."""
    return list(_ATTACKS)


def named(name: str) -> Attack:
    """An attack by name; MaceError that lists near names for an unknown one."""
    if name not in _ATTACKS:
        raise unknown("attack", name, _ATTACKS)
    return _ATTACKS[name]
