"""An erasure as one safetensors file: tensors by concept, everything else as JSON in the metadata; no pickle.

A file that is read comes from anywhere: its checksum, numbers and shapes are checked, and nothing larger than the file
itself is made of it, but for matrices of the text's width, which is bounded.
"""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..concepts import Concept
from ..config import EraseConfig
from ..errors import MaceError, check_path
from ..files import read_tensors, save_tensors
from ..method.refine import ConceptStatistics, symmetric
from .header import FORMAT
from .part import STRONGEST, Part

log = logging.getLogger(__name__)
KEPT = (  # fields of Erasure that are JSON as they are
    "layers", "width", "base", "prior_key", "versions", "truncation", "pooled",
)  # fmt: skip
WIDEST = 8192  # width d of the text up to which a file is read: a (d, d) of it takes half a gigabyte
LARGEST = 10**6  # out features of a layer up to which a file is read


def save(erasure, path: str | Path) -> Path:
    """Write the erasure: factors, B, D, pooled text in float32, triangles of priors and H in float64; a checksum."""
    tensors, parts = {}, []
    for i, p in enumerate(erasure.parts):
        s, upper = p.statistics, tuple(torch.triu_indices(len(p.statistics.Cq), len(p.statistics.Cq)))
        tensors |= {f"{i}.Q": s.Q, f"{i}.Y": s.Y, f"{i}.Gq": s.Gq[upper], f"{i}.Cq": s.Cq[upper]}
        tensors |= {f"{i}.B": p.B, f"{i}.D": p.D} | ({f"{i}.pooled": p.pooled} if erasure.pooled else {})
        fields = {"weight": p.weight, "strength": p.strength, "lost": p.statistics.lost}
        parts.append({"concept": dataclasses.asdict(p.concept), **fields})
    for name, P in (("P", erasure.P), ("pooled_P", erasure.pooled_P), ("H", erasure.H)):
        if P is not None:
            tensors[name] = P[tuple(torch.triu_indices(*P.shape))]
    about = {"format": FORMAT, "parts": parts, "config": erasure.config.to_dict()}
    about |= {name: getattr(erasure, name) for name in KEPT} | {"stages": solved(erasure)}
    _say_replaced(Path(path), about)
    return save_tensors(path, tensors, about)


def _say_replaced(path: Path, about: dict) -> None:
    """A warning where the file holds another erasure: other concepts, settings, model or prior."""
    if not path.exists():
        return
    try:
        before, *_ = read_tensors(path)
        names = [p["concept"]["name"] for p in before["parts"]] if before.get("format") == FORMAT else []
        before["config"] = EraseConfig.from_dict(before["config"]).to_dict()  # an earlier version knew fewer settings
    except (MaceError, LookupError, TypeError):
        return
    unlike = {"versions": None, "stages": None}  # other libraries, the last digits of a solve
    before, now = (json.loads(json.dumps({"pooled": {}, **fields, **unlike})) for fields in (before, about))
    if before != now:
        what = ", ".join(map(repr, names[:5])) or "something else"
        log.warning("%s held another erasure or other settings (%s): it is replaced.", path, what)


def solved(erasure) -> dict[str, dict[str, float]]:
    """How well the solves of an erasure went: conditions, residual of stage 1, what is left in the pooled text."""
    one = {"condition": erasure.refinement.condition, "residual": erasure.refinement.residual}
    return {"stage 1": one, "stage 3": {"condition": erasure.fusion.condition}, "pooled_left": erasure.pooled_left}


