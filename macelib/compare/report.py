"""What is recorded, as pages show it: a table of every task in Markdown, and the README's place for it and its figure.

The README's tables stand between the marks `<!-- results TASK -->` and `<!-- study STUDY -->` and their ends; a figure
is drawn where the README names `data/readme/results-TASK.png`. `<!-- study short -->` has two studies in a row each,
`<!-- results agreement -->`, where it stands, the order of methods beside that of published tables.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import MaceError
from ..evaluate import record, results
from ..evaluate.attacked import FOREIGN
from ..evaluate.metrics import joint
from ..evaluate.numbers import DIFFERENCE
from ..files import data_folder, into_marks
from . import phenomena, published
from .counts import EITHER
from .distance import FRECHET, KERNEL
from .figures import BESIDE, draw, shows, strongest
from .plan import BEST, PRESET

SHOWN = ("Acc_e", EITHER, "Acc_s", "Acc_g", "CLIP_e", "CLIP_s", "Acc_a", "residual")
SHORT = {  # study -> its row in the short table
    "objects": "each of the paper's ten objects alone, mean",
    "characters": "a hundred characters together, a hundred kept",
}
DISTANCES = [FRECHET, KERNEL]  # of captions, of which nothing is counted
AGREEMENT = "results agreement"  # the mark of its place
PICTURE = re.compile(r"data/readme/(results-([\w-]+)\.png)")
MARKED = re.compile(r"<!-- (results|study) ([\w-]+) -->\n(.*?)\n?<!-- end of \1 \2 -->", re.DOTALL)


def markdown(whole: Mapping[str, Any]) -> str:
    """The table of a results file, a row per method and settings (of attacks: and attack), and how it was made."""
    if _attacked(whole):
        return _attacks(whole)
    tasks = dict.fromkeys(row["task"] for row in whole["rows"])
    rows: dict[tuple[str, ...], dict[str, dict]] = {}
    for row in whole["rows"]:
        task = (row["task"],) if len(tasks) > 1 else ()
        rows.setdefault((*task, row["method"], row["settings"]), {})[row["metric"]] = row
    every = {metric for of in rows.values() for metric in of}
    combined = joint(every)  # one, or one by task
    shown = [metric for metric in SHOWN if metric in every and metric not in combined]
    shown += DISTANCES if combined == ["CLIP_s"] else []
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
    head += [f"minus {against}"] if against else []
    head += ["Time, s"] if "time, s" in every else []
    lines = [head, ["---"] * len(head)]
    for key, of in rows.items():
        cells = [_mean(of.get(metric)) for metric in shown]
        whole_of, paired = (next(filter(None, map(of.get, some)), None) for some in (combined, differences))
        cells += [_mean(whole_of), _ends(whole_of)] if combined else []
        if against:
            cells.append(_paired(paired))
        cells += [_mean(of.get("time, s"))] if "time, s" in every else []
        among = next(iter(of.values())).get("chosen_among") or 1
        lines.append([*key[:-1], f"{key[-1]}, of {among}" if among > 1 else key[-1], *cells])
    return "\n".join([*map(_line, lines), "", _how(whole)])


def _attacks(whole: Mapping[str, Any]) -> str:
    """A row per attack and method, and for the original and one that never knew: each with its strongest variant."""
    best, tried = strongest(whole["rows"]), variants(whole["rows"])
    head = ["Attack", "Method", "Settings", "Variant", "pre-ASR", "ASR", "95 % of ASR", "no attack", "foreign"]
    lines = [[*head, "minus foreign", "n"], ["---"] * (len(head) + 2)]
    for (attack, control, method, settings), of in best.items():
        if control not in BESIDE:
            own = [best.get((attack, beside, method, settings), {}).get("ASR") for beside in BESIDE]
            if control == "none" and own[1] is None:  # one for all methods
                own[1] = best.get((attack, "foreign", "original", ""), {}).get("ASR")
            count, gap = tried[attack, control, method, settings], of.get(FOREIGN)
            variant = of["ASR"]["variant"] + (f" (of {count} variants)" if count > 1 else "")
            cells = _mean(of.get("pre-ASR")), _mean(of["ASR"]), _ends(of["ASR"]), *map(_mean, own), _paired(gap)
            lines.append([attack, method, settings, variant, *cells, str(of["ASR"]["n"])])
    return "\n".join([*map(_line, lines), "", _how(whole)])


def unmeasured(whole: Mapping[str, Any]) -> dict[str, list[str]]:
    """By reason what of a table of attacks was not measured: attack, control, method, and the concepts if only some."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for row in whole["not_measured"]:
        what = dict.fromkeys(filter(None, (row["attack"], row["control"], row["method"], row.get("settings"))))
        found.setdefault(row["why"], {}).setdefault(" ".join(what), {})[row.get("concept", "")] = None
    return {why: [_of_some(what, [*filter(None, some)]) for what, some in of.items()] for why, of in found.items()}


