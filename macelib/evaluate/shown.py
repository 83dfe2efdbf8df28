"""What stands in the place of an erased concept: its anchor, or something of its super-category.

A picture of noise is no good erasure, whatever is not recognised in it; nor is one of something else that went with it.
"""

import re
from collections.abc import Sequence

from ..concepts import Concept, folded
from ..models.families import Family


def stand_ins(concept: Concept, family: Family, erased: Sequence[Concept] = (), kind: str = "") -> set[str]:
    """The names for which a picture counts as one of the concept's anchor or super-category.

    Both with and without their articles; from the family's catalogue, everything that the anchor names by a synonym, or
    as a super-category (`Family.phrases`), and everything of the concept's own super-category.
    erased: what goes in the same run: none of it counts, nor does the concept itself. kind: the super-category, beside
    the catalogue's.
    """
    entries = family.catalogue() if family.catalogue else ()
    meant = {folded(text) for text in _bare(concept.anchor)}
    kinds = {folded(family.phrases.get(folded(concept.anchor), "")), folded(kind), *meant}
    kinds |= {folded(entry.super) for entry in entries if folded(entry.name) == folded(concept.name)}
    found = {*_bare(concept.anchor), *_bare(kind)}
    for entry in entries:
        named = meant & {folded(word) for word in (entry.name, *entry.synonyms)}
        if named or (entry.super and folded(entry.super) in kinds):
            found.add(entry.name)
    gone = {"", *(folded(word) for one in (concept, *erased) for word in (one.name, *one.synonyms))}
    return {name for name in found if folded(name) not in gone}


def _bare(text: str) -> tuple[str, str]:
    """A text, and the same without its article."""
    return text, re.sub(r"^(the|an?) ", "", text, flags=re.IGNORECASE)
