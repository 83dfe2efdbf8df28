"""Two things in one prompt, an erased one and one that has to stay: each half of the picture is looked at.

Only what the original model shows is counted: pairs of which, with the same prompt and seed, it draws both, one in each
half.
"""

import html
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from ..erasure import Erasure
from ..errors import MaceError
from ..models.swap import untouched
from ..templates import PAIRS, beside, fill
from .classifiers import classifier_for
from .made import made_with
from .metrics import Resampling, interval, wilson
from .pictures import Drawing
from .tables import save_tables
from .work import Progress, choices, distinct, label, listed

log = logging.getLogger(__name__)
IMAGES = ("erasure", "erased", "companion", "order", "seed", "left", "right", "seen", "lost")
METRICS = ("erasure", "order", "metric", "value", "low", "high", "pictures")
ENDS = {"": "value", " low": "low", " high": "high"}
HALF = 9 / 16  # of the width, the side of the square that holds one of two things


@dataclass(frozen=True, repr=False)
class Pairs:
    """What became of pairs; printing it shows `metrics`."""

    images: (
        pd.DataFrame
    )  # a row per picture that counts: erasure, erased, companion, order, seed, left, right, seen, lost
    metrics: (
        pd.DataFrame
    )  # a row per erasure and metric ("seen", "lost"): value, low, high (95 %), in percent, pictures
    settings: dict

    def value(self, metric: str, erasure: str | None = None) -> float:
        """Percent of the pairs in which the erased thing is "seen", or the companion is "lost"; the last erasure's.

        MaceError where it was not measured, for the original shows no pair.
        """
        if not len(self.metrics) or erasure not in (None, *self.metrics.erasure):
            raise MaceError(f"Pairs of {erasure or 'the erased things'} were not measured: the original shows none.")
        of = self.metrics.erasure == (self.metrics.erasure.iloc[-1] if erasure is None else erasure)
        return float(self.metrics[of & (self.metrics.metric == metric)].value.iloc[0])

    def verdict(self) -> str:
        """A sentence for each erasure: what is still seen, and what is lost, by the order of the two things."""
        told = []
        for erasure, rows in self.metrics.groupby("erasure", sort=False):
            cells = rows.set_index(["metric", "order"])
            seen, lost = (
                " and ".join(
                    f"{r.value:.0f} % ({r.low:.0f} to {r.high:.0f}; {order})"
                    for order, r in cells.loc[metric].iterrows()
                    if order != "both orders"
                )
                for metric in ("seen", "lost")
            )
            told.append(f"{erasure} beside another thing: still seen in {seen}; the other thing is lost in {lost}.")
        return " ".join(told) or str(self)

    def save(self, folder: str | Path) -> "Pairs":
        """Write images.csv, metrics.csv and settings.json."""
        save_tables(folder, self.settings, images=self.images.round(2), metrics=self.metrics.round(2))
        return self

    def table(self) -> pd.DataFrame:
        """A row per erasure and order: "seen" and "lost" in percent with their intervals, and the pictures counted."""
        wide = self.metrics.set_index(["erasure", "order", "metric"])
        order = list(dict.fromkeys(zip(self.metrics.erasure, self.metrics.order, strict=True)))
        parts = {m: wide.xs(m, level="metric").loc[order] for m in ("seen", "lost")}
        columns = {m + end: part[c] for m, part in parts.items() for end, c in ENDS.items()}
        return pd.DataFrame(columns).assign(pictures=parts["seen"].pictures)

    def _repr_html_(self) -> str:
        if not len(self.metrics):
            return f"<p>{self}</p>"
        return f"{self.table().round(1).to_html()}<p>{html.escape('Settings: ' + self.settings['preset'])}.</p>"

    def __str__(self) -> str:
        if not len(self.metrics):
            return "Two things in one prompt: not measured, for the original model shows no pair."
        return f"{self.table().round(1).to_string()}\nSettings: {self.settings['preset']}."

    __repr__ = __str__


