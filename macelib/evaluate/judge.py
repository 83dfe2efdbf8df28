"""Classifiers of pictures: a judge that was trained on what a model draws, CLIP zero-shot for all that has a name."""

import difflib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, CLIPModel, ResNetForImageClassification

from ..errors import MaceError, first_line
from ..files import data_folder
from ..models.families import SHIPPED
from ..models.pipelines import _quiet, default_device
from ..templates import fill

BATCH = 64  # pictures looked at at once
SIZE = 64  # pixels, the side of the pictures that a judge is trained on


def judge_logits(model: ResNetForImageClassification, images: Tensor) -> tuple[Tensor, Tensor]:
    """Concept logits (n, concepts) and style logits (n, styles) of images (n, 3, 64, 64) in 0..1."""
    logits = model(pixel_values=(images * 2 - 1).to(model.dtype)).logits.float()
    count = sum(str(v).startswith("concept:") for v in model.config.id2label.values())
    return logits[:, :count], logits[:, count:]


class Judge:
    """Which of its concepts and which of its styles a picture shows; it knows no other."""

    def __init__(self, model: ResNetForImageClassification, name: str = "judge"):
        self.model, self.name = model.eval(), name
        labels = [str(model.config.id2label[i]) for i in range(len(model.config.id2label))]
        split = {k: [v.partition(":")[2] for v in labels if v.startswith(f"{k}:")] for k in ("concept", "style")}
        self.concepts, self.styles = split["concept"], split["style"]
        if labels != [f"concept:{c}" for c in self.concepts] + [f"style:{s}" for s in self.styles]:
            raise MaceError('The labels of a judge must be "concept:<name>", then "style:<name>": load one of those.')

    @classmethod
    def load(cls, folder: str | Path | None = None, device: str | torch.device | None = None) -> "Judge":
        """Read it from a folder, by default the one that comes with macelib; MaceError where it is not there."""
        folder = Path(folder or data_folder() / SHIPPED.judge)
        if not (folder / "config.json").is_file():
            raise MaceError(f"{folder} holds no judge: set MACELIB_DATA to the folder of macelib's data.")
        with _quiet():
            model = ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        return cls(model.to(device or default_device()), folder.name)

    @torch.no_grad()
    def logits(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Concept logits (n, concepts) and style logits (n, styles) of pictures of any size."""
        rows = [judge_logits(self.model, part.to(self.model.device)) for part in _tensor(images).split(BATCH)]
        concepts, styles = (torch.cat(parts).cpu() for parts in zip(*rows, strict=True))
        return _finite(concepts, self.name), _finite(styles, self.name)

    def top1(self, images: Sequence[Image.Image], among: Sequence[str] | None = None, kind: str = "concept"):
        """Name of the best label of each picture, of all concepts (or styles) or among some: list of n names.

        MaceError for a name that the judge does not know.
        """
        known = {"concept": self.concepts, "style": self.styles}[kind]
        among = list(known if among is None else among)
        self.check(among, kind)
        logits = self.logits(images)[kind == "style"][:, [known.index(name) for name in among]]
        return [among[i] for i in logits.argmax(1).tolist()]

    def probabilities(self, images: Sequence[Image.Image], among: Sequence[str]) -> Tensor:
        """Softmax over the names (n, names)."""
        self.check(among)
        return self.logits(images)[0][:, [self.concepts.index(name) for name in among]].softmax(1)

    def check(self, names: Sequence[str], kind: str = "concept") -> None:
        """MaceError that lists near names where one is unknown."""
        known = {"concept": self.concepts, "style": self.styles}[kind]
        for name in names:
            if name not in known:
                near = ", ".join(difflib.get_close_matches(name, known, 3, 0.5)) or f"{known[0]}, ..."
                raise MaceError(f"The judge knows no {kind} {name!r}; near it: {near}. Or measure with CLIP.")


class ClipClassifier:
    """CLIP zero-shot: the name whose prompt is nearest to the picture; and the CLIP score of picture and prompt."""

    def __init__(self, model: CLIPModel, processor, template: str = "a photo of the {}", name: str = "clip"):
        self.model, self.processor, self.template, self.name = model.eval(), processor, template, name
        self._texts = lru_cache(4096)(self._text)

    @classmethod
    def load(cls, source: str | Path | None = None, device: str | torch.device | None = None, **kw) -> "ClipClassifier":
        """Read CLIP from a folder or a hub id, by default macelib's own; the paper's is `CLIP_OF_PAPER`.

        kw: for transformers (revision, local_files_only). MaceError where it cannot be loaded.
        """
        source = str(source or data_folder() / SHIPPED.scorer)
        try:
            with _quiet():
                model = CLIPModel.from_pretrained(source, dtype=torch.float32, **kw)
                processor = AutoProcessor.from_pretrained(source, **kw)
        except (OSError, ValueError) as error:
            raise MaceError(
                f"No CLIP can be loaded from {source!r}: give a folder or a hub id. ({first_line(error)})"
            ) from error
        return cls(model.to(device or default_device()), processor, name=Path(source).name)

    def top1(self, images: Sequence[Image.Image], among: Sequence[str] | None = None, kind: str = "concept"):
        """Nearest of the names for each picture: list of n names; MaceError where no names are given."""
        if not among:
            raise MaceError("CLIP compares with names: say among which (the judge alone has a list of its own).")
        among = list(among)
        return [among[i] for i in self._cosine(images, among).argmax(1).tolist()]

    def probabilities(self, images: Sequence[Image.Image], among: Sequence[str]) -> Tensor:
        """Softmax over the names at CLIP's own temperature (n, names)."""
        return (self.model.logit_scale.exp().cpu() * self._cosine(images, among)).softmax(1).detach()

    def _cosine(self, images: Sequence[Image.Image], among: Sequence[str]) -> Tensor:
        """Cosines of pictures and names in the template (n, names); a name brings its own article, or has none."""
        return self.image_vectors(images) @ self.text_vectors([fill(self.template, name) for name in among]).T

    def check(self, names: Sequence[str], kind: str = "concept") -> None:
        """Every name can be compared with."""

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """CLIP score of each picture with its prompt: 100 · max(cosine, 0)."""
        cosine = (self.image_vectors(images) * self.text_vectors(prompts)).sum(1)
        return (100 * cosine.clamp(min=0)).tolist()

    @torch.no_grad()
    def image_vectors(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors (n, w) of pictures."""
        rows = []
        for start in range(0, len(images), BATCH):
            pixels = self.processor(images=list(images[start : start + BATCH]), return_tensors="pt").pixel_values
            hidden = self.model.vision_model(pixel_values=pixels.to(self.model.device)).pooler_output
            rows.append(self.model.visual_projection(hidden).float())
        return _finite(F.normalize(torch.cat(rows), dim=-1).cpu(), self.name)

    def text_vectors(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (n, w) of texts; each distinct one is read once."""
        return torch.stack([self._texts(text) for text in texts])

    def check_text(self, text: str) -> Tensor:
        """Its token ids (1, tokens); MaceError where there are more than CLIP reads."""
        ids = self.processor(text=[text], return_tensors="pt").input_ids
        if ids.shape[1] > (longest := self.model.config.text_config.max_position_embeddings):
            raise MaceError(f"{text!r} has {ids.shape[1]} tokens, CLIP reads {longest}: shorten it.")
        return ids

    @torch.no_grad()
    def _text(self, text: str) -> Tensor:
        hidden = self.model.text_model(input_ids=self.check_text(text).to(self.model.device)).pooler_output
        return F.normalize(self.model.text_projection(hidden).float(), dim=-1)[0].cpu()


def _finite(seen: Tensor, name: str) -> Tensor:
    """The same; MaceError where a classifier sees NaN, of which the first name would be the largest."""
    if not bool(torch.isfinite(seen).all()):
        raise MaceError(f"{name} gives NaN for a picture: its weights are damaged; restore or load it again.")
    return seen


def _tensor(images: Sequence[Image.Image]) -> Tensor:
    """Pictures as (n, 3, 64, 64) in 0..1, the size that the judge was trained on."""
    small = [i.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS) for i in images]  # as it is, if 64 px
    return torch.from_numpy(np.stack([np.asarray(i) for i in small])).permute(0, 3, 1, 2) / 255
