"""Texts: their encoding, their lines with comments and quotes, and the phrases in them."""

import codecs
import contextlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import MaceError, check_path

MARKS = (  # a mark at the beginning of a file, and its encoding; the longer one first
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
QUOTES = {'"': '"', "“": "”", "„": "“”", "«": "»", "'": "'", "‘": "’"}  # opening: closing
EQUALS = "=＝"  # between a name and its anchor
SEPARATORS = ",;\t，、；،"  # between entries: a name that holds one is quoted
INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")  # traces of copying
ARROW = re.compile("→|⇒|->")
LISTED = re.compile(r"[-*+–—]\s|[•‣◦▪●○·]|\(?\d{1,4}[.)]\s|//")  # what a list's entry begins with elsewhere
BREAKS = re.compile("[\v\f\x1c-\x1e\x85\u2028\u2029]")  # line breaks beside those of files
BROKEN = re.compile("[\ud800-\udfff\ufffd]")  # what is left of a text that was read in another encoding


class Item(NamedTuple):
    """An entry of a file."""

    where: str  # "names.txt, line 3"
    value: Any


def read_text(path: str | Path, what: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with their mark; lines end in a line feed.

    what: for the messages, "concept list". MaceError: no such file, another encoding (with the line), no text at all.
    """
    check_path(path, what)
    try:
        data = Path(path).expanduser().read_bytes()
    except (OSError, ValueError, RuntimeError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", error)
        raise MaceError(f"The {what} {path} cannot be read ({reason}): check its name and permissions.") from error
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    if data.startswith(b"PK\x03\x04"):
        raise MaceError(f"The {what} {path} is a spreadsheet or an archive: save it as CSV (UTF-8).")
    if encoding == "utf-8" and b"\0" in data:
        raise MaceError(f"The {what} {path} is no text, or UTF-16 without its mark: save it as UTF-8.")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding.startswith("utf-8"):
            line, byte = data[: error.start].count(b"\n") + 1, data[error.start : error.start + 1]
            seen = f"line {line} has the byte {byte.hex()}, {byte.decode('cp1252', 'replace')!r} in Windows-1252"
        else:
            seen = f"it ends or breaks off at byte {error.start} of {encoding.upper()}"
        raise MaceError(f"The {what} {path} cannot be read as text ({seen}): save it as UTF-8.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """A MaceError of the block gets the place before its sentence."""
    try:
        yield
    except MaceError as error:
        raise MaceError(f"{where}: {error}") from error


def phrase(value: Any, what: str) -> str:
    """A word or a phrase with single spaces, without invisible marks; MaceError for all else, and for broken text."""
    if not isinstance(value, str):
        hint = " (a number or a truth value is text in quotes)" if isinstance(value, (bool, int, float)) else ""
        raise MaceError(f"{what} must be a word or a phrase, not {value!r}{hint}.")
    if BREAKS.search(value.strip()):
        raise MaceError(f"{what} is {value!r}, which holds a line break: write the parts one by one.")
    text = " ".join(INVISIBLE.sub("", value).split())
    if not text:
        raise MaceError(f"{what} must be a word or a phrase, not {value!r}.")
    if BROKEN.search(text):
        raise MaceError(f"{what} is {text!r}, which was read or written in another encoding: write it in UTF-8.")
    if any(unicodedata.category(character) == "Cc" for character in text):
        raise MaceError(f"{what} is {text!r}, which holds a control character: write it again.")
    return text


def phrases(values: Any, what: str, empty: bool = False) -> tuple[str, ...]:
    """Distinct phrases; MaceError for one text where a list belongs, for none unless `empty`, and for no phrase."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        hint = f": write [{values!r}]" if isinstance(values, str) else ""
        raise MaceError(f"{what} must be a list of texts, not {values!r}{hint}.")
    found = tuple(dict.fromkeys(phrase(value, f"{what}[{i}]") for i, value in enumerate(values)))
    if not found and not empty:
        raise MaceError(f"{what} must be a list of texts, and this one is empty: give at least one.")
    return found


def outside(text: str, characters: str) -> list[int]:
    """Positions of any of the characters outside of double quotes; all positions where a quote is left open."""
    found, closing = [], ""
    for i, character in enumerate(text):
        if closing:
            closing = "" if character in closing else closing
        elif character in '"“„«':
            closing = QUOTES[character]
        elif character in characters:
            found.append(i)
    return [i for i, c in enumerate(text) if c in characters] if closing else found


def unquoted(text: str) -> tuple[str, bool]:
    """A text without the quotes around it, and whether there were any; MaceError where one of the two is missing."""
    text = INVISIBLE.sub("", text).strip()
    closing, inner = QUOTES.get(text[:1], ""), text[1:-1]
    if closing and len(text) > 1 and text[-1] in closing and not set(inner) & {text[0], *closing}:
        return inner.strip(), True
    if text.count('"') % 2 and '"' in (text[:1], text[-1:]):
        raise MaceError(f"{text!r} has a quote that is not closed, or not opened: write both, or none.")
    return text, False


def _one(text: str, several: str, one: str) -> str:
    """A text that holds no separator outside of quotes; MaceError: what to write for several names, and for one."""
    if at := outside(text, SEPARATORS):
        sign = unicodedata.name(text[at[0]], "tab").lower()
        raise MaceError(
            f"{text!r} has a {sign} in it. Several names: {several}. If it belongs to one name, put that in quotes, "
            f"{one} (on a command line with '...' around it)."
        )
    return text


def pair(text: str) -> tuple[str, str]:
    """ "name=anchor" in two, quotes around either taken away; MaceError for one side, three, and several names."""
    entry = unquoted(text)[0]
    several, one = 'give them one by one, "ship=sea" "frog=grass"', '"a name, with a comma"=anchor'
    at = outside(entry, EQUALS)
    if len(at) != 1:
        _one(entry, several, one)
    if len(at) > 1:
        raise MaceError(f'{text!r} has more than one "=": write "name=anchor"; a name that holds one goes in quotes.')
    sides = (entry[: at[0]], entry[at[0] + 1 :]) if at else (entry, "")
    if not all(side.strip() for side in sides):
        raise MaceError(f'{text!r} does not say what the concept becomes: write "name=anchor", such as "ship=sea".')
    name, anchor = (unquoted(_one(side.strip(), several, one))[0] for side in sides)
    return name, anchor


def name_in(text: Any) -> str:
    """The one name of an entry, its quotes taken away; MaceError for several in one entry, and for "name=anchor"."""
    value, quoted = unquoted(text) if isinstance(text, str) else (text, True)
    if not quoted and (outside(value, EQUALS) or ARROW.search(value)):
        raise MaceError(
            f'{text!r} has an "=" or an arrow in it: names alone are wanted here; a name that holds one goes in quotes.'
        )
    return phrase(value if quoted else _one(value, "give them one by one", '"a name, with a comma"'), "A name")


def read_entries(path: str | Path, what: str) -> list[Item]:
    """The lines of a text file without comments and blank ones.

    A comment begins with "#" at the start of a line, or with " # " behind an entry; a "#" in a word or in quotes is
    part of it. MaceError for " #word", which may be either, and for the mark of a list, as in "- ship" or "1. ship".
    """
    found = []
    for number, line in enumerate(read_text(path, what).splitlines(), 1):
        line, where = INVISIBLE.sub("", line).strip(), f"{path}, line {number}"
        for i in outside(line, "#") if not line.startswith("#") else [0]:
            if i and not line[i - 1].isspace():
                continue
            if i and not (line[i + 1 : i + 2] or " ").isspace() and line[i + 1] != "#":
                raise MaceError(
                    f'{where}: {line!r} has a "#" before a word: put a space behind it for a comment, or the name in '
                    "quotes if it is part of it."
                )
            line = line[:i].strip()
            break
        if mark := LISTED.match(line):
            raise MaceError(
                f"{where}: {line!r} begins with {mark[0].strip()!r}: leave that out, begin a comment with #, or put a "
                "name that begins so in quotes."
            )
        if line:
            found.append(Item(where, line))
    return found


def seeds(text: str, most: int, what: str = "The seeds are") -> list[int]:
    """ "0, 1, 5-7" as [0, 1, 5, 6, 7]; MaceError for anything else, a seed twice, and for more than `most`.

    "1 000" and "1,000" are refused, which may be a thousand: three digits come after a comma, and 0 begins no number.
    """
    allowed = f"{what} {text!r}; allowed: 1 to {most:,} different whole numbers up to 2^63 - 1, such as 0-3 or 0,5,7."
    found: list[int] = []
    if re.search(r"\d\s\d{3}(?!\d)", text):
        raise MaceError(f"{allowed} Write a comma between two seeds, and a thousand as 1000.")
    for part in text.replace(",", " ").split():
        first, dash, last = part.partition("-")
        ends = [first, last] if dash else [first, first]
        if not all(len(end) < 20 and end.isdecimal() and str(int(end)) == end and int(end) < 2**63 for end in ends):
            raise MaceError(allowed)
        low, high = map(int, ends)
        if high < low:
            raise MaceError(f"{allowed} {part} runs backwards.")
        if len(found) + high - low + 1 > most:
            raise MaceError(allowed)
        found += range(low, high + 1)
    if not found or len(set(found)) < len(found):
        raise MaceError(allowed)
    return found
