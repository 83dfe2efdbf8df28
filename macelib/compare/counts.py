"""What is counted in the pictures of one method: sums by concept and seed, for every metric of a task."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from ..evaluate.numbers import Cells
from ..evaluate.shown import stand_ins
from ..models.families import Family
from .measure import Measuring, Seen
from .plan import Plan

CLASSES = " among the classes"  # the paper's rule: the best of the task's names, whatever else the judge knows
RELATIONS = ("shares a word", "same group", "unrelated")  # of a kept name to what is erased; the first that holds
ORDERS = ("erased first", "companion first")
EITHER = "Acc_e of either"  # pictures of two erased things that show one of them at least
METRICS = {"erased": "Acc_e", "kept": "Acc_s", "synonym": "Acc_g"}  # by role
SCORES = {"erased": "CLIP_e", "kept": "CLIP_s"}
SMALL = {"the", "a", "an", "of", "and", "with", "in", "on"}  # words that make no names alike


@dataclass(frozen=True)
class Counts:
    """What one method's pictures add up to."""

    cells: dict[str, Cells]  # by metric
    sizes: tuple[int, ...]  # how many are in each set of concepts that is taken anew
    each: bool  # the combined metric is the mean of every erasure's own
    marks: tuple[str, ...] = ()  # further ways of counting, by what is put behind the metrics' names
    trainings: int = 1  # how many training seeds the columns are of
    crossed: bool = False  # a row per member of the first set with each of the second, both taken anew


def counts(run: Measuring, seen: Sequence[Sequence[Seen]], original: Sequence[Seen], family: Family) -> Counts:
    """The sums of one method from what was seen, by training seed and erasure.

    Pairs count where the original shows both.
    """
    if run.plan.alike:
        return _alike(run.plan, seen[0][0], original[0])
    if run.plan.pairs:
        return _two(run.plan, seen[0], original)
    frames = dict(_frames(run, seen, family))
    plan = run.plan
    names = list(dict.fromkeys(c.name for concepts in plan.erasures for c in concepts))
    if plan.apart:  # the concepts that are taken anew are the erasures, each with all that it is measured on
        sets = {0: [*range(len(plan.erasures))], 1: [*range(len(plan.erasures))]}
        which, sizes = {"kept": 0}, (len(plan.erasures),)
    else:
        sets, which = {0: names, 1: plan.kept(0)}, {"kept": 1}
        sizes = len(sets[0]), len(sets[1])
    cells = {}
    for metric, (frame, role) in frames.items():
        at = which.get(role, 0)
        key = frame["erasure" if plan.apart else "name"]
        how = {"proportion": not metric.startswith("CLIP"), "trainings": len(seen)}
        cells[metric] = Cells.of(frame.assign(key=key), sets[at], plan.seeds, at, **how)
    marks = (CLASSES,) if any(metric.endswith(CLASSES) for metric in cells) else ()
    return Counts(cells, sizes, plan.apart, marks, len(seen))


def _models(seen: Sequence[Seen]) -> list[int]:
    """By erasure which model drew: what was seen of the original is the same for all."""
    return [next(j for j, other in enumerate(seen) if other is of) for of in seen]


def _frames(run: Measuring, seen: Sequence[Sequence[Seen]], family: Family) -> Iterator[tuple[str, tuple]]:
    """By metric its pictures, a row each, and their role."""
    first = next(iter(seen[0][0]["drawn"].values()))
    if run.plan.detects:
        yield from ((rule, (_rows(run, seen, rule), "kept")) for rule in first)
        return
    if "score" in first:
        yield from _by_role(_rows(run, seen, "score"), SCORES)
        main = "style"
    else:
        main = "known"
    if main not in first:
        return
    frame = _rows(run, seen, main)
    yield from _by_role(frame, METRICS)
    kept = frame[frame.role == "kept"]
    pairs = list(zip(kept["erasure"].tolist(), kept["name"], strict=True))
    relations = {pair: relation(run.plan, *pair) for pair in dict.fromkeys(pairs)}
    for name in RELATIONS:
        if (part := kept[[relations[pair] == name for pair in pairs]]).size:
            yield f"Acc_s {name}", (part, "kept")
    yield "Acc_a", (_rows(run, seen, "wider" if "wider" in first else main, "shown", family), "erased")
    if seen[0][0]["residual"]:
        yield "residual", (_rows(run, seen, main, "residual"), "erased")
    if "classes" in first:
        yield from _by_role(_rows(run, seen, "classes"), METRICS, CLASSES)


def _by_role(frame: pd.DataFrame, metrics: Mapping[str, str], mark: str = ""):
    for role, metric in metrics.items():
        if (of := frame[frame.role == role]).size:
            yield metric + mark, (of, role)


