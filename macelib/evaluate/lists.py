"""Which concepts the protocols of objects and characters erase and keep, and those that settings are tuned on."""

from ..concepts import Concept, paper_list, retained
from ..errors import MaceError
from ..models.families import SHIPPED, Entry, Family
from ..presets import values
from ..templates import COMPANIONS


def object_list(family: Family = SHIPPED) -> list[Concept]:
    """The paper's ten objects; where the family has a catalogue, with its anchors, which the model can draw."""
    if family.catalogue is None:
        return paper_list("objects")
    known = _catalogue(family)
    return [_concept(known[concept.name]) for concept in paper_list("objects")]


def character_lists(count: int = 100, family: Family = SHIPPED) -> tuple[list[Concept], list[str]]:
    """The catalogue's people in turn: `count` concepts to erase, `count` names to keep.

    The paper's celebrities and the hundred that it keeps, where the family's catalogue has no people. MaceError: more
    than there are.
    """
    if not family.people:
        return paper_list(f"celebrities_{count}"), retained("celebrities")
    people = [entry for entry in _catalogue(family).values() if entry.group in family.people]
    if not 1 <= count <= len(people) // 2:
        raise MaceError(
            f"{family.name} draws {len(people)} people, of whom {len(people) // 2} at most are erased beside as many "
            f"that are kept, not {count}: lower count."
        )
    return [_concept(e) for e in people[::2][:count]], [e.name for e in people[1::2][:count]]


def tuning_lists(count: int = 60, family: Family = SHIPPED) -> tuple[list[Concept], list[str]]:
    """`count` of the catalogue's concepts to erase and names to keep that settings may be chosen on (`Family.split`).

    No protocol asks for any of them. Names to keep are fewer by the companions of the family's preset, which a method
    is told without being asked to keep them. MaceError: more than there are, or a family without such names.
    """
    if family.split is None:
        raise MaceError(
            f"No names are set apart to choose settings on with a model of {family.name}: use {SHIPPED.shipped}, or "
            "lists of your own with erase."
        )
    names, known = family.split(), _catalogue(family)
    if count > len(names["erased"]):
        raise MaceError(
            f"Settings are chosen on {len(names['erased'])} concepts at most, not {count}: lower the count."
        )
    told = values(family.preset, "object")["companions"]
    kept = [name for name in names["kept"] if name not in told][:count]
    return [_concept(known[name]) for name in names["erased"][:count]], kept


def companion_lists(family: Family, tuning: bool = False) -> tuple[list[Concept], list[str]]:
    """Concepts to erase beside companions, and these: the paper's ten, and what the family draws beside another thing.

    Names that settings are chosen on are left out; with `tuning` they are all there is, erased and kept as in
    `Family.split`. MaceError: a family without such names.
    """
    split = family.split() if family.split else {"erased": (), "kept": ()}
    companions = [*(family.companions() if family.companions else COMPANIONS)]
    if not tuning:
        apart = {*split["erased"], *split["kept"]}
        return object_list(family), [name for name in companions if name not in apart]
    erased, kept = tuning_lists(len(split["erased"]), family)
    return [c for c in erased if c.name in companions], [name for name in kept if name in companions]


def _catalogue(family: Family) -> dict[str, Entry]:
    return {entry.name: entry for entry in family.catalogue()}


def _concept(entry: Entry) -> Concept:
    return Concept(entry.name, entry.anchor, synonyms=entry.synonyms)
