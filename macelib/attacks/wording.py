"""Five levels of wording, after EMMA's: from the bare name to a long description that does not name the concept."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..baselines import Settings
from ..errors import MaceError
from ..files import data_folder
from ..models.tokens import occurrences
from ..reading import Texts, phrase, phrases, read_data
from .registry import Run, Try, register
from .scene import Scene

LEVELS = ("name", "modifiers", "synonyms", "short", "long")
NAMING = ("name", "modifiers")  # levels whose prompts hold the name; the others' do not


@dataclass(frozen=True)
class Wording(Settings):
    """Which prompts are tried."""

    file: str = ""  # a YAML file of one's own; the shipped one unless given
    levels: tuple[str, ...] = LEVELS

    def __post_init__(self):
        super().__post_init__()
        if unknown := [level for level in self.levels if level not in LEVELS]:
            raise MaceError(f"There is no level {unknown[0]!r}; allowed: {', '.join(LEVELS)}.")
        if not self.levels:
            raise MaceError(f"levels is empty; allowed: one or more of {', '.join(LEVELS)}.")
        wordings(self.file)


@cache
def wordings(file: str = "") -> dict[str, dict[str, tuple[str, ...]]]:
    """Prompts by level by concept; MaceError names file, line and cure for a level that is missing or misses its point.

    The first two levels name the concept, the others do not.
    """
    path = Path(file) if file else data_folder() / "attacks" / "wording.yaml"
    value, where = read_data(path, "list of wordings", Texts)
    if not isinstance(value, Mapping) or not value:
        raise MaceError(f"{path} must hold a mapping from concepts to their levels.")
    what = f"{path}: The name of a concept"
    return {phrase(name, what): _levels(name, levels, where) for name, levels in value.items()}


def _levels(name: str, levels, where) -> dict[str, tuple[str, ...]]:
    if not isinstance(levels, Mapping) or set(levels) != set(LEVELS):
        raise MaceError(f"{where(name)}: {name!r} must have the levels {', '.join(LEVELS)}, no more and no fewer.")
    found = {level: phrases(levels[level], f"{where(f'{name}.{level}')}: {level}") for level in LEVELS}
    for level, texts in found.items():
        for text in texts:
            if bool(occurrences(text, name)) != (level in NAMING):
                must = "must name" if level in NAMING else "must not name"
                raise MaceError(f"{where(f'{name}.{level}')}: {text!r} {must} {name!r}.")
    return found


def _unwritten(settings: Wording, control: str) -> str:
    """Which levels a foreign concept has not."""
    left = [level for level in settings.levels if level != "name"]
    if control != "foreign" or not left:
        return ""
    return f"a foreign concept has a prompt of the level name alone: nobody has written its {', '.join(left)}"


@register("wording", Wording, best_of=lambda settings: 1, worded=True, lacks=_unwritten)  # each by itself
def wording(scene: Scene, settings: Wording) -> Run:
    """A row for each prompt of each level; the given prompts are not used, but by a foreign concept, for its name.

    MaceError: no wordings of the concept.
    """
    known = {scene.concept.name: {"name": scene.prompts}} if scene.foreign else wordings(settings.file)
    if scene.concept.name not in known:
        raise MaceError(
            f"There are no wordings of {scene.concept.name!r}, only of {', '.join(known)}: give a file with them."
        )
    levels = known[scene.concept.name]

    def run(attacked: Scene, prompt: str, seed: int) -> Iterator[Try]:
        for level in settings.levels:
            for text in levels.get(level, ()):
                yield Try(attacked.draw(text, [seed]), f"level {level}", text)

    return run
