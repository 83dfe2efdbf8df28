"""Does a recorded task put methods in the order that published tables of Stable Diffusion v1.4 do?

Rows of one published block compare, those of two do not. Per block, Kendall's τ between its combined metric and ours,
the pairs of methods that agree, the chance of as many under a random order, and an interval by our bootstrap samples.
"""

import io
import json
from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import MaceError
from ..evaluate import results
from ..evaluate.metrics import interval, joint
from ..files import hash_text, write_text
from ..reading import read_text

LEAST = 3  # methods that both must have
NAMES = {  # what published tables call our methods
    "MACE": "mace", "MACE stage 1 only": "mace-stage-1", "MACE naive sum": "mace-added-up",
    "MACE without CFIS": "mace-without-cfis", "UCE": "uce", "ESD-u": "esd-u", "ESD-x": "esd-x", "SLD-M": "sld",
    "SPEED": "speed", "RECE": "rece", "OCE": "oce", "Semantic Surgery": "semantic-surgery", "SAFREE": "safree",
    "AdaVD": "adavd", "DP": "dp",
}  # fmt: skip
TASKS = {  # of a published task, ours: first its own, then those of equal load, for mini-SD's text is half as wide
    "objects": ("objects",),
    "celebrities-100": ("characters-100", "characters-50", "characters-30"),
}
SETTINGS = ("tuned", "published")
NOTHING = "No task is recorded of which published tables have three methods in common with ours."


def read_published(path: str | Path | None = None) -> pd.DataFrame:
    """The published rows: source, task, method (ours), h (percent). MaceError: a file without these columns."""
    path = Path(path or results.folder() / "published.csv")
    table = pd.read_csv(io.StringIO(read_text(path, "published numbers")), comment="#")
    if missing := [name for name in ("source", "task", "method", "h") if name not in table]:
        raise MaceError(f"{path} lacks the column {', '.join(missing)}: source, task, method and h are read.")
    table = table.assign(method=table.method.map(NAMES)).dropna(subset=["method", "h"])
    return table[["source", "task", "method", "h"]].reset_index(drop=True)


def kendall(a: Sequence[float], b: np.ndarray) -> np.ndarray:
    """Kendall's τ of one order (n,) with each row of others (..., n): agreeing less other pairs, of all pairs.

    >>> kendall([1, 2, 3], np.array([[1, 2, 3], [3, 2, 1], [1, 3, 2]])).round(3).tolist()
    [1.0, -1.0, 0.333]
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    pairs = [np.sign(a[i] - a[j]) * np.sign(b[..., i] - b[..., j]) for i, j in combinations(range(len(a)), 2)]
    return np.mean(pairs, axis=0)


def chance(a: Sequence[float], b: Sequence[float]) -> float:
    """The share of all orders of b that have at least the τ with a that b has: an exact one-sided permutation p.

    >>> round(chance([1, 2, 3], [4, 5, 6]), 4), chance([1, 2, 3, 4], [4, 3, 2, 1])
    (0.1667, 1.0)
    >>> round(chance([1, 2, 3], [1, 1, 2]), 4)  # two of the six orders are the same as the given one
    0.3333
    """
    orders = np.array([*permutations(b)], dtype=float)
    return float((kendall(a, orders) >= kendall(a, np.asarray(b)) - 1e-12).mean())


def agreement(folder: str | Path | None = None) -> pd.DataFrame:
    """A row per published block, our task and settings, of those that are recorded and have three methods in common.

    source, task, settings, methods, tau, low, high (95 %, by our bootstrap samples), agree, pairs, p, `apart`: pairs
    the other way round, and `tied`: those that are equal here or there, which neither agree nor are apart.
    folder: of the records and of published.csv, `data/results` unless given.
    """
    folder, rows = Path(folder or results.folder()), []
    for (source, theirs), block in read_published(folder / "published.csv").groupby(["source", "task"], sort=False):
        for name in TASKS.get(theirs, ()):
            if (folder / f"{name}.json").is_file():
                kept = samples(folder / f"{name}.json")
                whole = results.read(folder / f"{name}.json")
                for settings in SETTINGS:
                    row = _row(dict(zip(block.method, block.h, strict=True)), whole, settings, kept)
                    rows += [{"source": source, "task": name, "settings": settings, **row}] if row else []
    return pd.DataFrame(rows, columns=["source", "task", "settings", *_COLUMNS])


_COLUMNS = ("methods", "tau", "low", "high", "agree", "pairs", "p", "apart", "tied")

_SIGNS = (("agree", 1), ("apart", -1), ("tied", 0))


def _row(theirs: Mapping[str, float], whole: Mapping, settings: str, kept: pd.DataFrame) -> dict | None:
    """One block with one choice of settings; None with too few methods in common."""
    rows = [row for row in whole["rows"] if row["settings"] == settings]
    combined = joint({row["metric"] for row in rows})
    ours = {row["method"]: row["mean"] for row in rows if row["metric"] in combined}
    common = [method for method in theirs if method in ours and f"{method} ({settings})" in kept]
    if len(common) < LEAST:
        return None
    a, b = [theirs[method] for method in common], np.array([ours[method] for method in common])
    pairs, tau = [*combinations(range(len(common)), 2)], float(kendall(a, b))
    ways = {(common[i], common[j]): (a[i] - a[j]) * (b[i] - b[j]) for i, j in pairs}
    said = {name: [" and ".join(pair) for pair, way in ways.items() if np.sign(way) == sign] for name, sign in _SIGNS}
    taken = kendall(a, kept[[f"{method} ({settings})" for method in common]].to_numpy())
    low, high = interval(taken)
    return {
        "methods": len(common), "tau": tau, "low": min(low, tau), "high": max(high, tau),
        "agree": len(said["agree"]), "pairs": len(pairs), "p": chance(a, b),
        "apart": ", ".join(said["apart"]), "tied": ", ".join(said["tied"]),
    }  # fmt: skip


def markdown(folder: str | Path | None = None) -> str:
    """The same in Markdown, a row per block; a sentence where there is none."""
    table, head = agreement(folder), ["Source", "Task", "Settings", "τ", "95 % of τ", "Pairs that agree", "p", "Apart"]
    lines = [head, ["---"] * len(head)]
    for row in table.itertuples():
        numbers = f"{row.tau:.2f}", f"{row.low:.2f} to {row.high:.2f}", f"{row.agree} of {row.pairs}", f"{row.p:.3f}"
        lines.append([row.source, row.task, row.settings, *numbers, row.apart])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) if len(table) else NOTHING


def keep_samples(path: str | Path, table: pd.DataFrame) -> Path:
    """Keep the bootstrap samples of a results file beside it; the first line says of which rows they are."""
    return write_text(beside(path), f"{_rows_of(path)}\n{table.to_csv(index=False)}")


def samples(path: str | Path) -> pd.DataFrame:
    """The combined metric in each bootstrap sample, a column per row of a results file; empty where none are kept.

    MaceError for samples of other rows.
    """
    if not beside(path).is_file():
        return pd.DataFrame()
    rows, _, table = read_text(beside(path), "samples").partition("\n")
    if rows != _rows_of(path):
        raise MaceError(f"{beside(path)} holds samples of other rows than {path} has: record that comparison again.")
    return pd.read_csv(io.StringIO(table)) if table.strip() else pd.DataFrame()


def beside(path: str | Path) -> Path:
    """Where the samples of a results file are kept."""
    return Path(path).with_suffix(".samples.csv")


def _rows_of(path: str | Path) -> str:
    return f"# of rows {hash_text(json.dumps(results.read(path)['rows']))}"
