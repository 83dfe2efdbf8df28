"""What an evaluation was made with, for its settings.json: enough to make it again."""

from collections.abc import Sequence

from ..files import hash_tensors
from ..models.about import made


def made_with(pipe, erasures: Sequence, judge) -> dict:
    """Model, scheduler, precision, judge, versions, and each erasure's concepts and settings (an edit's key).

    Of a concept's templates, synonyms and companions, those it holds; templates that the settings name are written
    into it by `erase`, the settings' companions are not repeated.
    """
    return {
        **made(pipe),
        "judge": {"name": judge.name, "weights": _weights(judge)},
        "config": [_settings(erasure) for erasure in erasures],
    }


def _weights(judge) -> str | None:
    """Hash of the judge's weights; None for one that has none."""
    model = getattr(judge, "model", None)
    return None if model is None else hash_tensors(dict(model.state_dict()))


def _settings(erasure) -> dict:
    config, strengths = getattr(erasure, "config", None), getattr(erasure, "strengths", {})
    common = {"companions": getattr(config, "companions", None), "synonyms": (), "templates": None}
    concepts = [
        {"name": c.name, "anchor": c.anchor, "kind": c.kind, "strength": strengths.get(c.name)}
        | {name: getattr(c, name) for name, usual in common.items() if getattr(c, name) not in ((), usual)}
        for c in erasure.concepts
    ]
    settings = config.to_dict() if hasattr(config, "to_dict") else {"edit": getattr(erasure, "key", None)}
    return {"concepts": concepts, "settings": settings}
