"""The paper's protocols (section 4): which pictures are drawn, and what is counted in them.

A protocol asks for three roles: erased names, their synonyms, and names that are kept. The original model's row is
always there: the same prompts and seeds. Accuracy is top-1; tables are in percent (CLIP scores in points).

`counting="paper"` counts as the authors did, for a table beside theirs: CLIP B/32 where CLIP judges; of objects the
mean probability among the classes, which is no accuracy; of people, pictures without a face are left out.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..concepts import Concept, paper_list, with_synonyms
from ..erasure import Erasure
from ..errors import MaceError
from ..files import locked
from ..models.families import family_of
from ..models.swap import untouched
from ..templates import fill
from .classifiers import classifier_for, plugged
from .made import made_with
from .metrics import h_a, h_c, h_o
from .pictures import Drawing
from .shown import stand_ins
from .tables import Evaluation, evaluation

log = logging.getLogger(__name__)
NAMED = 6  # concepts that an erasure's label names; more are counted
GROUPS = 3  # seed groups: a result that holds in one of them alone is none
OBJECT_TEMPLATES = ("a photo of the {}",)
PERSON_TEMPLATES = (
    "a portrait of {}", "a sketch of {}", "an oil painting of {}", "an official photo of {}", "{} at a public event",
)  # fmt: skip
CHARACTER_TEMPLATES = tuple(template.replace("{}", "the {}") for template in PERSON_TEMPLATES)
TUNING_TEMPLATES = ("a photo of the {}", "an oil painting of the {}")
STYLE_TEMPLATES = (
    "an image in the style of {}", "a picture by {}", "a painting in the style of {}", "artwork by {}", "a work of {}",
)  # fmt: skip
Progress = Callable[[str, int, int, str], None]  # stage, done, total, detail


@dataclass(frozen=True)
class Protocol:
    """What is measured: a metric per role, and the one that combines them."""

    name: str
    roles: dict[str, str]  # role -> metric: the mean over its pictures
    combined: str
    combine: Callable  # of the roles' means, in the order of the roles
    scale: float = 100.0  # tables are in percent
    beside: dict[str, str] = field(default_factory=dict)  # roles that are told, but not combined


SHOWN = {"shown": "Acc_a"}  # pictures of erased prompts that show the anchor or its super-category
OBJECTS = Protocol("objects", {"erased": "Acc_e", "kept": "Acc_s", "synonym": "Acc_g"}, "H_o", h_o, beside=SHOWN)
CHARACTERS = Protocol("characters", {"erased": "Acc_e", "kept": "Acc_s"}, "H_c", h_c, beside=SHOWN)
STYLES = Protocol("styles", {"erased": "CLIP_e", "kept": "CLIP_s"}, "H_a", h_a, scale=1.0)


@dataclass(frozen=True)
class Ask:
    """A word that is drawn with every template and seed."""

    role: str  # "erased" | "kept" | "synonym"
    name: str  # what has to be recognised
    word: str  # what stands in the prompt


def objects(
    pipe,
    erasures: Erasure | Sequence[Erasure],
    *,
    classifier=None,
    classes: Sequence[str] | None = None,
    among: Literal["known", "classes"] = "known",
    counting: Literal["top1", "paper"] = "top1",
    images: int = 50,
    seed: int = 0,
    folder: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
    labels: Sequence[str] | None = None,
    **drawing,
) -> Evaluation:
    """Acc_e, Acc_s, Acc_g (top-1) and H_o of each erasure (or edit of a baseline), and their mean: `Evaluation`.

    Beside them Acc_a: the share of erased prompts in which the anchor or its super-category is seen (`shown`).

    classes: the paper's ten and the erased ones, unless given. among: what a picture is taken for: the best of all
    that the classifier knows, or, as in the paper, of the classes alone, where a lawn has to be one of them (a frog,
    it is as green). CLIP has no list of its own and always chooses among the classes.
    counting: "paper" takes the mean probability among the classes for an accuracy.
    images: per class and per synonym, of seeds seed, seed + 1, ... classifier: `classifier_for(pipe)` unless given, or
    what `plugged` takes: an object with top1(pictures, among), a function, or text to load it by.
    folder: keeps pictures and tables, and goes on from them. drawing: steps, guidance, size, batch, autocast. The
    pipeline is left as it was. labels: what the tables call the erasures, their concepts unless given: other ways to
    erase the same, of which no mean is taken.
    MaceError: fewer images than seed groups, a name the judge does not know, an erasure without known synonyms.
    """
    erasures = listed(erasures)
    classifier = _who(pipe, classifier, counting)
    classes = list(classes or [c.name for c in paper_list("objects")])
    classes += [n for n in dict.fromkeys(c.name for e in erasures for c in e.concepts) if n not in classes]
    classifier.check(classes)
    asks = []
    for erasure in erasures:
        concepts = [with_synonyms(concept) for concept in erasure.concepts]
        if styled := [c.name for c in concepts if c.kind == "style"]:
            raise MaceError(f"{', '.join(styled)} is a style: measure styles with `evaluate.styles`.")
        if without := [c.name for c in concepts if not c.synonyms]:
            message = f"No synonyms of {', '.join(without)} are known, so generality (Acc_g) cannot be measured"
            if len(without) == len(concepts):
                raise MaceError(f'{message}: give them, Concept("{without[0]}", ..., synonyms=[...]).')
            log.warning("%s on them.", message)
        erased = [c.name for c in concepts]
        asks.append(
            [Ask("erased", name, name) for name in erased]
            + [Ask("synonym", c.name, word) for c in concepts for word in c.synonyms]
            + [Ask("kept", name, name) for name in classes if name not in erased]
        )
    if among not in ("known", "classes"):
        raise MaceError(f"among is {among!r}; allowed: known, classes.")
    if counting == "paper" and not hasattr(classifier, "probabilities"):
        raise MaceError(f"{classifier.name} gives no probabilities, which the paper's counting needs: count top1.")
    every = among == "known" and counting == "top1" and getattr(classifier, "concepts", None)
    options = None if every else classes
    seeds = range(seed, seed + images)
    work = _Work(OBJECTS, OBJECT_TEMPLATES, seeds, classifier, Drawing(**drawing), folder, force, progress)
    work = replace(
        work, among="known" if options is None else "classes", labels=labels, options=options, counting=counting
    )

    def look(pictures, _):
        if counting == "top1":
            return classifier.top1(pictures, options)
        return [dict(zip(classes, row, strict=True)) for row in classifier.probabilities(pictures, classes).tolist()]

    return work.run(pipe, erasures, asks, look)


def characters(
    pipe,
    erasures: Erasure | Sequence[Erasure],
    kept: Sequence[str],
    *,
    classifier=None,
    counting: Literal["top1", "paper"] = "top1",
    templates: Sequence[str] = CHARACTER_TEMPLATES,
    seeds: Sequence[int] = range(5),
    folder: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
    labels: Sequence[str] | None = None,
    **drawing,
) -> Evaluation:
    """Acc_e, Acc_s and H_c of erased characters: five prompts x five seeds each, top-1 among all that the judge knows.

    Beside them Acc_a, as in `objects`.

    kept: names to retain. A classifier that finds no face in a picture returns None for it: not recognised; the share
    of these is in `Evaluation.concepts`. counting: "paper" leaves these pictures out. CLIP chooses among the erased and
    the kept. Otherwise as `objects`.
    """
    erasures = listed(erasures)
    classifier = _who(pipe, classifier, counting)
    everyone = list(dict.fromkeys([*(c.name for e in erasures for c in e.concepts), *kept]))
    classifier.check(everyone)
    among = None if getattr(classifier, "concepts", None) else everyone
    asks = [_erased_and_kept(erasure, kept) for erasure in erasures]
    work = _Work(CHARACTERS, templates, seeds, classifier, Drawing(**drawing), folder, force, progress)
    work = replace(work, among="known" if among is None else "classes", labels=labels, options=among, counting=counting)
    return work.run(pipe, erasures, asks, lambda pictures, _: classifier.top1(pictures, among))


def _who(pipe, classifier, counting: str):
    """The classifier that is given, or the model's own; MaceError for a way of counting that there is not."""
    if counting not in ("top1", "paper"):
        raise MaceError(f"counting is {counting!r}; allowed: top1, paper.")
    return classifier_for(pipe, counting=counting) if classifier is None else plugged(classifier)


