"""Attacks that try to get an erased concept back, all through one interface, each from its paper's equations.

An attack is a function `prepare(scene, settings)` under a name (`register`): it takes from the original model what it
needs, and returns what tries prompts and seeds on a pipeline as it is, with the hooks and gates of an edit. `attack`
runs it, or one of its controls, and gives rows.

May import: models, method, erasure, baselines and the modules beside this package; never show, batch, evaluate,
lessons.
"""

from . import (  # noqa: F401  (each registers its attack)
    completion,
    inversion,
    noise,
    relearning,
    ring_a_bell,
    unlearndiffatk,
    wording,
)
from .attack import CONTROLS, Result, attack, judge_key
from .foreign import Nearest, read_pictures
from .registry import Attack, Try, attacks, named, register
from .scene import Scene
from .wording import LEVELS, wordings

__all__ = [
    "CONTROLS",
    "LEVELS",
    "Attack",
    "Nearest",
    "Result",
    "Scene",
    "Try",
    "attack",
    "attacks",
    "judge_key",
    "named",
    "read_pictures",
    "register",
    "wordings",
]  # fmt: skip
