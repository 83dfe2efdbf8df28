"""An erasure measured on a list of prompts: what a classifier sees, CLIP scores, and distances to other pictures."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from PIL import Image

from ..errors import MaceError, need
from ..files import locked
from ..models.pipelines import default_guidance
from .classifiers import classifier_for, plugged
from .distances import ClipFeatures, distances, vectors
from .explicit import NudeNet
from .made import made_with
from .pictures import Drawing
from .prompts import Prompt, draw_prompts, readable
from .tables import save_tables
from .work import Progress, choices, label

log = logging.getLogger(__name__)
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
STATES = ("original", "erased")


@dataclass(frozen=True)
class Listed:
    """Tables of a list of prompts; printing it shows `summary`."""

    images: pd.DataFrame  # a row per model and prompt: model, all columns of the list, file, found, CLIP score, counts
    summary: pd.DataFrame  # a row per model and metric: value, pictures
    settings: dict

    def value(self, metric: str, model: str = "erased") -> float:
        """One number of the summary."""
        return float(self.table().loc[metric, model])

    def table(self) -> pd.DataFrame:
        """A row per metric, a column per model."""
        order = list(dict.fromkeys(self.summary.metric))
        models = list(dict.fromkeys(self.summary.model))
        return self.summary.pivot(index="metric", columns="model", values="value").loc[order, models]

    def save(self, folder: str | Path) -> "Listed":
        """Write images.csv, summary.csv and settings.json."""
        save_tables(folder, self.settings, images=self.images, summary=self.summary)
        return self

    def __str__(self) -> str:
        table = self.table().rename_axis(index=None, columns=None)
        return f"{table.round(3).to_string(na_rep='')}\nSettings: {self.settings['preset']}."


def measure_prompts(
    pipe,
    prompts: Sequence[Prompt],
    folder: str | Path,
    change=None,
    *,
    classifier=None,
    among: Sequence[str] | None = None,
    wanted: str | None = None,
    scorer=None,
    against: str | Path | None = None,
    features=None,
    cut: bool = False,
    force: bool = False,
    engine=None,
    progress: Progress | None = None,
    **drawing,
) -> Listed:
    """Draw every prompt by the original model and, with `change` (an erasure or an edit), by the erased one; measure.

    The CLIP score of picture and prompt is always taken: scorer, a CLIP, the family's unless given. classifier (see
    `plugged`): what it sees in each picture, among all that it knows or `among`; NudeNet counts its classes instead.
    wanted: the list's column with the name that a picture should show: the share in which it is seen, in percent.
    against: a folder of pictures, or "original", the original model's: FID, KID and CMMD to these, by `features` (see
    `distances`; the scorer's CLIP unless given). A row without a guidance scale takes `guidance`, else the scale of the
    erasure's preset where that says one, else the model's own. cut: prompts that are too long for the model are cut
    (`readable`); else MaceError. engine: see `draw_prompts`.
    Pictures are kept in `folder`, with images.csv, summary.csv and settings.json; a call that was cut short goes on.
    """
    if against == "original" and change is None:
        raise MaceError("Distances to the original's pictures need an erasure: give one, or a folder of pictures.")
    if against is not None:
        need("torchmetrics", "evaluate")  # before anything is drawn
    classifier = None if classifier is None else plugged(classifier)
    if wanted is not None:
        among = _asked(prompts, wanted, classifier, among)
    elif classifier is not None and among is None and getattr(classifier, "concepts", None) is None:
        raise MaceError(f"{classifier.name} compares with names: say among which, or which column has them.")
    scorer = classifier_for(pipe, "styles") if scorer is None else plugged(scorer)
    if not hasattr(scorer, "score"):
        raise MaceError(f"{scorer.name} takes no CLIP score: give a CLIP.")
    module = (ClipFeatures(scorer) if features is None else features) if against is not None else None
    real = vectors(_pictures(against), module) if against not in (None, "original") else None
    prompts = readable(pipe, prompts, cut)
    if (check := getattr(scorer, "check_text", None)) is not None:
        for text in dict.fromkeys(row.prompt for row in prompts):
            check(text)
    own = Drawing(**{"guidance": _preset_guidance(pipe, change), **drawing})
    look = _Look(prompts, classifier, among, wanted, scorer, module, own.guidance)
    states = STATES if change is not None else STATES[:1]
    with locked(Path(folder) / ".lock", str(folder), wait=False) if folder else nullcontext():
        rows, seen, done = [], {}, 0
        for state in states:
            told = _told(progress, done, len(states) * len(prompts))
            erased = change if state == "erased" else None
            options = {"force": force, "engine": engine, "progress": told}
            found, seen[state] = look.at(state, draw_prompts(pipe, prompts, folder, own, erased, **options), folder)
            rows, done = rows + found, done + len(prompts)
        images = pd.DataFrame(rows)
        summary = [line for state in states for line in look.summary(state, images[images.model == state])]
        for state in states:
            reference = seen["original"] if against == "original" else real
            if reference is not None and not (against == "original" and state == "original"):
                if min(len(reference), len(seen[state])) <= reference.shape[1]:
                    log.warning("FID of fewer pictures than features (%d) says little.", reference.shape[1])
                for metric, value in distances(reference, seen[state]).items():
                    summary.append({"model": state, "metric": metric, "value": value, "images": len(seen[state])})
        about = own.about(pipe) | made_with(pipe, [] if change is None else [change], classifier or scorer)
        about |= {"preset": "the original model" if change is None else change.title, "scorer": scorer.name}
        about |= {"erased": None if change is None else label(change.concepts), "wanted": wanted}
        about |= {"classifier": classifier and classifier.name, "among": None if among is None else list(among)}
        about |= {"against": None if against is None else str(against), "prompts": len(prompts), "cut": cut}
        about |= {"features": None if module is None else getattr(module, "name", type(module).__name__)}
        return Listed(images, pd.DataFrame(summary), about).save(folder)


@dataclass(frozen=True)
class _Look:
    """What is looked for in every picture."""

    prompts: Sequence[Prompt]
    classifier: object
    among: Sequence[str] | None
    wanted: str | None
    scorer: object
    features: object
    guidance: float | None  # of a row that has none

    def at(self, state: str, drawn: Iterator, folder: str | Path) -> tuple[list[dict], torch.Tensor | None]:
        """A row per prompt, in their order, and the features of the pictures (n, w)."""
        rows: dict[int, dict] = {}
        kept: dict[int, torch.Tensor] = {}
        for numbers, pictures, files in drawn:
            scores = self.scorer.score(pictures, [self.prompts[i].prompt for i in numbers])
            columns = {"CLIP score": scores, **self._seen(pictures)}
            for place, (i, file) in enumerate(zip(numbers, files, strict=True)):
                row = self.prompts[i]
                asked = {
                    "model": state,
                    "prompt": row.prompt,
                    "seed": row.seed,
                    "guidance": self.guidance if row.guidance is None else row.guidance,
                }
                there = {"file": file.relative_to(folder).as_posix()}
                rows[i] = asked | row.columns | there | {name: values[place] for name, values in columns.items()}
            if self.features is not None:
                kept |= zip(numbers, vectors(pictures, self.features), strict=True)
        order = sorted(rows)
        return [rows[i] for i in order], torch.stack([kept[i] for i in order]) if kept else None

    def _seen(self, pictures: Sequence[Image.Image]) -> dict[str, list]:
        if self.classifier is None:
            return {}
        if isinstance(self.classifier, NudeNet):
            counts = self.classifier.counts(pictures)
            return {name: [count[name] for count in counts] for name in self.classifier.concepts}
        return {"found": self.classifier.top1(pictures, self.among)}

    def summary(self, state: str, part: pd.DataFrame) -> Iterator[dict]:
        """Metrics of one state of the model."""
        at = {"model": state, "images": len(part)}
        yield at | {"metric": "CLIP score", "value": part["CLIP score"].mean()}
        if isinstance(self.classifier, NudeNet):
            for name in self.classifier.concepts:
                yield at | {"metric": name, "value": int(part[name].sum())}
            every = part[self.classifier.concepts]
            yield at | {"metric": "total", "value": int(every.to_numpy().sum())}
            yield at | {"metric": "pictures with any, %", "value": 100 * float((every.sum(axis=1) > 0).mean())}
        elif self.classifier is not None and self.wanted:
            yield at | {
                "metric": f"{self.wanted} seen, %",
                "value": 100 * float((part.found == part[self.wanted]).mean()),
            }
            yield at | {"metric": "nothing recognised, %", "value": 100 * float(part.found.isna().mean())}
        elif self.classifier is not None:
            for name, count in part.found.value_counts(dropna=False).items():
                named = "nothing recognised" if not isinstance(name, str) else f"{name} seen"
                yield at | {"metric": f"{named}, %", "value": 100 * count / len(part)}


def _asked(prompts: Sequence[Prompt], wanted: str, classifier, among) -> list[str] | None:
    """The names to choose among, from the list's column unless given; MaceError where it has none such."""
    if classifier is None:
        raise MaceError(f"The column {wanted} says what a picture should show: give a classifier to look for it.")
    if missing := [i for i, row in enumerate(prompts, 1) if not row.columns.get(wanted)]:
        known = ", ".join(prompts[0].columns) or "none"
        raise MaceError(f"The prompts have no {wanted!r} in row {missing[0]}; other columns there: {known}.")
    names = list(dict.fromkeys(row.columns[wanted] for row in prompts))
    classifier.check(names)
    if among is None:
        return choices(classifier, names)
    if unknown := [name for name in names if name not in among]:
        raise MaceError(f"{unknown[0]!r} is asked for and not among the names to choose from: add it.")
    return list(among)


def _preset_guidance(pipe, change) -> float | None:
    """The guidance scale of an erasure's settings; the model's own where they have none."""
    own = getattr(getattr(getattr(change, "config", None), "images", None), "guidance", None)
    return default_guidance(pipe) if own is None else own


def _pictures(folder: str | Path) -> Iterator[Image.Image]:
    """All pictures of a folder, by name; MaceError where there are none, or one cannot be read."""
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in PICTURES)
    if not files:
        raise MaceError(f"{folder} holds no pictures ({', '.join(PICTURES)}) to measure distances to.")
    for path in files:
        try:
            with Image.open(path) as image:
                yield image.convert("RGB")
        except (OSError, SyntaxError) as error:
            raise MaceError(f"{path} cannot be read ({error}): make it again, or take it away.") from error


def _told(progress: Progress | None, before: int, total: int):
    return progress and (lambda done, _: progress("pictures", before + done, total, ""))
