"""What is recorded, as pages show it: a table of every task in Markdown, its figure, and the README's place for both.

The README's tables stand between the marks `<!-- results TASK -->` and `<!-- study STUDY -->` and their ends; a figure
is drawn where the README names `data/readme/results-TASK.png`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import MaceError
from ..evaluate import record, results
from ..evaluate.numbers import DIFFERENCE
from ..files import atomic, data_folder, into_marks
from .plan import BEST, PRESET
from .rows import COMBINE

SHOWN = ("Acc_e", "Acc_s", "Acc_g", "CLIP_e", "CLIP_s", "Acc_a", "residual")
BESIDE = ("no-attack", "foreign")  # controls that stand beside a method's rate
MARKED = re.compile(r"<!-- (results|study) ([\w-]+) -->\n(.*?)\n?<!-- end of \1 \2 -->", re.DOTALL)


def markdown(whole: Mapping[str, Any]) -> str:
    """The table of a results file, a row per method and settings (of attacks: and attack), and how it was made."""
    if any("attack" in row for row in whole["rows"]):
        return _attacks(whole)
    tasks = dict.fromkeys(row["task"] for row in whole["rows"])
    rows: dict[tuple[str, ...], dict[str, dict]] = {}
    for row in whole["rows"]:
        task = (row["task"],) if len(tasks) > 1 else ()
        rows.setdefault((*task, row["method"], row["settings"]), {})[row["metric"]] = row
    every = {metric for of in rows.values() for metric in of}
    shown = [metric for metric in SHOWN if metric in every]
    combined = [metric for metric in COMBINE if metric in every]  # one, or one by task
    differences = [f"{metric} {DIFFERENCE}" for metric in combined]
    against = next((of[d]["against"] for of in rows.values() for d in differences if d in of), None)
    title = " or ".join(combined)
    head = [
        *(["Task"] if len(tasks) > 1 else []),
        "Method",
        "Settings",
        *shown,
        *([title, f"95 % of {title}"] if combined else []),
    ]
    head += [f"less {against}'s"] if against else []
    head += ["Time, s"] if "time, s" in every else []
    lines = [head, ["---"] * len(head)]
    for key, of in rows.items():
        cells = [_mean(of.get(metric)) for metric in shown]
        joint, paired = (next(filter(None, map(of.get, some)), None) for some in (combined, differences))
        cells += [_mean(joint), _ends(joint)] if combined else []
        if against:
            cells.append(" ".join(filter(None, [_mean(paired, "+"), _ends(paired, "+", True)])))
        cells += [_mean(of.get("time, s"))] if "time, s" in every else []
        among = next(iter(of.values())).get("chosen_among") or 1
        lines.append([*key[:-1], f"{key[-1]}, of {among}" if among > 1 else key[-1], *cells])
    return "\n".join([*map(_line, lines), "", _how(whole)])


def _attacks(whole: Mapping[str, Any]) -> str:
    """A row per attack and method, and for the original and one that never knew: each with its strongest variant."""
    best = _strongest(whole["rows"])
    lines = [["Attack", "Method", "Settings", "Variant", "pre-ASR", "ASR", "95 % of ASR", "no attack", "foreign", "n"]]
    lines.append(["---"] * len(lines[0]))
    for (attack, control, method, settings), of in best.items():
        if control not in BESIDE:
            own = [best.get((attack, beside, method, settings), {}).get("ASR") for beside in BESIDE]
            if control == "none" and own[1] is None:  # one for all methods
                own[1] = best.get((attack, "foreign", "original", ""), {}).get("ASR")
            cells = _mean(of.get("pre-ASR")), _mean(of["ASR"]), _ends(of["ASR"]), *map(_mean, own)
            lines.append([attack, method, settings, of["ASR"]["variant"], *cells, str(of["ASR"]["n"])])
    return "\n".join([*map(_line, lines), "", _how(whole)])


def _strongest(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str, str], dict[str, dict]]:
    """By attack, control, method and settings the rates of the variant with the highest ASR, the first such."""
    found: dict[tuple, dict[str, dict[str, dict]]] = {}
    for row in rows:
        key = row["attack"], row["control"], row["method"], row["settings"]
        found.setdefault(key, {}).setdefault(row["variant"], {})[row["metric"]] = row
    return {key: max(of.values(), key=lambda rates: rates["ASR"]["mean"]) for key, of in found.items()}


def unmeasured(whole: Mapping[str, Any]) -> dict[str, list[str]]:
    """By reason what of a table of attacks was not measured: attack, control and method."""
    found: dict[str, list[str]] = {}
    for row in whole["not_measured"]:
        what = dict.fromkeys(filter(None, (row["attack"], row["control"], row["method"], row.get("settings"))))
        found.setdefault(row["why"], []).append(" ".join(what))
    return {why: [*dict.fromkeys(names)] for why, names in found.items()}


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _mean(row: Mapping[str, Any] | None, sign: str = "") -> str:
    return f"{row['mean']:{sign}.1f}" if row else ""


def _ends(row: Mapping[str, Any] | None, sign: str = "", brackets: bool = False) -> str:
    if not row:
        return ""
    text = f"{row['low']:{sign}.1f} to {row['high']:{sign}.1f}"
    return f"({text})" if brackets else text


def _how(whole: Mapping[str, Any]) -> str:
    """What the table was made with, in a sentence or two."""
    about, pictures = whole["environment"], max((row["n"] for row in whole["rows"]), default=0)
    parts = [f"Profile {about['profile']}: {pictures:,} pictures a row"] if "profile" in about else []
    if "steps" in about:
        parts.append(f"{about['steps']} steps at {record.guidance(about)}")
    if isinstance(about.get("judge"), Mapping):
        parts.append(f"judged by {about['judge']['name']}")
    says = "; ".join(parts) + "." if parts else f"By {whole['command']}."
    says += _chosen(whole["rows"])
    missing = dict.fromkeys(row["method"] for row in whole["not_measured"] if row["metric"] == "all")
    return says + (f" Not measured: {', '.join(missing)}." if missing else "")


def _chosen(rows: Sequence[Mapping[str, Any]]) -> str:
    """How settings were chosen, as far as the rows say."""
    among, says = {row["method"]: row["chosen_among"] for row in rows if row.get("chosen_among", 1) > 1}, ""
    if among.keys() - {BEST}:
        says = " Tuned settings are the best of as many as stand beside them, on names that no task has."
    if BEST in among:
        says += f" {BEST} was chosen among {among[BEST]} settings"
        says += f", mace among {among['mace']}." if "mace" in among else ", of objects."
    if any(row["settings"] == PRESET for row in rows):
        says += " For names of this kind nothing was tuned: preset is MACE as it stands for this model, and "
        says += "differences are to its published settings."
    return says


def figure(whole: Mapping[str, Any]):
    """The combined metric of every row with its interval, best on top, or the attacks' rates: a matplotlib figure.

    None without one, and for a table of several tasks.
    """
    from matplotlib.figure import Figure

    if any("attack" in row for row in whole["rows"]):
        return _attacks_figure(whole)
    rows = [row for row in whole["rows"] if row["metric"] in COMBINE]
    if not rows or len({row["task"] for row in rows}) > 1:
        return None
    rows.sort(key=lambda row: row["mean"])
    made = Figure(figsize=(6, 0.6 + 0.25 * len(rows)), layout="constrained")
    axes, mean = made.subplots(), [row["mean"] for row in rows]
    ends = [[row["mean"] - row["low"] for row in rows], [row["high"] - row["mean"] for row in rows]]
    axes.errorbar(mean, range(len(rows)), xerr=ends, fmt="o", capsize=3)
    axes.set_yticks(range(len(rows)), [f"{row['method']} {row['settings']}".strip() for row in rows])
    axes.set_xlabel(f"{rows[0]['metric']}, 95 %")
    axes.grid(axis="x", alpha=0.3)
    return made


def _attacks_figure(whole: Mapping[str, Any]):
    """A panel per attack, a line per method: the strongest variant's ASR with its interval, its controls beside it."""
    from matplotlib.figure import Figure

    best = _strongest(whole["rows"])
    shown = list(dict.fromkeys(key[0] for key in best))
    names = list(dict.fromkeys(key[2:] for key in best))[::-1]
    made = Figure(figsize=(2 + 1.6 * len(shown), 0.8 + 0.25 * len(names)), layout="constrained")
    panels = made.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for attack, axes in zip(shown, panels, strict=True):
        for (of, control, *who), rates in best.items():
            if of == attack:
                y, asr = names.index(tuple(who)), rates["ASR"]
                axes.plot(asr["mean"], y, {"no-attack": "k|", "foreign": "rx"}.get(control, "bo"), zorder=2)
                if control not in BESIDE:
                    axes.plot([asr["low"], asr["high"]], [y, y], "b-", zorder=1)
        axes.set(title=attack, xlim=(-4, 104))
        axes.title.set_fontsize(8)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(names)), [" ".join(filter(None, who)) for who in names])
    made.supxlabel("ASR in percent with 95 %; bar: un-attacked, cross: a foreign concept", fontsize=8)
    return made


