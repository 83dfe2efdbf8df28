"""Protocols as data: what a comparison erases, keeps, draws and counts, read from `data/protocols/*.yaml`.

A task names everything that is measured of a concept (anchor, super-category, group, synonyms), so that a model without
a catalogue is measured like one that has it. A task of one's own is one more file of the same shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..concepts import Concept, folded, refuse_both
from ..errors import MaceError, unknown
from ..files import data_folder
from ..method.captions import read_captions
from ..method.prior import coco_captions, names
from ..reading import Where, build_settings, phrase, phrases, placed, read_data
from .explicit import i2p_prompts

COCO, I2P = "coco", "i2p"  # stand for COCO 2014's captions and I2P's prompts, which people get themselves
LISTED = ("CLIP_s", "nudenet")  # metrics of captions: nothing else is drawn
OWN = "Or give a file.yaml of your own."
ROW = ("name", "anchor", "super", "group", "synonyms")


@dataclass(frozen=True)
class Row:
    """One name that is erased or kept; MaceError for a text that is no phrase."""

    name: str
    anchor: str  # what it becomes where it is erased
    super: str  # its super-category: what an erased prompt may show beside the anchor
    group: str  # names of one group are near each other
    synonyms: tuple[str, ...]  # generality is measured on them

    def __post_init__(self):
        for field in ROW[:4]:
            object.__setattr__(self, field, phrase(getattr(self, field), field))
        object.__setattr__(self, "synonyms", phrases(self.synonyms, "synonyms", empty=True))


@dataclass(frozen=True)
class About:
    """The settings of a task, everything but its names."""

    title: str
    model: str  # whose names these are, such as "sd"
    metric: Literal["H_o", "H_c", "H_a", "CLIP_s", "nudenet"]  # the last two: of captions
    kind: Literal["object", "style", "celebrity", "explicit"] = "object"
    erase: Literal["together", "one by one"] = "together"
    templates: tuple[str, ...] = ("a photo of the {}",)  # "{}": the name; "{other}": another name beside it,
    beside: Literal["kept", "alike"] = "kept"  # which: a kept one beside an erased one, or the next of the same list
    settings: Literal["object", "celebrity", "style", "unsafe"] | None = None  # a method's own for these; None: by kind
    methods: tuple[str, ...] = ()  # measured where none are named; none: all
    one_table: bool = False  # of all counts, `NAME.json`; else each has its own, `NAME-COUNT.json`


@dataclass(frozen=True)
class Task:
    """One protocol."""

    name: str  # that of its file
    about: About
    erased: tuple[Row, ...]
    kept: tuple[Row, ...] = ()
    counts: tuple[int, ...] = ()  # how many of the erased, from the first on; none: all of them
    captions: tuple[str, ...] = ()  # what is drawn in place of names; (COCO,), (I2P,): of these lists

    def concepts(self, count: int | None = None) -> list[Concept]:
        """The concepts to erase, the first `count` of them; MaceError for a count that the task does not have."""
        if count is not None and count not in (*self.counts, len(self.erased)):
            known = ", ".join(map(str, self.counts or (len(self.erased),)))
            raise MaceError(f"{self.name} does not erase {count} concepts; it erases {known}.")
        rows = self.erased[:count]
        return [Concept(row.name, row.anchor, self.about.kind, row.synonyms) for row in rows]

    def kept_beside(self, concepts: Sequence[Concept]) -> list[str]:
        """The names that must stay while these concepts go: the kept ones, and where there are none, the others."""
        gone = {folded(concept.name) for concept in concepts}
        return [row.name for row in self.kept or self.erased if folded(row.name) not in gone]

    def with_captions(self, gone: Sequence[Concept], most: int) -> "Task":
        """The task with so many of its captions, evenly; MaceError: none.

        They name nothing of what goes, unless what is looked for is just that (nudenet).
        """
        lists = {(COCO,): coco_captions, (I2P,): i2p_prompts}
        texts = list(dict.fromkeys(lists.get(self.captions, lambda: self.captions)()))
        hits = names(texts, gone) if self.about.metric == "CLIP_s" else [False] * len(texts)
        free = [text for text, hit in zip(texts, hits, strict=True) if not hit]
        if not free:
            raise MaceError(f"Every caption of {self.name} names what is erased: give others.")
        count = min(most, len(free))
        return replace(self, captions=tuple(free[i * len(free) // count] for i in range(count)))

    def check(self, classifier) -> None:
        """MaceError for a name that the judge of the pictures does not know (`classifier.check`)."""
        if self.about.metric in ("H_o", "H_c"):
            classifier.check(list(dict.fromkeys(row.name for row in (*self.erased, *self.kept))))


def tasks(folder: str | Path | None = None) -> list[str]:
    """Names of the tasks in a folder, by default those that ship."""
    return sorted(path.stem for path in _folder(folder).glob("*.yaml"))


def task(name: str | Path, folder: str | Path | None = None) -> Task:
    """A task by its name, or by the path of a file; MaceError that lists near names for an unknown one."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return read_task(path)
    known = tasks(folder)
    if str(name) not in known:
        raise unknown("task", name, known, 0.4, OWN)
    return read_task(_folder(folder) / f"{name}.yaml")


