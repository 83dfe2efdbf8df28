"""What stands in the place of an erased concept: its anchor, or something of its super-category.

A picture of noise is no good erasure, whatever is not recognised in it.
"""

import re

from ..concepts import Concept, folded
from ..models.families import Family


def stand_ins(concept: Concept, family: Family) -> set[str]:
    """The names for which a picture counts as one of the concept's anchor or super-category.

    The anchor with and without its article; from the family's catalogue, everything that the anchor names by a synonym,
    or as a super-category, and everything of the concept's own super-category. Never the concept itself.
    """
    bare = re.sub(r"^(the|an?) ", "", concept.anchor, flags=re.IGNORECASE)
    meant = {folded(concept.anchor), folded(bare)}
    entries = family.catalogue() if family.catalogue else ()
    own = {folded(entry.super) for entry in entries if folded(entry.name) == folded(concept.name)} - {""}
    found = {concept.anchor, bare}
    for entry in entries:
        named = meant & {folded(word) for word in (entry.name, *entry.synonyms)}
        if named or folded(entry.super) in meant | own:
            found.add(entry.name)
    return found - {concept.name, *concept.synonyms}
