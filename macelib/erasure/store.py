"""An erasure as one safetensors file: tensors by concept, everything else as JSON in the metadata; no pickle."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..concepts import Concept
from ..config import EraseConfig
from ..errors import MaceError
from ..files import atomic
from ..method.refine import ConceptStatistics, symmetric
from .header import FORMAT
from .part import Part

KEPT = (
    "layers",
    "width",
    "base",
    "prior_key",
    "versions",
    "truncation",
    "pooled",
)  # fields of Erasure that are JSON as they are


def save(erasure, path: str | Path) -> Path:
    """Write the erasure: factors, B, D and pooled text in float32, the priors' upper triangles in float64."""
    tensors, parts = {}, []
    for i, p in enumerate(erasure.parts):
        s, upper = p.statistics, tuple(torch.triu_indices(len(p.statistics.Cq), len(p.statistics.Cq)))
        tensors |= {f"{i}.Q": s.Q, f"{i}.Y": s.Y, f"{i}.Gq": s.Gq[upper], f"{i}.Cq": s.Cq[upper]}
        tensors |= {f"{i}.B": p.B, f"{i}.D": p.D} | ({f"{i}.pooled": p.pooled} if erasure.pooled else {})
        fields = {"weight": p.weight, "strength": p.strength, "lost": p.statistics.lost}
        parts.append({"concept": dataclasses.asdict(p.concept), **fields})
    for name, P in (("P", erasure.P), ("pooled_P", erasure.pooled_P)):
        if P is not None:
            tensors[name] = P[tuple(torch.triu_indices(*P.shape))]
    about = {"format": FORMAT, "parts": parts, "config": erasure.config.to_dict()}
    about |= {name: getattr(erasure, name) for name in KEPT} | {"stages": solved(erasure)}
    with atomic(path) as temporary:
        whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, temporary, metadata={"macelib": json.dumps(about)})
    return Path(path)


def solved(erasure) -> dict[str, dict[str, float]]:
    """How well the solves of an erasure went: conditions, residual of stage 1, what is left in the pooled text."""
    one = {"condition": erasure.refinement.condition, "residual": erasure.refinement.residual}
    return {"stage 1": one, "stage 3": {"condition": erasure.fusion.condition}, "pooled_left": erasure.pooled_left}


def load(path: str | Path) -> dict[str, Any]:
    """The fields of the Erasure in a file that `save` wrote.

    MaceError for one that is missing, cut short, damaged or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("macelib", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise MaceError(
            f"{path} cannot be read ({error}): it is missing or cut short; copy or make it again."
        ) from error
    if about.get("format") != FORMAT:
        raise MaceError(f"{path} is not an erasure that this version reads ({FORMAT}): make one with `mace erase`.")
    try:
        return _assemble(about, tensors)
    except (KeyError, TypeError, IndexError, RuntimeError) as error:
        raise MaceError(f"{path} is damaged ({error!r}): copy or make it again.") from error


def _assemble(about: dict, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    parts, about = [], {"pooled": {}, **about}
    for i, p in enumerate(about["parts"]):
        concept = Concept(**{k: tuple(v) if isinstance(v, list) else v for k, v in p["concept"].items()})
        Q, k = tensors[f"{i}.Q"], tensors[f"{i}.Q"].shape[1]
        Gq, Cq = (symmetric(tensors[f"{i}.{name}"], k) for name in ("Gq", "Cq"))
        statistics = ConceptStatistics(Q, tensors[f"{i}.Y"], Gq, Cq, p["lost"])
        pooled = tensors[f"{i}.pooled"] if about["pooled"] else None
        lora = tensors[f"{i}.B"], tensors[f"{i}.D"]
        parts.append(Part(concept, statistics, *lora, pooled, p["weight"], p["strength"]))
    P = symmetric(tensors["P"], about["width"]) if "P" in tensors else None
    pooled_P = symmetric(tensors["pooled_P"], *about["pooled"].values()) if "pooled_P" in tensors else None
    config, kept = EraseConfig.from_dict(about["config"]), {name: about[name] for name in KEPT}
    return {"parts": tuple(parts), "P": P, "pooled_P": pooled_P, "config": config, **kept}
