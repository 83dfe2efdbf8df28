"""The paper's metrics as pure functions of accuracies (0..1) and CLIP scores, and their bootstrap (section 4)."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from math import hypot, inf, sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from ..errors import MaceError


def harmonic(*parts):
    """Harmonic mean of numbers or arrays, 0 where a part is 0.

    >>> harmonic(1.0, 0.5)
    0.6666666666666666
    >>> harmonic(1.0, 0.0)
    0.0
    """
    stack = np.stack(np.broadcast_arrays(*(np.asarray(p, dtype=np.float64) for p in parts)))
    if (stack < -1e-9).any():  # 1 minus a weighted mean of ones may round to less than 0
        raise MaceError(f"A harmonic mean needs parts of 0 or more, not {stack.min():g}.")
    stack = stack.clip(min=0.0)
    with np.errstate(divide="ignore"):
        mean = len(parts) / (1 / stack).sum(0)
    return float(mean) if mean.ndim == 0 else mean


def h_o(acc_e, acc_s, acc_g):
    """Objects: H_o = 3 / (1/(1 − Acc_e) + 1/Acc_s + 1/(1 − Acc_g)); the larger the better, 1 at best.

    >>> round(h_o(0.0906, 0.9539, 0.1003), 3), round(h_o(0.0849, 0.9735, 0.1053), 3)
    (0.92, 0.927)
    >>> h_o(0.0, 1.0, 0.0), h_o(1.0, 1.0, 0.0)
    (1.0, 0.0)
    """
    return harmonic(1 - np.asarray(acc_e), acc_s, 1 - np.asarray(acc_g))


def h_c(acc_e, acc_s):
    """Celebrities and characters: H_c = 2 / (1/(1 − Acc_e) + 1/Acc_s).

    >>> round(100 * h_c(0.0431, 0.8456), 2)  # the paper's 100 celebrities
    89.78
    """
    return harmonic(1 - np.asarray(acc_e), acc_s)


def h_a(clip_e, clip_s):
    """Styles: H_a = CLIP_s − CLIP_e, in points of the CLIP score.

    >>> round(h_a(22.59, 28.58), 2)  # the paper's 100 styles
    5.99
    """
    return clip_s - clip_e


class Joint(NamedTuple):
    """A metric that is made of others."""

    parts: tuple[str, ...]
    function: Callable  # of their means


COMBINE = {
    "H_o": Joint(("Acc_e", "Acc_s", "Acc_g"), h_o),
    "H_c": Joint(("Acc_e", "Acc_s"), h_c),
    "H_a": Joint(("CLIP_e", "CLIP_s"), h_a),
    "CLIP_s": Joint(("CLIP_s",), lambda clip_s: clip_s),
    "nudenet": Joint(("nudenet",), lambda share: share),
}
LOW = ("nudenet",)  # of these the lower is the better


def joint(metrics: Collection[str]) -> list[str]:
    """Those of a table's metrics that are made of its others, one by task; of captions there is the score alone.

    >>> joint(["CLIP_e", "CLIP_s", "H_a"]), joint(["CLIP_s", "rank"])
    (['H_a'], ['CLIP_s'])
    """
    return [metric for metric in COMBINE if metric in metrics and not (metric == "CLIP_s" and "CLIP_e" in metrics)]


def resample(draws: int, times: int, seed: int) -> np.ndarray:
    """Bootstrap weights (times, draws): how often each draw is taken, over `draws`; rows add up to 1.

    >>> weights = resample(4, 100, seed=0)
    >>> weights.shape, bool(np.allclose(weights.sum(1), 1))
    ((100, 4), True)
    """
    return np.random.default_rng(seed).multinomial(draws, np.full(draws, 1 / draws), times) / draws


def bootstrap(
    parts: Sequence[np.ndarray], metric: Callable[..., np.ndarray], weights: np.ndarray
) -> tuple[float, np.ndarray]:
    """A metric of the means over the draws, and its bootstrap sample (times,).

    parts: per argument of the metric the value of every draw (draws,), its mean over the prompts. A draw is one seed
    (or template and seed) with all its prompts, which are taken together: their pictures begin with the same noise.
    A part (2, draws) is a ratio: the mean of its first row over that of its second, where pictures are left out.

    >>> value, sample = bootstrap([np.array([0.0, 1.0, 1.0])], lambda x: x, resample(3, 200, 0))
    >>> round(value, 3), bool(sample.min() >= 0), bool(sample.max() <= 1)
    (0.667, True, True)
    """
    parts = [np.asarray(part, dtype=np.float64) for part in parts]
    value = metric(*(part.mean() if part.ndim == 1 else part[0].mean() / part[1].mean() for part in parts))
    with np.errstate(invalid="ignore"):  # a resample without a picture is NaN, and left out of intervals
        means = [weights @ part if part.ndim == 1 else (weights @ part[0]) / (weights @ part[1]) for part in parts]
    return float(value), np.asarray(metric(*means))


def interval(sample: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of a bootstrap sample.

    >>> tuple(round(v, 3) for v in interval(np.linspace(0, 1, 1001)))
    (0.025, 0.975)
    """
    low, high = np.nanquantile(sample, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson(hits: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a proportion of `hits` in `count`: it has a width at 0 and at 1, too.

    MaceError without a picture.

    >>> tuple(round(v, 4) for v in wilson(0, 20)), tuple(round(v, 4) for v in wilson(15, 20))
    ((0.0, 0.1611), (0.5313, 0.8881))
    """
    if count < 1 or not 0 <= hits <= count:
        raise MaceError(f"{hits:g} of {count} is no proportion: count at least one picture.")
    z, p = NormalDist().inv_cdf((1 + level) / 2), hits / count
    middle, half = p + z * z / (2 * count), z * sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    low, high = (middle - half) / (1 + z * z / count), (middle + half) / (1 + z * z / count)
    return (low if hits else 0.0), (high if hits < count else 1.0)


def standing(
    function: Callable, values: Sequence[float], ends: Sequence[tuple[float, float] | None]
) -> tuple[float, float]:
    """How far a function of means may be below and above its value, for those of them that no bootstrap varies.

    ends: the interval of each such mean, None for the others. What each adds is joined by root of squares.

    >>> tuple(round(v, 3) for v in standing(h_c, (0.0, 0.5), ((0.0, 0.114), None)))
    (0.027, 0.0)
    """
    value, reached = function(*values), [(0.0, 0.0)]
    for at, known in enumerate(ends):
        for end in known or ():
            moved = float(function(*(end if i == at else other for i, other in enumerate(values))) - value)
            reached.append((min(moved, 0.0), max(moved, 0.0)))
    return hypot(*(low for low, _ in reached)), hypot(*(high for _, high in reached))


def widened(
    value: float, ends: tuple[float, float], still: tuple[float, float], limits=(-inf, inf)
) -> tuple[float, float]:
    """An interval of a bootstrap with what `standing` adds to it, by root of squares; the value is in it.

    >>> widened(0.5, (0.2, 0.9), (0.4, 0.3)), widened(0.5, (0.2, 0.9), (0.4, 0.3), (0.1, 0.95))
    ((0.0, 1.0), (0.1, 0.95))
    """
    low, high = value - hypot(min(ends[0] - value, 0), still[0]), value + hypot(max(ends[1] - value, 0), still[1])
    return max(low, limits[0]), min(high, limits[1])


@dataclass(frozen=True)
class Resampling:
    """Crossed bootstrap: concepts and draws are taken anew, each with all that belongs to it.

    A difference between two methods that were drawn with the same prompts and seeds has the interval of the difference
    of their samples from one `Resampling`: it is paired, concept by concept and draw by draw.
    """

    concepts: tuple[np.ndarray, ...]  # per set of concepts: weights (times, concepts)
    draws: np.ndarray  # (times, draws)

    @classmethod
    def of(cls, concepts: Sequence[int], draws: int, times: int = 2000, seed: int = 0) -> "Resampling":
        """Weights for sets of so many concepts each, and so many draws; MaceError where nothing can vary."""
        if draws < 1 or min(concepts, default=0) < 1:
            raise MaceError(f"There are {list(concepts)} concepts and {draws} draws: give at least one of each.")
        if draws == max(concepts) == 1:
            raise MaceError("One concept in one draw has no interval: give more seeds, or more concepts.")
        sets = (resample(count, times, seed + 1 + i) for i, count in enumerate(concepts))
        return cls(tuple(sets), resample(draws, times, seed))

    def crossed(self) -> "Resampling":
        """One set in place of the first two: every member of the first with each of the second, both taken anew.

        >>> taken = Resampling.of([2, 3], 4, times=5).crossed()
        >>> [weights.shape for weights in taken.concepts], bool(np.allclose(taken.concepts[0].sum(1), 1))
        ([(5, 6)], True)
        """
        first, second = self.concepts
        pairs = (first[:, :, None] * second[:, None, :]).reshape(len(first), -1)  # (times, first · second)
        return replace(self, concepts=(pairs,))

    def sample(
        self, parts: Sequence[tuple[int, np.ndarray]], metric: Callable[..., np.ndarray]
    ) -> tuple[float, np.ndarray]:
        """A metric of the means over concepts and draws, and its bootstrap sample (times,).

        parts: per argument of the metric the set that its concepts are of, and its values (concepts, draws), each the
        mean over that concept's pictures of the draw. Arguments of one set share what is taken: an erased concept comes
        with its synonyms.

        >>> half = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
        >>> value, taken = Resampling.of([3], 2, times=400).sample([(0, half)], lambda x: x)
        >>> value, interval(taken)  # draws alone differ: none, one or both of two
        (0.5, (0.0, 1.0))
        """
        values = [(which, np.asarray(part, dtype=np.float64)) for which, part in parts]
        means = [(self.concepts[which] @ part * self.draws).sum(1) for which, part in values]
        return float(metric(*(part.mean() for _, part in values))), np.asarray(metric(*means))
