"""Classifiers as plug-ins: anything with one method, `top1(pictures, among)`, looks at pictures.

What ships, CLIP of any size, any image classifier of transformers (of celebrities, say), NudeNet, a user's function.
"""

import difflib
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

from ..errors import MaceError, first_line
from ..files import data_folder
from ..models.families import CLIP_OF_PAPER, family_of
from ..models.pipelines import _quiet, default_device
from .explicit import NudeNet
from .judge import BATCH, ClipClassifier, Judge, _finite

CLIP_COUNTED = "openai/clip-vit-base-patch32"  # which CLIP the paper's numbers are counted by
Pictures = Sequence[Image.Image]


@runtime_checkable
class Classifier(Protocol):
    """Who looks at pictures."""

    def top1(self, pictures: Pictures, among: Sequence[str] | None = None) -> Sequence[str | None]:
        """For each picture the name, of those in `among`, that it shows; None where nothing is recognised."""
        ...


class Plugged:
    """A classifier of the user's with the name and the checks that evaluations ask for."""

    def __init__(self, call: Callable, name: str):
        self.call, self.name = call, name

    def top1(self, images: Pictures, among: Sequence[str] | None = None, kind: str = "concept") -> list[str | None]:
        """What the user's function says; MaceError where that is not a name or None for each picture."""
        found = list(self.call(images, among))
        if len(found) != len(images):
            raise MaceError(f"{self.name} gave {len(found)} names for {len(images)} pictures: give one for each.")
        for name in found:
            if name is not None and not isinstance(name, str):
                raise MaceError(f"{self.name} gave {name!r} for a picture: give a name, or None where it sees none.")
        return found

    def check(self, names: Sequence[str], kind: str = "concept") -> None:
        """The user knows which names it knows."""


class ImageClassifier:
    """An image classifier of transformers: the best of its labels, or of those asked for."""

    def __init__(self, model, processor, name: str = "classifier"):
        self.model, self.processor, self.name = model.eval(), processor, name
        self.concepts = [str(model.config.id2label[i]) for i in range(len(model.config.id2label))]
        self._known: dict[str, int] = {}
        for i, label in enumerate(self.concepts):  # a label may say several names: "tabby, tabby cat"
            for word in (label, *label.split(",")):
                self._known.setdefault(_plain(word), i)

    @classmethod
    def load(cls, source: str | Path, device: str | torch.device | None = None, **kw) -> "ImageClassifier":
        """Read it from a folder or a hub id; kw: for transformers. MaceError where it cannot be loaded."""
        source = str(source)
        try:
            with _quiet():
                model = AutoModelForImageClassification.from_pretrained(source, dtype=torch.float32, **kw)
                processor = AutoImageProcessor.from_pretrained(source, **kw)
        except (OSError, ValueError, ImportError) as error:
            raise _nothing(source, error) from error
        return cls(model.to(device or default_device()), processor, Path(source).name)

    def top1(self, images: Pictures, among: Sequence[str] | None = None, kind: str = "concept") -> list[str]:
        """Best label of each picture, of all or among some: list of n names; MaceError for an unknown one."""
        names = list(self.concepts if among is None else among)
        return [names[i] for i in self._logits(images, names).argmax(1).tolist()]

    def probabilities(self, images: Pictures, among: Sequence[str]) -> Tensor:
        """Softmax over the names (n, names)."""
        return self._logits(images, among).softmax(1)

    def check(self, names: Sequence[str], kind: str = "concept") -> None:
        """MaceError that lists near labels where a name is not among them."""
        for name in names:
            if _plain(name) not in self._known:
                near = ", ".join(difflib.get_close_matches(_plain(name), self._known, 3, 0.5))
                known = near or f"{self.concepts[0]}, ..."
                raise MaceError(f"{self.name} knows no {name!r}; near it: {known}. Or measure with CLIP.")

    @torch.no_grad()
    def _logits(self, images: Pictures, names: Sequence[str]) -> Tensor:
        """Logits (n, names)."""
        self.check(names)
        rows = []
        for start in range(0, len(images), BATCH):
            some = [image.convert("RGB") for image in images[start : start + BATCH]]
            pixels = self.processor(images=some, return_tensors="pt").pixel_values
            rows.append(self.model(pixel_values=pixels.to(self.model.device)).logits.float().cpu())
        return _finite(torch.cat(rows), self.name)[:, [self._known[_plain(name)] for name in names]]


