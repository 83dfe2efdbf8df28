"""The artefact: an erasure re-fused per concept, applied and removed, saved, loaded, and exported for other programs.

`part` is what is held of one concept, `fused` what all of them become together, `erasure` what can be done with that,
`store` the file, `header` what can be read of it without PyTorch, `export` what other programs read. It may import
`models`, `method`, and what they may; nothing that makes, measures or shows erasures.
"""

__all__ = ["Erasure", "Part", "versions"]


def __getattr__(name: str):
    """Import a public name where it is first used, so that a file's header is read without PyTorch."""
    if name not in __all__:
        raise AttributeError(f"module 'macelib.erasure' has no attribute {name!r}")
    from .erasure import Erasure, versions
    from .part import Part

    return {"Erasure": Erasure, "Part": Part, "versions": versions}[name]