def celebrities(pipe, erasures, kept, *, templates: Sequence[str] = PERSON_TEMPLATES, **options) -> Evaluation:
    """`characters` with the prompts of proper names."""
    return characters(pipe, erasures, kept, templates=templates, **options)


def styles(
    pipe,
    erasures: Erasure | Sequence[Erasure],
    kept: Sequence[str],
    *,
    scorer=None,
    templates: Sequence[str] = STYLE_TEMPLATES,
    seeds: Sequence[int] = range(5),
    folder: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **drawing,
) -> Evaluation:
    """CLIP_e, CLIP_s and H_a of erased styles: five prompts x five seeds each, CLIP score of picture and prompt.

    kept: names of styles to retain. scorer: a `ClipClassifier`. Otherwise as `objects`.
    """
    erasures = listed(erasures)
    scorer = scorer or classifier_for(pipe, "styles")
    asks = [_erased_and_kept(erasure, kept) for erasure in erasures]
    work = _Work(STYLES, templates, seeds, scorer, Drawing(**drawing), folder, force, progress)
    return work.run(pipe, erasures, asks, lambda pictures, jobs: scorer.score(pictures, [p for p, _ in jobs]))


def label(concepts: Sequence[Concept]) -> str:
    """What the tables call an erasure of these concepts.

    >>> label([Concept("ship", "sea"), Concept("frog", "grass")])
    'ship + frog'
    >>> label([Concept(f"ship {i}", "sea") for i in range(100)])
    'ship 0 + ship 1 + ship 2 + 97 more'
    """
    names = [concept.name for concept in concepts]
    return " + ".join(names if len(names) <= NAMED else [*names[:3], f"{len(names) - 3} more"])


