"""Recorded tables of two methods, as `mace compare` and `mace attack` write them, with numbers that mean nothing."""

from pathlib import Path

import numpy as np
import pandas as pd

from macelib.compare.published import keep_samples
from macelib.evaluate import results

METHODS = {"original": "", "uce": "published", "esd-x": "published", "esd-u": "published", "mace": "published"}
COUNTS = (1, 10, 100)


def tiny_results(folder: Path) -> None:
    """Write objects, three sizes of characters, their bootstrap samples, and attacks."""
    _task(folder, "objects", "H_o", 1)
    for n in COUNTS:
        _task(folder, f"characters-{n}", "H_c", n)
    rows = []
    for attack in ("wording", "noise", "relearning"):
        for control, method in (("none", "uce"), ("none", "mace"), ("no-attack", "uce"), ("original", "original"),
                                ("foreign", "uce")):  # fmt: skip
            metrics = {"ASR": 60.0, "pre-ASR": 20.0, "forward passes": 80, "backward passes": 0, "pictures": 5}
            for variant in ("10 steps", "25 steps") if attack == "relearning" else ("level name",):
                about = {"attack": attack, "control": control, "variant": variant} | _about("attacks", method, "")
                rows += [{**about, "metric": metric, **_ends(mean), "n": 9} for metric, mean in metrics.items()]
    missing = [{"attack": "noise", "control": "never-knew", "method": "uce", "metric": "ASR", "why": "no such model"}]
    results.write(folder / "attacks.json", "mace attack", {}, rows, missing)


def _task(folder: Path, name: str, metric: str, n: int) -> None:
    rows = []
    for i, (method, settings) in enumerate(METHODS.items()):
        about = _about(name, method, settings) | {"n/d": n / 384, "n/o_l": n / 64}
        values = {"Acc_e": 10, "Acc_s": 90, metric: 50 + 9 * i, "Acc_s shares a word": 40, "Acc_s unrelated": 95}
        rows += [{**about, "metric": key, **_ends(value), "n": 20, "unit": "%"} for key, value in values.items()]
        if method != "original":
            spent = {"time, s": 3 * n, "time in the text encoder, s": n, "peak memory, MB": 800}
            rows += [{**about, "metric": key, **_ends(value), "n": 1} for key, value in spent.items()]
            gap = {"metric": f"{metric} difference", **_ends(9 * i - 36), "n": 20, "against": "mace (published)"}
            rows += [about | gap] if method != "mace" else []
    missing = [{"method": "safree (published)", "metric": "all", "why": "more concepts than tokens"}]
    results.write(folder / f"{name}.json", f"mace compare --task {name}", {"profile": "quick"}, rows, missing)
    draws = np.random.default_rng(0).normal(0, 5, (50, len(METHODS)))
    columns = [f"{method} ({settings})" if settings else method for method, settings in METHODS.items()]
    keep_samples(folder / f"{name}.json", pd.DataFrame(draws + 60, columns=columns))


def _about(task: str, method: str, settings: str) -> dict:
    return {"task": task, "method": method, "settings": settings}


def _ends(mean: float) -> dict:
    return {"mean": mean, "low": mean - 5 if mean >= 5 else min(mean, 0), "high": mean + 5}
