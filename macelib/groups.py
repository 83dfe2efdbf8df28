"""Stage 2 of many concepts: groups that train in one forward pass, one by one here, or as jobs of an engine."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from . import __version__
from .concepts import Concept, anchored, prompts
from .config import EraseConfig
from .erasure import Erasure
from .errors import MaceError, explained
from .files import hash_tensors, hash_text
from .method.lora.train import TrainConfig
from .method.lora.work import Work, train_work
from .models.pipelines import drawing_hash, elsewhere, load_again, model_hash

log = logging.getLogger(__name__)
Progress = Callable[[str, int, int, str], None]  # stage, done, total, detail


def _dependence(erasure: Erasure, drawn: str) -> str:
    """Hash of what the LoRAs of every group depend on: model, prior, settings, and all concepts' prompts, as R does."""
    c, everything = erasure.config, [(p.concept, prompts(p.concept), anchored(p.concept)) for p in erasure.parts]
    settings = (c.seed, c.stages == "2", c.defaults, c.prior, c.refine, c.images, c.rows)
    priors = {name: P for name, P in (("P", erasure.P), ("pooled", erasure.pooled_P)) if P is not None}
    return hash_text(__version__, erasure.base, drawn, hash_tensors(priors), everything, *settings, *erasure.pooled)


def grouped(pipe, erasure: Erasure, folder: Path) -> list[Work]:
    """Stage 2 of every group of concepts; none of stage 1 alone."""
    if erasure.config.stages == "1":
        from .evaluate.drawn import unlooked

        unlooked(pipe, erasure.concepts)
        return []
    config, layers, drawn = erasure.config, tuple(erasure.layers), drawing_hash(pipe)
    R, pooled = erasure.refinement.R, erasure.pooled_refinement
    common, works = _dependence(erasure, drawn), []
    for concepts, training in groups(erasure.concepts, config):
        key = hash_text(common, [concept.name for concept in concepts], training)[:16]
        maps = R, None if pooled is None else pooled.R
        works.append(Work(concepts, training, config, layers, *maps, erasure.base, drawn, folder, key))
    return works


def groups(concepts: Sequence[Concept], config: EraseConfig) -> Iterator[tuple[list[Concept], TrainConfig]]:
    """Concepts that train in one forward pass: of one kind, at most `concepts_per_pass`."""
    for kind in dict.fromkeys(concept.kind for concept in concepts):
        members, training = [concept for concept in concepts if concept.kind == kind], config.training(kind)
        for start in range(0, len(members), training.concepts_per_pass):
            yield members[start : start + training.concepts_per_pass], training


def train_here(pipe, works: Sequence[Work], tell: Progress) -> Iterator[tuple[Work, dict[str, torch.Tensor]]]:
    """The groups one after the other; LoRAs that are in the folder already are read."""
    look = _looker(pipe, works)
    for i, work in enumerate(works):
        group = _counter(tell, works, i)
        tensors = work.read()
        if tensors is None:
            tensors = train_work(pipe, work, group, look)
        group("images", len(work.concepts), work.concepts[-1].name)
        group("train", work.training.steps, work.concepts[-1].name)
        yield work, tensors


def _looker(pipe, works: Sequence[Work]):
    """What looks at training pictures, where some are still to be made: `evaluate.drawn.looker`."""
    from .evaluate.drawn import looker

    todo = [concept for work in works if not work.kept.exists() for concept in work.concepts]
    return looker(pipe, todo) if todo else None


def _counter(tell: Progress, works: Sequence[Work], i: int) -> Callable[[str, int, str], None]:
    """`tell` for group i: its images and steps as part of those of all groups."""
    before = {
        "images": (sum(len(w.concepts) for w in works[:i]), sum(len(w.concepts) for w in works)),
        "train": (sum(w.training.steps for w in works[:i]), sum(w.training.steps for w in works)),
    }
    return lambda stage, done, detail: tell(stage, before[stage][0] + done, before[stage][1], detail)


def train_by(engine, pipe, works: Sequence[Work], tell: Progress) -> Iterator[tuple[Work, dict[str, torch.Tensor]]]:
    """The groups as jobs of an engine, as they finish. MaceError names those that failed, when the others are done."""
    from .batch.jobs import Job

    how, found = elsewhere(pipe), {work.key: work.read() for work in works}
    waiting = {work.key: work for work in works if found[work.key] is None}
    yield from ((work, found[work.key]) for work in works if work.key not in waiting)
    done, failed = sum(len(w.concepts) for w in works if w.key not in waiting), []
    total = sum(len(work.concepts) for work in works)
    for outcome in engine.run(Job(key, train_elsewhere, (how, work)) for key, work in waiting.items()):
        work = waiting[outcome.key]
        names = ", ".join(concept.name for concept in work.concepts)
        if outcome.error:
            failed.append(f"{names}: {outcome.error}")
            log.warning("The training of %s failed: %s", names, outcome.error)
            continue
        tensors, notes = outcome.value
        for note in notes:
            log.warning(note)
        done += len(work.concepts)
        tell("concepts", done, total, names)
        if not work.kept.exists():  # where the folder is not shared
            work.keep(tensors)
        yield work, tensors
    if failed:
        raise MaceError(f"{len(failed)} groups failed ({'; '.join(failed)}); call again, the others are kept.")


def train_elsewhere(how: tuple, work: Work) -> tuple[dict[str, torch.Tensor], list[str]]:
    """`train_work` in a process of its own, and its warnings; MaceError where the model is not the caller's.

    how: of `elsewhere`.
    """
    pipe, notes = load_again(*how), []
    if (model_hash(pipe), drawing_hash(pipe)) != (work.base, work.drawn):
        raise MaceError(
            f"{how[0]}, as it is loaded here, is not the pipeline that the erasure began with: use the same weights on "
            "all machines, and save a pipeline that was changed after loading."
        )
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: notes.append(record.getMessage())
    logging.getLogger("macelib").addHandler(handler)
    with explained():
        return train_work(pipe, work, lambda *_: None, _looker(pipe, [work])), notes