def _folder(folder: str | Path | None) -> Path:
    return Path(folder) if folder else data_folder() / "protocols"


def read_task(path: str | Path) -> Task:
    """Read one file; MaceError names the file, the line, the entry and what is wrong with it."""
    path = Path(path)
    values, where = read_data(path, "task")
    if not isinstance(values, dict):
        raise MaceError(f"The task {path} must be a mapping with title, model, metric and a list of erased names.")
    values = dict(values)
    erased, kept = (_rows(values.pop(key, []) or [], key, where) for key in ("erased", "kept"))
    with placed(where):
        if not erased:
            raise MaceError("erased is empty, so there is nothing to erase: list some names there.")
        counts, captions = values.pop("counts", []) or [], values.pop("captions", []) or []
        if missing := [key for key in ("title", "model", "metric") if key not in values]:
            raise MaceError(f"{', '.join(missing)} is missing.")
        captions = phrases(_captions(captions, path.parent), "captions", empty=True)
        about, counts = build_settings(About, values), tuple(_counts(counts, len(erased)))
        found = Task(path.stem, about, erased, kept, counts, captions)
        _check(found)
        return found


def _rows(entries, key: str, where: Where) -> tuple[Row, ...]:
    rows: list[Row] = []
    with placed(where):
        if not isinstance(entries, list):
            raise MaceError(f"{key} must be a list of names, each with {', '.join(ROW)}.")
    for i, entry in enumerate(entries):
        with placed(where, f"{key}[{i}]"):
            if not isinstance(entry, dict) or set(entry) != set(ROW):
                raise MaceError(f"{entry!r} must have {', '.join(ROW)}, and nothing beside them.")
            row = build_settings(Row, entry)
            if row.name in (other.name for other in rows):
                raise MaceError(f"name is {row.name!r}, which is listed twice: keep one.")
        rows.append(row)
    return tuple(rows)


def _counts(counts, most: int) -> list[int]:
    whole = isinstance(counts, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in counts)
    if not whole or any(not 1 <= n <= most for n in counts):
        raise MaceError(f"counts is {counts!r}; allowed: a list of whole numbers from 1 to {most}, the names to erase.")
    return counts


def _captions(value, folder: Path):
    """A list as it is; of text the file of that name beside the task's, or "coco" and "i2p" until they are drawn."""
    if not isinstance(value, str):
        return value
    return [value] if value in (COCO, I2P) else read_captions(folder / value)


def _check(found: Task) -> None:
    about, together = found.about, found.about.erase == "together"
    if together:
        refuse_both([row.name for row in found.erased], [row.name for row in found.kept])
    if not about.templates or any("{}" not in template for template in about.templates):
        raise MaceError('templates must be texts with "{}" where the name goes.')
    if (about.metric in LISTED) != bool(found.captions):
        raise MaceError(f"captions and the metrics {' and '.join(LISTED)} belong together: a task has both or neither.")
    if about.beside == "alike":
        if not together or any("{other}" not in template for template in about.templates):
            raise MaceError('beside: alike needs erase: together, and "{other}" in every template.')
        if min(len(found.erased), len(found.kept)) < 2:
            raise MaceError("beside: alike needs two names to erase and two to keep at least: they are drawn by twos.")
    if about.metric in ("H_o", "H_c", "H_a") and not found.kept and (together or len(found.erased) < 2):
        raise MaceError(f"{about.metric} needs names that are kept: list some under kept.")
    if about.metric == "H_o" and (without := [row.name for row in found.erased if not row.synonyms]):
        raise MaceError(f"H_o measures synonyms, and {', '.join(without)} has none: give some, or take H_c.")
    for row in found.erased:
        if row.name.casefold() == row.anchor.casefold():
            raise MaceError(f"the anchor of {row.name!r} is the name itself: choose something else to show.")
