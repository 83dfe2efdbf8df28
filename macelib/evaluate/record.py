"""Studies of the paper's protocols whose tables are kept in `data/studies` and shown in the README of a checkout."""

import json
import logging
import re
from pathlib import Path

import pandas as pd

from ..errors import MaceError
from ..files import data_folder, into_marks, write_text
from ..reading import flatten
from .companions import Pairs
from .keeping import Keeping
from .tables import Evaluation, save_tables
from .tuning import Tuning

log = logging.getLogger(__name__)
END = r"<!-- end of (?:{}) [\w-]+ -->"


def record(study: str, result: Evaluation | Pairs | Keeping | Tuning, folder: str | Path | None = None) -> Path:
    """Keep a study's tables in `folder` (None: `data/studies/{study}`, and in the README, between its marks)."""
    place = Path(folder) if folder else data_folder() / "studies" / study
    tables = {name: getattr(result, name).round(2) for name in ("metrics", "concepts") if hasattr(result, name)}
    save_tables(place, result.settings, **tables)
    if folder is None:
        show(data_folder().parent / "README.md", study, markdown(place))
    return place


def show(page: Path, study: str, text: str) -> None:
    """Put a study's tables between its marks in a page, as `put`; with a warning where it has no place for any."""
    if not put(page, f"study {study}", text):
        log.warning("%s shows no studies: the tables of %s are in data/studies alone.", page, study)


def put(page: Path, mark: str, text: str) -> bool:
    """Put a table between its marks in a page; False where there is no place for any.

    mark: "study NAME" or "results NAME". One without a place gets it after the last one of its kind, or of the other.
    """
    if into_marks(page, mark, text):
        return True
    whole = page.read_text(encoding="utf-8") if page.is_file() else ""
    for kinds in (mark.partition(" ")[0], "study|results"):
        if ends := [found.end() for found in re.finditer(END.format(kinds), whole)]:
            before, rest = whole[: ends[-1]], whole[ends[-1] :].removeprefix("\n")
            write_text(page, f"{before}\n\n<!-- {mark} -->\n{text}\n<!-- end of {mark} -->\n{rest}")
            return True
    return False


def recorded(study: str) -> str:
    """A study's tables as they are kept in `data/studies`, in Markdown; MaceError where there are none."""
    place = data_folder() / "studies" / study
    if not (place / "metrics.csv").is_file():
        known = ", ".join(sorted(path.parent.name for path in place.parent.glob("*/metrics.csv"))) or "none"
        raise MaceError(f"No study {study!r} is recorded in {place.parent}; there are {known}.")
    return markdown(place)


def recorded_verdict(study: str) -> str:
    """A recorded study of several ways to erase the same, in a sentence: what was erased, and the ways in order.

    Two neighbours are told apart where their 95 % intervals do not meet. MaceError as `recorded`.
    """
    recorded(study)
    place = data_folder() / "studies" / study
    metrics = pd.read_csv(place / "metrics.csv")
    settings = json.loads((place / "settings.json").read_text(encoding="utf-8"))
    name = metrics.metric.iloc[-1]
    rows = metrics[(metrics.metric == name) & (metrics.model == "erased")].sort_values("value", ascending=False)
    told = [f"{r.erased} {r.value:.1f}" for r in rows.itertuples()]
    best = rows.iloc[0]
    near = [r.erased for r in rows.iloc[1:].itertuples() if r.high >= best.low]
    concepts = [concept["name"] for concept in settings["config"][0]["concepts"]]
    more = f" and {len(concepts) - 3} more" if len(concepts) > 3 else ""
    end = f"Not told apart from the first, as their intervals meet: {'; '.join(near)}." if near else "The first leads."
    return f"Erased: {' + '.join(concepts[:3])}{more}. By {name}: {'; '.join(told)}. {end}"


