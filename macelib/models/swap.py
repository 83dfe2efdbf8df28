"""What stands in the weights that read the text: the originals are kept beside an applied erasure."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from .entrances import denoiser, parameters, text_weights
from .pipelines import kept_weights, model_hash, signature
from .text import quick_hash

STATE = (
    "_macelib_originals",  # original weights by name
    "_macelib_base",  # (these, `quick_hash` of the text encoders, the `model_hash` of both)
    "_macelib_written",  # `signature` of the weights that were written in their place
)


def originals(unet) -> dict[str, Tensor]:
    """Every weight that reads the text as it was before an erasure was applied: kept ones, else copies.

    MaceError where something else has changed the weights since the erasure was applied.
    """
    return kept_weights(unet) or {name: w.detach().clone() for name, w in text_weights(unet).items()}


@torch.no_grad()
def write(unet, W: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> None:
    """Put an erasure's weights in the place of the original W, which are kept."""
    for name, w in text_weights(unet).items():
        w.copy_(new.get(name, W[name]))
    keep(unet, W)


def keep(unet, W: Mapping[str, Tensor], others: Iterable[str] = ()) -> None:
    """Keep the original W beside what has been written in their place: the model is known by them.

    others: names of further parameters that were written, to be recognised as well.
    """
    names, live = sorted({f"{name}.weight" for name in W}.union(others)), parameters(unet)
    unet._macelib_originals, unet._macelib_written = W, signature({name: live[name] for name in names})


def applied_edit(pipe):
    """The edit of `macelib.baselines` that is applied; None where none is."""
    return getattr(pipe, "__dict__", {}).get("_macelib_edit", (None,))[0]


def take_back(pipe) -> None:
    """Undo what an edit changed, its hooks included; nothing happens where none is applied.

    MaceError where something else has changed the weights since.
    """
    if applied_edit(pipe) is not None:
        kept_weights(denoiser(pipe))
        _undo(pipe)


def _undo(pipe) -> None:
    _, undo = getattr(pipe, "__dict__", {}).get("_macelib_edit", (None, None))
    if undo is not None:
        undo()
        del pipe._macelib_edit
        _forget(denoiser(pipe))


@contextmanager
def applied(pipe, change) -> Iterator[None]:
    """The pipeline with an erasure or an edit; afterwards it is as it was found, whatever happened inside."""
    with untouched(pipe):
        change.apply(pipe)
        yield


def remove(pipe) -> None:
    """Give the pipeline its original weights back, bit for bit; nothing happens where nothing is applied.

    MaceError where something else has changed the weights since.
    """
    take_back(pipe)
    kept_weights(denoiser(pipe))
    _restore(pipe)


@torch.no_grad()
def _restore(pipe) -> None:
    """`remove`, whatever stands there now."""
    _undo(pipe)
    weights = text_weights(denoiser(pipe))
    for name, w in (getattr(denoiser(pipe), "_macelib_originals", None) or {}).items():
        weights[name].copy_(w)
    _forget(denoiser(pipe))


@contextmanager
def untouched(pipe) -> Iterator[None]:
    """The pipeline with its original weights; whatever happens inside, it is left as it was found."""
    state = [getattr(denoiser(pipe), name, None) for name in STATE]
    before, edit = {name: w.detach().clone() for name, w in text_weights(denoiser(pipe)).items()}, applied_edit(pipe)
    remove(pipe)
    try:
        yield
    finally:
        _restore(pipe)
        if edit is not None:
            edit.apply(pipe, force=True)
        with torch.no_grad():
            for name, w in text_weights(denoiser(pipe)).items():
                w.copy_(before[name])
        _forget(denoiser(pipe))
        for name, value in zip(STATE, state, strict=True):
            if value is not None:
                setattr(denoiser(pipe), name, value)


def _forget(unet) -> None:
    for name in STATE:
        unet.__dict__.pop(name, None)


def base_hash(pipe) -> str:
    """`model_hash`, computed once while an erasure is applied and the text encoders stay as they are."""
    kept, text = kept_weights(denoiser(pipe)), quick_hash(pipe)
    known = getattr(denoiser(pipe), "_macelib_base", None)
    if kept is not None and known is not None and known[0] is kept and known[1] == text:
        return known[2]
    value = model_hash(pipe)
    if kept is not None:
        denoiser(pipe)._macelib_base = (kept, text, value)
    return value