def tables() -> Iterator[tuple[str, str]]:
    """Every recorded table: the mark of its place, and its Markdown."""
    for name in results.recorded():
        yield f"results {name}", markdown(results.read(results.place(name)))
    for path in sorted((data_folder() / "studies").glob("*/metrics.csv")):
        yield f"study {path.parent.name}", record.markdown(path.parent)


def page(path: str | Path | None = None) -> Path:
    """The README of a checkout, unless another page is given."""
    return Path(path) if path else data_folder().parent / "README.md"


def render(path: str | Path | None = None) -> list[str]:
    """Put every recorded table into its place in the README, and draw the figures that it names; what was done."""
    readme, said = page(path), []
    for mark, text in tables():
        said.append(f"{mark}: {'shown' if into_marks(readme, mark, text) else 'has no place in ' + readme.name}")
    shown = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    for name in results.recorded():
        image = readme.parent / "data" / "readme" / f"results-{name}.png"
        if f"data/readme/{image.name}" in shown and (made := figure(results.read(results.place(name)))):
            with atomic(image) as temporary:
                made.savefig(temporary, dpi=120, metadata={"Software": None})
            said.append(str(image))
    return said or ["Nothing is recorded yet: mace compare --task objects --record."]


def disagreements(path: str | Path | None = None) -> list[str]:
    """Marks of tables in the README that are not what is recorded, or of which nothing is; MaceError: no README."""
    readme = page(path)
    try:
        shown = {f"{kind} {name}": text for kind, name, text in MARKED.findall(readme.read_text(encoding="utf-8"))}
    except OSError as error:
        raise MaceError(f"{readme} cannot be read ({error}): call this in a checkout.") from error
    known = dict(tables())
    return [mark for mark, text in shown.items() if known.get(mark) != text]
