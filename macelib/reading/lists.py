"""Lists as people write them: a line, a row or an entry each, in a text file, CSV, YAML or JSON."""

from pathlib import Path

from ..errors import MaceError
from .structure import Texts, read_data
from .tables import read_table
from .text import Item, read_entries

SUFFIXES = (".txt", ".csv", ".tsv", ".yaml", ".yml", ".json")


def read_items(path: str | Path, what: str, key: str, columns: tuple[str, ...], example: str) -> list[Item]:
    """The entries of a list, by the file's suffix: lines, rows as mappings, or what YAML or JSON holds, as text.

    what, example: for the messages. key: what the list may stand below in YAML and JSON. columns: that CSV must have;
    in the first a "#" is refused as a comment. MaceError: another suffix, no list, an empty one, what a reader refuses.
    """
    suffix = Path(str(path)).suffix.lower()
    if suffix == ".txt":
        items = read_entries(path, what)
    elif suffix in (".csv", ".tsv"):
        items = read_table(path, what, columns)
        if marked := next((item for item in items if item.value[columns[0]].startswith("#")), None):
            raise MaceError(
                f"{marked.where}: {marked.value[columns[0]]!r} looks like a comment, which CSV has not: take the line "
                "out (a name that begins with # goes into a .yaml list)."
            )
    elif suffix in SUFFIXES:
        values, where = read_data(path, what, Texts)
        values, prefix = (values[key], key) if isinstance(values, dict) and set(values) == {key} else (values, "")
        if values is not None and not isinstance(values, list):
            how = f"write [...], alone or as {{{key!r}: [...]}}".replace("'", '"')
            how = how if suffix == ".json" else f'begin each entry with "- ", alone or below "{key}:"'
            raise MaceError(f"The {what} {path} holds no list: {how}.")
        items = [Item(f"{where(f'{prefix}[{i}]')}, entry {i + 1}", value) for i, value in enumerate(values or ())]
    else:
        raise MaceError(f"{path} is no {what}: give a .txt, .csv, .yaml or .json file.")
    if not items:
        raise MaceError(f"The {what} {path} is empty: give at least one entry, such as {example}.")
    return items
