"""Whether a model draws a concept at all: looked up on its training pictures, which are made anyway."""

import difflib
import logging
from collections import Counter
from collections.abc import Callable, Sequence

from PIL import Image

from ..concepts import Concept, folded
from ..errors import MaceError
from ..models.families import SHIPPED, family_of, known_entries
from .judge import Judge

log = logging.getLogger(__name__)
LEAST = 0.25  # share of the pictures in which a concept that the model draws is recognised
Look = Callable[[Concept, Sequence[Image.Image]], None]


def looker(pipe, concepts: Sequence[Concept]) -> Look | None:
    """What looks at a concept's training pictures and warns where they do not show it.

    None where no classifier knows the model's pictures: that is said.
    """
    try:
        if family_of(pipe).judge == SHIPPED.judge:
            judge = Judge.load(device=pipe.device)
            return lambda concept, images: _warn(doubt(concept, judge.top1(images, kind=_label(concept)), judge))
        reason = "no classifier comes with this model"
    except MaceError as error:
        reason = str(error)
    _unchecked(concepts, reason, "look at the training pictures")
    return None


def unlooked(pipe, concepts: Sequence[Concept]) -> None:
    """Say that there are no training pictures to look at, of concepts that the family's catalogue does not hold."""
    catalogue = family_of(pipe).catalogue
    entries = catalogue() if catalogue else ()
    known = {folded(word) for entry in entries for word in (entry.name, *entry.synonyms)}
    if unknown := [concept for concept in concepts if folded(concept.name) not in known]:
        _unchecked(unknown, "stage 1 alone has no training pictures", "draw some")


def _unchecked(concepts: Sequence[Concept], reason: str, cure: str) -> None:
    names = ", ".join(repr(concept.name) for concept in concepts[:5])
    names += f" and {len(concepts) - 5} more" if len(concepts) > 5 else ""
    log.warning("Whether the model draws %s was not checked (%s): %s.", names, reason, cure)


def _warn(sentence: str | None) -> None:
    if sentence:
        log.warning(sentence)


def _label(concept: Concept) -> str:
    return "style" if concept.kind == "style" else "concept"


def doubt(concept: Concept, seen: Sequence[str], judge: Judge) -> str | None:
    """A sentence where the model does not draw the concept, with near names; None where it does.

    seen: what the judge sees in each of its pictures.
    """
    label, word = _label(concept), concept.name.casefold()
    known = {name.casefold(): name for name in (judge.styles if label == "style" else judge.concepts)}
    if label == "concept":
        known |= {synonym.casefold(): entry.name for entry in known_entries() for synonym in entry.synonyms}
    counts = Counter(seen)
    if word in known and counts[known[word]] >= LEAST * len(seen):
        return None
    shown = ", ".join(f"{name} ({count})" for name, count in counts.most_common(3))
    near = ", ".join(name for name in difflib.get_close_matches(word, known, 4, 0.5) if name != word)
    hint = f"Is it misspelt? Near it: {near}." if near else "No known name is near it."
    why = "hardly draws" if word in known else "knows no"
    return f"The model {why} {label} {concept.name!r}: its {len(seen)} training pictures show {shown}. {hint}"
