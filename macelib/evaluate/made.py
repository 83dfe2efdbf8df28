"""What an evaluation was made with, for its settings.json: enough to make it again."""

import inspect
from collections.abc import Sequence

from ..baselines.registry import source
from ..files import hash_tensors, hash_text
from ..models.about import made


def made_with(pipe, erasures: Sequence, judge) -> dict:
    """Model, scheduler, precision, judge, versions, and each erasure's concepts and settings (an edit's key).

    Of a concept's templates, synonyms and companions, those it holds; templates that the settings name are written
    into it by `erase`, the settings' companions are not repeated.
    """
    return {
        **made(pipe),
        "judge": judged_by(judge),
        "config": [_settings(erasure) for erasure in erasures],
    }


def judged_by(judge) -> dict:
    """What is said of who looks at pictures: its name, the hash of its weights, and that of a user's own code."""
    model, call = getattr(judge, "model", None), getattr(judge, "call", judge)
    weights = hash_tensors(dict(model.state_dict())) if hasattr(model, "state_dict") else None
    about = {"name": judge.name, "weights": weights}
    if str(getattr(call, "__module__", "")).partition(".")[0] == "macelib":
        return about
    code = source(call if inspect.isfunction(call) else type(getattr(call, "__self__", call)))
    return about | {"code": hash_text(code)}


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
