"""What is chosen, as files: `tuned.yaml` in `data/results`, beside it `tuned.csv` with every point that was tried.

MACE's grids are files of `data/world`; what is chosen of them stands in its presets.
"""

import json
from pathlib import Path

import pandas as pd
import yaml

from ..files import atomic, data_folder, write_text
from ..reading import read_data
from . import results
from .tuning import KINDS, Grid, Tuning, tuned_kind

GRIDS = {"mace": ("tuning", "cheaper"), "mace-best": ("tuning", "cheaper", "best")}  # files, without their ending
HEAD = """\
# By method and kind of task: settings that were chosen on the names of data/world/split.json, by the highest H_c.
# Made by `mace study tuning --method NAMES --record`; every point that was tried is in tuned.csv.
"""


def record_tuned(result: Tuning, folder: str | Path | None = None) -> Path:
    """Keep what was chosen for a method; a kind of task that was not tuned anew stays as it is kept.

    folder: unless given `data/results`. MaceError: a tuned.yaml that cannot be read or written.
    """
    folder, name = Path(folder or results.folder()), result.settings["method"]
    path, table = folder / "tuned.yaml", folder / "tuned.csv"
    values = (read_data(path, "tuned settings")[0] if path.is_file() else None) or {}
    for row in result.metrics[result.metrics.chosen].to_dict("records"):
        point = result.settings["grid"][row["erased"]][row["point"] - 1]
        values.setdefault(name, {})[KINDS[row["erased"]]] = dict(point)
    about = {key: result.settings[key] for key in ("steps", "autocast")} | {"seeds": len(result.settings["seeds"])}
    about |= {"weights": result.settings["weights"][:12], "judge": result.settings["classifier"]}
    new = result.metrics.rename(columns={"erased": "kind"}).assign(**about).round(3)
    new = new.assign(kind=new.kind.map(KINDS))
    new.insert(0, "method", name)
    if table.is_file():
        old = pd.read_csv(table, keep_default_na=False, na_values=[""])
        stays = [(m, kind) not in {(name, k) for k in new.kind} for m, kind in zip(old.method, old.kind, strict=True)]
        new = pd.concat([old[stays], new]) if any(stays) else new
    with atomic(table) as temporary:
        new.to_csv(temporary, index=False)
    return write_text(path, HEAD + yaml.safe_dump(values, sort_keys=False, default_flow_style=None, allow_unicode=True))


def tried(kind: str, folder: Path | None = None) -> dict[str, int]:
    """By method of how many settings those for a kind of task were chosen, different ones; no method that is not tuned.

    What is no kind of the grids takes what was chosen for objects (`tuned_kind`), of MACE as "mace-best" alone. folder:
    of tuned.csv, as above. MaceError: a grid of MACE's that cannot be read.
    """
    table, lists = (folder or results.folder()) / "tuned.csv", {of: how for how, of in KINDS.items()}
    found: dict[str, int] = {}
    if table.is_file():
        rows = pd.read_csv(table)
        found = {name: int(count) for name, count in rows[rows.kind == tuned_kind(kind)].method.value_counts().items()}
    for name, files in GRIDS.items():
        if kind in lists or name == "mace-best":
            grids = [Grid.load(data_folder() / "world" / f"{file}.yaml") for file in files]
            some = ("together",) if lists.get(kind) == "together" else ("alone", "cheaper")
            points = [point for grid in grids for how, _, point in grid.points() if how in some]
            found[name] = len({json.dumps(point, sort_keys=True) for point in points})
    return found
