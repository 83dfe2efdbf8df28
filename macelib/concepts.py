"""Concepts, their prompts, and lists of them."""

import contextlib
import dataclasses
import difflib
import logging
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import MaceError
from .files import data_folder
from .models.families import known_entries
from .models.tokens import Alignment, align, occurrences, token_spans
from .reading import (
    SEPARATORS,
    Item,
    Texts,
    located,
    name_in,
    outside,
    pair,
    phrase,
    read_data,
    read_entries,
    read_json,
    read_table,
)
from .templates import OBJECT_ANCHORS, PAIRS, PAPER_LIKE, SAMPLE_TEMPLATE, TEMPLATES, beside, fill

__all__ = [
    "SAMPLE_TEMPLATE",
    "TEMPLATES",
    "Alignment",
    "Concept",
    "align",
    "anchored",
    "check_concepts",
    "check_kept",
    "folded",
    "kept_names",
    "listed",
    "paper_list",
    "parse_concept",
    "prompts",
    "read_concepts",
    "read_names",
    "refuse_both",
    "retained",
    "sample_prompt",
    "templates",
    "token_spans",
    "with_companions",
    "with_synonyms",
    "with_templates",
]  # fmt: skip
log = logging.getLogger(__name__)
KINDS = tuple(TEMPLATES)
SUFFIXES = (".txt", ".csv", ".tsv", ".yaml", ".yml", ".json")  # of lists that people write
EXAMPLES = {"concepts": '"ship=sea"', "names": '"cat"'}
PAPER_KINDS = {"celebrities": "celebrity", "styles": "style", "explicit": "explicit"}  # list of the paper -> kind


@dataclass(frozen=True)
class Concept:
    """A thing or a style to erase, and the anchor that takes its place; MaceError for an empty or impossible field."""

    name: str  # "ship"
    anchor: str  # what it becomes: a super-category or something neutral, "sea", "a person", "art"
    kind: str = "object"  # "object" | "style" | "celebrity" | "explicit"
    synonyms: tuple[str, ...] = ()  # other names: left out of the prior; generality is measured on them
    templates: tuple[str, ...] | None = None  # own templates with "{}"; None: the thirty of its kind
    companions: tuple[str, ...] = ()  # things beside it in further prompts of stages 1 and 3

    def __post_init__(self):
        for field in ("name", "anchor"):
            text = phrase(getattr(self, field), f"The {field} of a concept")
            if "{}" in text:
                raise MaceError(f'The {field} of a concept is {text!r}: "{{}}" stands for the name; write the name.')
            object.__setattr__(self, field, text)
        if self.kind not in KINDS:
            raise MaceError(f"The kind of {self.name!r} is {self.kind!r}: it must be one of {', '.join(KINDS)}.")
        for field in ("synonyms", "templates", "companions"):
            value = getattr(self, field)
            if isinstance(value, str):
                raise MaceError(f"The {field} of {self.name!r} must be a list of texts, not the text {value!r}.")
            if value is not None:
                texts = tuple(phrase(text, f"{field}[{i}] of {self.name!r}") for i, text in enumerate(value))
                object.__setattr__(self, field, texts)
        if self.templates == ():
            raise MaceError(f"The list of templates of {self.name!r} is empty: leave it out for the built-in ones.")
        for template in self.templates or ():
            if "{}" not in template:
                raise MaceError(f'The template {template!r} of {self.name!r} has no "{{}}" where the name goes.')
            if _names(template, self.name):
                raise MaceError(f'The template {template!r} names {self.name!r} itself: write "{{}}" in its place.')


def templates(concept: Concept, alone: bool = False) -> list[str]:
    """The concept's own templates, or those of its kind that do not name it outside of "{}"; then it beside companions.

    alone: without those.
    """
    chosen = [*(concept.templates or (t for t in TEMPLATES[concept.kind] if not _names(t, concept.name)))]
    pairs = [beside(pair, other) for other in concept.companions for pair in PAIRS]
    chosen += [] if alone else [t for t in pairs if not (_names(t, concept.name) or _names(t, concept.anchor))]
    distinct = {(fill(t, concept.name), fill(t, concept.anchor)): t for t in reversed(chosen)}
    return list(distinct.values())[::-1]


def _names(template: str, name: str) -> bool:
    """Whether a template holds the name outside of "{}"."""
    return any(occurrences(part, name) for part in template.split("{}"))


def with_templates(concept: Concept, choice: str) -> Concept:
    """The concept with the templates that a setting chooses, where it has none of its own.

    choice: "ours", "paper-like" (one thing each, and no article before the name), or a text file, a template with "{}"
    a line. MaceError for a file that cannot be read, is empty, or has a line without "{}".
    """
    if concept.templates or choice == "ours":
        return concept
    try:
        text = "" if choice == "paper-like" else Path(choice).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise MaceError(
            f"The templates {choice} cannot be read ({error}): give ours, paper-like, or a file with one a line."
        ) from error
    chosen = PAPER_LIKE[concept.kind] if choice == "paper-like" else [line.strip() for line in text.splitlines()]
    return dataclasses.replace(concept, templates=tuple(t for t in chosen if t and not _names(t, concept.name)))


