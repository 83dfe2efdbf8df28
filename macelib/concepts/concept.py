"""One concept and its prompts, and which concepts go together."""

import dataclasses
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import MaceError
from ..models.families import known_entries
from ..models.tokens import occurrences
from ..reading import EQUALS, SEPARATORS, located, outside, phrase, phrases, read_items, unquoted
from ..templates import PAIRS, PAPER_LIKE, SAMPLE_TEMPLATE, TEMPLATES, beside, fill
from .protocol import protocol

KINDS = tuple(TEMPLATES)
BETWEEN = re.compile(r"\w\s*[/&+|]\s*\w|\w\s+(?:and|or)\s+\w", re.IGNORECASE)  # what may stand between two names


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
            if (value := getattr(self, field)) is not None or field != "templates":
                object.__setattr__(self, field, phrases(value, f"{self.name!r}: {field}", empty=True))
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
    a line; those that name the concept are left out. MaceError as `read_templates`, and where none is left.
    """
    if concept.templates or choice == "ours":
        return concept
    chosen = PAPER_LIKE[concept.kind] if choice == "paper-like" else read_templates(choice)
    stay = tuple(template for template in chosen if not _names(template, concept.name))
    if not stay:
        raise MaceError(f'All templates of {choice} name {concept.name!r} themselves: write "{{}}" in its place.')
    return dataclasses.replace(concept, templates=stay)


def read_templates(path: str | Path) -> list[str]:
    """Templates with "{}" from .txt (one a line, # begins a comment), .csv (column template), .yaml or .json (a list).

    MaceError names file, line and cure.
    """
    if not (os.path.splitext(path)[1] or os.path.exists(path)):
        raise MaceError(f"There are no templates {str(path)!r}: give ours, paper-like, or a text file with one a line.")
    found = []
    for where, entry in read_items(path, "list of templates", "templates", ("template",), '"a photo of the {}"'):
        with located(where):
            text = unquoted(entry)[0] if isinstance(entry, str) else entry
            text = text.get("template") if isinstance(text, dict) else text
            template = phrase(text, "A template")
            if "{}" not in template:
                raise MaceError(f'The template {template!r} has no "{{}}" where the name goes.')
        found.append(template)
    return found


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
        known = {folded(entry.name): entry.synonyms for entry in known_entries()}
        with protocol("objects") as data:
            known |= {folded(name): synonyms for name, synonyms in data["synonyms"].items()}
    except (OSError, ValueError) as error:
        raise MaceError(
            f"The known synonyms cannot be read ({error}): set MACELIB_DATA to macelib's data, or give synonyms."
        ) from error
    return dataclasses.replace(concept, synonyms=tuple(known.get(folded(concept.name), ())))


def super_category(concept: Concept) -> str:
    """The super-category of a concept in a family's catalogue; where none is known, its anchor.

    >>> super_category(Concept("Amy Adams", "a person", "celebrity"))
    'a person'
    """
    name = folded(concept.name)
    known = (entry.super for entry in known_entries() if folded(entry.name) == name and folded(entry.super) != name)
    return next(filter(None, known), concept.anchor)


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
        signs, between = SEPARATORS + EQUALS, BETWEEN.search(concept.name)
        notes += [_several(concept.name)] if between or outside(concept.name, signs) else []
        notes += [_several(concept.anchor)] if outside(concept.anchor, signs) else []
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