def pairs(
    pipe,
    erasures: Erasure | Sequence[Erasure],
    companions: Sequence[str],
    *,
    classifier=None,
    templates: Sequence[str] = PAIRS,
    seeds: Sequence[int] = range(5),
    folder: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **drawing,
) -> Pairs:
    """Each erased concept beside each companion: in how many pairs it is still seen, in how many the companion is lost.

    An erased thing is seen where the classifier takes either half for it, a companion is lost where it takes neither
    for it; top-1 among all that it knows (CLIP: among the erased and the companions). templates: with "{}" for the
    erased and "{other}" for the companion. Intervals: erased things, companions and seeds are resampled,
    crossed; Wilson's where nothing varies. Otherwise as `protocols.objects`.
    An erasure of which the original shows no pair is not measured, with a warning.
    MaceError: no companion, a name that the classifier does not know.
    """
    erasures = listed(erasures)
    classifier = classifier or classifier_for(pipe)
    erased = list(dict.fromkeys(c.name for e in erasures for c in e.concepts))
    companions = [name for name in dict.fromkeys(companions) if name not in erased]
    if not companions:
        raise MaceError("There is no companion to show beside what is erased: name things that stay.")
    everyone = [*erased, *companions]
    classifier.check(everyone)
    among = choices(classifier, everyone)
    drawn = Drawing(**drawing)
    plans = [pair_asks([c.name for c in e.concepts], companions, templates, seeds) for e in erasures]
    jobs = list(dict.fromkeys(ask[-2:] for plan in plans for ask in plan))
    total, done, rows = len(jobs) + sum(len({ask[-2:] for ask in plan}) for plan in plans), 0, []

    def look(state: str, some: list[tuple[str, int]]) -> dict[tuple[str, int], tuple[str, str]]:
        nonlocal done
        seen: dict = {}
        for batch, images in drawn.pictures(pipe, some, folder, state):
            found = classifier.top1([half for image in images for half in halves(image)], among)
            seen |= dict(zip(batch, zip(found[::2], found[1::2], strict=True), strict=True))
            done += len(batch)
            if progress:
                progress("pictures", done, total, batch[-1][0])
        return seen

    with untouched(pipe):
        original = look("original", jobs)
        for erasure, name, plan in zip(erasures, distinct([label(e.concepts) for e in erasures]), plans, strict=True):
            erasure.apply(pipe, force)
            counted = [a for a in plan if set(original[a[-2:]]) == {a[0], a[1]}]
            if not counted:
                log.warning("%s beside companions was not measured: the original model shows no such pair.", name)
            now = look("erased", list(dict.fromkeys(ask[-2:] for ask in plan)))
            for gone, companion, order, prompt, seed in counted:
                left, right = now[prompt, seed]
                verdict = left, right, gone in (left, right), companion not in (left, right)
                rows.append((name, gone, companion, order, seed, *verdict))
        settings = drawn.about(pipe) | made_with(pipe, erasures, classifier)
    settings |= {"classifier": classifier.name, "seeds": list(seeds), "templates": list(templates)}
    settings |= {"companions": companions, "preset": " | ".join(dict.fromkeys(e.title for e in erasures))}
    images = pd.DataFrame(rows, columns=IMAGES)
    tables = [_metrics(name, part) for name, part in images.groupby("erasure", sort=False)]
    metrics = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=METRICS)
    result = Pairs(images, metrics, settings)
    return result.save(folder) if folder else result


def halves(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """The left and the right square of a picture of two things, in the picture's height."""
    width, height = image.size
    side = round(min(width, height) * HALF)
    top = (height - side) // 2
    boxes = (0, top, side, top + side), (width - side, top, width, top + side)
    return tuple(image.crop(box).resize((height, height), Image.Resampling.BILINEAR) for box in boxes)


def pair_asks(erased, companions, templates, seeds) -> list[tuple[str, str, str, str, int]]:
    """(erased, companion, which is named first, prompt, seed)."""
    return [
        (name, other, _order(t), fill(beside(t, other), name), seed)
        for name in erased for other in companions for t in templates for seed in seeds
    ]  # fmt: skip


def _order(template: str) -> str:
    return "erased first" if template.find("{}") < template.find("{other}") else "companion first"


def _metrics(name: str, images: pd.DataFrame) -> pd.DataFrame:
    """Shares of an erasure's pictures in percent; the last rows tell the two orders apart."""
    orders = [("both orders", images), *images.groupby("order", sort=False)]
    rows = [
        {"erasure": name, "order": order, "metric": metric, **share(part, metric), "pictures": len(part)}
        for order, part in orders
        for metric in ("seen", "lost")
    ]
    return pd.DataFrame(rows)


def share(images: pd.DataFrame, metric: str, times: int = 2000) -> dict[str, float]:
    """Percent of pictures with `metric`, and its 95 % interval over erased things, companions and seeds, crossed."""
    names = ["erased", "companion"]
    sizes = [images[name].nunique() for name in names]
    pairs = pd.MultiIndex.from_product([images[name].unique() for name in names], names=names)
    hits, counts = (
        images.pivot_table(metric, names, "seed", how, fill_value=0).reindex(pairs, fill_value=0).to_numpy(float)
        for how in ("sum", "count")
    )
    value = hits.sum() / counts.sum()
    if 0 < value < 1 and max(*sizes, counts.shape[1]) > 1:
        resampling = Resampling.of(sizes, counts.shape[1], times).crossed()
        with np.errstate(invalid="ignore"):
            sample = resampling.sample([(0, hits), (0, counts)], lambda a, b: a / b)[1]
        low, high = interval(sample[np.isfinite(sample)])
    else:
        low, high = wilson(float(hits.sum()), int(counts.sum()))
    return {"value": 100 * value, "low": 100 * low, "high": 100 * high}
