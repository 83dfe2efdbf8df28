"""Attacks on every method of a task, one erasure after the other: `mace attack --task`, and the table that it leaves.

The runs on the original model, and on one that never knew, are made once for all methods. So are those for the foreign
concepts, on the original model, which never knew them; or (`each`) a method's foreign concepts are spread over what is
attacked, one to each, in order. Every run is kept when it is through, and so are the edits.
"""

import dataclasses
import json
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..attacks import CONTROLS, Result, attack, named
from ..attacks.never import COMMAND
from ..baselines import method as method_of
from ..concepts import Concept
from ..errors import MaceError, refusal, unknown
from ..evaluate.attacked import write_table
from ..evaluate.made import made_with
from ..evaluate.pictures import Drawing
from ..files import check_writable, locked
from ..models.families import family_of
from ..models.pipelines import default_guidance
from ..models.swap import untouched
from ..reading import build_settings
from .measure import Measuring, Progress
from .plan import ORIGINAL, PRESET, Plan, Way
from .run import asked, differing, run_of, same_run, written

SCOPE = ("mace", "mace-stage-1", "mace-best", "uce", "semantic-surgery", "esd-x")  # attacked unless methods are named
SHARED = ("original", "never-knew", "foreign")  # controls that are one for all methods
MOST = 20  # concepts of one task that are attacked, drawn at random where it has more
LATER = "the time was over before all of it was done: call the same command again"
LACKING = {
    "never-knew": f"no model that was trained without the concepts was given: {COMMAND}, then --never-knew FOLDER",
    "foreign": "no pictures of concepts that the model does not know were given: --foreign FOLDER",
}
UNTOLD = "foreign pictures are told from those of a catalogue, and models of this family have none"
Target = tuple[int, int, Concept]  # its place among what is attacked of a whole task, number of its erasure, concept


def lacking(pipe, control: str) -> str:
    """Why a control cannot be measured for which nothing was given."""
    return UNTOLD if control == "foreign" and family_of(pipe).catalogue is None else LACKING[control]


def one_way(ways: Sequence[Way]) -> list[Way]:
    """Of each method, without the original: its tuned settings, or where there are none the published ones."""
    found: dict[str, Way] = {}
    for way in ways:
        if way != ORIGINAL and not (way.settings == PRESET and way.method in found):
            found[way.method] = way
    return [*found.values()]


def targets(plan: Plan, only: Sequence[str] | None = None) -> list[Target]:
    """What is attacked: the erased concepts, of many `MOST` at random; only: these. MaceError for an unknown one."""
    every = [(i, concept) for i, concepts in enumerate(plan.erasures) for concept in concepts]
    names = [concept.name for _, concept in every]
    if missing := [name for name in only or () if name not in names]:
        raise unknown(f"concept in {plan.name}", missing[0], names)
    if len(every) > MOST and not only:
        every = [every[at] for at in sorted(random.Random(0).sample(range(len(every)), MOST))]
    return [(k, i, concept) for k, (i, concept) in enumerate(every) if not only or concept.name in only]


