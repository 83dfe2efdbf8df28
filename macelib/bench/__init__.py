"""How long everything takes: `closed` stages 1 and 3, `drawing` pictures, `whole` each step of an erasure of a model,
`at_size` of one with random weights in the layout of a real one, of those in `layouts`; `baselines` other methods.

It may import all that erases; nothing of `evaluate`, `show`, `batch`, `lessons` or `cli`.
"""

from .baselines import closed_forms
from .closed import Meter, per_layer, random_concept, random_erasure, run, streamed
from .drawing import drawing, seconds
from .rates import Shapes, Spent, operations, peak
from .whole import at_size, whole

__all__ = [
    "Meter", "Shapes", "Spent", "at_size", "closed_forms", "drawing", "operations", "peak", "per_layer",
    "random_concept", "random_erasure", "run", "seconds", "streamed", "whole",
]  # fmt: skip