def with_companions(concept: Concept, names: Sequence[str]) -> Concept:
    """The concept with companions, where it has none of its own; a style has no place beside things."""
    own = concept.companions or concept.kind in ("style", "explicit")
    return concept if own else dataclasses.replace(concept, companions=tuple(names))


def prompts(concept: Concept, alone: bool = False) -> list[str]:
    """The concept's `templates` filled with its name."""
    return [fill(template, concept.name) for template in templates(concept, alone)]


def anchored(concept: Concept) -> list[str]:
    """The same templates, in the same order, filled with its anchor."""
    return [fill(template, concept.anchor) for template in templates(concept)]


def sample_prompt(concept: Concept) -> str:
    """The prompt of the concept's training images: "a photo of the ship"."""
    return fill(SAMPLE_TEMPLATE[concept.kind], concept.name)


def with_synonyms(concept: Concept) -> Concept:
    """The concept with the synonyms of the paper's or a family's catalogue, where it has none of its own."""
    if concept.synonyms or concept.kind == "style":
        return concept
    try:
        known = {folded(entry.name): entry.synonyms for entry in (*known_entries(), *paper_list("objects"))}
    except (OSError, ValueError) as error:
        raise MaceError(
            f"The known synonyms cannot be read ({error}): set MACELIB_DATA to macelib's data, or give synonyms."
        ) from error
    return dataclasses.replace(concept, synonyms=tuple(known.get(folded(concept.name), ())))


def check_concepts(concepts: Sequence[Concept]) -> list[str]:
    """Refuse what cannot be erased together; return notes about what can but deserves a look.

    MaceError: empty list, the same name twice, an anchor equal to its name (capitals and spaces aside).
    """
    if not concepts:
        raise MaceError('The list of concepts is empty: give at least one, such as "ship=sea".')
    seen, notes = {}, []
    for concept in concepts:
        if folded(concept.name) == folded(concept.anchor):
            raise MaceError(f"The anchor of {concept.name!r} is the concept itself: choose something else to show.")
        if folded(concept.name) in seen:
            raise MaceError(f"The concept {concept.name!r} is listed twice: keep one of the two.")
        seen[folded(concept.name)] = concept
        notes += [_several(text) for text in (concept.name, concept.anchor) if outside(text, f"{SEPARATORS}=")]
    text = "\n".join(f"{c.name}\t{c.anchor}" for c in seen.values())
    for concept in seen.values():
        if len(occurrences(text, concept.name)) < 2:  # only its own line names it: the usual case, found fast
            continue
        for other in seen.values():
            if other is not concept and occurrences(other.name, concept.name):
                notes.append(f"{concept.name!r} is part of {other.name!r}: prompts of the second name both.")
            if occurrences(other.anchor, concept.name):
                notes.append(f"The anchor {other.anchor!r} of {other.name!r} names the erased {concept.name!r}.")
    return notes


def refuse_both(erased: Sequence[str], kept: Sequence[str]) -> None:
    """MaceError for names that stand in both lists, in any capitals."""
    goes = {folded(name): name for name in erased}
    if both := [goes[folded(name)] for name in kept if folded(name) in goes]:
        raise MaceError(f"{', '.join(both)}: to be erased and to be kept; take it out of one of the lists.")


def check_kept(concepts: Sequence[Concept], names: Sequence[str]) -> list[str]:
    """Notes on names to keep that an erased concept is part of, or that are its synonyms: they are kept as they stand.

    MaceError for a name that is to be erased and to be kept.
    """
    refuse_both([concept.name for concept in concepts], names)
    text, notes = "\n".join(names), []
    for concept in (with_synonyms(c) for c in concepts):
        known = {folded(synonym) for synonym in concept.synonyms}
        inside = occurrences(text, concept.name, plural=True)
        for name in (n for n in names if inside or known):
            if folded(name) in known:
                notes.append(f"{name!r}, a known synonym of the erased {concept.name!r}, is kept.")
            elif inside and occurrences(name, concept.name, plural=True):
                notes.append(f"{name!r}, which the erased {concept.name!r} is part of, is kept.")
    return notes


def _several(text: str) -> str:
    return f"{text!r} is taken as one name, with all that it holds: if it is several, give them one by one."


