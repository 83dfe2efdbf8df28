"""Lists of concepts and of names: as people write them, in a call or a file, and the paper's."""

import dataclasses
import difflib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import MaceError
from ..reading import (
    EQUALS,
    QUOTES,
    SEPARATORS,
    SUFFIXES,
    located,
    name_in,
    outside,
    pair,
    phrase,
    read_items,
    unquoted,
)
from ..templates import OBJECT_ANCHORS
from .concept import Concept, folded
from .protocol import protocol

log = logging.getLogger(__name__)
OTHERS = (".xlsx", ".xls", ".ods", ".docx", ".jsonl", ".md")  # of files that are no lists, and no names either
PAPER_KINDS = {"celebrities": "celebrity", "styles": "style", "explicit": "explicit"}  # list of the paper -> kind


def parse_concept(text: str, kind: str = "object") -> Concept:
    """ "ship=sea" as a Concept; a side that holds a comma or "=" stands in quotes, "Downey, Jr."=a person.

    MaceError where a side is missing, and where there may be several concepts.
    """
    name, anchor = pair(text)
    return Concept(name, anchor, kind)


def listed(
    given: "str | Concept | Mapping[str, str] | Iterable[str | Concept]", suggestions: Callable[[], Iterable] = tuple
) -> list[Concept]:
    """Concepts from whatever `erase` is given: one, or a list, of "ship", "ship=the sea" and Concept; {name: anchor}.

    A name alone takes the anchor of its entry among `suggestions` (`macelib.models.mini.Entry`), and that is said.
    MaceError for a name without one, and for anything else.
    """
    if isinstance(given, Mapping):
        if set(given) >= {"name", "anchor"}:
            raise MaceError(f"{given!r} are the fields of a concept: write Concept(**fields), or {{name: anchor}}.")
        return [Concept(name, anchor) for name, anchor in given.items()]
    if isinstance(given, (str, Concept)):
        given = [given]
    if not isinstance(given, Iterable) or isinstance(given, bytes):
        raise MaceError(f"{given!r} is no concept. {HOW}")
    return [_listed(one, suggestions) for one in given]


HOW = (
    'Give "ship=the sea", Concept("ship", anchor="the sea"), a list of these, or {"ship": "the sea"}; for a file, '
    "macelib.concepts.read_concepts(path)."
)


def _listed(one, suggestions: Callable[[], Iterable]) -> Concept:
    if isinstance(one, Concept):
        return one
    if not isinstance(one, str) or not one.strip():
        raise MaceError(f"{one!r} is no concept. {HOW}")
    if any(sign in one for sign in EQUALS):
        return parse_concept(one)
    name = name_in(one)
    known = {folded(word): entry for entry in suggestions() for word in (*entry.synonyms, entry.name)}
    if folded(name) not in known:
        if _is_file(name):
            raise MaceError(f"{name!r} is a file: read it with macelib.concepts.read_concepts(path).")
        near = difflib.get_close_matches(folded(name), known, 3, 0.6)
        written = f"'\"{name}\"=a person'" if outside(name, SEPARATORS) else f'"{name}=a person"'
        raise MaceError(
            f"No anchor is known for {name!r}: say what is to be shown in its place, "
            f'{written} or Concept({json.dumps(name, ensure_ascii=False)}, anchor="a person").'
            + (f" Known names near it: {', '.join(near)}." if near else "")
        )
    anchor = known[folded(name)].anchor
    log.warning('"%s": in its place %s is shown; say "%s=..." for something else.', name, anchor, name)
    return Concept(name, anchor)


def read_concepts(path: str | Path) -> list[Concept]:
    """Concepts from .txt (one "name=anchor" a line, # begins a comment), .csv (columns name, anchor and, if wanted,
    kind, synonyms, templates, companions; several by ";"), .yaml or .json (a list of "name=anchor" or of mappings).

    MaceError names the file and the line of what cannot be used.
    """
    found = []
    for where, entry in read_items(path, "concept list", "concepts", ("name", "anchor"), '"ship=sea"'):
        with located(where):
            found.append(_entry(entry))
    return found


