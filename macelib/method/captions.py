"""Captions as people have them: texts, or a file of them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import MaceError
from ..reading import Item, read_json, read_table, read_text

COLUMNS = ("caption", "prompt", "text")  # of a .csv: the first of them that is there
Captions = Iterable[str | tuple[str, Sequence[str]]] | str | Path  # texts, some with labels; or a file


def read_captions(source: Captions) -> list[str | tuple[str, Sequence[str]]]:
    """Captions from texts, or from .txt (one a line; a line that begins with "# " is a comment), .csv (column caption,
    prompt or text) or .json (a list of texts, or COCO's {"annotations": [{"caption": ...}]}).

    MaceError names file and line of what is no caption, and a file that holds none.
    """
    if not isinstance(source, (str, Path)):
        return [_caption(f"Caption {i}", caption) for i, caption in enumerate(source, 1)]
    path, suffix = Path(source), Path(source).suffix.lower()
    if suffix == ".json":
        data = read_json(path, "captions")
        data = data.get("annotations") if isinstance(data, dict) else data
        if not isinstance(data, list):
            raise MaceError(f'{path} holds no captions: a list of texts, or {{"annotations": [...]}}, is looked for.')
        texts = [item.get("caption") if isinstance(item, dict) else item for item in data]
        items = [Item(f"{path}, entry {i}", text) for i, text in enumerate(texts, 1)]
    elif suffix in (".csv", ".tsv"):
        rows = read_table(path, "captions", *((column,) for column in COLUMNS))
        column = next((c for c in COLUMNS if rows and c in rows[0].value), "")
        items = [Item(row.where, row.value.get(column, "")) for row in rows]
    elif suffix == ".txt":
        lines = enumerate(read_text(path, "captions").split("\n"), 1)
        items = [Item(f"{path}, line {i}", line) for i, line in lines if not re.match(r"\s*#(\s|$)", line)]
    else:
        raise MaceError(f"{path} is no caption file: give a .txt, .csv or .json file, or a list of texts.")
    found = [caption for caption in (_caption(*item).strip() for item in items) if caption]
    if not found:
        raise MaceError(f"{path} holds no captions: give at least one.")
    return found


def _caption(where: str, value: Any) -> str | tuple[str, Sequence[str]]:
    """A caption, or one with its labels; MaceError for what is neither, and for broken text."""
    text = value[0] if isinstance(value, tuple) and len(value) == 2 else value
    if not isinstance(text, str):
        raise MaceError(f"{where} is {value!r}; allowed: a text (from Python also a pair of a text and its labels).")
    if re.search("[\0\ud800-\udfff]", text):
        raise MaceError(f"{where} is {text!r}, which was read or written in another encoding: write it in UTF-8.")
    return value
