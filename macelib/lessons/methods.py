"""Notebook 09: five erasers that are one d x d map each, their spectra side by side, and what each map moves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from ..baselines import TextMap, build, method
from ..concepts import Concept
from ..config import EraseConfig
from ..erasure import Erasure, versions
from ..errors import MaceError
from ..files import hash_text
from ..models.pipelines import model_hash
from .capacity import SMALL, TRIED, left, lost, merged, moved, of_pipeline, rank, rows_of
from .shared import album, series

FAMILY = {  # method -> settings that make it one map for all the layers that it changes
    "uce": {},
    "rece": {},
    "speed": {"per_layer": False},
    "dp": {},
    "mace-stage-1": {},
}


def text_map(edit) -> Tensor:
    """R (d, d) float64 of an edit or erasure that is W' = W R and nothing else; MaceError for any other."""
    if isinstance(edit, Erasure) and not edit.fusion.D_star.numel():
        return edit.fusion.R_tilde
    change = getattr(edit, "change", None)
    if isinstance(change, TextMap):
        return change.R.double()
    raise MaceError(f"{edit!r} is not one map of the text embeddings: choose among {', '.join(FAMILY)}.")


def edits(pipe, concepts: Sequence[Concept], names: Sequence[str], kept: Sequence[str], config: Mapping, seed: int):
    """Edits by method of the family, all told to keep the same names; config: of MACE's stage 1."""
    if strange := [name for name in names if name not in FAMILY]:
        raise MaceError(f"{strange[0]!r} is not one map of the text embeddings: choose among {', '.join(FAMILY)}.")
    own = own_anchor(names, config)
    settings = {name: own[name] | FAMILY[name] for name in names}
    return {name: build(pipe, concepts, name, settings[name], kept=kept, seed=seed) for name in names}


def own_anchor(names: Sequence[str], config: Mapping) -> dict[str, dict]:
    """Settings by method with which a concept becomes its own anchor, where the method has one.

    config: of MACE, its stages and ablations, which have no other.
    """
    made = {name: method(name).settings for name in names}
    return {
        name: dict(config) if kind is EraseConfig else {"anchor": None} if hasattr(kind(), "anchor") else {}
        for name, kind in made.items()
    }


def live_folder(run_folder: str | Path, pipe, *parts) -> Path:
    """Where a notebook's own comparison is kept: a folder for each model, device, versions and other parts.

    parts: what else its pictures depend on.
    """
    key = hash_text(model_hash(pipe), pipe.device.type, versions(), *parts)
    return Path(run_folder) / f"compare-{key[:8]}"


def spectrum(R: Tensor) -> Tensor:
    """Singular values (d,) of R − I, largest first: how far each direction of the text's space is moved."""
    return torch.linalg.svdvals(R.double() - torch.eye(len(R), dtype=torch.float64))


def spectra(maps: Mapping[str, Tensor]) -> tuple[dict[str, tuple], pd.DataFrame]:
    """Curves (number, singular value of R − I) by method, and a row per method.

    Columns: largest (‖R − I‖₂), directions (singular values above `SMALL` of the largest), condition (of R).
    """
    curves, table = {}, {}
    for name, R in maps.items():
        s, own = spectrum(R), torch.linalg.svdvals(R.double())
        curves[name] = list(range(1, len(s) + 1)), s.clamp(min=1e-6).tolist()
        condition = float(own[0] / own[-1].clamp(min=1e-12))
        table[name] = {"largest": float(s[0]), "directions": rank(R.double()), "condition": condition}
    return curves, pd.DataFrame.from_dict(table, orient="index")


def reach(pipe, maps: Mapping[str, Tensor], concepts: Sequence[Concept], kept: Sequence[str]) -> pd.DataFrame:
    """What each map does to embeddings in three templates, relative to the whole way from name to anchor.

    Columns: own tokens left, words around left (0: they are the anchor's, 1: as before); kept own tokens moved, words
    around kept names lost (0: as before). The way of a kept name is that to the first concept's anchor.
    """
    encoder = of_pipeline(pipe)
    gone = merged(rows for c in concepts for rows in rows_of(encoder, [c.name], c.anchor, TRIED))
    stay = merged(rows_of(encoder, kept, concepts[0].anchor, TRIED))
    table = {}
    for name, R in maps.items():
        own = float((gone.own @ R.T - gone.anchor).norm() / (gone.own - gone.anchor).norm())
        table[name] = {"own tokens left": own, "words around left": left(R, gone)}
        table[name] |= {"kept: own tokens moved": moved(R, stay), "kept: words around lost": lost(R, stay)}
    return pd.DataFrame.from_dict(table, orient="index")


def gallery(pipe, made: Mapping, names: Sequence[str], seed: int, **drawing) -> dict[str, dict[str, list]]:
    """Pictures of some names by the original model and under each edit: by method, then by name."""
    albums = {"original": album(pipe, names, [seed], **drawing)}
    for name, edit in made.items():
        edit.apply(pipe)
        try:
            albums[name] = album(pipe, names, [seed], **drawing)
        finally:
            edit.remove(pipe)
    return albums


# --- what a run found


def spectra_said(table: pd.DataFrame) -> str:
    """Which map moves fewest and most directions, and how far; table: of `spectra`."""
    few, many, far = table.directions.idxmin(), table.directions.idxmax(), table.largest.idxmax()
    told = series([f"{name} {row.largest:.2f}, {row.directions:.0f}" for name, row in table.iterrows()], 99)
    return (
        f"‖R − I‖₂ and the directions that are moved by more than {100 * SMALL:.0f} % of it: {told}. Fewest are moved "
        f"by {few}, most by {many}; farthest from I is {far}."
    )


def reach_said(table: pd.DataFrame) -> str:
    """Which map brings own tokens and the words around nearest to the anchor, and which keeps most."""
    best = {column: table[column].idxmin() for column in table}
    told = [f"{column}: {name} ({table[column][name]:.2f})" for column, name in best.items()]
    return f"Least of each: {'; '.join(told)}."
