"""Notebook 10: attacks on erasures beside their controls, live and as recorded, and what they found in pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from PIL import Image

from ..attacks import CONTROLS, Nearest, Result, attack, named, read_pictures
from ..concepts import Concept
from ..errors import MaceError
from ..evaluate import with_synonyms
from ..evaluate.attacked import FOREIGN
from ..evaluate.classifiers import classifier_for
from ..files import data_folder
from ..models import mini
from ..models.families import family_of
from ..show.viz import COLORS, Figure, grid
from .recorded import label
from .shared import choices, series, tiles

KEYS = ("attack", "control", "method", "variant")
RATES = ("ASR", "pre-ASR")
PAIRED = {"mean": "paired", "low": "paired_low", "high": "paired_high"}  # of the ASR less the foreign control's
RATE = ("ASR", "low", "high")
COLUMNS = [*KEYS, "pre-ASR", *RATE, "n", *PAIRED.values()]
CURVES = {"completion": "percent drawn by the original", "relearning": "steps of training"}  # their variants' number
OVER = {"no-attack": "no attack", "foreign": "a foreign concept", "never-knew": "a model that never knew it"}  # floors


class Witness:
    """A judge that keeps, of each set of pictures in turn, the first that shows a name, or else the first of all.

    among: the names that a judge without a list of its own chooses among; the first is the one that is looked for.
    """

    def __init__(self, judge, among: Sequence[str]):
        self.judge, self.among, self.seen = judge, among, []

    def top1(self, pictures: Sequence[Image.Image], among=None) -> list[str]:
        found = self.judge.top1(pictures, among or choices(self.judge, self.among))
        at = found.index(self.among[0]) if self.among[0] in found else 0
        self.seen.append((pictures[at], found[at]))
        return found


def the_one(concept: Mapping[str, str]) -> Concept:
    """The concept of a mapping from its name to its anchor, with the world's synonyms; MaceError for several."""
    if len(concept) != 1:
        raise MaceError(f"concept names {series(list(concept))}: give one name with its anchor.")
    return with_synonyms(Concept(*next(iter(concept.items()))))


def strangers(pipe, count: int) -> tuple[dict[str, list[Image.Image]], Nearest] | None:
    """Pictures of the first `count` of the shipped concepts that the mini world lacks, and who tells them from its own.

    None for a model without a catalogue, whose foreign concepts are its user's to give.
    """
    if family_of(pipe).catalogue is None:
        return None
    foreign = read_pictures(data_folder() / "attacks" / "foreign")
    foreign = {name: foreign[name] for name in list(foreign)[:count]}
    return foreign, Nearest(classifier_for(pipe, "styles"), mini.shown() | foreign)


def run(
    pipe, edits: Mapping[str, Any], concept: Concept, names: Sequence[str], judge, *, among: Sequence[str],
    foreign=None, settings: Mapping[str, Mapping] | None = None, **drawing,
) -> tuple[Result, dict[tuple, list]]:  # fmt: skip
    """Every attack on every edit with the controls that need no other model, each shared run once.

    edits: by method. among: further names, for a judge without a list of its own. foreign: of `strangers`. settings: by
    attack. drawing: seeds, steps, guidance, batch.
    Returns the rows, and by (attack, control, method) of the concept what the judge saw: a (picture, verdict) each time
    it was asked: of pictures to be learned from, if it has any, then of un-attacked and attacked ones.
    """
    result, seen = Result(), {}
    for name in names:
        options = {"settings": (settings or {}).get(name), **drawing}
        ways = [("original", "original", None)]
        ways += [(method, control, edit) for method, edit in edits.items() for control in ("none", "no-attack")]
        for method, control, edit in ways:
            witness = Witness(judge, [concept.name, *among])
            result += attack(pipe, edit, concept, name, judge=witness, control=control, **options).called(method=method)
            seen[name, control, method] = witness.seen
        for word, pictures in (foreign[0] if foreign else {}).items():
            strange = Concept(word, "a thing", concept.kind)
            told = {"judge": foreign[1], "control": "foreign", "pictures": pictures}
            for method, edit in edits.items():
                result += attack(pipe, edit, strange, name, **told, **options).called(method=method)
    return result, seen


