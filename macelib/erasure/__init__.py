"""The artefact: an erasure re-fused per concept, applied and removed, saved, loaded, and exported for other programs.

`part` is what is held of one concept, `erasure` all of them together, `store` the file, `export` what other programs
read. It may import `models`, `method`, and what they may; nothing that makes, measures or shows erasures.
"""

from .erasure import Erasure, versions
from .part import Part

__all__ = ["Erasure", "Part", "versions"]
