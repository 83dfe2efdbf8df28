"""Notebook 01: what a run says of the routes to a concept, in sentences written from the tables of `residual`."""

from collections.abc import Mapping, Sequence

import pandas as pd

from .residual import GROUPS
from .shared import series

MISSED = 0.05  # fall of the probability below which a group of tokens is not missed
SEEN = 0.5  # probability above which the judge is said to see the concept
DRAWN = 0.2  # mean probability below which the original does not draw a wording, so that its row measures nothing


def drawn(scores: pd.DataFrame) -> pd.Index:
    """The patterns that the original draws, so that something can be seen to go; scores: a row per pattern."""
    return scores.index[scores["original, whole prompt"] >= DRAWN]


def agreement(delta: pd.Series, score: pd.Series) -> float | None:
    """Rank correlation of two columns, None where it has no value (less than two rows, or one value for all)."""
    return float(delta.rank().corr(score.rank())) if min(delta.nunique(), score.nunique()) > 1 else None


def routes_said(frame: pd.DataFrame) -> str:
    """In how many pictures the concept is seen, by what was left of the prompt; frame: of `study`."""
    seen = frame.assign(seen=frame.value > SEEN)
    count = lambda by: [f"{n} {int(p.seen.sum())} of {len(p)}" for n, p in by]  # noqa: E731
    alone = seen[seen.tokens == "without own tokens"].groupby("name", sort=False)
    return (
        f"The judge sees the concept (with a probability above {SEEN:g}) in this many pictures: "
        f"{series(count(seen.groupby('tokens', sort=False)))}. Without own tokens, by concept: {series(count(alone))}."
    )


def carriers_said(carry: pd.DataFrame) -> str:
    """Which groups of tokens draw the concept alone, and which one is missed most; a row per variant, a column each."""
    told = []
    for pattern, values in carry.items():
        if values["everything"] < DRAWN:
            told.append(f"*{pattern}* is not drawn by the original (probability {values['everything']:.2f}).")
            continue
        alone = {group: values[f"only {group}"] for group in GROUPS}
        order = sorted(GROUPS, key=alone.get, reverse=True)
        enough = series([f"{g} ({alone[g]:.2f})" for g in order if 2 * alone[g] >= values["everything"]])
        missed = min(GROUPS, key=lambda group: values[f"without {group}"])
        least = values[f"without {missed}"]
        most = f"the one that is missed most is {missed} ({least:.2f} without it)"
        told.append(
            f"*{pattern}* (probability {values['everything']:.2f} as it is): groups that alone reach half of that: "
            f"{enough}; {most if least < values['everything'] - MISSED else 'none is missed'}."
        )
    return " ".join(told)


def patterns_said(scores: pd.DataFrame) -> str:
    """What stage 1 takes, over the wordings that the original draws, and which it does not draw."""
    some = scores.loc[drawn(scores)]
    silent = scores.index.difference(some.index, sort=False)
    text = f"The original draws the concept (probability {DRAWN:g} or more) in {len(some)} of {len(scores)} wordings."
    if len(silent):
        text += f" It does not in {series([f'*{p}*' for p in silent])}: these rows measure nothing."
    if not len(some):
        return text
    told = [
        f"{what} from {some[f'original, {tokens}'].mean():.2f} to {some[f'stage 1, {tokens}'].mean():.2f}"
        for what, tokens in (("the residual score", "without own tokens"), ("the whole prompt's", "whole prompt"))
    ]
    return f"{text} Over {'the others' if len(silent) else 'these'} stage 1 takes {told[0]}, {told[1]}, on average."


def failing_said(failing: Mapping[str, Sequence[str]], agreement: float | None) -> str:
    """In which wordings refinement fails, by state, and whether δ tells their order."""
    told = "; ".join(f"{state}: {series([f'*{p}*' for p in patterns], 99)}" for state, patterns in failing.items())
    order = "has no value" if agreement is None else f"is {agreement:.2f} (1: the same order)"
    return (
        f"Refinement fails in these wordings: {told}. Rank correlation of δ and score under the strong prior {order}."
    )


def lengths_said(lengths: Mapping[str, Mapping[str, float]]) -> str:
    """The scores of the shortest and the longest prompt, by state and place; lengths: "state, place" -> phrases."""
    told = []
    for label, values in lengths.items():
        (fewest, first), *_, (most, last) = [*values.items(), *values.items()]
        told.append(f"{label}: {first:.2f} with {fewest} phrases, {last:.2f} with {most}")
    return f"Score: {'; '.join(told)}."


def own_said(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """How much of what the own tokens draw alone stage 1 takes along, and so leaves to stage 2."""
    old, new = (values["own tokens alone"] for values in (before, after))
    text = f"Alone, the own tokens draw the concept with a probability of {old:.2f} before stage 1 and {new:.2f} after."
    if old < DRAWN:
        return f"{text} There was little to take from them to begin with."
    rest = (
        "takes them along all the same: hardly anything"
        if new < 0.1 * old
        else f"leaves {100 * new / old:.0f} % of it: that"
    )
    return f"{text} Stage 1 was not fitted to them and {rest} is left for stage 2."
