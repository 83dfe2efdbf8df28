"""The index of a sweep as one HTML page: table, filters, thumbnails and plots, without anything from elsewhere."""

import base64
import html
import io
import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd

from .runs import ENDED, NOTEBOOK, READABLE, STATUS, SWEEP, figures, read_json

log = logging.getLogger(__name__)
THUMBNAIL, PER_RUN = (360, 150), 4  # largest width and height in pixels; pictures per run
FOLDER = Path(__file__).parent


def page(folder: Path, frame: pd.DataFrame) -> str:
    """HTML of a sweep's index; links to notebooks, logs and figures are relative to its folder."""
    sweep = read_json(folder / SWEEP)
    attributes = frame.attrs
    data = {
        "parameters": attributes["varied"],
        "metrics": [name for name in attributes["metrics"] if _numbers(frame[name])],
        "rows": [_row(folder, values, attributes) for values in frame.to_dict("records")],
    }
    fixed = [name for name in attributes["parameters"] if name not in attributes["varied"]]
    first = frame.iloc[0] if len(frame) else {}
    same = "".join(f"<li><b>{html.escape(n)}</b> {html.escape(str(_plain(first[n])))}</li>" for n in fixed)
    counts = frame["status"].value_counts()
    words = ", ".join(
        f"{counts[name]} {name}" for name in ("complete", "failed", "unfinished", "waiting") if name in counts
    )
    fill = {
        "title": html.escape(str(sweep.get("name", folder.name))),
        "subtitle": html.escape(f"{sweep.get('notebook', '')}: {len(frame)} run{'s' * (len(frame) != 1)}, {words}"),
        "same": same,
        "style": (FOLDER / "page.css").read_text(encoding="utf-8"),
        "script": (FOLDER / "page.js").read_text(encoding="utf-8"),
        "data": json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
    }
    text = (FOLDER / "page.html").read_text(encoding="utf-8")
    return re.sub(r"@@(\w+)@@", lambda match: fill[match[1]], text)  # in one pass: values may hold anything


def _row(folder: Path, values: dict[str, Any], attributes: dict[str, Any]) -> dict[str, Any]:
    """What the page is told of a run."""
    run = folder / values["run"]
    pictures = figures(run) if values["status"] in ENDED else []
    there = [name for name in (READABLE, NOTEBOOK, "log.txt", "metrics.json") if (run / name).exists()]
    return {
        "run": values["run"],
        "status": values["status"],
        "seconds": read_json(run / STATUS).get("seconds"),
        "error": _plain(values["error"]),
        "files": there,
        "values": [_plain(values[name]) for name in attributes["varied"]],
        "metrics": {name: _plain(values[name]) for name in attributes["metrics"]},
        "pictures": [[p.relative_to(run).as_posix(), *small] for p in pictures[:PER_RUN] if (small := thumbnail(p))],
        "more": max(0, len(pictures) - PER_RUN),
    }


def thumbnail(path: Path) -> tuple[str, int, int] | None:
    """A picture made small, as a data URI, with its width and height; None (said) for one that cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            small = picture.convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        log.warning("The picture %s cannot be read (%s): the page leaves it out.", path, error)
        return None
    small.thumbnail(THUMBNAIL)
    white = Image.new("RGBA", small.size, "white")
    buffer = io.BytesIO()
    Image.alpha_composite(white, small).convert("RGB").save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode(), *small.size


def _numbers(column: pd.Series) -> bool:
    """Whether a metric can be plotted and sorted by size."""
    present = column.dropna()
    return len(present) > 0 and all(isinstance(v, (int, float)) for v in present)


def _plain(value: Any) -> Any:
    """The value as JSON knows it."""
    if hasattr(value, "item"):
        value = value.item()
    return None if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)) else value