def found(result: Result, seen: Mapping[tuple, list], name: str, control: str, method: str) -> list[tuple]:
    """(variant, picture, verdict) of an attack that is no search, of the first prompt and seed.

    Un-attacked pictures that were looked at stand before what was tried beside them. Of the best of several pictures
    the one that shows the concept, if any does.
    """
    if named(name).search:
        raise MaceError(f"{name} is one search: only its last try has a row. Choose one whose tries all have rows.")
    rows = [row for row in result.rows if (row["attack"], row["control"], row["method"]) == (name, control, method)]
    variants, before = [], None
    for row in (row for row in rows if row["seed"] == rows[0]["seed"]):
        new = [f"un-attacked, {row['before']}" if before else "un-attacked"] if row["before"] != before else []
        variants, before = [*variants, *new, row["variant"]], row["before"]
    shown = seen[name, control, method][named(name).pictures :]
    return [(variant, *one) for variant, one in zip(variants, shown, strict=False)]


def pictures(result: Result, seen: Mapping[tuple, list], name: str, methods: Sequence[str], title: str):
    """What an attack found, variant by variant: the original's pictures above each method's. None for a search."""
    if named(name).search:
        return None
    ways = {"original": "original", **dict.fromkeys(methods, "none")}
    shown = {method: found(result, seen, name, control, method) for method, control in ways.items()}
    if not (shown := {method: some for method, some in shown.items() if some}):
        return None
    labels = [variant for variant, *_ in max(shown.values(), key=len)]
    return grid([[picture for _, picture, _ in some] for some in shown.values()], list(shown), labels, title)


def frame(rows: Sequence[Mapping]) -> pd.DataFrame:
    """The success rates of a results file: a row per attack, control, method and variant, in `COLUMNS`.

    ASR with its interval, and less the foreign control's of the same variant, with the interval of that. A method is
    named with its settings, as in `recorded.label`.
    """
    table = pd.DataFrame([row | {"method": label(row)} for row in rows if row["metric"] in (*RATES, FOREIGN)])
    if not len(table):
        return pd.DataFrame(columns=COLUMNS)
    of = {metric: table[table.metric == metric].set_index(list(KEYS)) for metric in (*RATES, FOREIGN)}
    after = of["ASR"].rename(columns={"mean": "ASR"}).join(of["pre-ASR"]["mean"].rename("pre-ASR"))
    return after.join(of[FOREIGN][list(PAIRED)].rename(columns=PAIRED)).reset_index()[COLUMNS]


def strongest(table: pd.DataFrame) -> pd.DataFrame:
    """Of each attack, control and method the variant with the highest ASR; table: of `frame`."""
    if not len(table):
        return table
    return table.loc[table.groupby(list(KEYS[:3]), sort=False).ASR.idxmax()].reset_index(drop=True)


def figure(table: pd.DataFrame, columns: int = 3) -> Figure:
    """ASR with its 95 % interval, the strongest variant: a panel per attack, a row per method and control.

    A tick stands at the pre-ASR.
    """
    groups = list(strongest(table).groupby("attack", sort=False))
    most = max((len(rows) for _, rows in groups), default=1)
    fig, axes = tiles(len(groups), columns, 3.2, 0.8 + 0.2 * most)
    for (name, rows), ax in zip(groups, axes, strict=True):
        order = sorted(rows.to_dict("records"), key=lambda row: (CONTROLS.index(row["control"]), row["method"]))[::-1]
        for y, row in enumerate(order):
            color = COLORS[CONTROLS.index(row["control"]) % len(COLORS)]
            ax.plot([row["low"], row["high"]], [y, y], color=color, linewidth=1.2)
            ax.plot(row["ASR"], y, "o", color=color, markersize=4)
            ax.plot(row["pre-ASR"], y, "|", color="#555555", markersize=8)
        ax.set_yticks(range(len(order)), [_who(row) for row in order], fontsize=6)
        ax.set(xlim=(-3, 103))
        ax.set_title(f"{name}: ASR, percent", fontsize=8)
    return fig