def _plain(name: str) -> str:
    """A label without what spellings differ in."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def classifier_for(pipe, kind: str = "objects", counting: str = "top1"):
    """Who looks at a model's pictures, as its family says: the judge, or (kind "styles") who takes the CLIP score.

    counting: "paper" takes the paper's CLIP for a family that CLIP judges (see `counting`).
    """
    family = family_of(pipe)
    judge = CLIP_COUNTED if counting == "paper" and family.judge == CLIP_OF_PAPER else family.judge
    return load_classifier(family.scorer if kind == "styles" else judge)


def plugged(classifier: Any):
    """A classifier as evaluations take it: an object with `top1`, a function (pictures, among), or text to load by."""
    if isinstance(classifier, (str, Path)):
        return load_classifier(classifier)
    if hasattr(classifier, "top1"):
        whole = hasattr(classifier, "name") and hasattr(classifier, "check")
        return classifier if whole else Plugged(classifier.top1, _name(classifier))
    if not callable(classifier):
        raise MaceError(f"{classifier!r} is no classifier: give an object with top1(pictures, among), or a function.")
    return Plugged(classifier, _name(classifier))


def _name(classifier: Any) -> str:
    return str(getattr(classifier, "name", None) or getattr(classifier, "__name__", type(classifier).__name__))


def load_classifier(source: str | Path | Callable):
    """A classifier: made by a family's function, or read from what `source` names.

    "nudenet"; "module:function" or "file.py:function" of the user's; what comes with macelib, a folder, or a hub id of
    CLIP or of an image classifier of transformers. MaceError where there is none such.
    """
    if callable(source):
        return source()
    if str(source) == "nudenet":
        return NudeNet.load()
    shipped = data_folder() / source
    place = shipped if (shipped / "config.json").is_file() else Path(source)
    if ":" in str(source) and not place.exists():
        return plugged(_function(str(source)))
    if place.is_dir():
        try:
            about = json.loads((place / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _nothing(str(source), error) from error
        labels = about.get("id2label") or {}
        if about.get("model_type") == "clip":
            return ClipClassifier.load(place)
        judges = any(str(label).startswith("concept:") for label in labels.values())
        return (Judge if judges else ImageClassifier).load(place)
    if len(str(source).split("/")) != 2:
        raise _nothing(str(source), "there is no such folder")
    if source in (CLIP_OF_PAPER, CLIP_COUNTED):
        return ClipClassifier.load(source)
    try:
        kind = AutoConfig.from_pretrained(str(source)).model_type
    except (OSError, ValueError) as error:
        raise _nothing(str(source), error) from error
    return (ClipClassifier if kind == "clip" else ImageClassifier).load(source)


def _function(source: str) -> Any:
    """What "module:name" or "file.py:name" names; MaceError where it is not there."""
    module, _, name = source.rpartition(":")
    try:
        if module.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(module).stem, module)
            found = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(found)
        else:
            sys.path.insert(0, str(Path.cwd()))
            try:
                found = importlib.import_module(module)
            finally:
                sys.path.remove(str(Path.cwd()))
        return getattr(found, name)
    except (ImportError, OSError, AttributeError) as error:
        raise MaceError(f"The classifier {source!r} cannot be imported ({error}): give module:function.") from error
    except Exception as error:  # whatever a person's own module raises
        said = f"{type(error).__name__}: {first_line(error)}"
        raise MaceError(f"The classifier {source!r} cannot be imported: its module raises {said}.") from error


def _nothing(source: str, error) -> MaceError:
    return MaceError(
        f"No classifier can be loaded from {source!r} ({first_line(error)}): give a folder or a hub id of CLIP or of "
        "an image classifier of transformers, nudenet, or module:function."
    )
