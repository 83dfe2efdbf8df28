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
from ..files import atomic, data_folder, into_marks
from .rows import COMBINE, DIFFERENCE

SHOWN = ("Acc_e", "Acc_s", "Acc_g", "CLIP_e", "CLIP_s", "Acc_a", "residual")
MARKED = re.compile(r"<!-- (results|study) ([\w-]+) -->\n(.*?)\n?<!-- end of \1 \2 -->", re.DOTALL)


def markdown(whole: Mapping[str, Any]) -> str:
    """The table of a results file, a row per method and settings (of attacks: and control), and how it was made."""
    if any("attack" in row for row in whole["rows"]):
        return _attacks(whole)
    tasks = dict.fromkeys(row["task"] for row in whole["rows"])
    rows: dict[tuple[str, ...], dict[str, dict]] = {}
    for row in whole["rows"]:
        task = (row["task"],) if len(tasks) > 1 else ()
        rows.setdefault((*task, row["method"], row["settings"]), {})[row["metric"]] = row
    every = {metric for of in rows.values() for metric in of}
    shown = [metric for metric in SHOWN if metric in every]
    combined = next((metric for metric in COMBINE if metric in every), None)
    difference = f"{combined} {DIFFERENCE}"
    against = next((of[difference]["against"] for of in rows.values() if difference in of), None)
    head = [
        *(["Task"] if len(tasks) > 1 else []),
        "Method",
        "Settings",
        *shown,
        *([combined, f"95 % of {combined}"] if combined else []),
    ]
    head += [f"less {against}'s"] if against else []
    head += ["Time, s"] if "time, s" in every else []
    lines = [head, ["---"] * len(head)]
    for key, of in rows.items():
        cells = [_mean(of.get(metric)) for metric in shown]
        cells += [_mean(of.get(combined)), _ends(of.get(combined))] if combined else []
        if against:
            cells.append(" ".join(filter(None, [_mean(of.get(difference), "+"), _ends(of.get(difference), "+", True)])))
        cells += [_mean(of.get("time, s"))] if "time, s" in every else []
        lines.append([*key, *cells])
    return "\n".join([*map(_line, lines), "", _how(whole)])


def _attacks(whole: Mapping[str, Any]) -> str:
    rows: dict[tuple, dict[str, dict]] = {}
    for row in whole["rows"]:
        key = row["attack"], row["control"], row["method"], row["settings"]
        rows.setdefault(key, {})[row["metric"]] = row
    lines = [["Attack", "Control", "Method", "Variant", "pre-ASR", "ASR", "95 % of ASR", "n"], ["---"] * 8]
    for key, of in rows.items():
        asr = of.get("ASR")
        count = str(asr["n"]) if asr else ""
        lines.append([*key, _mean(of.get("pre-ASR")), _mean(asr), _ends(asr), count])
    return "\n".join(map(_line, lines))


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
    if "judge" in about:
        parts.append(f"judged by {about['judge']['name']}")
    says = "; ".join(parts) + "." if parts else f"By {whole['command']}."
    missing = dict.fromkeys(row["method"] for row in whole["not_measured"] if row["metric"] == "all")
    return says + (f" Not measured: {', '.join(missing)}." if missing else "")


def figure(whole: Mapping[str, Any]):
    """The combined metric of every row with its interval, best on top: a matplotlib figure.

    None without one, and for a table of several tasks.
    """
    from matplotlib.figure import Figure

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