def _of_some(what: str, concepts: list[str]) -> str:
    return f"{what} ({', '.join(concepts)})" if concepts else what


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _mean(row: Mapping[str, Any] | None, sign: str = "") -> str:
    return f"{row['mean']:{sign}{'.3g' if row['metric'] in DISTANCES else '.1f'}}" if row else ""


def _ends(row: Mapping[str, Any] | None, sign: str = "") -> str:
    return f"{row['low']:{sign}.1f} to {row['high']:{sign}.1f}" if row else ""


def _paired(row: Mapping[str, Any] | None) -> str:
    """A difference with its interval."""
    return f"{_mean(row, '+')} ({_ends(row, '+')})" if row else ""


def _how(whole: Mapping[str, Any]) -> str:
    """What the table was made with, in a sentence or two."""
    about, pictures = whole["environment"], max((row["n"] for row in whole["rows"]), default=0)
    parts = [f"Profile {about['profile']}: {pictures:,} pictures a row"] if "profile" in about else []
    if "steps" in about:
        parts.append(f"{about['steps']} steps at {record.guidance(about)}")
    if isinstance(about.get("judge"), Mapping):
        parts.append(f"judged by {about['judge']['name']}")
    says = "; ".join(parts) + "." if parts else f"By {whole['command']}."
    if _attacked(whole):
        return says + _against_all(whole)
    says += _chosen(whole["rows"])
    missing = dict.fromkeys(row["method"] for row in whole["not_measured"] if row["metric"] == "all")
    return says + (f" Not measured: {', '.join(missing)}." if missing else "")


def _attacked(whole: Mapping[str, Any]) -> bool:
    return any("attack" in row for row in (*whole["rows"], *whole["not_measured"]))


def _against_all(whole: Mapping[str, Any]) -> str:
    """How variants of attacks were chosen, and what was not measured."""
    says = ""
    if max(variants(whole["rows"]).values(), default=1) > 1:
        says += " Of several variants the one with the highest ASR is shown, chosen after the fact; so is that of the "
        says += "foreign concepts. The interval leaves this choice out, and un-attacked pictures have none."
    if any(row["metric"] == FOREIGN for row in whole["rows"]):
        says += " Minus foreign: paired, by the same variant, with 95 %."
    for why, names in unmeasured(whole).items():
        says += f" Not measured: {', '.join(names)}: {why.rstrip('.')}."
    return says


def _chosen(rows: Sequence[Mapping[str, Any]]) -> str:
    """How settings were chosen, as far as the rows say."""
    among, says = {row["method"]: row["chosen_among"] for row in rows if row.get("chosen_among", 1) > 1}, ""
    if among.keys() - {BEST}:
        says = " Tuned settings are the best of as many as stand beside them, on names that no task has."
    if BEST in among:
        says += f" {BEST} was chosen among {among[BEST]} settings"
        says += f", mace among {among['mace']}." if "mace" in among else ", of objects."
    if any(row["settings"] == PRESET for row in rows):
        says += " For names of this kind nothing was tuned: preset is MACE as it stands for this model, and another "
        says += "method as it was tuned for objects; differences are to MACE's published settings."
    return says


