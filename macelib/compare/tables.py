"""The tables of a comparison: every row's numbers, what building it took, and what was not measured."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ..baselines import method
from ..baselines.columns import tokens
from ..evaluate import results
from ..evaluate.numbers import DIFFERENCE, Number, row, spread
from ..files import atomic
from ..models.entrances import denoiser, kv_weights, part_of
from ..models.families import family_of
from ..models.text import embedding_size
from .counts import CLASSES, EITHER, METRICS, ORDERS, RELATIONS, SCORES, counts
from .distance import FRECHET, KERNEL, distances
from .measure import Measuring
from .plan import ORIGINAL, PRESET, Plan, Way
from .residual import why_not
from .rows import numbers, resampling

LOAD = {"n/d": "n/d", "n/o_l": "n/o_l", "rank": "rank of what is kept"}
SPENT = {  # metric -> what of `Measuring.made`, unit
    "time, s": ("seconds", "s"),
    "time in the text encoder, s": ("encoding", "s"),
    "peak memory, MB": ("megabytes", "MB"),
}
DRAWN = {"time per picture, s": "s", "peak memory of drawing, MB": "MB"}  # hooks take their time at every step
_CLIP = "the classifier has no list of its own: it chooses among the classes in any case"
KEPT = 500  # bootstrap samples that are kept of a row
AGAINST = ("mace", "mace-stage-1", "uce")  # whom the others are compared with: the first of these that is there


def metric_names(plan: Plan) -> list[str]:
    """Every metric that a task may have rows for, in the order of the tables."""
    combined = plan.task.about.metric
    if plan.task.captions:
        found = [combined]
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
        self.family, self.residual = family_of(pipe), why_not(pipe)
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
            lines += self._difference(way, found) + self._spent(way) + self._drawn(way) + self._loaded(way)
            rows += sorted((x for x in lines if x["metric"] in order), key=lambda x: order[x["metric"]])
            missing += self._missing(way, of)
        if len(plan.seeds) == 1:
            why = "one seed was drawn: the intervals are over concepts alone"
            missing.append({"method": "all", "metric": "interval over seeds", "why": why})
        environment = self.about | {"settings": {str(way): self._values(way) for way in found if way != ORIGINAL}}
        self._keep_samples(found)
        path = self.run.folder / f"{plan.name}.json"
        return results.write(path, self.command, environment, rows, missing)

    def _numbers(self, way: Way) -> dict[str, Number] | None:
        """A row's numbers, counted once; None where something is still to be drawn."""
        if way not in self.known and (seen := self.run.seen(way)) is not None:
            sums = counts(self.run, seen, self.original, self.family)
            taken = resampling(sums, len(self.run.plan.seeds))
            far, self.near[way] = distances(self.run, way, taken)
            self.known[way] = numbers(self.run.plan, sums, taken) | far
        return self.known.get(way)

    def _keep_samples(self, found: Mapping[Way, Mapping[str, Number]]) -> None:
        """`TASK.samples.csv`: the combined metric of every row in percent or points, in the same bootstrap samples."""
        metric, columns = self.run.plan.task.about.metric, {}
        for way, of in found.items():
            if metric in of and of[metric].sample is not None:
                columns[str(way)] = (100 if of[metric].proportion else 1) * of[metric].sample[:KEPT]
        with atomic(self.run.folder / f"{self.run.plan.name}.samples.csv") as temporary:
            pd.DataFrame(columns).round(2).to_csv(temporary, index=False)

    def _of(self, way: Way) -> dict[str, Any]:
        load = {key: max(self.load[key]) for key in LOAD if self.load[key]}
        about = {"task": self.run.plan.name, "method": way.method, "settings": way.settings}
        trained = {"training_seeds": self.run.trainings(way)} if method(way.method).trains else {}
        chosen = {} if way.among is None else {"chosen_among": way.among}
        return about | {"profile": self.run.plan.profile} | load | trained | chosen

    def _values(self, way: Way) -> dict[str, Any]:
        made = self.run.made(way)
        return made[0]["values"] | {"notes": list(dict.fromkeys(note for one in made for note in one["notes"]))}

    def _difference(self, way: Way, found: Mapping[Way, Mapping[str, Number]]) -> list[dict]:
        """The combined metric less that of the reference, on equal prompts and seeds.

        Its tuned settings; where nothing was tuned, published ones beside the others' published ones.
        """
        metric, wanted = self.run.plan.task.about.metric, (self.against,) if self.against else AGAINST
        order = sorted(reversed([*found]), key=lambda other: other.settings == PRESET)
        others = [other for name in wanted for other in order if other.method == name]
        if not others or way in (ORIGINAL, others[0]) or metric not in found[way] or metric not in found[others[0]]:
            return []
        number = found[way][metric].minus(found[others[0]][metric])
        name = f"{metric} {DIFFERENCE}"
        return [row(self._of(way), name, number, len(self.run.plan.seeds), against=str(others[0]))]

    def _spent(self, way: Way) -> list[dict]:
        made = self.run.made(way)
        return [spread(self._of(way), metric, [m[key] for m in made], unit) for metric, (key, unit) in SPENT.items()
                if made]  # fmt: skip

    def _drawn(self, way: Way) -> list[dict]:
        """Of what was drawn for this row: seconds of every picture, as those of its batch, and memory by batch."""
        batches = self.run.strain(way)
        values = [seconds / count for count, seconds, _ in batches for _ in range(count)], [m for *_, m in batches]
        found = zip(DRAWN.items(), values, strict=True)
        return [spread(self._of(way), metric, of, unit) for (metric, unit), of in found if of]

    def _loaded(self, way: Way) -> list[dict]:
        return [spread(self._of(way), name, self.load[key], "") for key, name in LOAD.items() if self.load[key]]

    def _missing(self, way: Way, of: Mapping[str, Number]) -> Iterator[dict[str, str]]:
        """What there is no number for, and why."""
        for metric in self.metrics:
            if metric not in of and (why := self._why(metric, way)):
                yield {"method": str(way), "metric": metric, "why": why}

    def _why(self, metric: str, way: Way) -> str | None:
        plan = self.run.plan
        if metric in DRAWN:
            return None if self.run.strain(way) else "another row had drawn the same pictures"
        if metric in (FRECHET, KERNEL):
            return self.near[way].get(metric)
        if metric in SPENT:
            return "nothing is built" if way == ORIGINAL else None
        if metric in LOAD.values():
            return None if self.load[_key(metric)] else self.load["why"]
        if metric.endswith(DIFFERENCE):
            return None
        if plan.pairs:
            return "the original shows no such pair of both things"
        if metric.startswith("Acc_s "):
            return "no kept name is so related to what is erased" if CLASSES not in metric else _CLIP
        if metric.endswith(CLASSES):
            return _CLIP
        if metric == "residual" and self.residual:
            return self.residual
        return f"no classifier of this model knows {'styles' if plan.kind == 'style' else 'it'} by name"


def _key(name: str) -> str:
    return next(key for key, metric in LOAD.items() if metric == name)


def load(pipe, plan: Plan) -> dict[str, Any]:
    """How loaded a map is: concepts that go together by width d and by outputs o_l, and the rank of what is kept.

    The rank is that of the last subject tokens of the names that methods are told to keep.
    """
    n, W = len(plan.erasures[0]), kv_weights(denoiser(pipe))
    found = {"n/d": [n / embedding_size(pipe)], "n/o_l": [n / w.shape[0] for w in W.values()], "rank": []}
    told = [names for names in dict.fromkeys(tuple(plan.told(i)) for i in range(len(plan.erasures))) if names]
    if not told:
        return found | {"why": "the task lists no names that are told to be kept"}
    if part_of(pipe) != "unet":
        return found | {"why": "the tokens of names are counted for models with a UNet"}
    ranks = [int(torch.linalg.matrix_rank(tokens(pipe, names, "last"))) for names in told]  # of (d, m) float64
    return found | {"rank": ranks, "why": ""}
