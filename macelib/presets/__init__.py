"""Presets: whole sets of settings by name; `macelib.config` fills with them what is open.

`values` holds them by kind of concept, `fill` puts them into a run's settings. It may import `concepts`, `templates`
and `errors`, and what they may; not `config`, which imports it.
"""

from .fill import domain, fill, into
from .values import KINDS, PRESETS, TASKS, USUAL, Run, title, values

__all__ = ["KINDS", "PRESETS", "TASKS", "USUAL", "Run", "domain", "fill", "into", "title", "values"]
