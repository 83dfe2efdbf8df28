"""Which training belongs to which model, and what writes its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path

from . import assemble
from .clip import train_clip
from .judge import train_judge
from .loop import Record
from .render import sample
from .unet import train_unet
from .vae import train_vae
from .widen import train_widen

TRAINERS: dict[str, Callable[..., Iterator[Record]]] = {
    "clip": train_clip,
    "vae": train_vae,
    "unet": train_unet,
    "judge": train_judge,
    "widen": train_widen,
}
FINISH: dict[str, Callable[[], Path]] = {
    "clip": assemble.finished_clip,
    "vae": assemble.finished_vae,
    "unet": assemble.finished_unet,
    "judge": assemble.finished_judge,
    "widen": assemble.finished_widen,
}


def training(model: str, **options) -> tuple[Iterator[Record], Callable[[], Path]]:
    """The records of a training (running it as they are drawn) and the function that writes its folder.

    ValueError for an option that the model's training does not have.
    """
    train = TRAINERS[model]
    if unknown := sorted(options.keys() - signature(train).parameters.keys()):
        raise ValueError(f"the training of the {model} has no option {', '.join(unknown)}")
    parts = ()
    if model == "vae":
        parts = (lambda n, generator: sample(n, generator).images,)
    elif model == "unet":
        parts = assemble.trained_vae(), *assemble.text_encoder()
    elif model == "widen":
        parts = assemble.narrow_clip()
    return train(*parts, **options), FINISH[model]
