"""macelib: mass concept erasure (MACE, CVPR 2024, arXiv 2403.06135) for text-to-image diffusion models.

`models`, `method` and `erasure` are the core; `job.erase` runs it. Each package says what it may import, and no two
modules import each other in a circle.
"""

import importlib

from .models.notices import silence
from .models.threads import wait_briefly

__version__ = "0.2.0"

_HOME = {
    "Concept": "concepts",
    "EraseConfig": "config",
    "Erasure": "erasure",
    "MaceError": "errors",
    "erase": "job",  # a module of the same name would hide the function
    "load_pipeline": "models.pipelines",
    "trace": "models.attention",
}
wait_briefly()  # before PyTorch is loaded
silence()
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str):
    """Import a public name where it is first used, so that `import macelib` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'macelib' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