def _who(row: Mapping) -> str:
    """The method, and the control where it is one."""
    if row["control"] == "none":
        return row["method"]
    return row["control"] if row["method"] == row["control"] else f"{row['method']}, {row['control']}"


def curves(table: pd.DataFrame) -> pd.DataFrame:
    """The rates of attacks in `CURVES` by the number `at` of their variants, a line `who`; table: of `frame`."""
    at = pd.to_numeric(table.variant.str.extract(r"^(\d+(?:\.\d+)?) ", expand=False))
    some = table.assign(at=at, who=[_who(row) for row in table.to_dict("records")])
    return some[at.notna() & table.attack.isin(list(CURVES))].sort_values(["attack", "at"], ignore_index=True)


def curves_figure(table: pd.DataFrame) -> Figure:
    """ASR with its 95 % interval: a panel per attack, a line per method and control; table: of `curves`."""
    groups, names = list(table.groupby("attack", sort=False)), list(dict.fromkeys(table.who))
    fig, axes = tiles(len(groups), max(1, len(groups)), 3.8, 3.4)
    for (name, rows), ax in zip(groups, axes, strict=True):
        for who, of in rows.groupby("who", sort=False):
            i = names.index(who)
            style = {"color": COLORS[i % len(COLORS)], "linestyle": ("-", "--", ":")[i // len(COLORS) % 3]}
            ends = [of.ASR - of.low, of.high - of.ASR]
            ax.errorbar(of["at"], of.ASR, ends, label=who, marker="o", markersize=3, linewidth=1.2, capsize=2, **style)
        ax.set(ylim=(-3, 103))
        ax.set_xlabel(CURVES[name], fontsize=8)
        ax.set_title(f"{name}: ASR, percent", fontsize=8)
    shown = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(shown.values(), shown.keys(), fontsize=6, frameon=False, loc="outside lower center", ncols=4)
    return fig


def margins(table: pd.DataFrame) -> pd.DataFrame:
    """By attack and method, the strongest variant's ASR less that of its controls, in points; NaN: not measured.

    Columns: ASR, low, high (95 %), those of `OVER`, below original, those of `PAIRED` (foreign's same variant).
    """
    best, rows, nan = strongest(table), {}, float("nan")
    at = {(row.attack, row.control, row.method): row.ASR for row in best.itertuples()}
    shared = {(row.attack, row.control): row.ASR for row in best.itertuples()}
    for row in best[best.control == "none"].itertuples():
        foreign = at.get((row.attack, "foreign", "original"), nan)  # one for all methods, or
        floors = {
            "no-attack": at.get((row.attack, "no-attack", row.method), nan),
            "foreign": at.get((row.attack, "foreign", row.method), foreign),  # its own
            "never-knew": shared.get((row.attack, "never-knew"), nan),
        }
        over = {f"over {control}": row.ASR - floor for control, floor in floors.items()}
        over["below original"] = shared.get((row.attack, "original"), nan) - row.ASR
        rate, paired = ({name: getattr(row, name) for name in some} for some in (RATE, PAIRED.values()))
        rows[row.attack, row.method] = {**rate, **over, **paired}
    if not rows:
        return pd.DataFrame(columns=[*RATE, *(f"over {of}" for of in OVER), "below original", *PAIRED.values()])
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["attack", "method"])


def margins_figure(table: pd.DataFrame) -> Figure:
    """`margins` over the controls: a panel per control of `OVER`, a line per attack, a point per method."""
    columns = [column for column in (f"over {control}" for control in OVER) if table[column].notna().any()]
    attacks, methods = (list(dict.fromkeys(table.index.get_level_values(level))) for level in ("attack", "method"))
    fig, axes = tiles(len(columns), max(1, len(columns)), 3.4, 0.9 + 0.12 * len(attacks) * (len(methods) + 1))
    for column, ax in zip(columns, axes, strict=True):
        for (name, method), value in table[column].dropna().items():
            i = methods.index(method)
            y = len(attacks) - 1 - attacks.index(name) + 0.4 - 0.8 * (i + 0.5) / len(methods)
            ax.plot(value, y, "o", color=COLORS[i % len(COLORS)], markersize=4, label=method)
        ax.axvline(0, color="#555555", linewidth=0.8)
        ax.set_yticks(range(len(attacks)), attacks[::-1], fontsize=6)
        ax.set_title(f"{column}, points of ASR", fontsize=8)
    shown = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    fig.legend(shown.values(), shown.keys(), fontsize=6, frameon=False, loc="outside lower center", ncols=4)
    return fig


def spent(rows: Sequence[Mapping]) -> pd.DataFrame:
    """Mean passes and pictures per prompt and seed, by attack; of attacks on an erasure alone (control none).

    What a variant spent is what was spent up to there, so that of an attack's variants the dearest holds all of them.
    """
    what, apart = ("forward passes", "backward passes", "pictures"), ["method", "settings"]
    table = pd.DataFrame([row for row in rows if row["control"] == "none" and row["metric"] in what])
    if not len(table):
        return pd.DataFrame(columns=what)
    whole = table.groupby(["attack", "metric", *apart], sort=False)["mean"].max()
    return whole.groupby(["attack", "metric"], sort=False).mean().unstack()[list(what)]


# --- what a run found


def margins_said(table: pd.DataFrame) -> str:
    """What comes back by which attack, and how much more than under each control that was measured."""
    if not len(table):
        return "No attack on an erasure is among the rows."
    told = []
    for (name, method), row in table.iterrows():
        text = f"{name} on {method}: {row.ASR:.0f} % ({row.low:.0f} to {row.high:.0f})"
        for control, what in OVER.items():
            if not pd.isna(row[f"over {control}"]):
                text += f", {row[f'over {control}']:+.0f} over {what}"
            if control == "foreign" and not pd.isna(row.paired):
                text += f"; same variant, paired: {row.paired:+.0f} ({row.paired_low:+.0f} to {row.paired_high:+.0f})"
        told.append(text)
    return f"{'; '.join(told)} (points)."


def curves_said(table: pd.DataFrame) -> str:
    """The ends of each curve; table: of `curves`."""
    told: dict[str, list[str]] = {}
    for (name, who), rows in table.groupby(["attack", "who"], sort=False):
        first, last = rows.iloc[0], rows.iloc[-1]
        ends = f"{first.ASR:.0f} % at {first['at']:g} to {last.ASR:.0f} % at {last['at']:g}"
        told.setdefault(f"{name} ({CURVES[name]})", []).append(f"{who} {ends}")
    return " ".join(f"ASR by {what}: {'; '.join(some)}." for what, some in told.items())


def controls_said(table: pd.DataFrame) -> str:
    """How many pictures stand behind a rate, and which controls there are of each attack."""
    by = {name: [c for c in CONTROLS if c in set(rows.control)] for name, rows in table.groupby("attack", sort=False)}
    told = [f"{name}: {series(some, 99)}" for name, some in by.items()]
    widest = (table.high - table.low).max()
    least = f" The smallest n is {table.n.min()}, the widest interval {widest:.0f} points." if len(table) else ""
    return f"Controls measured: {'; '.join(told) or 'none'}.{least}"


def missing_said(not_measured: Sequence[Mapping]) -> str:
    """What could not be measured, by reason."""
    reasons: dict[str, list[str]] = {}
    for line in not_measured:
        what = f"{line.get('attack', line['method'])}, {line.get('control', 'all')}"
        reasons.setdefault(line["why"], []).append(what)
    told = [f"{series(list(dict.fromkeys(some)))} ({why.rstrip('.')})" for why, some in reasons.items()]
    return f"Not measured: {'; '.join(told)}." if told else ""