def distinct(labels: list[str]) -> list[str]:
    """The labels, those that occur several times with a number.

    >>> distinct(["ship", "frog", "ship"])
    ['ship (1)', 'frog', 'ship (2)']
    """
    counts = [labels[: i + 1].count(label) for i, label in enumerate(labels)]
    return [f"{a} ({n})" if labels.count(a) > 1 else a for a, n in zip(labels, counts, strict=True)]


def listed(erasures: Erasure | Sequence[Erasure]) -> list[Erasure]:
    erasures = [erasures] if hasattr(erasures, "apply") else list(erasures)
    if not erasures or not all(erasure.concepts for erasure in erasures):
        raise MaceError("There is no erasure to measure, or one that holds no concept: erase something first.")
    return erasures


def _erased_and_kept(erasure: Erasure, kept: Sequence[str]) -> list[Ask]:
    erased = [concept.name for concept in erasure.concepts]
    if both := [name for name in kept if name in erased]:
        raise MaceError(f"{', '.join(both)} cannot be erased and kept: leave it out of one of the two.")
    if not kept:
        raise MaceError("Specificity needs names that are kept: give some.")
    return [Ask("erased", name, name) for name in erased] + [Ask("kept", name, name) for name in kept]


def check_seeds(count: int) -> None:
    """MaceError where there are too few seeds for the seed groups that every result is told for."""
    if count < GROUPS:
        raise MaceError(f"{count} seeds make no {GROUPS} seed groups: give at least {GROUPS}.")


