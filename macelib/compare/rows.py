"""From what was seen in pictures to rows of numbers: means, their intervals, and paired differences between methods.

Intervals are of 95 %, by a crossed bootstrap over concepts and seeds that all methods share; where nothing varies, a
proportion has Wilson's. The mean lies in its interval always.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import hypot

import numpy as np

from ..errors import MaceError
from ..evaluate.metrics import Resampling, h_a, h_c, h_o, interval, resample, wilson
from ..evaluate.tables import SEED, TIMES
from .counts import COMBINED, Cells, Counts
from .plan import Plan

DIFFERENCE = "difference"
TRAINED = 1000  # added to the bootstrap's seed for the training seeds
COMBINE: dict[str, Callable] = {"H_o": h_o, "H_c": h_c, "H_a": h_a}


@dataclass(frozen=True)
class Number:
    """A metric: its value, its bootstrap sample, and the interval that it has where nothing varies."""

    value: float
    sample: np.ndarray | None  # (times,); None: nothing can be taken anew
    ends: tuple[float, float]
    n: int  # pictures
    concepts: int
    proportion: bool = True  # 0..1, told in percent; else points

    @property
    def varies(self) -> bool:
        return self.sample is not None and bool(np.nanmax(self.sample) - np.nanmin(self.sample) > 1e-12)

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high; the value is between them."""
        low, high = interval(self.sample) if self.varies else self.ends
        return min(low, self.value), max(high, self.value)

    def minus(self, other: "Number") -> "Number":
        """The paired difference to a number of the same prompts and seeds.

        Where it does not vary, its interval is made of the two numbers' own.
        """
        sample = None if self.sample is None or other.sample is None else self.sample - other.sample
        value, (a, b), (c, d) = self.value - other.value, self.interval, other.interval
        ends = value - hypot(self.value - a, d - other.value), value + hypot(b - self.value, other.value - c)
        return Number(value, sample, ends, self.n, self.concepts, self.proportion)


def resampling(counts: Counts, seeds: int) -> Resampling | None:
    """Which concepts and seeds are taken anew, the same for all methods; None where there is one of each alone.

    Training seeds are taken anew beside the drawing seeds, each with all of these.
    """
    try:
        taken = Resampling.of(counts.sizes, seeds, TIMES, SEED)
    except MaceError:
        return None
    if counts.trainings == 1:
        return taken
    trained = resample(counts.trainings, TIMES, SEED + TRAINED)
    draws = (trained[:, :, None] * taken.draws[:, None, :]).reshape(TIMES, -1)  # (times, trainings x seeds)
    return replace(taken, draws=draws)


def numbers(plan: Plan, counts: Counts, taken: Resampling | None) -> dict[str, Number]:
    """Every metric of one method that there are pictures for, the combined ones too."""
    found = {metric: _ratio(cells, taken) for metric, cells in counts.cells.items() if cells.counts.sum()}
    metric = plan.task.about.metric
    for mark in ("", *counts.marks):
        parts = [name + mark for name in COMBINED[metric]]
        if all(part in found for part in parts):
            cells = [counts.cells[part] for part in parts] if counts.each else None
            found[metric + mark] = _combined(COMBINE[metric], [found[part] for part in parts], cells, taken)
    return found


def _ratio(cells: Cells, taken: Resampling | None) -> Number:
    """Mean over all pictures."""
    hits, count = cells.hits.sum(), cells.counts.sum()
    value, sample = float(hits / count), None
    if taken is not None:
        with np.errstate(invalid="ignore"):  # a resample without a picture is left out
            parts = [(cells.which, cells.hits), (cells.which, cells.counts)]
            sample = taken.sample(parts, lambda a, b: a / b)[1]
    ends = wilson(float(hits), int(count)) if cells.proportion else (value, value)
    return Number(value, sample, ends, int(count), int((cells.counts.sum(1) > 0).sum()), cells.proportion)


def _combined(
    function: Callable, parts: Sequence[Number], each: Sequence[Cells] | None, taken: Resampling | None
) -> Number:
    """A function of several means; each: of every erasure's own, of which the mean is taken."""
    value = float(function(*(part.value for part in parts)))
    sample = None if taken is None else np.asarray(function(*(part.sample for part in parts)))
    corners = [float(function(*corner)) for corner in product(*(part.ends for part in parts))]
    if each is not None:
        value = float(np.mean(function(*(cells.hits.sum(1) / cells.counts.sum(1) for cells in each))))
        if taken is not None:  # (erasures, times)
            own = function(*(cells.hits @ taken.draws.T / (cells.counts @ taken.draws.T) for cells in each))
            sample = (taken.concepts[0].T * own).sum(0)
    n, concepts = sum(part.n for part in parts), max(part.concepts for part in parts)
    return Number(value, sample, (min(corners), max(corners)), n, concepts, parts[0].proportion)


def row(about: Mapping, metric: str, number: Number, seeds: int, **beside) -> dict:
    """A number as a row of a table, in percent or points."""
    scale, (low, high) = 100 if number.proportion else 1, number.interval
    unit = "%" if number.proportion and DIFFERENCE not in metric else "points"
    trained = about.get("training_seeds", 1)
    varied = ("concepts", number.concepts), ("seeds", seeds), ("training seeds", trained)
    over = [what for what, count in varied if count > 1]
    still = "both intervals" if DIFFERENCE in metric else "pictures, Wilson" if number.proportion else "none"
    how = " and ".join(over) if number.varies else still
    how += "; one training" if "training_seeds" in about and trained == 1 else ""
    values = {"mean": number.value, "low": low, "high": high}
    values = {name: round(scale * value, 4) for name, value in values.items()}
    return {**about, "metric": metric, **values, "n": number.n, "concepts": number.concepts, "seeds": seeds,
            "unit": unit, "over": how, **beside}  # fmt: skip


def spread(about: Mapping, metric: str, values: Sequence[float], unit: str) -> dict:
    """What was measured once per erasure or layer: its mean, the least and the most."""
    mean, low, high = (round(float(f(values)), 4) for f in (np.mean, min, max))
    numbers = {"mean": min(max(mean, low), high), "low": low, "high": high, "n": len(values)}
    return {**about, "metric": metric, **numbers, "unit": unit, "over": "extremes"}
