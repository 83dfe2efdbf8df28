"""Other erasers beside MACE, all through one interface, each implemented from its paper's equations.

A method is a function `make(request, settings)` under a name (`register`). It brings one change: a text map R with
W' = W R, an output map Q with W' = Q W, a weight delta, or a hook on the prompt, the guidance or the values. `build`
runs it and gives an `Edit`, which is applied, removed, saved, loaded, exported and measured as an `Erasure` is.

UCE, RECE, DP, SPEED (shared by all layers) and MACE's stage 1 (`solve_refinement`) are one family: functions of token
columns or their sums that return one d x d map. W_l factors out of each of their objectives on the left, because it
holds text embeddings only, so that keys and values of all layers share the map. Two edits in a row are
a product, R1 R2.

May import: models, method, erasure and the modules beside this package; never show, batch, evaluate, lessons.
"""

from . import (  # noqa: F401  (each registers its method)
    ablations,
    adavd,
    dp,
    esd,
    negative,
    oce,
    original,
    rece,
    safree,
    semantic_surgery,
    sld,
    speed,
    uce,
)
from .ablations import AS_PUBLISHED
from .build import build
from .changes import Change, OutputMap, TextMap, WeightChange, WeightDelta
from .edit import Edit
from .hooks import Hook, Run
from .registry import Method, Request, Settings, method, methods, register, tunable

__all__ = [
    "AS_PUBLISHED",
    "Change",
    "Edit",
    "Hook",
    "Method",
    "OutputMap",
    "Request",
    "Run",
    "Settings",
    "TextMap",
    "WeightChange",
    "WeightDelta",
    "build",
    "method",
    "methods",
    "register",
    "tunable",
]  # fmt: skip
