"""What a comparison does: a task, a profile of how much is drawn, and methods with their settings."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..baselines import AS_PUBLISHED, method, methods
from ..baselines.registry import KINDS
from ..concepts import Concept
from ..config import EraseConfig
from ..errors import MaceError, need, unknown
from ..evaluate import results
from ..evaluate.companions import pair_asks
from ..evaluate.tasks import OWN, Row, Task, read_task, task, tasks
from ..evaluate.tuning import KINDS as TUNED
from ..evaluate.tuning import tuned_kind
from ..evaluate.work import Ask, Work
from ..models.families import Family
from ..reading import read_data

WORLDS = ("mini", "sd")  # whose names a task has: "objects" is mini-objects or sd-objects
PAPER_S = {"characters": "celebrities", "unsafe": "explicit"}  # what the tasks for SD call these
T = TypeVar("T")
BEST = "mace-best"  # the method with the preset "best"
PRESET = "preset"  # where nothing was tuned for the kind of task: MACE as it stands for a model, others as for objects
Pair = tuple[str, str, str, str, int]  # erased, companion, which is named first, prompt, seed


@dataclass(frozen=True)
class Profile:
    """How much is drawn."""

    name: str
    steps: int  # denoising steps
    images: int  # seeds of each name, where a task has one template
    templates: int  # where it has several: how many of them,
    seeds: int  # and seeds of each
    pairs: int  # seeds of each prompt of two things
    captions: int  # general captions, one seed each
    trainings: int = 1  # of objects: training seeds of a method that trains


PROFILES = {
    "quick": Profile("quick", steps=8, images=5, templates=1, seeds=5, pairs=3, captions=100),
    "recorded": Profile("recorded", steps=8, images=20, templates=2, seeds=3, pairs=5, captions=500, trainings=3),
    "paper": Profile("paper", steps=25, images=50, templates=5, seeds=5, pairs=5, captions=5000, trainings=3),
}


@dataclass(frozen=True)
class Way:
    """A method with one choice of its settings: a row of the tables."""

    method: str
    settings: str  # "published", "tuned" or `PRESET`; "" of the original model
    values: Mapping[str, Any] | None = field(default=None, hash=False)  # fields of its settings; None: as published
    among: int | None = field(default=None, compare=False)  # of how many settings these were chosen; None: not known

    def __str__(self) -> str:
        return f"{self.method} ({self.settings})" if self.settings else self.method


ORIGINAL = Way("original", "")


@dataclass(frozen=True)
class Plan:
    """Which concepts go, and which prompts and seeds are drawn and counted for each erasure."""

    name: str  # of the tables: "characters-100"
    task: Task
    profile: str
    steps: int
    templates: tuple[str, ...]
    seeds: tuple[int, ...]
    erasures: tuple[tuple[Concept, ...], ...]  # each list is erased together
    trainings: int = 1  # training seeds of a method that trains

    @property
    def pairs(self) -> bool:
        """Whether prompts hold two things."""
        return any("{other}" in template for template in self.templates)

    @property
    def alike(self) -> bool:
        """Whether both of the two are erased, or both kept."""
        return self.task.about.beside == "alike"

    @property
    def scored(self) -> bool:
        """Whether pictures are scored by how well they fit their prompt."""
        return self.task.about.metric in ("H_a", "CLIP_s")

    @property
    def detects(self) -> bool:
        """Whether a detector counts what pictures of a list of prompts show, whatever they ask for."""
        return self.task.about.metric == "nudenet"

    @property
    def apart(self) -> bool:
        """Whether there are several erasures, of which the mean is told."""
        return self.task.about.erase != "together"

    @property
    def rows(self) -> dict[str, Row]:
        """What the task says of each name."""
        return {row.name: row for row in (*self.task.kept, *self.task.erased)}

    @property
    def kind(self) -> str:
        """Which published settings belong to the task, of `KINDS`."""
        return settings_kind(self.task)

    def kept(self, i: int) -> list[str]:
        """Names, or captions, whose pictures must stay in erasure i."""
        return [*self.task.captions] or self.task.kept_beside(self.erasures[i])

    def told(self, i: int) -> list[str]:
        """Those of them that a method is told to keep: what the task lists, nothing where its own others stay."""
        return self.task.kept_beside(self.erasures[i]) if self.task.kept else []

    def asks(self, i: int) -> list[Ask]:
        """The words that erasure i is measured on; synonyms where the task's metric asks for them."""
        concepts, asks = self.erasures[i] if not self.task.captions else (), []
        asks += [Ask("erased", c.name, c.name) for c in concepts]
        if self.task.about.metric == "H_o":
            asks += [Ask("synonym", c.name, word) for c in concepts for word in c.synonyms]
        return asks + [Ask("kept", name, name) for name in self.kept(i)]

    def two(self, i: int) -> list[Pair]:
        """The prompts of two things of erasure i."""
        if self.alike:
            lists = [c.name for c in self.erasures[i]], self.kept(i)
            twos = [two for names in lists for two in zip(names, names[1:] + names[:1], strict=True)]
            return [ask for one, other in twos for ask in pair_asks([one], [other], self.templates, self.seeds)]
        return pair_asks([c.name for c in self.erasures[i]], self.kept(i), self.templates, self.seeds)

    def jobs(self, i: int, work: Work) -> list[tuple[str, int]]:
        """The distinct (prompt, seed) of erasure i."""
        return list(dict.fromkeys(pair[-2:] for pair in self.two(i))) if self.pairs else work.jobs(self.asks(i))


