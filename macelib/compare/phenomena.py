"""What erasing does to Stable Diffusion v1.4, by the paper's tables and figures, and whether the mini world shows it.

Read from what is recorded of characters; `mace report` puts it into the card of mini-SD.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ..evaluate import results

MARK = "erasing"  # of the place in the card
COUNTS = (1, 5, 10, 30, 50, 100)  # characters erased together
MOST = 50.0  # percent of the pictures
PARTS = (  # a method without a part of MACE, the metric that it costs, and what that shows
    ("mace-added-up", "H_c", "LoRAs that are added up interfere"),
    ("mace-without-cfis", "Acc_s", "without CFIS the fusion loses specificity"),
)
DECLINES = (("uce", "UCE collapses at 50 to 100 names"), ("mace", "MACE declines from 10 to 100 names"))
HOW = (
    "Phenomena of erasing from Stable Diffusion v1.4 that were looked for, in percent with 95 %, by tuned settings "
    "where there are some (present: stage 1 leaves half or more; of the others, the two intervals do not meet):"
)


def phenomena() -> Iterator[str]:
    """A line for each phenomenon that something is recorded of: present or absent, with its numbers."""
    found = {n: _numbers(f"characters-{n}") for n in COUNTS if results.place(f"characters-{n}").is_file()}
    many = found.get(100, {})
    if (left := many.get(("mace-stage-1", "Acc_e"))) is not None:
        share = f"{_is(left['mean'] >= MOST)}, Acc_e {_number(left)}"
        yield f"after stage 1 alone most of a hundred erased names are still recognised: {share}"
    for method, metric, what in PARTS:
        whole, part = many.get(("mace", metric)), many.get((method, metric))
        if whole and part:
            less = part["high"] < whole["low"]
            yield f"{what}: {_is(less)}, {metric} {_number(part)}, with all parts {_number(whole)}"
    for method, what in DECLINES:
        rows = {n: of[method, "H_c"] for n, of in found.items() if (method, "H_c") in of}
        if {10, 100} <= rows.keys():
            less = rows[100]["high"] < rows[10]["low"]
            told = "; ".join(f"{_number(row)} of {n}" for n, row in rows.items())
            yield f"{what}: {_is(less)}, H_c {told}"


def text() -> str:
    """The same in Markdown; "" where nothing is recorded."""
    lines = [f"- {line}" for line in phenomena()]
    return "\n".join([HOW, "", *lines]) if lines else ""


def _numbers(task: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    """By method and metric the row of a recorded task: its tuned one, or else its last."""
    rows = sorted(results.read(results.place(task))["rows"], key=lambda row: row["settings"] == "tuned")
    return {(row["method"], row["metric"]): row for row in rows}


def _is(there: bool) -> str:
    return "present" if there else "absent"


def _number(row: Mapping[str, Any]) -> str:
    return f"{row['mean']:.1f} ({row['low']:.1f} to {row['high']:.1f})"
