"""Whether saying what must stay harms what nobody asked for: the same erasure with and without names to keep.

Other names are drawn with the same prompts and seeds by all models, so that differences are paired.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..concepts import Concept
from ..config import EraseConfig
from ..errors import MaceError
from ..job import erase
from ..models.families import Family, family_of
from ..models.swap import untouched
from ..templates import SAMPLE_TEMPLATE, fill
from .classifiers import classifier_for
from .lists import object_list
from .made import made_with
from .metrics import Resampling
from .numbers import ratio
from .pictures import Drawing
from .tables import save_tables
from .work import Progress, choices, label

DEMO = ("ship", "frog", "horse")  # what the demo erases together
KEPT = (0, 1, 20)  # how many names are kept
LOOKED = 25  # how many others are looked at


@dataclass(frozen=True)
class Keeping:
    """Names that nobody mentioned, recognised after each erasure; printing it shows `metrics`."""

    images: pd.DataFrame  # a row per picture: erased, kept (how many), name, seed, found, value
    metrics: pd.DataFrame  # a row per erasure: erased, kept, value (percent), difference to 0 kept, low, high (95 %)
    settings: dict

    def save(self, folder: str | Path) -> "Keeping":
        """Write images.csv, metrics.csv and settings.json."""
        save_tables(folder, self.settings, images=self.images.round(2), metrics=self.metrics.round(2))
        return self

    def __str__(self) -> str:
        return f"{self.metrics.round(1).to_string(index=False)}\nSettings: {self.settings['preset']}."


def keeping_lists(family: Family) -> tuple[list[str], list[str]]:
    """Names that are looked at, and names that are kept beside them, evenly from the catalogue; nothing is in both.

    No person, nothing unsafe, none of the paper's ten, none that settings are chosen on. MaceError: no catalogue, or
    too small a one.
    """
    if family.catalogue is None or family.split is None:
        raise MaceError(f"No names are known that a model of {family.name} draws: this study needs a catalogue.")
    split, ten = family.split(), {concept.name for concept in object_list(family)}
    apart = {*split["erased"], *split["kept"], *ten}
    some = [
        e.name for e in family.catalogue()
        if e.drawn and e.group not in (*family.people, "unsafe") and e.name not in apart
    ]  # fmt: skip
    if len(some) < LOOKED + max(KEPT):
        raise MaceError(f"{len(some)} names of {family.name} are left, and this study needs {LOOKED + max(KEPT)}.")
    looked = [some[i * len(some) // LOOKED] for i in range(LOOKED)]
    rest = [name for name in some if name not in looked]
    return looked, [rest[i * len(rest) // max(KEPT)] for i in range(max(KEPT))]


def keeping_study(
    pipe,
    folder: str | Path,
    config: EraseConfig | None = None,
    *,
    seeds: Sequence[int] = range(8),
    classifier=None,
    progress: Progress | None = None,
    **drawing,
) -> Keeping:
    """The ship, then the demo's three, erased with 0, 1 and 20 names to keep: are 25 other names still recognised?

    Both are of `keeping_lists`. Differences are to the erasure without names to keep, with a 95 % interval over names
    and seeds, crossed and paired. drawing: steps, guidance, batch, autocast.
    """
    folder, classifier = Path(folder), classifier or classifier_for(pipe)
    looked, kept = keeping_lists(family_of(pipe))
    classifier.check(looked)
    by_name = {concept.name: concept for concept in object_list(family_of(pipe))}
    drawn, rows, erasures = Drawing(**drawing), [], []
    jobs = {(fill(SAMPLE_TEMPLATE["object"], name), seed): name for name in looked for seed in seeds}
    among = choices(classifier, looked)
    with untouched(pipe):
        for names in (DEMO[:1], DEMO):
            concepts = [by_name[name] for name in names]
            for count in (n for n in KEPT if n <= len(kept)):
                erasure = _erased(pipe, concepts, config or EraseConfig(), kept[:count], folder, progress)
                erasures.append(erasure.apply(pipe))
                for some, images in drawn.pictures(pipe, list(jobs), folder / "evaluation", "erased"):
                    for job, found in zip(some, classifier.top1(images, among), strict=True):
                        row = {"erased": label(concepts), "kept": count, "name": jobs[job], "seed": job[1]}
                        rows.append({**row, "found": found, "value": float(found == jobs[job])})
                    if progress:
                        done = len(rows) % len(jobs) or len(jobs)
                        progress(f"{label(concepts)}, {count} kept: pictures", done, len(jobs), some[-1][0])
                erasure.remove(pipe)
        settings = drawn.about(pipe) | made_with(pipe, erasures, classifier)
    settings |= {"classifier": classifier.name, "seeds": list(seeds), "names": looked, "kept": kept}
    settings |= {"preset": " | ".join(dict.fromkeys(e.title for e in erasures))}
    images = pd.DataFrame(rows)
    return Keeping(images, differences(images), settings).save(folder / "evaluation")


def _erased(pipe, concepts: list[Concept], config: EraseConfig, kept: list[str], folder: Path, progress):
    def tell(stage: str, done: int, total: int, detail: str) -> None:
        if progress:
            progress(f"{label(concepts)}, {len(kept)} kept: {stage}", done, total, detail)

    config = config.keeping(kept) if kept else config
    return erase(pipe, concepts, config, folder=folder / "work", progress=tell)


def differences(images: pd.DataFrame, times: int = 2000) -> pd.DataFrame:
    """Percent of pictures recognised by erasure, and the paired difference to the same one with nothing kept.

    A difference that is the same for every name and seed has the interval of its two sides.
    """
    rows = []
    for erased, part in images.groupby("erased", sort=False):
        tables = {
            k: of.pivot(index="name", columns="seed", values="value").to_numpy() for k, of in part.groupby("kept")
        }
        taken = Resampling.of([len(tables[0])], tables[0].shape[1], times)
        found = {count: ratio(table, np.ones_like(table), taken) for count, table in tables.items()}
        for count, number in found.items():
            gap = number.minus(found[0])
            low, high = gap.interval if count else (0.0, 0.0)
            at = {"erased": erased, "kept": count, "value": 100 * number.value, "difference": 100 * gap.value}
            rows.append({**at, "low": 100 * low, "high": 100 * high, "pictures": number.n})
    return pd.DataFrame(rows)
