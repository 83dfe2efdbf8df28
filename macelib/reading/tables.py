"""CSV as spreadsheets and people write it: commas, semicolons or tabs, fields in quotes, with line breaks in them."""

import csv
import io
import re
from itertools import zip_longest
from pathlib import Path

from ..errors import MaceError
from .text import Item, read_text

DELIMITERS = ",;\t|"
BREAKS = 20  # line breaks in one field from which on a quote must have been left open


def read_table(path: str | Path, what: str, *columns: tuple[str, ...]) -> list[Item]:
    """Rows as mappings from column (lower case) to text; a line break in a field is a space, blank lines are left out.

    A first column without a name, in which pandas writes row numbers, is left out.

    columns: those that the first line must name, or alternatives to them, the first that fits counts; the line also
    tells what separates the fields. MaceError: other columns, one twice, more fields than columns, an open quote.
    """
    text = read_text(path, what)
    declared = re.match(r'\s*"?sep=(.)"?\n', text)  # Excel's own first line
    begin = re.match(r"(?:[^\S\n]*\n)*", text[declared.end() if declared else 0 :])[0]  # blank lines
    head = (declared[0] if declared else "") + begin
    above, text = head.count("\n"), text[len(head) :]
    delimiter, header = _header(text, declared[1] if declared else DELIMITERS, columns)
    if not delimiter and text.startswith("#"):
        raise MaceError(f"{path}, line {1 + above} looks like a comment, which CSV has not: take the line out.")
    if not delimiter:
        needed = " or ".join(" and ".join(names) for names in columns)
        seen = text.partition("\n")[0][:80]
        raise MaceError(f"{path}, line {1 + above}: the columns must have {needed}; the first line is {seen!r}.")
    if twice := [name for i, name in enumerate(header) if name and name in header[:i]]:
        raise MaceError(f"{path}, line {1 + above}: the column {twice[0]} stands twice: keep one.")
    return _rows(path, text, delimiter, header, above)


def _reader(text: str, delimiter: str):
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)


def _header(text: str, delimiters: str, columns: tuple[tuple[str, ...], ...]) -> tuple[str, list[str]]:
    """The delimiter under which the first line names the columns, and their names; "" where there is none."""
    for needed in columns:
        for delimiter in delimiters:
            try:
                header = [_cell(name).casefold() for name in next(_reader(text, delimiter), [])]
            except csv.Error:
                continue
            if set(needed) <= set(header):
                return delimiter, header
    return "", []


def _rows(path, text: str, delimiter: str, header: list[str], above: int) -> list[Item]:
    reader, found = _reader(text, delimiter), []
    next(reader)
    while True:
        line = reader.line_num + 1 + above  # where the row begins
        try:
            cells = next(reader)
        except StopIteration:
            return found
        except csv.Error as error:
            raise MaceError(f"{path}, line {line}: {_open(error)}") from error
        if any(cell.count("\n") > BREAKS for cell in cells):
            raise MaceError(f"{path}, line {line}: {_open(f'a field of more than {BREAKS} lines')}")
        cells = [_cell(cell) for cell in cells]
        if not any(cells):
            continue
        index = 1 if not header[0] and len(header) > 1 else 0
        if any(cell for name, cell in zip_longest(header[index:], cells[index:], fillvalue="") if not name):
            if len(cells) <= len(header):
                raise MaceError(f"{path}, line {line}: a field stands under a column without a name: name the column.")
            raise MaceError(
                f"{path}, line {line}: {len(cells)} fields under {len(header)} columns: put a field that holds "
                f"{delimiter!r} in quotes."
            )
        row = {name: cell for name, cell in zip(header, cells, strict=False) if name}
        found.append(Item(f"{path}, line {line}", row))


def _open(why) -> str:
    return f'a quote (") is opened and not closed, or text stands beside it ({why}): write "" for a quote in a field.'


def _cell(text: str) -> str:
    return re.sub(r"\s*\n\s*", " ", text).strip()
