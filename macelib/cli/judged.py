"""Who judges what `mace attack` draws: of the erased concepts, and of those that the model never knew."""

from ..errors import MaceError


class Among:
    """A classifier that chooses among all that it knows, or (CLIP) among the names given; MaceError without any."""

    def __init__(self, who, names: list[str], among: list[str], given: str | None = None):
        from ..attacks import judge_key
        from ..evaluate.judge import ClipClassifier
        from ..files import hash_text

        self.who, self.options = who, None if getattr(who, "concepts", None) else [*dict.fromkeys([*names, *among])]
        self.name, self.model = who.name, getattr(who, "model", None)
        if isinstance(who, ClipClassifier) and not among:
            raise MaceError(f"{who.name} has no list of names of its own: say with --among what else there may be.")
        who.check(self.options or names)
        self.key = hash_text(judge_key(who), given, *(self.options or ()))  # given: two functions may have one name

    def top1(self, pictures, among=None):
        return self.who.top1(pictures, self.options)


def gallery(pipe, foreign: dict) -> tuple:
    """The scorer of the model's family, and the foreign pictures beside those of its catalogue."""
    from ..evaluate.classifiers import classifier_for
    from ..models.families import family_of
    from ..models.mini import shown

    if family_of(pipe).catalogue is None:
        raise MaceError("Foreign pictures are told from a catalogue's, and this model has none: leave out --foreign.")
    known = shown()
    if both := sorted(set(known) & set(foreign)):
        raise MaceError(f"{both[0]!r} is not foreign: it is in the catalogue.")
    return classifier_for(pipe, "styles"), known | foreign