def _rows(run: Measuring, seen: Sequence[Sequence[Seen]], rule: str, role: str = "", family: Family | None = None):
    """One row per picture, counted as the protocols count. role: of the erased names alone, "shown" or "residual"."""
    rows, plan, models = [], run.plan, _models(seen[0])
    for training, i, of in ((t, i, of) for t, trained in enumerate(seen) for i, of in enumerate(trained)):
        asks, right = plan.asks(i), None
        if role:
            asks = [replace(ask, role=role) for ask in asks if ask.role == "erased"]
        if role == "shown":
            right = _instead(run, i, rule, family)
        work, part = (run.around, "residual") if role == "residual" else (run.work, "drawn")
        found = {job: rules[rule] for job, rules in of[part].items()}
        about = {"erasure": i, "training": training, "model": models[i]}
        rows += [line | about for line in work.rows(str(i), "", asks, found, right)]
    return pd.DataFrame(rows)


def _instead(run: Measuring, i: int, rule: str, family: Family) -> dict[str, set[str]]:
    """By erased name what its pictures may show in its place.

    Of a style its anchor, where that is a style that is known, else any known one that stays: noise is taken for some.
    """
    gone = run.plan.erasures[i]
    if rule == "style":
        stays = {*run.look.classifier.styles} - {concept.name for concept in gone}
        return {concept.name: stays & {concept.anchor} or stays for concept in gone}
    return {concept.name: stand_ins(concept, family, gone, run.plan.rows[concept.name].super) for concept in gone}


def relation(plan: Plan, i: int, name: str) -> str:
    """How near a kept name is to what goes in erasure i: the first of `RELATIONS` that holds."""
    gone, rows = [concept.name for concept in plan.erasures[i]], plan.rows
    if any(_words(name) & _words(other) for other in gone):
        return RELATIONS[0]
    return RELATIONS[1] if rows[name].group in {rows[other].group for other in gone} else RELATIONS[2]


def _words(name: str) -> set[str]:
    return set(re.findall(r"\w+", name.casefold())) - SMALL


def _two(plan: Plan, seen: Sequence[Seen], original: Sequence[Seen]) -> Counts:
    """Erased things seen, and companions not lost, in pairs of which the original shows both."""
    rows = []
    for i, (now, before, model) in enumerate(zip(seen, original, _models(seen), strict=True)):
        for gone, other, order, prompt, seed in plan.two(i):
            if set(before["drawn"][prompt, seed].values()) != {gone, other}:
                continue
            shown = set(now["drawn"][prompt, seed].values())
            for metric, value in (("Acc_e", gone in shown), ("Acc_s", other in shown)):
                about = {"training": 0, "model": model, "prompt": prompt, "seed": seed, "value": float(value)}
                rows.append({"metric": metric, "key": f"{gone}, {other}", "order": order, **about})
    things = [concept.name for concepts in plan.erasures for concept in concepts]
    companions = [row.name for row in plan.task.kept or plan.task.erased]
    frame, pairs, cells = pd.DataFrame(rows), [f"{gone}, {other}" for gone in things for other in companions], {}
    for metric in ("Acc_e", "Acc_s") if rows else ():
        of = frame[frame.metric == metric]
        cells[metric] = Cells.of(of, pairs, plan.seeds)
        for order in ORDERS:
            if (part := of[of.order == order]).size:
                cells[f"{metric} {order}"] = Cells.of(part, pairs, plan.seeds)
    return Counts(cells, (len(things), len(companions)), False, crossed=True)


def _alike(plan: Plan, now: Seen, before: Seen) -> Counts:
    """Erased things seen, and kept ones, in pictures of two of a kind of which the original shows both."""
    gone, kept = [concept.name for concept in plan.erasures[0]], plan.kept(0)
    rows = []
    for one, other, _, prompt, seed in plan.two(0):
        if set(before["drawn"][prompt, seed].values()) != {one, other}:
            continue
        shown = set(now["drawn"][prompt, seed].values())
        values = [("Acc_e" if one in gone else "Acc_s", name, name in shown) for name in (one, other)]
        values += [(EITHER, one, not shown.isdisjoint({one, other}))] if one in gone else []
        about = {"training": 0, "model": 0, "prompt": prompt, "seed": seed}
        rows += [{"metric": m, "key": key, **about, "value": float(v)} for m, key, v in values]
    sets = {"Acc_e": (gone, 0), EITHER: (gone, 0), "Acc_s": (kept, 1)}
    found = pd.DataFrame(rows).groupby("metric") if rows else ()
    cells = {metric: Cells.of(part, sets[metric][0], plan.seeds, sets[metric][1]) for metric, part in found}
    return Counts(cells, (len(gone), len(kept)), False)
