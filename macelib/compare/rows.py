"""From what was seen in pictures to the numbers of one method, with a crossed bootstrap that all methods share."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from math import inf

import numpy as np

from ..errors import MaceError
from ..evaluate.metrics import COMBINE, Resampling, resample, standing
from ..evaluate.numbers import Number, ratio
from ..evaluate.tables import SEED, TIMES
from .counts import COMBINED, Cells, Counts
from .plan import Plan

TRAINED = 1000  # added to the bootstrap's seed for the training seeds


def resampling(counts: Counts, seeds: int) -> Resampling | None:
    """Which concepts and seeds are taken anew, the same for all methods; None where there is one of each alone.

    Training seeds are taken anew beside the drawing seeds, each with all of these.
    """
    try:
        taken = Resampling.of(counts.sizes, seeds, TIMES, SEED)
    except MaceError:
        return None
    taken = taken.crossed() if counts.crossed else taken
    if counts.trainings == 1:
        return taken
    trained = resample(counts.trainings, TIMES, SEED + TRAINED)
    draws = (trained[:, :, None] * taken.draws[:, None, :]).reshape(TIMES, -1)  # (times, trainings x seeds)
    return replace(taken, draws=draws)


def numbers(plan: Plan, counts: Counts, taken: Resampling | None) -> dict[str, Number]:
    """Every metric of one method that there are pictures for, the combined ones too."""
    found = {metric: _ratio(cells, taken) for metric, cells in counts.cells.items() if cells.counts.sum()}
    if counts.crossed:  # concepts are the erased ones, not their pairs
        shown = {m: counts.cells[m].counts.reshape(counts.sizes[0], -1).any(1).sum() for m in found}
        found = {metric: replace(number, concepts=int(shown[metric])) for metric, number in found.items()}
    metric = plan.task.about.metric
    for mark in ("", *counts.marks):
        parts = [name + mark for name in COMBINED[metric]]
        if all(part in found for part in parts):
            cells = [counts.cells[part] for part in parts] if counts.each else None
            found[metric + mark] = _combined(COMBINE[metric], [found[part] for part in parts], cells, taken)
    return found


def _ratio(cells: Cells, taken: Resampling | None) -> Number:
    """Mean over all pictures."""
    return ratio(cells.hits, cells.counts, taken, cells.which, cells.proportion)


def _combined(
    function: Callable, parts: Sequence[Number], each: Sequence[Cells] | None, taken: Resampling | None
) -> Number:
    """A function of several means; each: of every erasure's own, of which the mean is taken.

    What a mean that does not vary may be beside its value is added to the interval by root of squares.
    """
    value = float(function(*(part.value for part in parts)))
    sample = None if taken is None else np.asarray(function(*(part.sample for part in parts)))
    corners = [float(function(*corner)) for corner in product(*(part.ends for part in parts))]
    still = standing(function, [p.value for p in parts], [None if p.varies else p.interval for p in parts])
    if each is not None:
        value = float(np.mean(function(*(cells.hits.sum(1) / cells.counts.sum(1) for cells in each))))
        if taken is not None:  # (erasures, times)
            own = function(*(cells.hits @ taken.draws.T / (cells.counts @ taken.draws.T) for cells in each))
            sample = (taken.concepts[0].T * own).sum(0)
    n, concepts = sum(part.n for part in parts), max(part.concepts for part in parts)
    proportion = parts[0].proportion
    limits = (0.0, 1.0) if proportion else (-inf, inf)
    return Number(value, sample, (min(corners), max(corners)), n, concepts, proportion, still, limits)
