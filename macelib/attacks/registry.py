"""The attacks by name: what one is asked for, what it brings, how it is found."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
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
    plain: bool = False  # un-attacked: it has no row; what it shows is `pre` of those that follow


Run = Callable[[Any, str, int], Iterator[Try]]  # (scene that is attacked, prompt, seed) -> tries: a generator


def _as_it_is(scene: Any, settings: Any) -> AbstractContextManager:
    return nullcontext(scene)


@dataclass(frozen=True)
class Attack:
    """One attack: its settings, what it takes from the original model, and whether it needs pictures."""

    name: str
    settings: type  # a frozen dataclass, its defaults ours
    prepare: Callable[[Any, Any], Run]  # (scene of the original, settings) -> run on what is attacked
    pictures: bool = False  # whether it needs pictures of the concept, on which it lowers a loss
    search: bool = False  # its tries are one search, left out where the concept shows without it, ended where it shows
    best_of: Callable[[Any], int] = lambda settings: 2  # pictures behind a row's verdict: un-attacked and tried
    worded: bool = False  # its prompts are the attack: nothing is drawn before it, and its rows have no `pre`
    embeds: bool = False  # the model reads states that the prompt has not led to
    plain: Callable[[Any, Any], AbstractContextManager] = _as_it_is  # (scene, settings) -> what draws un-attacked
    lacks: Callable[[Any, str], str] = lambda settings, control: ""  # why a part of it cannot be had in a control


def check_some(settings: Any, **least: float) -> None:
    """MaceError for fields that are below their least, and for lists without an entry or with such a one."""
    for name, low in least.items():
        value = getattr(settings, name)
        if isinstance(value, tuple) and not (value and min(value) >= low):
            raise MaceError(f"{name} is {[*value]}; allowed: one number or more, each {low:g} or more.")
        if not isinstance(value, tuple) and value < low:
            raise MaceError(f"{name} is {value!r}; allowed: {low:g} or more.")


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