@dataclass(frozen=True)
class Attacking:
    """What is attacked, with which controls, and where rows and edits are kept."""

    plan: Plan
    ways: Sequence[Way]
    folder: Path
    judge: Any  # has top1(pictures), and a name
    attacks: Sequence[str]
    controls: Sequence[str] = CONTROLS
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by attack, where they are not its own
    only: Sequence[str] | None = None  # some of the erased concepts
    foreign: tuple[Mapping[str, Sequence], Any] | None = None  # pictures by name, and who judges them
    each: bool = False  # foreign concepts are attacked on each method's edits, not once on the original
    never: Any = None  # a pipeline that was trained without the concepts
    never_about: Mapping[str, Any] = field(default_factory=dict)  # what is said of it
    edits: Path | None = None  # a comparison's folder of the same task and model, whose edits are used
    steps: int = 8  # denoising steps of a picture
    guidance: float | None = None  # None: the attacked model's own
    batch: int = 8

    def run(self, pipe, minutes: float | None = None, progress: Progress | None = None, command: str = "") -> Path:
        """Attack what is still to be attacked, and write the table anew after each method: `attacks.json`.

        minutes: no further concept begins when so many are over. The pipeline is left as it was.
        MaceError: a folder that holds another run, edits of another task, model or choice of its names.
        """
        tell, found, failed = progress or (lambda *_: None), Result(), {}
        ends = float("inf") if minutes is None else time.monotonic() + 60 * minutes
        check_writable(self.folder)
        about = self._about(pipe)
        if self.edits:
            self._check_edits(about)
        with ExitStack() as stack:
            for place in {self.folder, self.edits or self.folder}:
                stack.enter_context(locked(place / ".lock", str(place), wait=False))
            stack.enter_context(untouched(pipe))
            same_run(self.folder, about, self.plan)
            about |= self._settled()
            for name in self.attacks:
                for way in (ORIGINAL, *self.ways):
                    found += self._attacked(pipe, name, way, ends, failed, tell)
                    about["methods"] = {str(way): self._settings(pipe, way) for way in self.ways}
                    path = write_table(self.folder / "attacks.json", found, command, about, self.plan.name)
        return path

    def _about(self, pipe) -> dict[str, Any]:
        """What all rows depend on."""
        drawn = Drawing(self.steps, self.guidance, batch=self.batch).about(pipe)
        about = {**asked(self.plan), **drawn, **made_with(pipe, [], self.judge)}
        about |= {"seeds": [*self.plan.seeds], "batch": self.batch, "device": str(pipe.device.type)}
        return json.loads(json.dumps(about, default=str))

    def _check_edits(self, about: Mapping[str, Any]) -> None:
        """MaceError where the comparison's edits are not of these erasures: they are kept by number."""
        wanted = {name: about[name] for name in ("model", *asked(self.plan)) if name != "title"} | written(self.plan)
        if other := differing(run_of(self.edits), wanted):
            raise MaceError(
                f"The edits in {self.edits} are of another run ({', '.join(other)} differ): give the folder of a "
                "comparison of the whole task, on this model."
            )

    def _settled(self) -> dict[str, Any]:
        """What the rows of single attacks depend on, and what is said of the model that never knew."""
        values = {name: build_settings(named(name).settings, self.settings.get(name) or {}) for name in self.attacks}
        attacks = {name: dataclasses.asdict(of) for name, of in values.items()}
        return {"attacks": attacks, "never_knew": dict(self.never_about)}

    def _attacked(self, pipe, name: str, way: Way, ends: float, failed: dict[Way, str], tell: Progress) -> Result:
        """The rows of one attack on one method, or on the models without an erasure; training has one seed, 0."""
        said, whys, found, once = {}, {}, Result(), set()
        for control in (c for c in self.controls if self._shared(c) == (way == ORIGINAL)):
            shared = "never-knew" if control == "never-knew" else "original"
            method, settings = (shared, "") if way == ORIGINAL else (way.method, way.settings)
            said[control] = {"attack": name, "control": control, "method": method, "settings": settings}
            said[control] |= {"training_seeds": 1} if way != ORIGINAL and method_of(method).trains else {}
            lacks = (control == "foreign" and self.foreign is None) or (control == "never-knew" and self.never is None)
            whys |= {control: lacking(pipe, control)} if lacks else {}
        todo, chosen = [control for control in said if control not in whys], targets(self.plan, self.only)
        for done, target in enumerate(chosen if todo else (), 1):
            if way not in failed and time.monotonic() <= ends:
                try:
                    edit = None if way == ORIGINAL else self._built(pipe, way, target, tell)
                except MaceError as error:
                    failed[way] = refusal(error)
            if way in failed or time.monotonic() > ends:
                whys |= dict.fromkeys(todo, failed.get(way, LATER))
                break
            for control in todo:
                concept = self._strange(target) if control == "foreign" else target[2]
                row = control, concept.name, None if way == ORIGINAL else target[1]  # of one edit each is one row
                if row not in once:
                    found += self._one(pipe, edit, concept, name, control).called(**said[control])
                    once.add(row)
            tell(f"{name}, {'original' if way == ORIGINAL else way}", done, len(chosen), target[2].name)
        return found + Result(not_measured=[{**said[c], "metric": "ASR", "why": why} for c, why in whys.items()])

    def _shared(self, control: str) -> bool:
        return control in SHARED and not (control == "foreign" and self.each)

    def _making(self, pipe) -> Measuring:
        return Measuring(self.plan, None, None, self.edits or self.folder, True, family_of(pipe))

    def _built(self, pipe, way: Way, target: Target, tell: Progress):
        """The edit of a target's erasure, as it is kept or made anew."""
        return self._making(pipe).built(pipe, way, (target[1], 0), tell)

    def _settings(self, pipe, way: Way) -> dict[str, Any]:
        """What a method's edits were made with; empty where none is made yet."""
        return next((made["values"] for made in self._making(pipe).made(way) if made), {})

    def _strange(self, target: Target) -> Concept:
        """The foreign concept that belongs to a target."""
        words = list(self.foreign[0])
        return Concept(words[target[0] % len(words)], "a thing", target[2].kind)

    def _one(self, pipe, edit, concept: Concept, name: str, control: str) -> Result:
        """The rows of one concept; what an attack refuses of it is not measured, in its words."""
        options = {"judge": self.judge, "control": control, "settings": self.settings.get(name), "never": self.never}
        if control == "foreign":
            options |= {"pictures": self.foreign[0][concept.name], "judge": self.foreign[1]}
        options |= {"seeds": self.plan.seeds, "steps": self.steps, "batch": self.batch, "folder": self.folder / "rows"}
        options["guidance"] = default_guidance(pipe) if self.guidance is None else self.guidance
        try:
            return attack(pipe, edit, concept, name, **options)
        except MaceError as error:
            return Result(not_measured=[{"concept": concept.name, "metric": "ASR", "why": refusal(error)}])
