"""One method of a comparison: built, applied, drawn, looked at and removed, one erasure after the other.

What is seen in the pictures is kept in the folder when an erasure is through; the pictures are kept, too, so that a run
that was cut short goes on where it stopped, and every measure looks at the same ones.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..baselines import Edit, build, method
from ..baselines.edit import FORMAT
from ..bench import Meter
from ..config import EraseConfig
from ..erasure import Erasure
from ..errors import MaceError
from ..evaluate.companions import halves
from ..evaluate.pictures import Drawing, Job
from ..evaluate.work import Protocol, Work
from ..files import atomic, hash_text, read_tensors
from ..models.swap import untouched
from .plan import ORIGINAL, Plan, Way
from .residual import why_not, words_around

Seen = dict[str, dict[Job, dict[str, Any]]]  # "drawn" and "residual" -> (prompt, seed) -> what is seen, by rule
Progress = Callable[[str, int, int, str], None]  # stage, done, total, detail


@dataclass(frozen=True)
class Looking:
    """Who looks at the pictures of a plan, and what for."""

    plan: Plan
    classifier: Any  # a judge, CLIP, or what `plugged` takes
    scorer: Any = None  # of styles: a CLIP

    @property
    def classes(self) -> list[str]:
        """All names of the task: what the paper's rule chooses among."""
        return list(self.plan.rows)

    @property
    def options(self) -> list[str] | None:
        """What the classifier chooses among; None: all that it knows."""
        return None if getattr(self.classifier, "concepts", None) else self.classes

    def check(self) -> None:
        """MaceError for a name of the task that the classifier does not know."""
        if self.plan.kind == "style":
            if getattr(self.classifier, "styles", None):
                self.classifier.check(self.classes, "style")
        else:
            self.plan.task.check(self.classifier)

    def __call__(self, pictures, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """By rule what is seen in each picture."""
        who = self.classifier
        if self.plan.kind == "style":
            rules = {"score": self.scorer.score(pictures, [prompt for prompt, _ in jobs])}
            if getattr(who, "styles", None):
                rules["style"] = who.top1(pictures, None, "style")
        elif self.plan.pairs:
            found = who.top1([half for picture in pictures for half in halves(picture)], self.options)
            rules = {"left": found[::2], "right": found[1::2]}
        else:
            rules = {"known": who.top1(pictures, self.options)}
            if self.options is None:  # the paper's rule; CLIP has no other
                rules["classes"] = who.top1(pictures, self.classes)
            else:  # without a list of its own, a classifier is asked about what stands in for the concepts, too
                rules["wider"] = who.top1(pictures, [*dict.fromkeys([*self.classes, *stand_in_names(self.plan)])])
        return [dict(zip(rules, values, strict=True)) for values in zip(*rules.values(), strict=True)]


def stand_in_names(plan: Plan) -> list[str]:
    """Anchors and super-categories of the erased."""
    rows = plan.task.erased
    return [text for row in rows for text in (row.anchor, row.super)]


@dataclass(frozen=True)
class Measuring:
    """A run: its plan, how pictures are drawn, who looks, and the folder that keeps all of it."""

    plan: Plan
    drawing: Drawing
    look: Looking
    folder: Path

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

    def units(self, way: Way) -> range:
        """Numbers of the erasures of a row; the original model has one, of everything."""
        return range(1 if way == ORIGINAL else len(self.plan.erasures))

    def seen(self, way: Way) -> list[Seen] | None:
        """What was seen by erasure; None where something is still to be drawn."""
        found = [self._read(way, i) for i in self.units(way)]
        if None in found:
            return None
        return found * len(self.plan.erasures) if way == ORIGINAL else found

    def made(self, way: Way) -> list[dict]:
        """By erasure what building it took: seconds, of which in the text encoder, megabytes, notes, settings."""
        return [self._made(way, i) for i in self.units(way)] if way != ORIGINAL else []

    def run(self, pipe, way: Way, tell: Progress) -> str | None:
        """Draw and look at what is missing of a row; why it cannot be measured, or None.

        The pipeline is left as it was.
        """
        for i in self.units(way):
            if self._read(way, i) is None:
                try:
                    with untouched(pipe):
                        self._unit(pipe, way, i, tell)
                except MaceError as error:
                    if isinstance(error.__cause__, OSError):  # the disk's fault, not the method's
                        raise
                    return str(error)
        return None

    def _unit(self, pipe, way: Way, i: int, tell: Progress) -> None:
        plan, erasures = self.plan, range(len(self.plan.erasures)) if way == ORIGINAL else [i]
        if way != ORIGINAL:
            self._built(pipe, way, i, tell).apply(pipe)
        jobs = dict.fromkeys(job for number in erasures for job in plan.jobs(number, self.work))
        seen: Seen = {"drawn": self._looked(pipe, list(jobs), "drawn", way, tell), "residual": {}}
        if not plan.pairs and why_not(pipe) is None:
            names = {}
            for ask in (ask for number in erasures for ask in plan.asks(number) if ask.role == "erased"):
                names |= {job: ask.name for job in self.around.jobs([ask])}
            with words_around(pipe, {prompt: name for (prompt, _), name in names.items()}):
                seen["residual"] = self._looked(pipe, list(names), "residual", way, tell)
        rows = {part: [[*job, found] for job, found in some.items()] for part, some in seen.items()}
        with atomic(self._file(way, i, "seen")) as temporary:
            temporary.write_text(json.dumps({"key": self._key(way), **rows}, ensure_ascii=False), encoding="utf-8")

    def _looked(self, pipe, jobs: list[Job], state: str, way: Way, tell: Progress) -> dict[Job, dict]:
        seen: dict[Job, dict] = {}
        for some, pictures in self.drawing.pictures(pipe, jobs, self.folder / "pictures", state):
            seen |= zip(some, self.look(pictures, some), strict=True)
            tell(str(way), len(seen), len(jobs), some[-1][0])
        return seen

    def _built(self, pipe, way: Way, i: int, tell: Progress):
        """The edit of an erasure, and a file of what building it took; what was trained is kept, and its time."""
        chosen, kept, known = method(way.method), self._file(way, i, "edits", ".safetensors"), self._made(way, i)
        resumes = chosen.settings is EraseConfig  # cut short, its training goes on, and so does its time
        if chosen.trains and kept.is_file() and known.get("key") == self._key(way):
            return loaded(kept)
        spent, last, began = self._file(way, i, "spent"), [0.0], time.perf_counter()
        before = float(spent.read_text()) if resumes and spent.is_file() else 0.0

        def told(stage: str, done: int, total: int, detail: str) -> None:
            tell(stage, done, total, detail)
            if resumes and (now := time.perf_counter() - began) > last[0] + 1:
                last[0] = now
                with atomic(spent) as temporary:
                    temporary.write_text(str(before + now))

        if pipe.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with encoding(pipe) as clock, Meter() as meter:
            options = {"task": self.plan.kind, "kept": self.plan.told, "progress": told}
            options |= {"folder": str(self.folder / "work" / self._name(way, i))} if resumes else {}
            edit = build(pipe, self.plan.erasures[i], way.method, way.values, **options)
        memory = torch.cuda.max_memory_allocated() if pipe.device.type == "cuda" else meter.base + meter.peak
        values = edit.config.to_dict() if hasattr(edit, "config") else edit.settings
        made = {"key": self._key(way), "seconds": before + meter.seconds, "encoding": clock[0]}
        made |= {"megabytes": memory / 1e6, "values": values, "notes": list(getattr(edit, "notes", ()))}
        if chosen.trains:
            edit.save(kept)
        with atomic(self._file(way, i, "made")) as temporary:
            temporary.write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
        return edit

    def _key(self, way: Way) -> str:
        published = method(way.method).settings_for(self.plan.kind)
        return hash_text(json.dumps([asdict(published), dict(way.values or {})], default=str))

    def _name(self, way: Way, i: int) -> str:
        return f"{way.method}{way.settings and '-' + way.settings}-{i:03d}"

    def _file(self, way: Way, i: int, what: str, suffix: str = ".json") -> Path:
        return self.folder / what / f"{self._name(way, i)}{suffix}"

    def _made(self, way: Way, i: int) -> dict:
        """What building took; empty where that is not known."""
        try:
            return json.loads(self._file(way, i, "made").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _read(self, way: Way, i: int) -> Seen | None:
        """What was seen of an erasure; None where that is missing, damaged or of other settings."""
        try:
            found = json.loads(self._file(way, i, "seen").read_text(encoding="utf-8"))
            if found["key"] != self._key(way) or (way != ORIGINAL and not self._made(way, i)):
                return None
            return {part: {(p, s): rules for p, s, rules in found[part]} for part in ("drawn", "residual")}
        except (OSError, ValueError, LookupError, TypeError):
            return None


@contextmanager
def encoding(pipe) -> Iterator[list[float]]:
    """Seconds that the pipeline's text encoders take meanwhile, in a list of one."""
    spent, started, hooks = [0.0], [0.0], []

    def after(*_) -> None:
        spent[0] += time.perf_counter() - started[0]

    for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
        if (encoder := getattr(pipe, name, None)) is not None:
            hooks.append(encoder.register_forward_pre_hook(lambda *_: started.__setitem__(0, time.perf_counter())))
            hooks.append(encoder.register_forward_hook(after))
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def loaded(path: Path):
    """An erasure, or an edit, from a file."""
    return (Edit if read_tensors(path)[0].get("format") == FORMAT else Erasure).load(path)
