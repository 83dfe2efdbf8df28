"""What single notebooks draw and measure beyond `macelib` itself; no part of the core.

Shared by all: the model that a notebook was told to use, and who looks at its pictures. It may import everything but
`batch` and `cli`; nothing imports it.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ..errors import MaceError
from ..evaluate import ClipClassifier, Judge, classifier_for
from ..models.pipelines import load_pipeline
from ..models.tiny import tiny_pipeline

TINY = "tiny"  # a random pipeline in seconds, for trying a notebook out


def load_model(model: str):
    """The pipeline of a name, a folder or a hub id (see `load_pipeline`); "tiny" is a small one of random weights."""
    return tiny_pipeline() if model == TINY else load_pipeline(model)


def judge_for(pipe, model: str) -> Judge | ClipClassifier:
    """Who looks at the pictures: mini-judge for mini-SD (and for "tiny", where it recognises nothing), else CLIP."""
    return Judge.load() if model == TINY else classifier_for(pipe)


def probabilities(
    judge: Judge | ClipClassifier, images: Sequence[Image.Image], names: Sequence[str], among: Sequence[str]
) -> Tensor:
    """Probability (n,), 0..1, that the judge gives names[i] in image i; CLIP compares `among`, a judge all it knows.

    MaceError: numbers of images and names that differ, a name that is not among those compared, a single name for CLIP.
    """
    if len(images) != len(names):
        raise MaceError(f"There are {len(images)} images and {len(names)} names: give a name for each image.")
    judge.check(list(dict.fromkeys(names)))
    known = list(getattr(judge, "concepts", None) or dict.fromkeys(among))
    if missing := sorted(set(names) - set(known)):
        raise MaceError(f"{', '.join(missing)} is not among the names that CLIP compares: add it.")
    if len(known) < 2:
        raise MaceError(f"{judge.name} compares names with each other: give two at least.")
    index = torch.tensor([known.index(name) for name in names])
    return judge.probabilities(images, known).gather(1, index[:, None])[:, 0]