def markdown(place: str | Path) -> str:
    """The recorded tables in Markdown: a row per erasure and model, in percent, with the combined metric's interval."""
    metrics = pd.read_csv(Path(place) / "metrics.csv")
    settings = json.loads((Path(place) / "settings.json").read_text(encoding="utf-8"))
    for column, of in (("order", _pairs), ("difference", _keeping), ("chosen", _tuning)):
        if column in metrics:
            return of(metrics, settings)
    names = list(dict.fromkeys(metrics.metric))
    cells = metrics.set_index(["erased", "model", "metric"])
    lines = [["Erased", "Model", *names, f"95 % of {names[-1]}"], ["---"] * (len(names) + 3)]
    several, first = metrics.erased.nunique() > 1, metrics.erased.iloc[0]
    one_original = not metrics.erased.str.startswith("mean of").any()  # of other ways to erase the same
    for erased, model in dict.fromkeys(zip(metrics.erased, metrics.model, strict=True)):
        if several and model == "original" and not (erased.startswith("mean of") or (one_original and erased == first)):
            continue  # of the single ones, the erased model alone
        rows = [cells.loc[(erased, model, name)] for name in names]
        interval = f"{rows[-1].low:.1f} to {rows[-1].high:.1f}"
        what = "none" if several and one_original and model == "original" else erased
        lines.append([what, model, *(f"{row.value:.1f}" for row in rows), interval])
    how = (
        f"{int(metrics.images.max()):,} pictures in {settings['steps']} steps"
        f" ({settings.get('autocast') or 'fp32'}) at {guidance(settings)}, {settings['classifier']}'s top-1"
        f" among {'all that it knows' if settings['among'] == 'known' else 'the classes'}."
    )
    how += f" Erased with {settings['preset']}." if "preset" in settings else ""
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", how])


def guidance(settings: dict) -> str:
    return "the model's own guidance" if settings["guidance"] is None else f"guidance {settings['guidance']:g}"


def _pairs(metrics: pd.DataFrame, settings: dict) -> str:
    """A row per erasure and order: what is still seen, and what is lost, with their intervals."""
    lines = ["| Erased | Order | Erased thing seen | Companion lost | Pictures |", "| --- | --- | --- | --- | --- |"]
    for (erasure, order), rows in metrics.groupby(["erasure", "order"], sort=False):
        of = rows.set_index("metric")
        seen, lost = (f"{r.value:.1f} ({r.low:.1f} to {r.high:.1f})" for r in (of.loc["seen"], of.loc["lost"]))
        lines.append(f"| {erasure} | {order} | {seen} | {lost} | {of.loc['seen'].pictures} |")
    how = (
        f"{len(settings['companions'])} companions, {len(settings['seeds'])} seeds, {settings['steps']} steps "
        f"({settings.get('autocast') or 'fp32'}) at {guidance(settings)}; counted where the original "
        f"shows both, {settings['classifier']}'s top-1 of each half. Erased with {settings['preset']}."
    )
    return "\n".join([*lines, "", how])


def _keeping(metrics: pd.DataFrame, settings: dict) -> str:
    """A row per erasure and number of names to keep, with the paired difference and its interval."""
    lines = [
        "| Erased | Names to keep | Others recognised | Difference | 95 % of it |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in metrics.itertuples():
        ends = f"{row.low:+.1f} to {row.high:+.1f}" if row.kept else ""
        change = f"{row.difference:+.1f}" if row.kept else ""
        lines.append(f"| {row.erased} | {row.kept} | {row.value:.1f} | {change} | {ends} |")
    how = (
        f"{len(settings['names'])} names that were not mentioned, {len(settings['seeds'])} seeds, {settings['steps']} "
        f"steps ({settings.get('autocast') or 'fp32'}) at {guidance(settings)}; paired differences."
    )
    return "\n".join([*lines, "", how])


def _tuning(metrics: pd.DataFrame, settings: dict) -> str:
    """A row per point of the grid; the chosen ones are marked."""
    names = ["Acc_e", "Acc_s", "Acc_a", "H_c"]
    lines = [["Erased", "Settings", *names, "95 % of H_c", "Chosen"], ["---"] * (len(names) + 4)]
    for row in metrics.to_dict("records"):
        said = ", ".join(f"{name} {value}" for name, value in flatten(json.loads(row["settings"])).items())
        mark = "yes" if row["chosen"] else "refused" if pd.isna(row["H_c"]) else ""
        numbers = [f"{row[name]:.1f}" for name in names] + [f"{row['low']:.1f} to {row['high']:.1f}"]
        lines.append([row["erased"], said or "the preset", *([""] * 5 if mark == "refused" else numbers), mark])
    grid, kept = settings["grid"], len(settings["kept_names"])
    how = (
        f"Alone: {grid['few']} concepts one by one; together: {grid['many']} beside {kept} that are kept. "
        f"{len(settings['seeds'])} seeds, {settings['steps']} steps ({settings.get('autocast') or 'fp32'}) at "
        f"{guidance(settings)}, {settings['classifier']}'s top-1. The highest H_c is chosen."
    )
    if grid.get("cheaper"):
        how += " Of cheaper settings, the first is enough whose H_c is not below the interval of the first alone."
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", how])
