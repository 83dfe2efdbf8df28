"""The tables of a comparison: every row's numbers, what building it took, and what was not measured."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ..baselines import method
from ..baselines.columns import tokens
from ..evaluate import results
from ..evaluate.explicit import classes
from ..evaluate.metrics import COMBINE
from ..evaluate.numbers import DIFFERENCE, Number, row, spread
from ..models.entrances import denoiser, kv_weights, part_of
from ..models.families import family_of
from ..models.text import embedding_size
from .counts import CLASSES, EITHER, METRICS, ORDERS, RELATIONS, SCORES, counts
from .distance import FRECHET, KERNEL, distances
from .looking import detected
from .measure import NO_STYLES, Measuring
from .plan import ORIGINAL, PRESET, Plan, Way
from .published import keep_samples
from .rows import numbers, resampling

LOAD = {"n/d": "n/d", "n/o_l": "n/o_l", "rank": "rank of what is kept"}
SPENT = {  # metric -> what of `Measuring.made`, unit
    "time, s": ("seconds", "s"),
    "time in the text encoder, s": ("encoding", "s"),
    "peak memory, MB": ("megabytes", "MB"),
}
DRAWN = {"time per picture, s": "s", "peak memory of drawing, MB": "MB"}  # hooks take their time at every step
REUSED = "training pictures or LoRAs were there before, and theirs is not known"
_CLIP = "the classifier has no list of its own: it chooses among the classes in any case"
SOME = 256  # texts read at once
KEPT = 500  # bootstrap samples that are kept of a row
AGAINST = ("mace", "mace-stage-1", "uce")  # whom the others are compared with: the first of these that is there


def metric_names(plan: Plan) -> list[str]:
    """Every metric that a task may have rows for, in the order of the tables."""
    combined = plan.task.about.metric
    if plan.task.captions:
        found = [combined, *(map(detected, classes()) if plan.detects else ())]
    elif plan.alike:
        found = ["Acc_e", EITHER, "Acc_s", combined]
    elif plan.pairs:
        found = [m if order is None else f"{m} {order}" for m in ("Acc_e", "Acc_s") for order in (None, *ORDERS)]
        found.append(combined)
    else:
        scored = list(SCORES.values()) if plan.scored else []
        asked = [m for role, m in METRICS.items() if role != "synonym" or combined == "H_o"]
        found = [*scored, *asked, combined, "Acc_a", "residual", *(f"Acc_s {name}" for name in RELATIONS)]
        found += [] if scored else [m + CLASSES for m in (*asked, combined)]
    far = [] if plan.pairs else [FRECHET, KERNEL]
    return [*found, f"{combined} {DIFFERENCE}", *far, *SPENT, *DRAWN, *LOAD.values()]


class Tables:
    """The tables of a run, made of what its folder holds."""

    def __init__(self, pipe, run: Measuring, ways, metrics, against, about: Mapping, command: str):
        self.run, self.ways, self.about, self.command = run, ways, about, command
        self.metrics, self.against = metrics or metric_names(run.plan), against
        self.known: dict[Way, dict[str, Number]] = {}
        self.near: dict[Way, dict[str, str]] = {}  # why there is no distance
        self.spent: dict[Way, list[dict]] = {}  # rows of what was spent on it
        self.settings: dict[Way, dict[str, Any]] = {}
        self.family, self.residual = family_of(pipe), run.no_residual(pipe)
        self.load, self.original = load(pipe, run.plan), run.seen(ORIGINAL)[0]

    def write(self, whys: Mapping[Way, str]) -> Path:
        """Write the file; rows of what is measured so far. whys: by row why it could not be."""
        found, rows, plan, order = {}, [], self.run.plan, {metric: i for i, metric in enumerate(self.metrics)}
        missing = [{"method": str(way), "metric": "all", "why": why} for way, why in whys.items()]
        for way in self.ways:
            if way not in whys and (of := self._numbers(way)) is not None:
                found[way] = of
        for way, of in found.items():
            units = {metric: {"unit": ""} for metric in (FRECHET, KERNEL)}
            lines = [row(self._of(way), m, number, len(plan.seeds), **units.get(m, {})) for m, number in of.items()]
            lines += self._difference(way, found) + self.spent[way]
            rows += sorted((x for x in lines if x["metric"] in order), key=lambda x: order[x["metric"]])
            missing += self._missing(way, {line["metric"] for line in lines}, found)
        if len(plan.seeds) == 1:
            why = "one seed was drawn: the intervals are over concepts alone"
            missing.append({"method": "all", "metric": "interval over seeds", "why": why})
        path = self.run.folder / f"{plan.name}.json"
        settings = {str(way): self.settings[way] for way in found if way != ORIGINAL}
        results.write(path, self.command, self.about | {"settings": settings}, rows, missing)
        keep_samples(path, self._samples(found))
        return path

    def _numbers(self, way: Way) -> dict[str, Number] | None:
        """A row's numbers, counted once; None where something is still to be drawn."""
        if way not in self.known and (seen := self.run.seen(way)) is not None:
            sums = counts(self.run, seen, self.original, self.family)
            taken = resampling(sums, len(self.run.plan.seeds))
            far, self.near[way] = distances(self.run, way, taken)
            self.known[way] = numbers(self.run.plan, sums, taken) | far
            made = self.run.made(way)
            self.spent[way] = self._spent(way, made) + self._drawn(way) + self._loaded(way)
            if made:
                notes = list(dict.fromkeys(note for one in made for note in one["notes"]))
                self.settings[way] = made[0]["values"] | {"notes": notes}
        return self.known.get(way)

    def _samples(self, found: Mapping[Way, Mapping[str, Number]]) -> pd.DataFrame:
        """The combined metric of every row in percent or points, in the same bootstrap samples."""
        metric, columns = self.run.plan.task.about.metric, {}
        for way, of in found.items():
            if metric in of and of[metric].sample is not None:
                columns[str(way)] = (100 if of[metric].proportion else 1) * of[metric].sample[:KEPT]
        return pd.DataFrame(columns).round(2)

    def _of(self, way: Way) -> dict[str, Any]:
        load = {key: max(self.load[key]) for key in LOAD if self.load[key]}
        about = {"task": self.run.plan.name, "method": way.method, "settings": way.settings}
        trained = {"training_seeds": self.run.trainings(way)} if method(way.method).trains else {}
        chosen = {} if way.among is None else {"chosen_among": way.among}
        return about | {"profile": self.run.plan.profile} | load | trained | chosen

    def _difference(self, way: Way, found: Mapping[Way, Mapping[str, Number]]) -> list[dict]:
        """The combined metric less that of the reference, on equal prompts and seeds."""
        metric, other = self.run.plan.task.about.metric, reference(self.against, found)
        if other is None or way in (ORIGINAL, other) or metric not in found[way] or metric not in found[other]:
            return []
        number = found[way][metric].minus(found[other][metric])
        return [row(self._of(way), f"{metric} {DIFFERENCE}", number, len(self.run.plan.seeds), against=str(other))]

    def _spent(self, way: Way, made: Sequence[Mapping[str, Any]]) -> list[dict]:
        known = {key: [one[key] for one in made if one[key] is not None] for key, _ in SPENT.values()}
        return [spread(self._of(way), metric, known[key], unit) for metric, (key, unit) in SPENT.items() if known[key]]

    def _drawn(self, way: Way) -> list[dict]:
        """Of what was drawn for this row: seconds of every picture, as those of its batch, and memory by batch."""
        batches = self.run.strain(way)
        values = [seconds / count for count, seconds, _ in batches for _ in range(count)], [m for *_, m in batches]
        found = zip(DRAWN.items(), values, strict=True)
        return [spread(self._of(way), metric, of, unit) for (metric, unit), of in found if of]

    def _loaded(self, way: Way) -> list[dict]:
        of = {"rank": {"of": self.load.get("of")}}  # which names
        return [spread(self._of(way), name, self.load[key], "") | of.get(key, {})
                for key, name in LOAD.items() if self.load[key]]  # fmt: skip

    def _missing(self, way: Way, there: Collection[str], found: Mapping[Way, Mapping]) -> Iterator[dict[str, str]]:
        """What there is no row for, and why."""
        for metric in self.metrics:
            if metric not in there:
                yield {"method": str(way), "metric": metric, "why": self._why(metric, way, there, found)}

    def _why(self, metric: str, way: Way, there: Collection[str], found: Mapping[Way, Mapping]) -> str:
        plan = self.run.plan
        if metric in DRAWN:
            return "another row had drawn the same pictures"
        if metric in (FRECHET, KERNEL):
            return self.near[way][metric]
        if metric in SPENT:
            return "nothing is built" if way == ORIGINAL else REUSED
        if metric in LOAD.values():
            return self.load["why"]
        if metric.endswith(DIFFERENCE):
            return self._why_no_difference(way, there, found)
        if plan.pairs:
            return "the original shows no such pair of both things"
        if metric == "residual" and self.residual:
            return self.residual
        if metric.endswith(CLASSES):
            return _CLIP
        if plan.kind == "style" and not getattr(self.run.look.classifier, "styles", None):
            return NO_STYLES
        if metric.startswith("Acc_s "):
            return "no kept name is so related to what is erased"
        if metric in COMBINE:
            return f"{', '.join(part for part in COMBINE[metric].parts if part not in there)} is not measured"
        return "no erased name has a synonym" if metric == METRICS["synonym"] else "the task has no such names"

    def _why_no_difference(self, way: Way, there: Collection[str], found: Mapping[Way, Mapping]) -> str:
        metric, other = self.run.plan.task.about.metric, reference(self.against, found)
        if other is None:
            return f"{self.against or ', '.join(AGAINST)}: not measured, and the others are compared with it"
        if way in (ORIGINAL, other):
            return f"methods are compared with {other}"
        return f"there is no {metric} of {way if metric not in there else other}"


