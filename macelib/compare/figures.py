"""The figures of what is recorded: a task's combined metric, or the rates of attacks, each with its 95 % interval."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..baselines.registry import source
from ..evaluate.metrics import LOW, joint
from ..files import atomic, hash_text

BESIDE = ("no-attack", "foreign")  # controls that stand beside a method's rate
OF = "Description"  # of a picture: the key of what it was drawn of


def draw(whole: Mapping[str, Any], path: str | Path) -> bool:
    """Draw a results file's figure as a PNG, which says of what; False where it has none."""
    if (made := figure(whole)) is None:
        return False
    with atomic(path) as temporary:
        made.savefig(temporary, dpi=120, metadata={"Software": None, OF: _key(whole)})
    return True


def shows(path: str | Path, whole: Mapping[str, Any]) -> bool:
    """Whether a picture was drawn of these rows, as they are drawn now."""
    try:
        with Image.open(path) as image:
            return image.info.get(OF) == _key(whole)
    except OSError:
        return False


def _key(whole: Mapping[str, Any]) -> str:
    return hash_text(json.dumps(whole["rows"]), source(figure))


def figure(whole: Mapping[str, Any]):
    """The combined metric of every row with its interval, best on top, or the attacks' rates: a matplotlib figure.

    None without one, and for a table of several tasks.
    """
    from matplotlib.figure import Figure

    if any("attack" in row for row in whole["rows"]):
        return _attacks_figure(whole)
    combined = joint({row["metric"] for row in whole["rows"]})
    rows = [row for row in whole["rows"] if row["metric"] in combined]
    if not rows or len({row["task"] for row in rows}) > 1:
        return None
    rows.sort(key=lambda row: row["mean"], reverse=rows[0]["metric"] in LOW)
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

    best = strongest(whole["rows"])
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
    made.supxlabel(
        "ASR in percent with 95 %, the strongest variant; bar: un-attacked, cross: a foreign concept", fontsize=8
    )
    return made


def strongest(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str, str], dict[str, dict]]:
    """By attack, control, method and settings the rates of the variant with the highest ASR, the first such."""
    found: dict[tuple, dict[str, dict[str, dict]]] = {}
    for row in rows:
        key = row["attack"], row["control"], row["method"], row["settings"]
        found.setdefault(key, {}).setdefault(row["variant"], {})[row["metric"]] = row
    return {key: max(of.values(), key=lambda rates: rates["ASR"]["mean"]) for key, of in found.items()}
