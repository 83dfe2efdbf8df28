"""What is recorded of tasks and attacks in `data/results`: read where it is there, else the command that makes it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from .. import evaluate
from ..evaluate import results
from ..evaluate.metrics import LOW, joint
from ..files import data_folder
from ..models.pipelines import model_hash
from ..show.viz import COLORS, Figure
from .shared import panels, series, tiles

PARTS = {"scaling": (1, 3, 10, 30, 100, 300)}  # tasks whose counts are all in one file
ATTACKS = "attacks"
CHARACTERS = ("characters-1", "characters-5", "characters-10", "characters-30", "characters-50", "characters-100")
OURS = ("mace, tuned", "mace")  # labels of the row that others are compared with: the first that is there
PAIRED = " difference"  # behind a combined metric: the paired one to a reference, named in `against`


def found(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The results files of those tasks that are recorded, by name (see `evaluate.results`)."""
    return {name: results.read(results.place(name)) for name in names if results.place(name).is_file()}


def by_task(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same, a file of several tasks taken apart: "ablation, objects" and "ablation, characters-100"."""
    apart = {}
    for name, whole in tables.items():
        tasks = list(dict.fromkeys(row["task"] for row in whole["rows"]))
        for task in tasks if len(tasks) > 1 else ():
            of = {key: [row for row in whole[key] if row.get("task") == task] for key in ("rows", "not_measured")}
            about = whole["environment"].get(task, whole["environment"])
            apart[f"{name}, {task}"] = {**whole, **of, "environment": about}
        apart |= {} if len(tasks) > 1 else {name: dict(whole)}
    return apart


def heading(tables: Mapping[str, Mapping[str, Any]], pipe=None) -> str:
    """What stands before sentences on recorded tables: the models that they are of; "" without any.

    pipe: the pipeline at hand; it is said where one of them has other weights.
    """
    if not tables:
        return ""
    abouts = [about for whole in tables.values() for about in (whole["environment"], *whole["environment"].values())]
    abouts = [about for about in abouts if isinstance(about, Mapping) and about.get("model_name")]
    models = f", on {series(list(dict.fromkeys(about['model_name'] for about in abouts)), 99)}" if abouts else ""
    other = pipe is not None and {about["model"] for about in abouts if about.get("model")} - {model_hash(pipe)}
    return f"Recorded{models}{', with other weights than those loaded' if other else ''}."


def titled(name: str, whole: Mapping[str, Any], table: str, pipe=None) -> str:
    """The Markdown table of a recorded file with its name and its model above; pipe: as in `heading`."""
    return f"**{name}. {heading({name: whole}, pipe)}**\n\n{table}"


def command(name: str) -> str:
    """What records a task, or the attacks on one; the ablation is read out of the objects' table."""
    if name == ATTACKS:
        return "mace attack --task objects --out FOLDER --record"
    task = "objects" if name == "ablation" else name
    return f"mace compare --task {task} --profile recorded --record"


def missing_said(names: Sequence[str]) -> str:
    """One sentence on what is not recorded, with the command; "" where all is."""
    there = found(names)
    wanted = {name: [f"{name}-{n}" for n in PARTS[name]] if name in PARTS else [name] for name in names}
    held = {*there, *(row["task"] for name in there if name in PARTS for row in there[name]["rows"])}
    missing = [part for name, parts in wanted.items() for part in parts if part not in held]
    if not missing:
        return ""
    text = f"Not recorded yet: {series(missing, 99)}; `{command(missing[0])}` makes this table"
    every = " (the others alike). `make evidence` makes all of them, in a day or more on two cores."
    return text + (every if len(missing) > 1 else ".")


def study(name: str, pipe) -> str:
    """A recorded study of several ways to erase the same, in Markdown, and whether it is of this pipeline's weights.

    Where it is not recorded, the command that makes it.
    """
    if not (data_folder() / "studies" / name / "metrics.csv").is_file():
        return f"Not recorded yet: `mace study {name} --only ship --record --out FOLDER` makes this table."
    table = evaluate.recorded(name).replace("| Erased |", "| Way |", 1)
    settings = json.loads((data_folder() / "studies" / name / "settings.json").read_text(encoding="utf-8"))
    other = "" if settings["model"] == model_hash(pipe) else "**Recorded for other weights than those of this model.** "
    return f"{table}\n\n{other}{evaluate.recorded_verdict(name)}"


def label(row: Mapping[str, Any]) -> str:
    """A method as figures name it; its published settings go without saying.

    >>> label({"method": "uce", "settings": "published"}), label({"method": "uce", "settings": "tuned"})
    ('uce', 'uce, tuned')
    """
    return ", ".join(filter(None, [row["method"], "" if row["settings"] == "published" else row["settings"]]))


def rows(whole: Mapping[str, Any], metric: str | None = None) -> pd.DataFrame:
    """The rows of a results file as a table, with the column `label`; metric: of this one alone."""
    some = [{"label": label(row), **row} for row in whole["rows"] if metric in (None, row["metric"])]
    return pd.DataFrame(some, columns=None if some else ["label", "metric", "mean", "low", "high"])


def combined(whole: Mapping[str, Any]) -> str | None:
    """Which metric joins the others in a file; None where none does."""
    return next(iter(joint({row["metric"] for row in whole["rows"]})), None)


def tasks_figure(tables: Mapping[str, Mapping[str, Any]]) -> Figure | None:
    """The combined metric of every row with its 95 % interval, best on top, a panel per task; None without any."""
    tables = {name: whole for name, whole in tables.items() if combined(whole)}
    if not tables:
        return None
    most = max(len(rows(whole, combined(whole))) for whole in tables.values())
    fig, axes = tiles(len(tables), min(3, len(tables)), 3.4, 0.9 + 0.2 * most)
    for (name, whole), ax in zip(tables.items(), axes, strict=True):
        some = rows(whole, combined(whole)).sort_values("mean", ascending=combined(whole) not in LOW)
        for y, row in enumerate(some.itertuples()):
            color = COLORS[0] if row.method.startswith("mace") else COLORS[1]
            ax.plot([row.low, row.high], [y, y], color=color, linewidth=1.2)
            ax.plot(row.mean, y, "o", color=color, markersize=4)
        ax.set_yticks(range(len(some)), some.label, fontsize=6)
        ax.set_title(f"{name}: {combined(whole)}, 95 %", fontsize=8)
        ax.grid(axis="x", alpha=0.3)
    return fig


def task_said(name: str, whole: Mapping[str, Any]) -> str:
    """The best row of a task, and who is above and below the reference beyond the paired interval."""
    metric = combined(whole)
    if metric is None:
        return f"{name} has no combined metric."
    some = rows(whole, metric)
    best = some.loc[some["mean"].idxmin() if metric in LOW else some["mean"].idxmax()]
    end = "lowest" if metric in LOW else "highest"
    text = f"{name}: {metric} is {end} for {best.label} ({best['mean']:.1f}; {best.low:.1f} to {best.high:.1f})"
    paired = rows(whole, metric + PAIRED)
    if not len(paired):
        return text + "; nothing is compared pair by pair."
    told = {
        "above": paired[paired.low > 0],
        "below": paired[paired.high < 0],
        "not told apart": paired[(paired.low <= 0) & (paired.high >= 0)],
    }
    said = [f"{what}: {series(part.label, 99)}" for what, part in told.items()]
    return f"{text}. Against {paired.against.iloc[0]} on the same prompts and seeds, {'; '.join(said)}."


def unmeasured_said(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Which methods could not be measured on a task, and why."""
    told = [
        f"{line['method']} on {name} ({line['why'].rstrip('.')})"
        for name, whole in tables.items()
        for line in whole["not_measured"]
        if line["metric"] == "all"
    ]
    return f"Not measured: {series(told, 99)}." if told else ""


# --- what an erasure costs


def costs(whole: Mapping[str, Any]) -> pd.DataFrame:
    """By row of a task: seconds to build an edit, of which in the text encoder, peak MB, and the combined metric."""
    columns = {"seconds": "time, s", "in the text encoder": "time in the text encoder, s", "peak MB": "peak memory, MB"}
    columns |= {combined(whole): combined(whole)} if combined(whole) else {}
    table = {name: rows(whole, metric).groupby("label", sort=False)["mean"].first() for name, metric in columns.items()}
    return pd.DataFrame(table).dropna(subset=["seconds"]).sort_values("seconds")


def costs_figure(table: pd.DataFrame) -> Figure:
    """The combined metric of `costs` against the seconds that an edit takes, on a logarithmic axis."""
    fig, (ax,) = panels(1, 6.0, 3.2)
    metric = next(iter(joint(table)), None)
    y = table[metric] if metric else pd.Series(0.0, table.index)
    for i, name in enumerate(table.index):
        color = COLORS[0] if name.startswith("mace") else COLORS[1]
        ax.plot(max(table.seconds[name], 1e-3), y[name], "o", color=color, markersize=4)
        where = {"textcoords": "offset points", "fontsize": 6, "rotation": 20 * (i % 2)}
        ax.annotate(name, (max(table.seconds[name], 1e-3), y[name]), (3, 3), **where)
    ax.set(xscale="log")
    ax.set_xlabel("seconds to make the edit", fontsize=8)
    ax.set_ylabel(metric or "", fontsize=8)
    ax.grid(alpha=0.3)
    return fig


def costs_said(table: pd.DataFrame) -> str:
    """The cheapest and the dearest edit, and how many times MACE's each other one takes: the tuned one's, if any."""
    if not len(table):
        return "No edit's time is among the rows."
    first, last = table.iloc[0], table.iloc[-1]
    text = f"An edit takes {first.seconds:.2g} s ({first.name}) to {last.seconds:.2g} s ({last.name})."
    ours = next((name for name in OURS if name in table.index), None)
    if ours is None:
        return f"{text} mace is not among them."
    own = table.loc[ours]
    told = [f"{name} {seconds / own.seconds:.2g}" for name, seconds in table.seconds.drop(ours).items()]
    text = f"{text} As a multiple of the {own.seconds:.2g} s of {ours}: {series(told, 99)}."
    metric = next(iter(joint(table)), None)
    gain = 0 if metric is None else (table[metric] - own[metric]) * (-1 if metric in LOW else 1)
    better = table[(table.seconds < own.seconds) & (gain > 0)]
    return f"{text} Cheaper and with a better {metric or 'metric'}, intervals ignored: {series(better.index, 99)}."


def agreement_said(table: pd.DataFrame) -> str:
    """Whether ours puts methods in the order of published tables, block by block; table: of `compare.agreement`."""
    if not len(table):
        return "No published block has three methods in common with what is recorded: nothing can be said of its order."
    told = [
        f"{row.source} as our {row.task}, {row.settings} settings: τ = {row.tau:.2f} ({row.low:.2f} to {row.high:.2f})"
        f", {row.agree} of {row.pairs} pairs of {row.methods} methods agree (p = {row.p:.2f}"
        f"{'; the other way round: ' + row.apart if row.apart else ''}{'; equal: ' + row.tied if row.tied else ''})"
        for row in table.itertuples()
    ]
    return f"{'. '.join(told)}."