def worlds(family: Family) -> tuple[str, ...]:
    """Whose tasks come first for a model of a family."""
    return WORLDS if family.catalogue is not None else WORLDS[::-1]


def either(ask: Callable[[Sequence[str]], T]) -> T:
    """What is found for a model that is not loaded yet: for the first world, or else for the other.

    ask: takes the worlds in order, as `find` does. MaceError of the first, where neither has it.
    """
    try:
        return ask(WORLDS)
    except MaceError:
        with suppress(MaceError):
            return ask(WORLDS[::-1])
        raise


def find(name: str, worlds: Sequence[str] = WORLDS, folder: str | Path | None = None) -> tuple[Task, int | None]:
    """The task that a name means, and how many of its concepts go (None: all): "objects", "sd-styles", "characters-30".

    The first of the worlds that has such a task; or a file of one's own. MaceError that lists near names, or the counts
    that there are.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return read_task(name), None
    known = tasks(folder)
    number = re.fullmatch(r"(.+)-(\d+)", name)
    for prefix in ("", *(f"{world}-" for world in worlds)):
        for bare, count in ((name, None), *([(number[1], int(number[2]))] if number else [])):
            own = re.sub("|".join(PAPER_S), lambda found: PAPER_S[found[0]], bare) if prefix == "sd-" else bare
            if f"{prefix}{own}" in known:
                found = task(f"{prefix}{own}", folder)
                found.concepts(count)
                return found, count
    shown = {spelt.partition("-")[2] if spelt.startswith(WORLDS[0]) else spelt for spelt in known}
    raise unknown("task", name, sorted(shown), 0.4, OWN)


def planned(
    found: Task,
    count: int | None = None,
    profile: str = "quick",
    *,
    only: Sequence[str] | None = None,
    seeds: int | None = None,
    trainings: int | None = None,
) -> Plan:
    """How a task is measured. only: some of its erased names; seeds: so many in place of the profile's, and said so.

    trainings: so many training seeds in place of the profile's; rows of methods that train say how many. Prompts of two
    things are drawn of one training. MaceError: an unknown profile or name, a task that this does not measure.
    """
    if profile not in PROFILES:
        raise unknown("profile", profile, PROFILES)
    about, how, marks = found.about, PROFILES[profile], [profile]
    if about.metric == "nudenet":
        need("nudenet", "explicit")
    chosen = found.concepts(count)
    if missing := [name for name in only or () if name not in {concept.name for concept in chosen}]:
        raise unknown(f"concept in {found.name}", missing[0], [concept.name for concept in chosen])
    if only:
        marks.append(f"only {', '.join(only)}")
        chosen = [concept for concept in chosen if concept.name in only]
    lists = [tuple(chosen)] if about.erase == "together" else [(concept,) for concept in chosen]
    two = any("{other}" in template for template in about.templates)
    several = len(about.templates) > 1 and not two
    if seeds is not None:
        if seeds < 1:
            raise MaceError(f"seeds is {seeds}; allowed: 1 or more.")
        marks.append(f"{seeds} seed{'s' * (seeds > 1)}")
    if about.beside == "alike" and len(chosen) < 2:
        raise MaceError(f"{found.name} draws erased things by twos: erase two at least.")
    number = seeds or (how.pairs if two else how.seeds if several else how.images)
    templates = about.templates[: how.templates] if several else about.templates
    if found.captions:
        found, number, templates = found.with_captions(chosen, how.captions), seeds or 1, ("{}",)
    name = found.name.removeprefix(f"{WORLDS[0]}-") + (f"-{count or len(found.erased)}" if found.counts else "")
    if trainings is not None and trainings < 1:
        raise MaceError(f"trainings is {trainings}; allowed: 1 or more.")
    usual = how.trainings if about.metric == "H_o" and settings_kind(found) == "object" else 1
    trained = 1 if two else trainings or usual
    return Plan(name, found, ", ".join(marks), how.steps, templates, tuple(range(number)), tuple(lists), trained)


def settings_kind(found: Task) -> str:
    """Which settings of a method belong to a task: those it names, or of people and unsafe things by their group."""
    if found.about.settings:
        return found.about.settings
    groups = {row.group for row in found.erased}
    if found.about.kind == "celebrity" or groups <= {"character", "face"}:
        return "celebrity"
    if found.about.kind == "explicit" or groups == {"unsafe"}:
        return "unsafe"
    return found.about.kind


def ways(
    names: Sequence[str] | None,
    found: Plan,
    tuned: Mapping[str, Mapping[str, Any]],
    family: Family | None = None,
    among: Mapping[str, int] | None = None,
) -> list[Way]:
    """The rows: the original model, then each method with its published settings and, where there are some, tuned ones.

    names: None for those that the task names, or else all, of the quick profile without those that need training.
    family: of the model. Where it has settings for MACE that were tuned on it, they are the tuned row of MACE and its
    ablations, and the paper's the published one. Tuned rows are called `PRESET` where nothing was tuned for the kind.
    among: by method of how many settings the tuned ones were chosen (`tried`). MaceError for an unknown method.
    """
    if names is None:
        quick = found.profile.partition(",")[0] == "quick"
        names = [m for m in found.task.about.methods or methods() if not (quick and method(m).trains)]
    names = list(dict.fromkeys(names))
    rows, among, chosen = [ORIGINAL], among or {}, "tuned" if found.kind in TUNED.values() else PRESET
    for name in (name for name in names if method(name).name != "original"):
        if name == BEST:
            rows.append(Way(name, chosen, among=among.get(name)))
        elif method(name).settings is EraseConfig and family is not None and family.preset == "mini":
            rows += [Way(name, "published", AS_PUBLISHED, 1), Way(name, chosen, among=among.get("mace"))]
        else:
            rows.append(Way(name, "published", among=1))
            rows += [Way(name, chosen, tuned[name], among.get(name))] if name in tuned else []
    return rows


def tuned_settings(kind: str, path: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """By method the settings that were chosen on the tuning concepts for a kind of task, from `tuned.yaml`; {}: none.

    A kind that nothing is tuned for takes those of objects (`tuned_kind`). The file: `uce: {celebrity: {lambda_: 5.0},
    ...}`. MaceError for a method, kind or setting that there is not.
    """
    path = Path(path or results.folder() / "tuned.yaml")
    if not path.is_file():
        return {}
    values, chosen, taken = read_data(path, "tuned settings")[0] or {}, {}, tuned_kind(kind)
    try:
        for name, kinds in values.items():
            for other in kinds:
                if other not in KINDS:
                    raise unknown("kind of settings", other, KINDS)
            if taken in kinds:
                fields = set(vars(method(name).settings_for(kind)))
                if bad := sorted(set(kinds[taken]) - fields):
                    raise unknown(f"setting of {name}", bad[0], sorted(fields))
                chosen[name] = dict(kinds[taken])
    except (AttributeError, TypeError) as error:
        raise MaceError(f"{path} must map methods to kinds of tasks, and these to settings.") from error
    except MaceError as error:
        raise MaceError(f"{path}: {error}") from error
    return chosen