def load(path: str | Path) -> dict[str, Any]:
    """The fields of the Erasure in a file that `save` wrote; that one of an earlier version has no checksum is said.

    MaceError for one that is missing, cut short, damaged or of another kind.
    """
    check_path(path, "erasure")
    about, tensors, checked = read_tensors(path)
    if about.get("format") != FORMAT:
        raise MaceError(f"{path} is not an erasure that this version reads ({FORMAT}): make one with `mace erase`.")
    if not checked:
        log.warning("%s is of an earlier version and has no checksum: damage could go unnoticed. Save it again.", path)
    try:
        config = EraseConfig.from_dict(about["config"])
    except (KeyError, MaceError) as error:
        raise MaceError(f"The settings in {path} cannot be read ({error}): copy or make it again.") from error
    try:
        return {"config": config, **_assembled(about, tensors)}
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        why = error if isinstance(error, ValueError) else repr(error)
        raise MaceError(f"{path} is damaged ({why}): copy or make it again.") from error


def _assembled(about: dict, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Parts, priors and `KEPT` of a header and its tensors, checked; ValueError and its like where wrong."""
    about = {"pooled": {}, **about}  # an earlier version knew none
    layers, width, pooled = about["layers"], about["width"], about["pooled"]
    sizes = [("width", WIDEST, width), *((f"layer {name!r}", LARGEST, out) for name, out in layers.items())]
    for name, most, value in (*sizes, *((f"pooled {name!r}", WIDEST, p) for name, p in pooled.items())):
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"{name} is {value!r}; allowed: 1 to {most}")
    texts = about["base"], about["prior_key"], *about["versions"], *about["versions"].values()
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"{wrong[0]!r} stands where a text belongs")
    _number(about["truncation"], "truncation")
    for name, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.float64) or not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} is {tensor.dtype} or not finite; allowed: finite float32 or float64")
    p = next(iter(pooled.values()), 0)
    parts = [_part(i, fields, tensors, layers, width, p) for i, fields in enumerate(about["parts"])]
    if len({part.concept.name for part in parts}) < len(parts) or len(pooled) > 1:
        raise ValueError("it holds a concept, or the pooled text, twice")
    squares = {
        name: symmetric(_shaped(tensors, name, _triangle(n)), n) if name in tensors else None
        for name, n in (("P", width), ("pooled_P", p), ("H", width))
    }
    return {"parts": tuple(parts), **squares, **{name: about[name] for name in KEPT}}


def _part(i: int, fields: dict, tensors: dict[str, Tensor], layers: dict[str, int], width: int, p: int) -> Part:
    """The i-th part; shapes are compared before anything is made of them. p: width of the pooled text, 0 for none."""
    concept = Concept(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields["concept"].items()})
    k, r = tensors[f"{i}.Q"].shape[-1], tensors[f"{i}.B"].shape[-1]
    Q, Y = (_shaped(tensors, f"{i}.{name}", (width, k)) for name in ("Q", "Y"))
    Gq, Cq = (symmetric(_shaped(tensors, f"{i}.{name}", _triangle(k)), k) for name in ("Gq", "Cq"))
    B, D = _shaped(tensors, f"{i}.B", (sum(layers.values()), r)), _shaped(tensors, f"{i}.D", (len(layers), r, width))
    rows = tensors[f"{i}.pooled"].shape[1] if p else 0
    pooled = _shaped(tensors, f"{i}.pooled", (2, rows, p)) if p else None
    lost, weight = (_number(fields[name], name) for name in ("lost", "weight"))
    strength = _number(fields["strength"], "strength", STRONGEST)
    return Part(concept, ConceptStatistics(Q, Y, Gq, Cq, lost), B, D, pooled, weight, strength)


def _triangle(n: int) -> tuple[int]:
    """Shape of the upper triangle of (n, n)."""
    return (n * (n + 1) // 2,)


def _shaped(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of this shape, by name; ValueError for another."""
    if tuple(tensors[name].shape) != shape:
        raise ValueError(f"{name} is {tuple(tensors[name].shape)}; allowed: {shape}")
    return tensors[name]


def _number(value: Any, name: str, most: float = 1e30) -> float:
    """A number from 0 to `most`; ValueError for anything else."""
    if type(value) not in (int, float) or not 0 <= value <= most:
        raise ValueError(f"{name} is {value!r}; allowed: 0 to {most:g}")
    return float(value)
