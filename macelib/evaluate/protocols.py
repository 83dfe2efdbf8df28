"""The paper's protocols (section 4): which pictures are drawn, and what is counted in them.

A protocol asks for three roles: erased names, their synonyms, and names that are kept. The original model's row is
always there: the same prompts and seeds. Accuracy is top-1; tables are in percent (CLIP scores in points).

`counting="paper"` counts as the authors did, for a table beside theirs: CLIP B/32 where CLIP judges; of objects the
mean probability among the classes, which is no accuracy; of people, pictures without a face are left out.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..concepts import paper_list, refuse_both, with_synonyms
from ..erasure import Erasure
from ..errors import MaceError
from .classifiers import classifier_for, plugged
from .metrics import h_a, h_c, h_o
from .pictures import Drawing
from .tables import Evaluation
from .work import Ask, Progress, Protocol, Work, choices, listed

log = logging.getLogger(__name__)
OBJECT_TEMPLATES = ("a photo of the {}",)
PERSON_TEMPLATES = (
    "a portrait of {}", "a sketch of {}", "an oil painting of {}", "an official photo of {}", "{} at a public event",
)  # fmt: skip
CHARACTER_TEMPLATES = tuple(template.replace("{}", "the {}") for template in PERSON_TEMPLATES)
TUNING_TEMPLATES = ("a photo of the {}", "an oil painting of the {}")
STYLE_TEMPLATES = (
    "an image in the style of {}", "a picture by {}", "a painting in the style of {}", "artwork by {}", "a work of {}",
)  # fmt: skip


SHOWN = {"shown": "Acc_a"}  # pictures of erased prompts that show the anchor or its super-category
OBJECTS = Protocol("objects", {"erased": "Acc_e", "kept": "Acc_s", "synonym": "Acc_g"}, "H_o", h_o, beside=SHOWN)
CHARACTERS = Protocol("characters", {"erased": "Acc_e", "kept": "Acc_s"}, "H_c", h_c, beside=SHOWN)
STYLES = Protocol("styles", {"erased": "CLIP_e", "kept": "CLIP_s"}, "H_a", h_a, scale=1.0)


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
    work = Work(OBJECTS, OBJECT_TEMPLATES, seeds, classifier, Drawing(**drawing), folder, force, progress)
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
    among = choices(classifier, everyone)
    asks = [_erased_and_kept(erasure, kept) for erasure in erasures]
    work = Work(CHARACTERS, templates, seeds, classifier, Drawing(**drawing), folder, force, progress)
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
    work = Work(STYLES, templates, seeds, scorer, Drawing(**drawing), folder, force, progress)
    return work.run(pipe, erasures, asks, lambda pictures, jobs: scorer.score(pictures, [p for p, _ in jobs]))


def _erased_and_kept(erasure: Erasure, kept: Sequence[str]) -> list[Ask]:
    erased = [concept.name for concept in erasure.concepts]
    refuse_both(erased, kept)
    if not kept:
        raise MaceError("Specificity needs names that are kept: give some.")
    return [Ask("erased", name, name) for name in erased] + [Ask("kept", name, name) for name in kept]
