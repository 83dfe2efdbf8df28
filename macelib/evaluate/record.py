"""Studies of the paper's protocols whose tables are kept in `data/studies` and shown in the README of a checkout."""

import json
from pathlib import Path

import pandas as pd

from ..files import atomic, data_folder, into_marks
from .tables import Evaluation


def record(study: str, result: Evaluation, folder: str | Path | None = None) -> Path:
    """Keep a study's tables in `folder` (None: `data/studies/{study}`, and in the README, between its marks)."""
    place = Path(folder) if folder else data_folder() / "studies" / study
    for name in ("metrics", "concepts"):
        with atomic(place / f"{name}.csv") as temporary:
            getattr(result, name).round(2).to_csv(temporary, index=False)
    with atomic(place / "settings.json") as temporary:
        temporary.write_text(json.dumps(result.settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if folder is None:
        into_marks(data_folder().parent / "README.md", f"study {study}", markdown(place))
    return place


def markdown(place: str | Path) -> str:
    """The recorded tables in Markdown: a row per erasure and model, in percent, with the combined metric's interval."""
    metrics = pd.read_csv(Path(place) / "metrics.csv")
    settings = json.loads((Path(place) / "settings.json").read_text(encoding="utf-8"))
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
    guidance = "the model's own guidance" if settings["guidance"] is None else f"guidance {settings['guidance']:g}"
    how = (
        f"{int(metrics.images.max()):,} pictures in {settings['steps']} steps"
        f" ({settings.get('autocast') or 'fp32'}) at {guidance}, {settings['classifier']}'s top-1"
        f" among {'all that it knows' if settings['among'] == 'known' else 'the classes'}."
    )
    how += f" Erased with {settings['preset']}." if "preset" in settings else ""
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ["", how])
