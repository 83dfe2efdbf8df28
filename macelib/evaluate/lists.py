"""Which concepts the protocols of objects and characters erase and keep, and those that settings are tuned on."""

from ..concepts import Concept, paper_list
from ..errors import MaceError
from ..models.mini import PEOPLE, catalogue, find, names, split


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


def tuning_lists(count: int = 60) -> tuple[list[Concept], list[str]]:
    """`count` of the mini world's concepts to erase and names to keep that settings may be chosen on (`mini.split`).

    No protocol asks for any of them. MaceError: more than there are.
    """
    names = split()
    if count > len(names["erased"]):
        raise MaceError(
            f"Settings are chosen on {len(names['erased'])} concepts at most, not {count}: lower the count."
        )
    erased = [find(name) for name in names["erased"][:count]]
    return [Concept(e.name, e.anchor, synonyms=e.synonyms) for e in erased], [*names["kept"][:count]]