def folded(text: str) -> str:
    """What two spellings of a name have in common: capitals, spaces and composed accents do not count."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


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
    if "=" in one:
        return parse_concept(one)
    known = {folded(word): entry for entry in suggestions() for word in (*entry.synonyms, entry.name)}
    if folded(one) not in known:
        near = difflib.get_close_matches(folded(one), known, 3, 0.6)
        raise MaceError(
            f"No anchor is known for {one!r}: say what is to be shown in its place, "
            f'"{one.strip()}=a person" or Concept("{one.strip()}", anchor="a person").'
            + (f" Known names near it: {', '.join(near)}." if near else "")
        )
    anchor = known[folded(one)].anchor
    log.warning('"%s": in its place %s is shown; say "%s=..." for something else.', one, anchor, one)
    return Concept(one, anchor)


def read_concepts(path: str | Path) -> list[Concept]:
    """Concepts from .txt (one "name=anchor" a line, # begins a comment), .csv (columns name, anchor and, if wanted,
    kind, synonyms, templates, companions; several by ";"), .yaml or .json (a list of "name=anchor" or of mappings).

    MaceError names the file and the line of what cannot be used.
    """
    found = []
    for where, entry in _items(path, "concept list", "concepts", ("name", "anchor")):
        with located(where):
            found.append(_entry(entry))
    return found


def read_names(path: str | Path) -> list[str]:
    """Names from .txt (one a line, # begins a comment), .csv (column name), .yaml or .json (a list); distinct.

    MaceError names the file and the line of what cannot be used.
    """
    found = []
    for where, entry in _items(path, "list of names", "names", ("name",)):
        with located(where):
            found.append(phrase(entry.get("name"), "A name") if isinstance(entry, dict) else name_in(entry))
    return list(dict.fromkeys(found))


def kept_names(values: Sequence[str]) -> list[str]:
    """Names to keep as they are given: each a name, or the file of a list (see `read_names`)."""
    found: list[str] = []
    for value in values:
        is_file = Path(value).suffix.lower() in SUFFIXES or Path(value).is_file()
        found += read_names(value) if is_file else [name_in(value)]
    return list(dict.fromkeys(found))


def _items(path: str | Path, what: str, key: str, columns: tuple[str, ...]) -> list[Item]:
    """The entries of a list in any of the formats; MaceError for another format, and for none."""
    suffix = Path(path).suffix.lower()
    if suffix == ".txt":
        items = read_entries(path, what)
    elif suffix in (".csv", ".tsv"):
        items = read_table(path, what, columns)
        if marked := next((item for item in items if item.value["name"].startswith("#")), None):
            raise MaceError(
                f"{marked.where}: {marked.value['name']!r} looks like a comment, which CSV has not: take the line out "
                "(a name that begins with # goes into a .yaml list)."
            )
    elif suffix in (".yaml", ".yml", ".json"):
        values, where = read_data(path, what, Texts)
        values, prefix = (values[key], key) if isinstance(values, dict) and set(values) == {key} else (values, "")
        if values is not None and not isinstance(values, list):
            raise MaceError(f'The {what} {path} holds no list: begin each entry with "- ", alone or below "{key}:".')
        items = [Item(f"{where(f'{prefix}[{i}]')}, entry {i + 1}", value) for i, value in enumerate(values or ())]
    else:
        raise MaceError(f"{path} is no {what}: give a .txt, .csv, .yaml or .json file.")
    if not items:
        raise MaceError(f"The {what} {path} is empty: give at least one entry, such as {EXAMPLES[key]}.")
    return items


def _entry(entry: Any) -> Concept:
    fields = [field.name for field in dataclasses.fields(Concept)]
    if isinstance(entry, str):
        return parse_concept(entry)
    if not isinstance(entry, dict) or not {"name", "anchor"} <= set(entry) <= set(fields):
        raise MaceError(f"{entry!r} must have name and anchor, and nothing beside {', '.join(fields)}.")
    values = {key: value for key, value in entry.items() if value not in (None, "", [])}
    for key in ("synonyms", "templates", "companions"):
        if isinstance(values.get(key), str):
            values[key] = [part.strip() for part in values[key].split(";") if part.strip()]
    return Concept(**{"name": "", "anchor": ""} | values)


def paper_list(name: str) -> list[Concept]:
    """One of the paper's lists: "objects", "celebrities_1", "_5", "_10", "_100", "styles_100", "explicit".

    Of the objects' anchors three are published: those of the others are ours (`OBJECT_ANCHORS`).
    """
    kind, _, count = name.partition("_")
    names = ["objects", "explicit", "celebrities_1", "celebrities_5", "celebrities_10", "celebrities_100", "styles_100"]
    if name not in names:
        raise MaceError(f"There is no list {name!r} in the paper: choose one of {', '.join(names)}.")
    with _protocol(kind) as data:
        if kind == "objects":
            return [Concept(n, OBJECT_ANCHORS[n], synonyms=tuple(s)) for n, s in data["synonyms"].items()]
        listed = data[f"erase_{count}" if count else "erase"]
        anchor = "a woman" if name == "celebrities_1" else data["anchor"]
        return [Concept(n, anchor, PAPER_KINDS[kind]) for n in listed]


def retained(name: str) -> list[str]:
    """The names that the paper keeps beside a list: "celebrities" or "styles", 100 each."""
    if name not in ("celebrities", "styles"):
        raise MaceError(f"The paper retains no list {name!r}: choose celebrities or styles.")
    with _protocol(name) as data:
        return [phrase(kept, "A name to retain") for kept in data["retain_100"]]


@contextlib.contextmanager
def _protocol(name: str) -> Iterator[Any]:
    """What `data/protocols` holds under a name; MaceError where the block does not find in it what it looks for."""
    path = data_folder() / "protocols" / f"{name}.json"
    try:
        yield read_json(path, "protocol")
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise MaceError(f"The protocol {path} is damaged ({error!r}): restore it, or set MACELIB_DATA.") from error
