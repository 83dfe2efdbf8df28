"""Concepts, their prompts, and lists of them."""

import csv
import dataclasses
import difflib
import json
import logging
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from .errors import MaceError
from .files import data_folder
from .models.tokens import Alignment, align, occurrences, token_spans
from .templates import OBJECT_ANCHORS, SAMPLE_TEMPLATE, TEMPLATES, fill

__all__ = [
    "SAMPLE_TEMPLATE",
    "TEMPLATES",
    "Alignment",
    "Concept",
    "align",
    "anchored",
    "check_concepts",
    "listed",
    "paper_list",
    "parse_concept",
    "prompts",
    "read_concepts",
    "retained",
    "sample_prompt",
    "templates",
    "token_spans",
    "with_synonyms",
]  # fmt: skip
log = logging.getLogger(__name__)
KINDS = tuple(TEMPLATES)


@dataclass(frozen=True)
class Concept:
    """A thing or a style to erase, and the anchor that takes its place; MaceError for an empty or impossible field."""

    name: str  # "ship"
    anchor: str  # what it becomes: a super-category or something neutral, "sea", "a person", "art"
    kind: str = "object"  # "object" | "style"
    synonyms: tuple[str, ...] = ()  # other names: left out of the prior; generality is measured on them
    templates: tuple[str, ...] | None = None  # own templates with "{}"; None: the thirty of its kind

    def __post_init__(self):
        for field in ("name", "anchor"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                raise MaceError(f"The {field} of a concept must be a word or a phrase, not {value!r}.")
            object.__setattr__(self, field, " ".join(value.split()))
        if self.kind not in KINDS:
            raise MaceError(f"The kind of {self.name!r} is {self.kind!r}: it must be one of {', '.join(KINDS)}.")
        for field in ("synonyms", "templates"):
            value = getattr(self, field)
            if isinstance(value, str):
                raise MaceError(f"The {field} of {self.name!r} must be a list of texts, not the text {value!r}.")
            if value is not None:
                object.__setattr__(self, field, tuple(str(text) for text in value))
        if self.templates == ():
            raise MaceError(f"The list of templates of {self.name!r} is empty: leave it out for the built-in ones.")
        for template in self.templates or ():
            if "{}" not in template:
                raise MaceError(f'The template {template!r} of {self.name!r} has no "{{}}" where the name goes.')
            if occurrences(template, self.name):
                raise MaceError(f'The template {template!r} names {self.name!r} itself: write "{{}}" in its place.')


def templates(concept: Concept) -> list[str]:
    """The concept's own templates, or those of its kind that do not name it outside of "{}"."""
    chosen = concept.templates or [t for t in TEMPLATES[concept.kind] if not occurrences(t, concept.name)]
    distinct = {(fill(t, concept.name), fill(t, concept.anchor)): t for t in reversed(chosen)}
    return list(distinct.values())[::-1]


def prompts(concept: Concept) -> list[str]:
    """The concept's templates filled with its name."""
    return [fill(template, concept.name) for template in templates(concept)]


def anchored(concept: Concept) -> list[str]:
    """The same templates, in the same order, filled with its anchor."""
    return [fill(template, concept.anchor) for template in templates(concept)]


def sample_prompt(concept: Concept) -> str:
    """The prompt of the concept's training images: "a photo of the ship"."""
    return fill(SAMPLE_TEMPLATE[concept.kind], concept.name)


def with_synonyms(concept: Concept) -> Concept:
    """The concept with the paper's or the mini world's synonyms, where it has none of its own."""
    from .models.mini import catalogue

    if concept.synonyms or concept.kind == "style":
        return concept
    try:
        known = {_fold(entry.name): entry.synonyms for entry in (*catalogue(), *paper_list("objects"))}
    except (OSError, ValueError) as error:
        raise MaceError(
            f"The known synonyms cannot be read ({error}): set MACELIB_DATA to macelib's data, or give synonyms."
        ) from error
    return dataclasses.replace(concept, synonyms=tuple(known.get(_fold(concept.name), ())))


def check_concepts(concepts: Sequence[Concept]) -> list[str]:
    """Refuse what cannot be erased together; return notes about what can but deserves a look.

    MaceError: empty list, the same name twice, an anchor equal to its name (capitals and spaces aside).
    """
    if not concepts:
        raise MaceError('The list of concepts is empty: give at least one, such as "ship=sea".')
    seen, notes = {}, []
    for concept in concepts:
        if _fold(concept.name) == _fold(concept.anchor):
            raise MaceError(f"The anchor of {concept.name!r} is the concept itself: choose something else to show.")
        if _fold(concept.name) in seen:
            raise MaceError(f"The concept {concept.name!r} is listed twice: keep one of the two.")
        seen[_fold(concept.name)] = concept
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


def _fold(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def parse_concept(text: str, kind: str = "object") -> Concept:
    """ "ship=sea" as a Concept; MaceError where a side is missing."""
    name, equals, anchor = text.partition("=")
    if not (equals and name.strip() and anchor.strip()):
        raise MaceError(f'{text!r} does not say what the concept becomes: write "name=anchor", such as "ship=sea".')
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
    known = {_fold(word): entry for entry in suggestions() for word in (*entry.synonyms, entry.name)}
    if _fold(one) not in known:
        near = difflib.get_close_matches(_fold(one), known, 3, 0.6)
        raise MaceError(
            f"No anchor is known for {one!r}: say what is to be shown in its place, "
            f'"{one.strip()}=a person" or Concept("{one.strip()}", anchor="a person").'
            + (f" Known names near it: {', '.join(near)}." if near else "")
        )
    anchor = known[_fold(one)].anchor
    log.warning('"%s": in its place %s is shown; say "%s=..." for something else.', one, anchor, one)
    return Concept(one, anchor)


def read_concepts(path: str | Path) -> list[Concept]:
    """Concepts from .txt (one "name=anchor" a line, # starts a comment), .csv (columns name, anchor and, if wanted,
    kind, synonyms, templates, the last two separated by ";"), .yaml or .json (a list of "name=anchor" or of mappings).

    MaceError names the file and the entry that cannot be used.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".txt":
            entries = [line for line in (raw.split("#")[0].strip() for raw in text.splitlines()) if line]
        elif path.suffix == ".csv":
            entries = list(csv.DictReader(text.splitlines(), skipinitialspace=True))
        elif path.suffix in (".yaml", ".yml", ".json"):
            entries = yaml.safe_load(text)
        else:
            raise MaceError(f"{path} is no concept list: give a .yaml, .json, .csv or .txt file.")
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise MaceError(f"The concept list {path} cannot be read ({error}).") from error
    entries = entries.get("concepts") if isinstance(entries, dict) else entries
    if not isinstance(entries, list) or not entries:
        raise MaceError(f'The concept list {path} is empty: give at least one, such as "ship=sea".')
    return [_entry(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, 1)]


def _entry(entry: str | dict, where: str) -> Concept:
    fields = [field.name for field in dataclasses.fields(Concept)]
    try:
        if isinstance(entry, str):
            return parse_concept(entry)
        if not isinstance(entry, dict) or not {"name", "anchor"} <= set(entry) <= set(fields):
            raise MaceError(f"{entry!r} must have name and anchor, and nothing beside {', '.join(fields)}.")
        values = {key: value for key, value in entry.items() if value}
        for key in ("synonyms", "templates"):
            if isinstance(values.get(key), str):
                values[key] = [part.strip() for part in values[key].split(";") if part.strip()]
        return Concept(**{"name": "", "anchor": ""} | values)
    except MaceError as error:
        raise MaceError(f"{where}: {error}") from error


def paper_list(name: str) -> list[Concept]:
    """One of the paper's lists: "objects", "celebrities_1", "_5", "_10", "_100", "styles_100", "explicit".

    The paper's list of objects has no anchors: those in `OBJECT_ANCHORS` are ours.
    """
    kind, _, count = name.partition("_")
    names = ["objects", "explicit", "celebrities_1", "celebrities_5", "celebrities_10", "celebrities_100", "styles_100"]
    if name not in names:
        raise MaceError(f"There is no list {name!r} in the paper: choose one of {', '.join(names)}.")
    data = json.loads((data_folder() / "protocols" / f"{kind}.json").read_text(encoding="utf-8"))
    if kind == "objects":
        return [Concept(n, OBJECT_ANCHORS[n], synonyms=tuple(s)) for n, s in data["synonyms"].items()]
    listed = data[f"erase_{count}" if count else "erase"]
    return [Concept(n, data["anchor"], "style" if kind == "styles" else "object") for n in listed]


def retained(name: str) -> list[str]:
    """The names that the paper keeps beside a list: "celebrities" or "styles", 100 each."""
    if name not in ("celebrities", "styles"):
        raise MaceError(f"The paper retains no list {name!r}: choose celebrities or styles.")
    return json.loads((data_folder() / "protocols" / f"{name}.json").read_text(encoding="utf-8"))["retain_100"]
