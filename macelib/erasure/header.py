"""What an erasure file says of itself, read from its header alone: no tensor is read, and PyTorch is not loaded."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import MaceError, unreadable
from ..presets import title

FORMAT = "macelib-erasure-2"


def header(path: str | Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """The metadata of a file that `store.save` wrote, and the shape of each of its tensors.

    MaceError for a file that is missing, cut short, damaged or of another kind.
    """
    try:
        with safe_open(path, framework="np") as file:
            about = json.loads((file.metadata() or {}).get("macelib", "{}"))
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise MaceError(f"{path} is not an erasure that this version reads ({FORMAT}): make one with `mace erase`.")
    return about, shapes


def summary(path: str | Path) -> dict[str, Any] | None:
    """What `mace info` shows of a file; None for one of an earlier version, which does not say how well it solved."""
    about, shapes = header(path)
    if "stages" not in about:
        return None
    try:
        stages, pooled = about["stages"], about["stages"]["pooled_left"]
        concepts = [
            {name: part["concept"][name] for name in ("name", "anchor", "kind")}
            | {"strength": part["strength"], "rank": shapes[f"{i}.D"][1], "lost": part["lost"]}
            | ({"pooled_left": pooled[part["concept"]["name"]]} if pooled else {})
            for i, part in enumerate(about["parts"])
        ]
        said = {name: about[name] for name in ("base", "versions", "truncation", "config")}
        said |= {"prior": about["prior_key"] or None, "stage 1": stages["stage 1"], "stage 3": stages["stage 3"]}
        config = about["config"]
        said["settings"] = title(config.get("preset_name"), config.get("marks", ()))
        return said | {"concepts": concepts}
    except (AttributeError, LookupError, TypeError) as error:
        raise MaceError(f"{path} is damaged ({error!r}): copy or make it again.") from error
