"""Which training belongs to which model, and what writes its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from . import assemble
from .clip import train_clip
from .judge import train_judge
from .loop import Record
from .render import sample
from .unet import train_unet
from .vae import train_vae

FINISH: dict[str, Callable[[], Path]] = {
    "clip": assemble.finished_clip,
    "vae": assemble.finished_vae,
    "unet": assemble.finished_unet,
    "judge": assemble.finished_judge,
}


def training(model: str, **options) -> tuple[Iterator[Record], Callable[[], Path]]:
    """The records of a training (running it as they are drawn) and the function that writes its folder."""
    if model == "clip":
        records = train_clip(**options)
    elif model == "judge":
        records = train_judge(**options)
    elif model == "vae":
        records = train_vae(lambda n, generator: sample(n, generator).images, **options)
    else:
        encoder, tokenizer = assemble.text_encoder()
        records = train_unet(assemble.trained_vae(), encoder, tokenizer, **options)
    return records, FINISH[model]