def reference(against: str | None, found: Mapping[Way, Any]) -> Way | None:
    """Whom the others are compared with: its tuned settings, or published ones beside the others' published ones.

    None where that is not measured.
    """
    order = sorted(reversed([*found]), key=lambda way: way.settings == PRESET)
    return next((way for name in ((against,) if against else AGAINST) for way in order if way.method == name), None)


def load(pipe, plan: Plan) -> dict[str, Any]:
    """How loaded a map is: concepts that go together by width d and by outputs o_l, and the rank of what is kept.

    The rank is that of the last subject tokens of the names that methods are told to keep; where they are told none, of
    all that is kept: "of" says which.
    """
    n, W = len(plan.erasures[0]), kv_weights(denoiser(pipe))
    found = {"n/d": [n / embedding_size(pipe)], "n/o_l": [n / w.shape[0] for w in W.values()], "rank": []}
    erasures = range(len(plan.erasures))
    asked, of = (plan.told, "names that are told") if any(map(plan.told, erasures)) else (plan.kept, "all that is kept")
    kept = [names for names in dict.fromkeys(tuple(asked(i)) for i in erasures) if names]
    if not kept:
        return found | {"why": "nothing is kept"}
    if part_of(pipe) != "unet":
        return found | {"why": "the tokens of names are counted for models with a UNet"}
    ranks = [int(torch.linalg.matrix_rank(_last(pipe, names))) for names in kept]
    return found | {"rank": ranks, "of": of}


def _last(pipe, texts: Sequence[str]) -> torch.Tensor:
    """The last subject token of each text (d, n), float64."""
    return torch.cat([tokens(pipe, texts[i : i + SOME], "last") for i in range(0, len(texts), SOME)], 1)
