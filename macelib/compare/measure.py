"""One method of a comparison: built, applied, drawn, looked at and removed, one erasure after the other.

What is seen in the pictures is kept in the folder when an erasure is through; the pictures are kept, too, so that a run
that was cut short goes on where it stopped, and every measure looks at the same ones. So are training pictures and
LoRAs, which are one for all methods that need the same; what they took is part of what each of these took.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..baselines import Edit, build, method
from ..baselines.ablations import filled
from ..baselines.edit import FORMAT
from ..concepts import Concept
from ..config import EraseConfig
from ..erasure import Erasure
from ..errors import MaceError, refusal
from ..evaluate.pictures import Drawing, Job
from ..evaluate.work import Protocol, Work
from ..files import hash_text, read_cached, read_tensors, save_tensors, write_json
from ..models.families import UNKNOWN, Family
from ..models.swap import untouched
from ..reading import build_settings
from .looking import Looking
from .plan import ORIGINAL, Plan, Way
from .residual import why_not, words_around
from .spent import Batch, Strain, encoding, known_seconds, spending, used_by

log = logging.getLogger(__name__)
NO_STYLES = "no classifier of this model knows styles by name"
Seen = dict[str, dict[Job, dict[str, Any]]]  # "drawn" and "residual" -> (prompt, seed) -> what is seen, by rule
Unit = tuple[int, int]  # number of the erasure, training seed
Progress = Callable[[str, int, int, str], None]  # stage, done, total, detail


@dataclass(frozen=True)
class Measuring:
    """A run: its plan, how pictures are drawn, who looks, and the folder that keeps all of it."""

    plan: Plan
    drawing: Drawing
    look: Looking
    folder: Path
    keep: bool = False  # edits of methods that do not train are kept, too
    family: Family = UNKNOWN  # of the model: its preset fills MACE's settings

    @property
    def work(self) -> Work:
        """What counts the pictures, as in the paper's protocols."""
        return self._work(self.plan.templates)

    @property
    def around(self) -> Work:
        """What counts the pictures of the residual score: in the first prompt alone."""
        return self._work(self.plan.templates[:1])

    def _work(self, templates: Sequence[str]) -> Work:
        protocol = Protocol(self.plan.name, {}, "", float)
        return Work(protocol, templates, self.plan.seeds, self.look.classifier, self.drawing, None, False, None)

    def trainings(self, way: Way) -> int:
        """With how many training seeds a row is measured."""
        return self.plan.trainings if method(way.method).trains else 1

    def units(self, way: Way) -> list[Unit]:
        """What a row is made of; the original model has one part, of everything."""
        erasures = range(1 if way == ORIGINAL else len(self.plan.erasures))
        return [(i, seed) for seed in range(self.trainings(way)) for i in erasures]

    def seen(self, way: Way) -> list[list[Seen]] | None:
        """What was seen by training seed and erasure; None where something is still to be drawn."""
        found = [self._read(way, unit) for unit in self.units(way)]
        if None in found:
            return None
        if way == ORIGINAL:
            return [found * len(self.plan.erasures)]
        count = len(self.plan.erasures)
        return [found[start : start + count] for start in range(0, len(found), count)]

    def made(self, way: Way) -> list[dict]:
        """By edit what building it took: seconds, of which in the text encoder, megabytes, notes, settings."""
        return [self._made(way, unit) for unit in self.units(way)] if way != ORIGINAL else []

    def strain(self, way: Way) -> list[Batch]:
        """What drawing a row's pictures took, batch by batch; none where another row had drawn them."""
        return [batch for unit in self.units(way) for batch in self._strain(way, unit)]

    def vectors(self, way: Way) -> list[dict[Job, Tensor]] | None:
        """By part (`units`) CLIP's image vectors of the kept names' pictures; None where there is no CLIP."""
        found = [self._vectors(way, unit) for unit in self.units(way)]
        return None if None in found else found

    def run(self, pipe, way: Way, tell: Progress) -> str | None:
        """Draw and look at what is missing of a row; why it cannot be measured, or None.

        The pipeline is left as it was.
        """
        for unit in self.units(way):
            if self._read(way, unit) is None:
                try:
                    with untouched(pipe):
                        self._unit(pipe, way, unit, tell)
                except MaceError as error:
                    return refusal(error)
        return None

    def no_residual(self, pipe) -> str | None:
        """Why there is no residual score; None where there is one."""
        if self.plan.pairs:
            return "prompts of two things have more words than those around the erased one"
        if self.plan.scored and not (self.plan.kind == "style" and getattr(self.look.classifier, "styles", None)):
            return NO_STYLES
        return why_not(pipe)

    def _unit(self, pipe, way: Way, unit: Unit, tell: Progress) -> None:
        plan, erasures = self.plan, range(len(self.plan.erasures)) if way == ORIGINAL else [unit[0]]
        if way != ORIGINAL:
            self.built(pipe, way, unit, tell).apply(pipe)
        jobs = dict.fromkeys(job for number in erasures for job in plan.jobs(number, self.work))
        seen: Seen = {"drawn": self._drawn(pipe, list(jobs), erasures, way, unit, tell), "residual": {}}
        if self.no_residual(pipe) is None:
            names = {}
            for ask in (ask for number in erasures for ask in plan.asks(number) if ask.role == "erased"):
                names |= {job: ask.name for job in self.around.jobs([ask])}
            with words_around(pipe, {prompt: name for (prompt, _), name in names.items()}):
                for some, pictures in self.drawing.pictures(pipe, list(names), self.folder / "pictures", "residual"):
                    seen["residual"] |= zip(some, self.look(pictures, some), strict=True)
        rows = {part: [[*job, found] for job, found in some.items()] for part, some in seen.items()}
        write_json(self._file(way, unit, "seen"), {"key": self._key(way, unit), **rows}, None)

    def _drawn(self, pipe, jobs: list[Job], erasures: Sequence[int], way: Way, unit: Unit, tell: Progress) -> dict:
        """By job what is seen; the image vectors of kept names' pictures, and what drawing took, are kept in files."""
        seen: dict[Job, dict] = {}
        vectors: dict[Job, Tensor] = {}
        key, place = self._key(way, unit), self._file(way, unit, "strain")
        measured = Strain(place, key, self._strain(way, unit), pipe.device.type)
        kept = {job for number in erasures for job in self.kept_jobs(number)} if self.look.clip is not None else set()
        for some, pictures in self.drawing.pictures(pipe, jobs, self.folder / "pictures", "drawn", measured):
            measured.keep()
            seen |= zip(some, self.look(pictures, some), strict=True)
            if stays := [(job, picture) for job, picture in zip(some, pictures, strict=True) if job in kept]:
                stay, shown = zip(*stays, strict=True)
                vectors |= zip(stay, self.look.vectors(shown), strict=True)
            tell(str(way), len(seen), len(jobs), some[-1][0])
        if vectors:
            place = self._file(way, unit, "vectors", ".safetensors")
            save_tensors(place, {"x": torch.stack([*vectors.values()])}, {"key": key, "jobs": [*vectors]})
        return seen

    def kept_jobs(self, i: int) -> list[Job]:
        """The (prompt, seed) of the names that must stay in erasure i, each name with all its prompts and seeds."""
        return [] if self.plan.pairs else self.work.jobs([ask for ask in self.plan.asks(i) if ask.role == "kept"])

    def built(self, pipe, way: Way, unit: Unit, tell: Progress):
        """The edit of an erasure, and a file of what building it took; what was trained is kept.

        LoRAs and training pictures that were there already add the seconds that making them took.
        """
        chosen, key, known, work = method(way.method), self._key(way, unit), self._made(way, unit), self.folder / "work"
        kept = self._file(way, unit, "edits", f"-{key[:12]}.safetensors")
        keeps = chosen.trains or self.keep
        if keeps and known and (edit := self._loaded(kept, unit)) is not None:
            return edit
        before = known_seconds(work)
        with encoding(pipe) as clock, spending(pipe.device.type) as spent:
            options = {"task": self.plan.kind, "kept": self.plan.told(unit[0]), "progress": tell, "seed": unit[1]}
            options |= {"folder": str(work)} if chosen.settings is EraseConfig else {}
            edit = build(pipe, self.plan.erasures[unit[0]], way.method, way.values, **options)
        values, used = edit.config.to_dict() if hasattr(edit, "config") else edit.settings, used_by(pipe, edit, work)
        made = {"key": key, **spent, "encoding": clock[0], "used": used}
        made |= {"values": values, "notes": list(getattr(edit, "notes", ()))}
        if earlier := sum(before.get(file, 0.0) for file in used):
            made["seconds"] += earlier
            made["megabytes"] = max(made["megabytes"], self._peak(used))
            made["encoding"] = None  # of this nothing was kept
        if keeps:
            edit.save(kept)
        if not known:  # what a comparison has measured stays
            write_json(self._file(way, unit, "made"), made, None)
        return edit

    def _peak(self, used: Sequence[str]) -> float:
        """The most megabytes of the edits that were built with any of the same LoRAs or training pictures."""
        others = [_json(path) for path in (self.folder / "made").glob("*.json")]
        return max((one["megabytes"] for one in others if not {*one.get("used", ())}.isdisjoint(used)), default=0)

    def _loaded(self, kept: Path, unit: Unit):
        """A kept edit; None where there is none, or (said) one that is damaged, or not of what the plan erases."""
        if not kept.is_file():
            return None
        try:
            edit, asked = loaded(kept), _pairs(self.plan.erasures[unit[0]])
            if (there := _pairs(edit.concepts)) != asked:
                raise MaceError(f"{kept} erases {', '.join(there)}, not {', '.join(asked)}.")
        except MaceError as error:
            log.warning("%s It is made anew.", error)
            return None
        return edit

    def _key(self, way: Way, unit: Unit) -> str:
        """Of the settings that an edit is made with, and of the method's code: edited, it is measured anew.

        What is open in MACE's settings is what its preset says today.
        """
        chosen, own = method(way.method), dict(way.values or {})
        settings: Any = [asdict(chosen.settings_for(self.plan.kind)), own]
        if chosen.settings is EraseConfig:
            named = build_settings(EraseConfig, settings[0] | own)
            asked = self.plan.erasures[unit[0]], self.plan.told(unit[0])
            settings = filled(way.method, named, self.family, *asked).to_dict()
        return hash_text(json.dumps(settings, default=str), *filter(None, [chosen.code]))

    def _name(self, way: Way, unit: Unit) -> str:
        i, seed = unit
        return f"{way.method}{way.settings and '-' + way.settings}-{i:03d}{f'-seed-{seed}' if seed else ''}"

    def _file(self, way: Way, unit: Unit, what: str, suffix: str = ".json") -> Path:
        return self.folder / what / f"{self._name(way, unit)}{suffix}"

    def _made(self, way: Way, unit: Unit) -> dict:
        """What building took; empty where that is not known, or of other settings."""
        found = _json(self._file(way, unit, "made"))
        return found if found.get("key") == self._key(way, unit) else {}

    def _strain(self, way: Way, unit: Unit) -> list[Batch]:
        """What drawing took, batch by batch, as far as it was drawn for this."""
        known = _json(self._file(way, unit, "strain"))
        return [tuple(batch) for batch in known["batches"]] if known.get("key") == self._key(way, unit) else []

    def _vectors(self, way: Way, unit: Unit) -> dict[Job, Tensor] | None:
        """By job the image vectors; None where there are none, or of other settings."""
        place = self._file(way, unit, "vectors", ".safetensors")
        if (found := read_cached(place, self._key(way, unit))) is None:
            return None
        return dict(zip(map(tuple, read_tensors(place)[0]["jobs"]), found["x"], strict=True))

    def _read(self, way: Way, unit: Unit) -> Seen | None:
        """What was seen of an erasure; None where that is missing, damaged or of other settings."""
        found = _json(self._file(way, unit, "seen"))
        try:
            if found["key"] != self._key(way, unit) or (way != ORIGINAL and not self._made(way, unit)):
                return None
            if self.look.clip is not None and self.kept_jobs(unit[0]) and self._vectors(way, unit) is None:
                return None
            return {part: {(p, s): rules for p, s, rules in found[part]} for part in ("drawn", "residual")}
        except (ValueError, LookupError, TypeError):
            return None


def _pairs(concepts: Sequence[Concept]) -> list[str]:
    """Each name with its anchor."""
    return [f"{concept.name}={concept.anchor}" for concept in concepts]


def _json(path: Path) -> dict:
    """What a JSON file holds; empty where it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def loaded(path: Path):
    """An erasure, or an edit, from a file."""
    return (Edit if read_tensors(path)[0].get("format") == FORMAT else Erasure).load(path)
