"""Which concepts the protocols of objects and characters erase and keep, and those that settings are tuned on."""

from ..concepts import Concept, paper_list
from ..models.mini import PEOPLE, catalogue, names


def object_list(mini: bool = True) -> list[Concept]:
    """The paper's ten objects; those of the mini world with the anchors of its catalogue, which it can draw."""
    if not mini:
        return paper_list("objects")
    entries = [catalogue()[names()[concept.name]] for concept in paper_list("objects")]
    return [Concept(e.name, e.anchor, synonyms=e.synonyms) for e in entries]


def character_lists(count: int = 100) -> tuple[list[Concept], list[str]]:
    """The mini world's characters and faces in turn: `count` concepts to erase, `count` names to keep."""
    people = [entry for entry in catalogue() if entry.group in PEOPLE]
    erased = [Concept(e.name, e.anchor, synonyms=e.synonyms) for e in people[::2][:count]]
    return erased, [e.name for e in people[1::2][:count]]


def tuning_lists(count: int = 100) -> tuple[list[Concept], list[str]]:
    """The mini world's other concepts in turn, none of the ten objects, no character and no face.

    `count` concepts to erase, `count` names to keep: what settings can be tuned on, so that both protocols stay a test.
    """
    ten = {concept.name for concept in paper_list("objects")}
    others = [e for e in catalogue() if e.drawn and e.group not in PEOPLE and e.name not in ten]
    erased = [Concept(e.name, e.anchor, synonyms=e.synonyms) for e in others[: 2 * count : 2]]
    return erased, [e.name for e in others[1 : 2 * count : 2]]
