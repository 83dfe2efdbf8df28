"""From what was seen in pictures to the numbers of one method, with a crossed bootstrap that all methods share."""

from dataclasses import replace

from ..evaluate.metrics import COMBINE, Resampling, resample
from ..evaluate.numbers import Number, combined
from ..evaluate.tables import SEED, TIMES, taken_anew
from .counts import Counts
from .plan import Plan

TRAINED = 1000  # added to the bootstrap's seed for the training seeds


def resampling(counts: Counts, seeds: int) -> Resampling | None:
    """Which concepts and seeds are taken anew, the same for all methods; None where there is one of each alone.

    Training seeds are taken anew beside the drawing seeds, each with all of these.
    """
    taken = taken_anew(counts.sizes, seeds)
    if taken is None:
        return None
    taken = taken.crossed() if counts.crossed else taken
    if counts.trainings == 1:
        return taken
    trained = resample(counts.trainings, TIMES, SEED + TRAINED)
    draws = (trained[:, :, None] * taken.draws[:, None, :]).reshape(TIMES, -1)  # (times, trainings x seeds)
    return replace(taken, draws=draws)


def numbers(plan: Plan, counts: Counts, taken: Resampling | None) -> dict[str, Number]:
    """Every metric of one method that there are pictures for, the combined ones too."""
    things = counts.sizes[0] if counts.crossed else 0  # concepts are the erased ones, not their pairs
    cells = {metric: replace(of, things=things) for metric, of in counts.cells.items() if of.counts.sum()}
    found, metric = {name: of.mean(taken) for name, of in cells.items()}, plan.task.about.metric
    for mark in ("", *counts.marks):
        parts = [part + mark for part in COMBINE[metric].parts]
        if all(part in cells for part in parts):
            found[metric + mark] = combined(COMBINE[metric].function, [cells[p] for p in parts], taken, counts.each)
    return found
