"""What stands in the weights that read the text: the originals are kept beside an applied erasure."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .entrances import text_weights
from .pipelines import model_hash

STATE = ("_macelib_originals", "_macelib_base")  # original weights by name; (these, their `model_hash`)


def originals(unet) -> dict[str, Tensor]:
    """Every weight that reads the text as it was before an erasure was applied: kept ones, else copies."""
    kept = getattr(unet, "_macelib_originals", None)
    return kept if kept is not None else {name: w.detach().clone() for name, w in text_weights(unet).items()}


def applied_edit(pipe):
    """The edit of `macelib.baselines` that is applied; None where none is."""
    return pipe.__dict__.get("_macelib_edit", (None,))[0]


def take_back(pipe) -> None:
    """Undo what an edit changed, its hooks included; nothing happens where none is applied."""
    _, undo = pipe.__dict__.pop("_macelib_edit", (None, None))
    if undo is not None:
        undo()
        _forget(pipe.unet)


@contextmanager
def applied(pipe, change) -> Iterator[None]:
    """The pipeline with an erasure or an edit; afterwards it is as it was found, whatever happened inside."""
    with untouched(pipe):
        change.apply(pipe)
        yield


@torch.no_grad()
def remove(pipe) -> None:
    """Give the pipeline its original weights back, bit for bit; nothing happens where nothing is applied."""
    take_back(pipe)
    kept = getattr(pipe.unet, "_macelib_originals", None)
    if kept is not None:
        weights = text_weights(pipe.unet)
        for name, w in kept.items():
            weights[name].copy_(w)
        _forget(pipe.unet)


@contextmanager
def untouched(pipe) -> Iterator[None]:
    """The pipeline with its original weights; whatever happens inside, it is left as it was found."""
    kept, base = (getattr(pipe.unet, name, None) for name in STATE)
    before, edit = {name: w.detach().clone() for name, w in text_weights(pipe.unet).items()}, applied_edit(pipe)
    remove(pipe)
    try:
        yield
    finally:
        remove(pipe)
        if edit is not None:
            edit.apply(pipe, force=True)
        with torch.no_grad():
            for name, w in text_weights(pipe.unet).items():
                w.copy_(before[name])
        _forget(pipe.unet)
        for name, value in zip(STATE, (kept, base), strict=True):
            if value is not None:
                setattr(pipe.unet, name, value)


def _forget(unet) -> None:
    for name in STATE:
        unet.__dict__.pop(name, None)


def base_hash(pipe) -> str:
    """`model_hash`, computed once while an erasure is applied (the originals are fixed then)."""
    kept = getattr(pipe.unet, "_macelib_originals", None)
    known = getattr(pipe.unet, "_macelib_base", None)
    if kept is not None and known is not None and known[0] is kept:
        return known[1]
    value = model_hash(pipe)
    if kept is not None:
        pipe.unet._macelib_base = (kept, value)
    return value
