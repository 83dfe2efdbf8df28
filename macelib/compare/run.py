"""A comparison from end to end: every row's pictures, then its tables, anew after each method."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..batch.jobs import Job
from ..errors import MaceError, explained, first_line, unknown
from ..evaluate.classifiers import classifier_for, plugged
from ..evaluate.explicit import NudeNet
from ..evaluate.made import judged_by, made_with
from ..evaluate.pictures import Drawing
from ..files import check_writable, locked, write_json
from ..models.families import family_of
from ..models.pipelines import elsewhere, load_again
from ..models.swap import untouched
from ..models.text import prompt_fits, shortened
from .looking import Looking
from .measure import Measuring, Progress
from .plan import ORIGINAL, Plan, Way
from .tables import Tables, metric_names

log = logging.getLogger(__name__)


def compare(
    pipe,
    plan: Plan,
    ways: Sequence[Way],
    folder: str | Path,
    *,
    classifier=None,
    features=None,
    batch: int = 16,
    autocast: str | None = None,
    metrics: Sequence[str] | None = None,
    against: str | None = None,
    engine=None,
    progress: Progress | None = None,
    command: str = "",
) -> Path:
    """Measure every row that is still to be measured, and write the tables: `folder/{name of the task}.json`.

    classifier: who looks, as `protocols.objects` takes it; text where an engine runs the rows in processes of their
    own. features: the CLIP whose image vectors distances are taken of, likewise; unless given the classifier, if it is
    one, or the family's. batch, autocast: of `Drawing`. metrics: some of `metric_names`. against: the method that the
    others' combined metric is compared with.
    MaceError: a name that the classifier does not know, an unknown metric, a folder that holds another run.
    """
    if missing := [name for name in metrics or () if name not in metric_names(plan)]:
        cure = """On the command line, a name with a comma in it stands in quotes: --metrics '"time, s"'."""
        raise unknown("metric", missing[0], metric_names(plan), 0.4, cure)
    if against is not None and against not in {way.method for way in ways}:
        raise unknown("method among those that are measured", against, dict.fromkeys(way.method for way in ways))
    folder, tell = Path(folder), progress or (lambda *_: None)
    check_writable(folder)
    with locked(folder / ".lock", str(folder), wait=False), untouched(pipe):
        who, drawing = (classifier, features), Drawing(steps=plan.steps, batch=batch, autocast=autocast)
        run = measuring(pipe, plan, who, drawing, folder)
        about, plan = _about(pipe, run), run.plan
        same_run(folder, about, plan)
        if why := run.run(pipe, ORIGINAL, tell):
            raise MaceError(why)
        tables = Tables(pipe, run, [*ways], metrics, against, about, command)
        path = tables.write({})
        whys: dict[Way, str] = {}
        for way, why in _measured(pipe, run, [way for way in ways if way != ORIGINAL], who, engine, tell):
            whys |= {way: why} if why else {}
            path = tables.write(whys)
        return path


def measuring(pipe, plan: Plan, who: tuple, drawing: Drawing, folder: Path) -> Measuring:
    """The run of a plan on a model; MaceError for a name that the classifier does not know.

    who: classifier and features, as `compare` takes them.
    """
    classifier, features = (found if found is None else plugged(found) for found in who)
    classifier = classifier or (NudeNet.load() if plan.detects else classifier_for(pipe))
    family = family_of(pipe)
    plan = cut(pipe, plan) if plan.detects else plan
    scorer = classifier_for(pipe, "styles") if plan.scored or family.scorer != family.judge else None
    clip = next((found for found in (features, classifier, scorer) if hasattr(found, "image_vectors")), None)
    if features is not None and clip is not features:
        raise MaceError(f"{features.name} gives no image vectors: name a CLIP as features.")
    look = Looking(plan, classifier, scorer if plan.scored else None, clip)
    look.check()
    return Measuring(plan, drawing, look, folder, family=family)


def cut(pipe, plan: Plan) -> Plan:
    """The plan with its captions as the model reads them: a longer one ends with the last word that is read, said."""
    texts = plan.task.captions
    if long := sum(not prompt_fits(pipe, text) for text in texts):
        log.warning("%d of %d prompts are longer than the model reads: they are cut.", long, len(texts))
    return replace(plan, task=replace(plan.task, captions=tuple(dict.fromkeys(shortened(pipe, t) for t in texts))))


def _measured(pipe, run: Measuring, ways, who: tuple, engine, tell: Progress) -> Iterator[tuple[Way, str | None]]:
    """Each row, when it is measured, and the refusal where it could not be.

    MaceError, when the others are through, with what went wrong in rows that died in their processes.
    """
    if engine is None:
        for way in ways:
            with explained():
                why = run.run(pipe, way, tell)
            yield way, why
        return
    if not all(found is None or isinstance(found, (str, Path)) for found in who):
        raise MaceError("An engine loads the classifier in each of its processes: name it in text.")
    how = elsewhere(pipe), run.plan, who, run.drawing, str(run.folder)
    todo = {str(way): way for way in ways}
    waiting = [Job(key, measure_elsewhere, (*how, way)) for key, way in todo.items() if run.seen(way) is None]
    yield from ((way, None) for key, way in todo.items() if key not in {job.key for job in waiting})
    died = []
    for done, outcome in enumerate(engine.run(waiting), 1):
        tell("methods", done, len(waiting), outcome.key)
        if outcome.error:
            died.append(outcome)
        else:
            yield todo[outcome.key], outcome.value
    if died:
        said = "; ".join(f"{outcome.key}: {first_line(outcome.error)}" for outcome in died)
        traces = "\n".join(outcome.trace for outcome in died if outcome.trace)
        raise MaceError(f"Rows died in their processes ({said}); the others are kept: call again.\n{traces}")


def measure_elsewhere(how: tuple, plan: Plan, who: tuple, drawing: Drawing, folder: str, way: Way) -> str | None:
    """One row in a process of its own, into the folder; the refusal where it cannot be measured. how: of `elsewhere`.

    MaceError: not the same model. What is raised is a fault, not a refusal.
    """
    pipe = load_again(*how)
    run = measuring(pipe, plan, who, drawing, Path(folder))
    same_run(run.folder, _about(pipe, run), plan)
    with explained():
        return run.run(pipe, way, lambda *_: None)


def _about(pipe, run: Measuring) -> dict[str, Any]:
    """What all pictures and counts of a run depend on, beside the methods."""
    plan, look, about = run.plan, run.look, run.drawing.about(pipe) | made_with(pipe, [], run.look.classifier)
    about |= {**asked(plan), "profile": plan.profile, "batch": run.drawing.batch}
    about |= {"templates": list(plan.templates), "seeds": list(plan.seeds)}
    others = {"features": look.clip, "scorer": look.scorer}
    about |= {name: None if who is None else judged_by(who) for name, who in others.items()}
    about |= {"training_seeds": plan.trainings}
    return json.loads(json.dumps(about | {"device": str(pipe.device.type)}, default=str))


def asked(plan: Plan) -> dict[str, Any]:
    """What every erasure of a plan is asked for: edits are kept by the number of theirs."""
    told = dict.fromkeys(name for i in range(len(plan.erasures)) for name in plan.told(i))
    about = {"task": plan.name, "title": plan.task.about.title, "told_to_keep": [*told]}
    lists = {"erasures": "name", "anchors": "anchor"}
    return about | {key: [[getattr(c, of) for c in some] for some in plan.erasures] for key, of in lists.items()}


def written(plan: Plan) -> dict[str, Any]:
    """All that a task's file says of what is drawn and counted; which of its names go says `asked`."""
    task = asdict(plan.task)
    about = {name: task["about"][name] for name in ("metric", "kind", "erase", "settings", "beside")}
    about |= {name: task[name] for name in ("erased", "kept", "captions")}
    return json.loads(json.dumps(about))


def run_of(folder: Path) -> dict[str, Any]:
    """What a comparison says of itself in its folder; MaceError where there is none."""
    try:
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MaceError(f"{folder} holds no comparison ({error!r}): give the folder of one.") from error
    if not isinstance(about, dict) or not about.keys() >= {"model", "erasures"}:
        raise MaceError(f"{folder} holds no comparison (its run.json is something else): give the folder of one.")
    return about


def same_run(folder: Path, about: Mapping[str, Any], plan: Plan) -> None:
    """MaceError where the folder holds another run, or what is no run."""
    path, about = folder / "run.json", {**about, **written(plan)}
    if not path.is_file():
        if any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise MaceError(f"{folder} holds no such run, but something else: choose an empty folder.")
        write_json(path, about)
    if other := differing(json.loads(path.read_text(encoding="utf-8")), about):
        raise MaceError(f"{folder} holds pictures of another run ({', '.join(other)} differ): choose another folder.")


def differing(kept: Mapping[str, Any], about: Mapping[str, Any]) -> list[str]:
    """What two runs differ in; of an earlier version's, what it says."""
    return [name for name in about if name in kept and kept[name] != about[name]]
