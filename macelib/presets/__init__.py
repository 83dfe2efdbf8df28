"""Presets: whole sets of settings by name; `macelib.config` fills with them what is open.

`values` holds them by kind of concept, `fill` puts them into a run's settings, `earlier` reads settings of earlier
versions. It may import `concepts`, `templates` and `errors`, and what they may; not `config`, which imports it.
"""

from .earlier import renamed
from .fill import domain, fill, into
from .values import KINDS, PRESETS, RANGES, TASKS, USUAL, Run, check_best, chosen, title, values

__all__ = [
    "KINDS", "PRESETS", "RANGES", "TASKS", "USUAL", "Run", "check_best", "chosen", "domain", "fill", "into", "renamed",
    "title", "values",
]  # fmt: skip
