"""The original model: the row that every table begins with, and the shortest method."""

from dataclasses import dataclass

from .changes import WeightDelta
from .registry import Request, Settings, register


@dataclass(frozen=True)
class Original(Settings):
    """Nothing to set."""


@register("original", Original)
def original(request: Request, settings: Original) -> WeightDelta:
    """No weight changes."""
    return WeightDelta({})
