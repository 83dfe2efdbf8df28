"""Which concepts a protocol erases and keeps, and the synonyms that generality is measured on."""

import dataclasses

from ..concepts import Concept, paper_list


def with_synonyms(concept: Concept) -> Concept:
    """The concept with the paper's or the mini world's synonyms, where it has none of its own."""
    from ..world.catalogue import catalogue

    if concept.synonyms or concept.kind == "style":
        return concept
    known = {entry.name: entry.synonyms for entry in catalogue()}
    known |= {entry.name: entry.synonyms for entry in paper_list("objects")}
    return dataclasses.replace(concept, synonyms=tuple(known.get(concept.name, ())))


def character_lists(count: int = 100) -> tuple[list[Concept], list[str]]:
    """The mini world's characters and faces in turn: `count` concepts to erase, `count` names to keep."""
    from ..world.catalogue import catalogue

    people = [entry for entry in catalogue() if entry.group in ("character", "face")]
    erased = [Concept(e.name, e.anchor, synonyms=e.synonyms) for e in people[::2][:count]]
    return erased, [e.name for e in people[1::2][:count]]
