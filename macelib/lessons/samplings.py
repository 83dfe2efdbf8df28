"""Notebook 04: easy and hard concepts, and what each sampling keeps of names beside them once half is gone."""

from collections.abc import Collection, Mapping, Sequence

import pandas as pd

from ..errors import MaceError
from .shared import series

COLUMNS = ["concept", "sampling", "steps", "kept", "before", "difficulty"]
HALF = 0.5  # of what the original draws: a concept counts as halved below it


def paired(concepts: Collection[str], near: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """The names beside every concept, in the concepts' order; MaceError for a concept without, or another's names."""
    if wrong := [name for name in dict.fromkeys([*concepts, *near]) if name not in concepts or not near.get(name)]:
        raise MaceError(f"{series(wrong)}: `near` has to give names for each of the concepts, and for no other.")
    return {name: near[name] for name in concepts}


def by_concept(rows: Sequence[Mapping], near: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Every concept that the original draws, under every sampling, the easiest concept first: a row each.

    rows: (sampling, step, name, share 0..1), with the `concept` whose LoRA was in place; step 0 (no LoRA) has none.
    Columns: concept, sampling, steps (the fewest at which its own words draw it half as often as the original's; NaN:
    never), kept (percent of the names in `near` recognised then), before (percent by the original), difficulty (mean
    of `steps` over the samplings; never counts as twice the last step).
    """
    frame = pd.DataFrame(rows)
    original = frame[frame.step == 0].groupby("name").share.first()
    last, table = int(frame.step.max()), []
    for concept, names in near.items():
        if not original[concept]:
            continue  # nothing to halve
        own = frame[(frame.step > 0) & (frame.concept == concept)]
        for sampling, of in own.groupby("sampling", sort=False):
            left = of[of["name"] == concept]
            reached = left[left.share <= HALF * original[concept]].step
            steps = int(reached.min()) if len(reached) else None
            then = of[(of.step == steps) & of["name"].isin(names)].share
            table.append({
                "concept": concept, "sampling": sampling, "steps": steps if steps is not None else float("nan"),
                "kept": 100 * float(then.mean()) if len(then) else float("nan"),
                "before": 100 * float(original[list(names)].mean()) if names else float("nan"),
            })  # fmt: skip
    if not table:
        return pd.DataFrame(columns=COLUMNS)
    table = pd.DataFrame(table)
    hard = table.assign(steps=table.steps.fillna(2 * last)).groupby("concept").steps.mean().rename("difficulty")
    return table.join(hard, on="concept").sort_values("difficulty", kind="stable", ignore_index=True)


def concepts_said(table: pd.DataFrame) -> str:
    """By concept, from easy to hard, after how many steps it is halved and which sampling keeps most then."""
    if not len(table):
        return "The original draws none of the concepts from their own words: no sampling can be compared."
    told = []
    for concept, rows in table.groupby("concept", sort=False):
        reached = rows.dropna(subset=["steps"])
        if not len(reached):
            told.append(f"{concept} is not halved")
            continue
        parts = [f"{row.sampling} {row.kept:.0f} % after {row.steps:.0f}" for row in reached.itertuples()]
        never = [row.sampling for row in rows.itertuples() if row.steps != row.steps]
        text = f"{concept} (original {rows.before.iloc[0]:.0f} %): {series(parts, 99)}"
        told.append(f"{text}, never by {series(never)}" if never else text)
    return f"Kept of the names beside it when a concept is halved, the easiest concept first: {'; '.join(told)}."
