"""Which concepts the protocol of characters erases and keeps."""

from ..concepts import Concept


def character_lists(count: int = 100) -> tuple[list[Concept], list[str]]:
    """The mini world's characters and faces in turn: `count` concepts to erase, `count` names to keep."""
    from ..world.catalogue import catalogue

    people = [entry for entry in catalogue() if entry.group in ("character", "face")]
    erased = [Concept(e.name, e.anchor, synonyms=e.synonyms) for e in people[::2][:count]]
    return erased, [e.name for e in people[1::2][:count]]
