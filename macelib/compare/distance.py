"""How far the pictures of kept names move: distances between the edited model's and the original's, on CLIP's vectors.

Same prompts and seeds, all erasures together. Fréchet's is FID's formula, CMMD a kernel distance; of CLIP's features
both are comparable among themselves alone. A bootstrap sample holds fewer different pictures, which makes both larger:
it is moved so that its mean is the value.
"""

import numpy as np
import torch
from torch import Tensor

from ..evaluate.distances import cmmds, frechet
from ..evaluate.metrics import Resampling
from ..evaluate.numbers import Number
from .measure import Measuring
from .plan import ORIGINAL, Way

FRECHET, KERNEL = "Fréchet distance on CLIP features", "CMMD on CLIP features"
TIMES = 200  # bootstrap samples of these
LEAST = 2  # different pictures for each feature: a bootstrap sample has fewer, and needs a covariance, too
FEW = "{} different pictures of the original for {} features: a covariance and its interval need {} at least"


def distances(run: Measuring, way: Way, taken: Resampling | None) -> tuple[dict[str, Number], dict[str, str]]:
    """Both distances of a row that is measured, and why there is none. taken: `rows.resampling` of the row's counts."""
    if run.plan.pairs:
        why = "prompts of two things are not told apart into kept and erased"
    elif way == ORIGINAL:
        why = "the others are compared with it"
    elif run.look.clip is None:
        why = "no CLIP is known for this model: name one with --features"
    elif (vectors := run.vectors(way)) is None or sum(map(len, vectors)) < 2:
        why = "there are not two pictures of kept names"
    else:
        return _distances(run, way, vectors, taken)
    return {}, dict.fromkeys((FRECHET, KERNEL), why)


def _distances(run: Measuring, way: Way, vectors, taken) -> tuple[dict[str, Number], dict[str, str]]:
    x, y, cells = _sets(run, way, vectors)
    weights = None if taken is None else _weights(run, cells, taken)
    concepts = len({name for *_, name in cells}) if not run.plan.apart else len(run.plan.erasures)
    every = torch.full((1, len(x)), 1 / len(x), dtype=torch.float64)  # the value first, then the bootstrap's
    every = every if weights is None else torch.cat([every, weights])
    found = {KERNEL: _number(cmmds(x, y, every), x, concepts)}
    different, width = len({job for *_, job, _ in cells}), x.shape[1]
    if different < LEAST * width:
        return found, {FRECHET: FEW.format(different, width, LEAST * width)}
    return {FRECHET: _number(torch.tensor([frechet(x, y, row) for row in every]), x, concepts), **found}, {}


def _number(values: Tensor, x: Tensor, concepts: int) -> Number:
    """A distance, and behind it its sample, which is moved about it; never below 0."""
    value, sample = max(float(values[0]), 0.0), values[1:].numpy()
    moved = np.clip(sample - sample.mean() + value, 0, None) if len(sample) else None
    return Number(value, moved, (value, value), len(x), concepts, proportion=False)


def _sets(run: Measuring, way: Way, vectors) -> tuple[Tensor, Tensor, list[tuple]]:
    """Vectors (n, w) of the original and of the edited model, row by row of one prompt and seed, and what each is of.

    That is (erasure, training seed, job, name).
    """
    before, x, y, cells = run.vectors(ORIGINAL)[0], [], [], []
    names = {job: ask.name for i, _ in run.units(way) for ask in run.plan.asks(i) if ask.role == "kept"
             for job in run.work.jobs([ask])}  # fmt: skip
    for (i, training), of in zip(run.units(way), vectors, strict=True):
        for job, vector in of.items():
            x.append(before[job])
            y.append(vector)
            cells.append((i, training, job, names[job]))
    return torch.stack(x), torch.stack(y), cells


def _weights(run: Measuring, cells, taken: Resampling) -> Tensor:
    """How much each picture counts in each bootstrap sample: (times, n), rows that add up to 1."""
    plan = run.plan
    seeds, names = {seed: k for k, seed in enumerate(plan.seeds)}, {name: k for k, name in enumerate(plan.kept(0))}
    drawn = [training * len(seeds) + seeds[seed] for _, training, (_, seed), _ in cells]
    sets = taken.concepts[0 if plan.apart else 1][:TIMES]
    concept = [i if plan.apart else names[name] for i, _, _, name in cells]
    weights = torch.from_numpy(sets[:, concept] * taken.draws[:TIMES][:, drawn])
    return weights / weights.sum(1, keepdim=True)