def read_names(path: str | Path) -> list[str]:
    """Names from .txt (one a line, # begins a comment), .csv (column name), .yaml or .json (a list); distinct.

    MaceError names the file and the line of what cannot be used.
    """
    found = []
    for where, entry in read_items(path, "list of names", "names", ("name",), '"cat"'):
        with located(where):
            found.append(phrase(_bare(entry.get("name")), "A name") if isinstance(entry, dict) else name_in(entry))
    return list(dict.fromkeys(found))


def kept_names(values: Sequence[str]) -> list[str]:
    """Names to keep as they are given: each a name, or the file of a list (see `read_names`)."""
    found: list[str] = []
    for value in values:
        found += read_names(value) if _is_file(value) else [name_in(value)]
    return list(dict.fromkeys(found))


def _is_file(text: str) -> bool:
    """Whether a file, or a folder by its path, is meant where a name may stand: it is there, or ends like one."""
    place = os.path.expanduser(text)  # os.path asks for names of any length
    is_folder = os.path.dirname(text) and os.path.isdir(place)
    return os.path.splitext(text)[1].lower() in (*SUFFIXES, *OTHERS) or os.path.isfile(place) or bool(is_folder)


def _entry(entry: Any) -> Concept:
    fields = [field.name for field in dataclasses.fields(Concept)]
    if isinstance(entry, str):
        return parse_concept(entry)
    if not isinstance(entry, dict) or not {"name", "anchor"} <= set(entry) <= set(fields):
        raise MaceError(f"{entry!r} must have name and anchor, and nothing beside {', '.join(fields)}.")
    values = {key: value for key, value in entry.items() if value not in (None, "", [])}
    values |= {key: _bare(values[key]) for key in ("name", "anchor") if key in values}
    for key in ("synonyms", "templates", "companions"):
        if not isinstance(text := values.get(key), str):
            continue
        values[key] = [_bare(part.strip()) for part in text.split(";") if part.strip()]
        if key != "templates" and outside(text, SEPARATORS.replace(";", "")):
            raise MaceError(f'The {key} are {text!r}: put ";" between several, and one that holds a comma in quotes.')
    return Concept(**{"name": "", "anchor": ""} | values)


def _bare(text: Any) -> Any:
    """A field without quotes of a person's own around all of it: CSV and YAML have taken theirs away."""
    quoted = isinstance(text, str) and text[:1] in QUOTES and text[-1] in QUOTES[text[0]]
    return unquoted(text)[0] if quoted else text


def paper_list(name: str) -> list[Concept]:
    """One of the paper's lists: "objects", "celebrities_1", "_5", "_10", "_100", "styles_100", "explicit".

    Of the objects' anchors three are published: those of the others are ours (`OBJECT_ANCHORS`).
    """
    kind, _, count = name.partition("_")
    names = ["objects", "explicit", "celebrities_1", "celebrities_5", "celebrities_10", "celebrities_100", "styles_100"]
    if name not in names:
        raise MaceError(f"There is no list {name!r} in the paper: choose one of {', '.join(names)}.")
    with protocol(kind) as data:
        if kind == "objects":
            return [Concept(n, OBJECT_ANCHORS[n], synonyms=tuple(s)) for n, s in data["synonyms"].items()]
        listed = data[f"erase_{count}" if count else "erase"]
        anchor = "a woman" if name == "celebrities_1" else data["anchor"]
        return [Concept(n, anchor, PAPER_KINDS[kind]) for n in listed]


def retained(name: str) -> list[str]:
    """The names that the paper keeps beside a list: "celebrities" or "styles", 100 each."""
    if name not in ("celebrities", "styles"):
        raise MaceError(f"The paper retains no list {name!r}: choose celebrities or styles.")
    with protocol(name) as data:
        return [phrase(kept, "A name to retain") for kept in data["retain_100"]]
