"""Rows of numbers: means, their intervals, and paired differences between methods.

Intervals are of 95 %, by a crossed bootstrap over concepts and seeds; where nothing varies, a proportion has Wilson's.
Of what is made of several numbers, one that does not vary adds how far its own interval reaches, by root of squares: 0
of 30 is not certain beside 15 of 30. The mean lies in its interval always.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import hypot, inf

import numpy as np
import pandas as pd

from ..errors import MaceError
from .metrics import Resampling, interval, standing, widened, wilson

DIFFERENCE = "difference"


@dataclass(frozen=True)
class Number:
    """A metric: its value, its bootstrap sample, and the interval that it has where nothing varies."""

    value: float
    sample: np.ndarray | None  # (times,); None: nothing can be taken anew
    ends: tuple[float, float]
    n: int  # pictures
    concepts: int
    proportion: bool = True  # 0..1, told in percent; else points
    still: tuple[float, float] = (0.0, 0.0)  # how far what does not vary in it reaches below and above the value
    limits: tuple[float, float] = (-inf, inf)  # beyond which it cannot be

    @property
    def varies(self) -> bool:
        return self.sample is not None and bool(np.nanmax(self.sample) - np.nanmin(self.sample) > 1e-12)

    @property
    def interval(self) -> tuple[float, float]:
        """Low and high; the value is between them."""
        low, high = interval(self.sample) if self.varies else self.ends
        low, high = min(low, self.value), max(high, self.value)
        return widened(self.value, (low, high), self.still, self.limits) if self.varies else (low, high)

    @property
    def reach(self) -> tuple[float, float]:
        """How far it may be below and above the value for what does not vary: all of it, or its part that is still."""
        low, high = self.interval
        return self.still if self.varies else (self.value - low, high - self.value)

    def minus(self, other: "Number") -> "Number":
        """The paired difference to a number of the same prompts and seeds.

        Where it does not vary, its interval is made of the two numbers' own; where one of them does not, of the
        bootstrap and of that one's own.
        """
        sample = None if self.sample is None or other.sample is None else self.sample - other.sample
        value, (a, b), (c, d) = self.value - other.value, self.interval, other.interval
        ends = value - hypot(self.value - a, d - other.value), value + hypot(b - self.value, other.value - c)
        still = hypot(self.reach[0], other.reach[1]), hypot(self.reach[1], other.reach[0])
        return Number(value, sample, ends, self.n, self.concepts, self.proportion, still)


@dataclass(frozen=True)
class Cells:
    """Sums of values, and how many they are of: a row per concept (or per erasure), a column per seed.

    Where a method was trained with several seeds: the drawing seeds of the first training, of the second, ...
    """

    which: int  # of `Resampling.concepts`
    hits: np.ndarray
    counts: np.ndarray
    proportion: bool = True
    pictures: frozenset = frozenset()  # (training, model, prompt, seed); empty: every value is of one of its own
    things: int = 0  # where a row is a pair: how many its first member may be

    @classmethod
    def of(
        cls, frame: pd.DataFrame, keys: Sequence, seeds: Sequence[int], which=0, proportion=True, trainings: int = 1
    ) -> "Cells":
        """Of a row per value: key, training, model (who drew), prompt, seed, value; NaN is left out."""
        frame, parts = frame[frame.value.notna()], []
        columns = pd.MultiIndex.from_product([range(trainings), seeds])
        for how in ("sum", "count"):
            table = frame.groupby(["key", "training", "seed"]).value.agg(how).unstack(["training", "seed"])
            parts.append(table.reindex(index=keys, columns=columns).fillna(0).to_numpy(float))
        pictures = frozenset(zip(*(frame[name] for name in ("training", "model", "prompt", "seed")), strict=True))
        return cls(which, *parts, proportion, pictures)

    @property
    def n(self) -> int:
        """How many different pictures these are."""
        return len(self.pictures) or int(self.counts.sum())

    @property
    def independent(self) -> int:
        """The same, several trainings of one prompt and seed counted once."""
        return len({picture[1:] for picture in self.pictures}) or self.n

    @property
    def concepts(self) -> int:
        """Of how many concepts there are values."""
        return int(self.counts.reshape(self.things or len(self.counts), -1).any(1).sum())

    def mean(self, taken: Resampling | None) -> Number:
        """Mean over all values; MaceError where there is none."""
        if not self.counts.any():
            raise MaceError("A mean over no pictures is none: name concepts that are erased, and others that are kept.")
        value, sample = float(self.hits.sum() / self.counts.sum()), None
        if taken is not None:
            with np.errstate(invalid="ignore"):  # a resample without a picture is left out
                sample = taken.sample([(self.which, self.hits), (self.which, self.counts)], lambda a, b: a / b)[1]
        ends = wilson(value * self.independent, self.independent) if self.proportion else (value, value)
        return Number(value, sample, ends, self.n, self.concepts, self.proportion)


def ratio(
    hits: np.ndarray, counts: np.ndarray, taken: Resampling | None, which: int = 0, proportion: bool = True
) -> Number:
    """Mean over all pictures of sums and counts by concept and draw (concepts, draws); which: of `Resampling.concepts`.

    >>> none = ratio(np.zeros((10, 3)), np.ones((10, 3)), Resampling.of([10], 3))
    >>> none.varies, tuple(round(end, 3) for end in none.interval)  # Wilson's of 0 in 30
    (False, (0.0, 0.114))
    """
    return Cells(which, hits, counts, proportion).mean(taken)


def combined(function: Callable, parts: Sequence[Cells], taken: Resampling | None, each: bool = False) -> Number:
    """A function of several means; each: the mean over the rows of every one's own.

    What a mean that does not vary may be beside its value is added to the interval by root of squares.
    """
    means = [part.mean(taken) for part in parts]
    value = float(function(*(mean.value for mean in means)))
    sample = None if taken is None else np.asarray(function(*(mean.sample for mean in means)))
    corners = [float(function(*corner)) for corner in product(*(mean.ends for mean in means))]
    still = standing(function, [m.value for m in means], [None if m.varies else m.interval for m in means])
    if each:
        with np.errstate(invalid="ignore"):
            value = float(np.mean(function(*(part.hits.sum(1) / part.counts.sum(1) for part in parts))))
            if taken is not None:  # (rows, times)
                own = function(*(part.hits @ taken.draws.T / (part.counts @ taken.draws.T) for part in parts))
                sample = (taken.concepts[0].T * own).sum(0)
    n = len(frozenset().union(*(part.pictures for part in parts))) or sum(mean.n for mean in means)
    proportion, concepts = means[0].proportion, max(mean.concepts for mean in means)
    limits = (0.0, 1.0) if proportion else (-inf, inf)
    return Number(value, sample, (min(corners), max(corners)), n, concepts, proportion, still, limits)


def row(about: Mapping, metric: str, number: Number, seeds: int, **beside) -> dict:
    """A number as a row of a table, in percent or points."""
    scale, (low, high) = 100 if number.proportion else 1, number.interval
    unit = "%" if number.proportion and DIFFERENCE not in metric else "points"
    trained = about.get("training_seeds", 1)
    varied = ("concepts", number.concepts), ("seeds", seeds), ("training seeds", trained)
    over = [what for what, count in varied if count > 1]
    still = "both intervals" if DIFFERENCE in metric else "pictures, Wilson" if number.proportion else "none"
    how = " and ".join(over) if number.varies else still
    how += "; Wilson of what does not vary" if number.varies and any(number.still) else ""
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