def variants(rows: Sequence[Mapping[str, Any]]) -> Counter:
    """By attack, control, method and settings how many variants there are rates of."""
    return Counter(
        (row["attack"], row["control"], row["method"], row["settings"]) for row in rows if row["metric"] == "ASR"
    )


def short() -> str:
    """Two studies in a row each: the erased model, the mean of several erasures; "" where neither is recorded."""
    some, lines = ("Acc_e", "Acc_g", "Acc_s"), []
    for study, what in SHORT.items():
        if (path := data_folder() / "studies" / study / "metrics.csv").is_file():
            table = pd.read_csv(path)
            of = table[table.model == "erased"].groupby("metric").value.last()  # the mean is the last row
            (name,) = joint(of.index)
            lines.append([what, *(f"{of[m]:.1f}" if m in of else "" for m in some), f"{name} {of[name]:.1f}"])
    return "\n".join(map(_line, [["Erased", *some, "Joint"], ["---"] * 5, *lines])) if lines else ""


def tables() -> Iterator[tuple[str, str]]:
    """Every recorded table: the mark of its place, and its Markdown."""
    if text := short():
        yield "study short", text
    for name in results.recorded():
        yield f"results {name}", markdown(results.read(results.place(name)))
    for path in sorted((data_folder() / "studies").glob("*/metrics.csv")):
        yield f"study {path.parent.name}", record.markdown(path.parent)


def card_page() -> Path:
    """The card of the model that the records are of."""
    return data_folder() / "mini-sd" / "README.md"


def page(path: str | Path | None = None) -> Path:
    """The README of a checkout, unless another page is given."""
    return Path(path) if path else data_folder().parent / "README.md"


def render(path: str | Path | None = None) -> list[str]:
    """Put every recorded table into its place in the README, and draw the figures that it names; what was done.

    A table without a place gets one after the last one of its kind, or of the other.
    """
    readme, said = page(path), []
    for mark, text in tables():
        said.append(f"{mark}: {'shown' if record.put(readme, mark, text) else 'has no place in ' + readme.name}")
    for image, name in _pictures(readme).items() if readme.is_file() else ():
        if name in results.recorded() and draw(results.read(results.place(name)), image):
            said.append(str(image))
    if readme.is_file() and f"<!-- {AGREEMENT} -->" in readme.read_text(encoding="utf-8"):
        into_marks(readme, AGREEMENT, published.markdown())
        said.append(f"{AGREEMENT}: shown")
    if (shown := phenomena.text()) and into_marks(card_page(), phenomena.MARK, shown):
        said.append(f"{phenomena.MARK}: shown in {card_page()}")
    return said or ["Nothing is recorded yet: mace compare --task objects --profile recorded --record."]


def disagreements(path: str | Path | None = None) -> list[str]:
    """Marks of tables, and figures, of which the README does not show what is recorded, or shows what is not.

    MaceError: no README.
    """
    readme = page(path)
    try:
        shown = {f"{kind} {name}": text for kind, name, text in MARKED.findall(readme.read_text(encoding="utf-8"))}
    except OSError as error:
        raise MaceError(f"{readme} cannot be read ({error}): call this in a checkout.") from error
    known, there = dict(tables()), results.recorded()
    if AGREEMENT in shown:
        known[AGREEMENT] = published.markdown()
    wrong = [mark for mark in {**shown, **known} if known.get(mark) != shown.get(mark)]
    for image, name in _pictures(readme).items():
        if name not in there or not shows(image, results.read(results.place(name))):
            wrong.append(f"data/readme/{image.name}")
    card = card_page().read_text(encoding="utf-8") if card_page().is_file() else ""
    if f"<!-- {phenomena.MARK} -->" in card and phenomena.text() not in card:
        wrong.append(f"{phenomena.MARK} in {card_page()}")
    return wrong


def _pictures(readme: Path) -> dict[Path, str]:
    """The figures that a README names, and the task of each."""
    named = PICTURE.findall(readme.read_text(encoding="utf-8"))
    return {readme.parent / "data" / "readme" / file: name for file, name in named}
