"""One run of a protocol: every picture is drawn once, looked at, and counted in rows."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..concepts import Concept
from ..erasure import Erasure
from ..errors import MaceError
from ..files import locked
from ..models.families import family_of
from ..models.swap import untouched
from ..templates import fill
from .made import made_with
from .pictures import Drawing
from .shown import stand_ins
from .tables import Evaluation, evaluation

NAMED = 6  # concepts that an erasure's label names; more are counted
GROUPS = 3  # seed groups: a result that holds in one of them alone is none
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


@dataclass(frozen=True)
class Ask:
    """A word that is drawn with every template and seed."""

    role: str  # "erased" | "kept" | "synonym"
    name: str  # what has to be recognised
    word: str  # what stands in the prompt


def check_seeds(count: int) -> None:
    """MaceError where there are too few seeds for the seed groups that every result is told for."""
    if count < GROUPS:
        raise MaceError(f"{count} seeds make no {GROUPS} seed groups: give at least {GROUPS}.")


@dataclass(frozen=True)
class Work:
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
        plans = [self.jobs([a for some in asks for a in some]), *(self.jobs(some) for some in asks)]
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
            stand = {concept.name: stand_ins(concept, family, erasure.concepts) for concept in erasure.concepts}
            for model, (verdicts, instead) in (("original", seen[0]), ("erased", found)):
                rows += self.rows(name, model, some, verdicts)
                if self.protocol.beside:
                    gone = [replace(ask, role="shown") for ask in some if ask.role == "erased"]
                    rows += self.rows(name, model, gone, instead, stand)
        result = evaluation(self.protocol, rows, settings, mean=self.labels is None)
        return result.save(self.folder) if self.folder else result

    def _draws(self, word: str) -> list[tuple[int, str, int]]:
        """(index of the seed, prompt, seed) of every draw of a word."""
        return [(i, fill(t, word), seed) for t in self.templates for i, seed in enumerate(self.seeds)]

    def jobs(self, asks: Sequence[Ask]) -> list[tuple[str, int]]:
        """The distinct (prompt, seed) pairs, in order."""
        return list(dict.fromkeys((prompt, seed) for ask in asks for _, prompt, seed in self._draws(ask.word)))

    def rows(
        self, erased: str, model: str, asks: Sequence[Ask], found: dict, right: dict[str, set[str]] | None = None
    ) -> list[dict]:
        """One row per picture. right: by name asked for, what it may be taken for; None: that name alone."""
        rows = []
        for ask in asks:
            for i, prompt, seed in self._draws(ask.word):
                seen, value = self._counted(found[prompt, seed], right[ask.name] if right else {ask.name})
                rows.append({
                    "erased": erased, "model": model, "role": ask.role, "name": ask.name, "word": ask.word,
                    "prompt": prompt, "seed": seed, "group": i % GROUPS, "found": seen, "value": value,
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


def choices(classifier, names: Sequence[str]) -> list[str] | None:
    """What a classifier chooses among: None, all that it knows, where it has a list of its own, else these names."""
    return None if getattr(classifier, "concepts", None) else list(dict.fromkeys(names))


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
    """One erasure (or edit) or several, as a list; MaceError for none, and for one that holds no concept."""
    erasures = [erasures] if hasattr(erasures, "apply") else list(erasures)
    if not erasures or not all(erasure.concepts for erasure in erasures):
        raise MaceError("There is no erasure to measure, or one that holds no concept: erase something first.")
    return erasures
