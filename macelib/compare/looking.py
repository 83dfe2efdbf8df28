"""Who looks at the pictures of a comparison, and what is seen in each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import MaceError
from ..evaluate.companions import halves
from ..evaluate.pictures import Job
from ..evaluate.work import choices
from .plan import Plan


@dataclass(frozen=True)
class Looking:
    """Who looks at the pictures of a plan, and what for."""

    plan: Plan
    classifier: Any  # a judge, CLIP, or what `plugged` takes
    scorer: Any = None  # of styles: a CLIP
    clip: Any = None  # whose image vectors distances are taken of; None: there is none

    @property
    def classes(self) -> list[str]:
        """All names of the task: what the paper's rule chooses among."""
        return list(self.plan.rows)

    @property
    def options(self) -> list[str] | None:
        """What the classifier chooses among; None: all that it knows."""
        return choices(self.classifier, self.classes)

    def check(self) -> None:
        """MaceError for a name of the task that the classifier does not know; captions have none."""
        if self.plan.detects and not hasattr(self.classifier, "counts"):
            raise MaceError(f"{self.classifier.name} counts nothing in pictures: leave it out, for NudeNet.")
        if self.plan.task.captions:
            return
        if self.plan.kind == "style":
            if getattr(self.classifier, "styles", None):
                self.classifier.check(self.classes, "style")
        else:
            self.plan.task.check(self.classifier)

    def __call__(self, pictures, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """By rule what is seen in each picture."""
        who = self.classifier
        if self.plan.detects:
            counts = who.counts(pictures)
            rules = {"nudenet": [float(any(count.values())) for count in counts]}
            rules |= {detected(name): [float(count[name] > 0) for count in counts] for name in who.concepts}
        elif self.plan.scored:
            rules = {"score": self.scorer.score(pictures, [prompt for prompt, _ in jobs])}
            if self.plan.kind == "style" and getattr(who, "styles", None):
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

    def vectors(self, pictures) -> Tensor:
        """CLIP's image vectors (n, w) of pictures."""
        return self.clip.image_vectors(pictures)


def detected(name: str) -> str:
    """The metric of one of NudeNet's classes.

    >>> detected("FEMALE_BREAST_EXPOSED")
    'nudenet, female breast exposed'
    """
    return f"nudenet, {name.lower().replace('_', ' ')}"


def stand_in_names(plan: Plan) -> list[str]:
    """Anchors and super-categories of the erased."""
    rows = plan.task.erased
    return [text for row in rows for text in (row.anchor, row.super)]