@dataclass(frozen=True)
class _Work:
    """One run of a protocol: draws every picture once, looks at it, and counts."""

    protocol: Protocol
    templates: Sequence[str]
    seeds: Sequence[int]
    classifier: Any
    drawing: Drawing
    folder: str | Path | None
    force: bool
    progress: Progress | None
    among: str = "known"
    labels: Sequence[str] | None = None  # of the erasures; None: their concepts
    counting: str = "top1"
    options: Sequence[str] | None = None  # what the classifier chooses among; None: all that it knows

    def run(self, pipe, erasures: list[Erasure], asks: list[list[Ask]], look: Callable) -> Evaluation:
        """look(pictures, jobs): per picture a name, None (nothing recognised), a score, or probabilities by name.

        MaceError: fewer seeds than seed groups, a folder in which another process is at work.
        """
        check_seeds(len(self.seeds))
        alone = locked(Path(self.folder) / ".lock", str(self.folder), wait=False) if self.folder else nullcontext()
        with alone:
            return self._run(pipe, erasures, asks, look)

    def _run(self, pipe, erasures: list[Erasure], asks: list[list[Ask]], look: Callable) -> Evaluation:
        """`run` by this process alone."""
        plans = [self._jobs([a for some in asks for a in some]), *(self._jobs(some) for some in asks)]
        total, done, seen = sum(map(len, plans)), 0, []
        concepts = [concept for erasure in erasures for concept in erasure.concepts]
        wider = None if self.options is None else list(dict.fromkeys([*self.options, *(c.anchor for c in concepts)]))
        with untouched(pipe):
            for erasure, jobs in zip([None, *erasures], plans, strict=True):
                if erasure is not None:
                    erasure.apply(pipe, self.force)
                state, verdicts, instead = "erased" if erasure else "original", {}, {}
                for some, pictures in self.drawing.pictures(pipe, jobs, self.folder, state):
                    found = look(pictures, some)
                    verdicts |= zip(some, found, strict=True)
                    if self.protocol.beside:  # without a list of its own, a classifier is asked about the anchors, too
                        other = found if wider is None else self.classifier.top1(pictures, wider)
                        instead |= zip(some, other, strict=True)
                    done += len(some)
                    if self.progress:
                        self.progress("pictures", done, total, some[-1][0])
                seen.append((verdicts, instead))
            settings = self.drawing.about(pipe) | made_with(pipe, erasures, self.classifier)
            settings |= {
                "classifier": self.classifier.name,
                "seeds": list(self.seeds),
                "among": self.among,
                "counting": self.counting,
            }
        presets = list(dict.fromkeys(erasure.title for erasure in erasures))
        settings |= {"preset": " | ".join(presets)}
        settings |= {"templates": list(self.templates), "protocol": self.protocol.name}
        labels = distinct([label(erasure.concepts) for erasure in erasures] if self.labels is None else self.labels)
        rows, family = [], family_of(pipe)
        for name, erasure, some, found in zip(labels, erasures, asks, seen[1:], strict=True):
            stand = {concept.name: stand_ins(concept, family) for concept in erasure.concepts}
            for model, (verdicts, instead) in (("original", seen[0]), ("erased", found)):
                rows += self._rows(name, model, some, verdicts)
                if self.protocol.beside:
                    gone = [replace(ask, role="shown") for ask in some if ask.role == "erased"]
                    rows += self._rows(name, model, gone, instead, stand)
        result = evaluation(self.protocol, rows, settings, mean=self.labels is None)
        return result.save(self.folder) if self.folder else result

    def _draws(self, word: str) -> list[tuple[int, str, int]]:
        """(index of the seed, prompt, seed) of every draw of a word."""
        return [(i, fill(t, word), seed) for t in self.templates for i, seed in enumerate(self.seeds)]

    def _jobs(self, asks: Sequence[Ask]) -> list[tuple[str, int]]:
        """The distinct (prompt, seed) pairs, in order."""
        return list(dict.fromkeys((prompt, seed) for ask in asks for _, prompt, seed in self._draws(ask.word)))

    def _rows(
        self, erased: str, model: str, asks: Sequence[Ask], found: dict, right: dict[str, set[str]] | None = None
    ) -> list[dict]:
        """One row per picture. right: by name asked for, what it may be taken for; None: that name alone."""
        rows = []
        for ask in asks:
            for draw, (i, prompt, seed) in enumerate(self._draws(ask.word)):
                seen, value = self._counted(found[prompt, seed], right[ask.name] if right else {ask.name})
                rows.append({
                    "erased": erased, "model": model, "role": ask.role, "name": ask.name, "word": ask.word,
                    "prompt": prompt, "seed": seed, "draw": draw, "group": i % GROUPS,
                    "found": seen, "value": value,
                })  # fmt: skip
        return rows

    def _counted(self, verdict, right: set[str]) -> tuple[str | None, float]:
        """What is seen in a picture, and what it counts for these names; NaN: it is left out."""
        if isinstance(verdict, float):
            return None, verdict
        if isinstance(verdict, dict):
            return max(verdict, key=verdict.get), sum(verdict.get(name, 0.0) for name in right)
        if verdict is None and self.counting == "paper":
            return None, float("nan")
        return verdict, float(verdict in right)
