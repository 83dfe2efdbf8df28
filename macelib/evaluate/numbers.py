"""Rows of numbers: means, their intervals, and paired differences between methods.

Intervals are of 95 %, by a crossed bootstrap over concepts and seeds; where nothing varies, a proportion has Wilson's.
Of what is made of several numbers, one that does not vary adds how far its own interval reaches, by root of squares: 0
of 30 is not certain beside 15 of 30. The mean lies in its interval always.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot, inf

import numpy as np

from .metrics import Resampling, interval, widened, wilson

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


def ratio(
    hits: np.ndarray, counts: np.ndarray, taken: Resampling | None, which: int = 0, proportion: bool = True
) -> Number:
    """Mean over all pictures of sums and counts by concept and draw (concepts, draws); which: of `Resampling.concepts`.

    >>> none = ratio(np.zeros((10, 3)), np.ones((10, 3)), Resampling.of([10], 3))
    >>> none.varies, tuple(round(end, 3) for end in none.interval)  # Wilson's of 0 in 30
    (False, (0.0, 0.114))
    """
    value, sample = float(hits.sum() / counts.sum()), None
    if taken is not None:
        with np.errstate(invalid="ignore"):  # a resample without a picture is left out
            sample = taken.sample([(which, hits), (which, counts)], lambda a, b: a / b)[1]
    ends = wilson(float(hits.sum()), int(counts.sum())) if proportion else (value, value)
    return Number(value, sample, ends, int(counts.sum()), int((counts.sum(1) > 0).sum()), proportion)


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
