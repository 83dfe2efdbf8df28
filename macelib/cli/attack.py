"""Command `mace attack`: tries to get erased concepts back, and says what else the same attack gets back."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import MaceError, refusal
from ..show.progress import Bars
from .options import Device, Dtype, Guidance, Local, LowMemory, Model, Revision, example, pipeline


def attack(
    erasure: Annotated[
        Path | None, typer.Argument(help="an erasure file, or the edit of another method; or --task in its place")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="folder: attacks.json, and a file of rows per concept")
    ] = ...,
    task: Annotated[
        str | None,
        typer.Option("--task", "-t", help="objects, or another of `mace compare`: methods are attacked on it"),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="of --task, with commas between; mace,mace-stage-1,mace-best,uce,semantic-surgery,esd-x"),
    ] = None,
    attack_: Annotated[list[str] | None, typer.Option("--attack", "-a", help="one by name; all unless given")] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(help="none (the attack itself), original, no-attack, foreign, never-knew; all unless given"),
    ] = None,
    concept: Annotated[list[str] | None, typer.Option(help="one of the erased; all unless given")] = None,
    seeds: Annotated[int, typer.Option(help="seeds per prompt", min=1)] = 3,
    settings: Annotated[Path | None, typer.Option(help="a YAML file: settings by attack")] = None,
    foreign: Annotated[
        Path | None,
        typer.Option(
            help="of foreign: pictures of what the model never knew, by sub-folder or file name; mini-SD: the shipped"
        ),
    ] = None,
    each: Annotated[
        bool,
        typer.Option("--each", help="of --task: run the foreign control on every edit, not once on the original model"),
    ] = False,
    never_knew: Annotated[
        str | None, typer.Option(help="of never-knew: a model whose denoiser was trained without the concepts")
    ] = None,
    edits: Annotated[
        Path | None, typer.Option(help="of --task: the folder of a comparison whose edits are used; made unless given")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="of --task: after so many no further concept is begun", min=0)
    ] = None,
    classifier: Annotated[str | None, typer.Option(help="who judges, as in `mace evaluate`; the model's own")] = None,
    among: Annotated[list[str] | None, typer.Option(help="a name that CLIP chooses among, beside the erased")] = None,
    model: Model = "mini-sd",
    steps: Annotated[int | None, typer.Option(help="denoising steps of a picture; 25, of --task 8", min=1)] = None,
    guidance: Guidance = None,
    batch: Annotated[int, typer.Option(help="pictures drawn at once", min=1)] = 8,
    record: Annotated[
        bool, typer.Option("--record", help="of --task: keep the table in data/results and in the README")
    ] = False,
    revision: Revision = None,
    local_files_only: Local = False,
    device: Device = None,
    dtype: Dtype = None,
    low_memory: LowMemory = False,
) -> None:
    """Attack an erasure, or every method on a task, with controls: success rates, intervals and what was spent.

    If interrupted, run the same command again; it resumes.
    """
    from ..attacks import CONTROLS, Nearest, attacks, named, read_pictures
    from ..attacks.never import check_card, check_never
    from ..compare import check_attacks, either, run_of, worlds
    from ..evaluate.classifiers import classifier_for, plugged
    from ..files import check_writable, data_folder
    from ..models.families import family_of
    from ..models.sample import check_drawing
    from ..reading import build_settings, placed, read_data
    from .judged import Among, gallery

    if (erasure is None) == (task is None):
        raise MaceError("Give the file of an erasure, or --task for methods to attack: one of the two.")
    if task is None and (methods or edits or each or record or minutes is not None):
        raise MaceError("--methods, --edits, --each, --minutes and --record belong to --task.")
    if record and (methods or attack_ or control or concept or seeds < 3):
        raise MaceError(
            "A part of a task is not recorded: leave out --methods, --attack, --control and --concept, take three "
            "seeds or more, or leave out --record."
        )
    if task is None and (out / "run.json").is_file():
        raise MaceError(f"{out} holds a run of a whole task: choose another folder.")
    chosen, controls = attack_ or attacks(), control or list(CONTROLS)
    for name in chosen:
        named(name)
    if unknown := [name for name in controls if name not in CONTROLS]:
        raise MaceError(f"There is no control {unknown[0]!r}: choose from {', '.join(CONTROLS)}.")
    values, where = read_data(settings, "settings of attacks") if settings else ({}, str)
    if not isinstance(values, dict):
        raise MaceError(f"{settings} must hold a mapping from attacks to their settings.")
    for name, fields in values.items():
        with placed(where, str(name)):
            build_settings(named(name).settings, fields or {})

    def settled(order, family=None):
        plan, ways, concepts = _planned(task, methods, concept, seeds, order, family)
        if record:
            check_attacks(plan)
        return plan, ways, concepts, card(concepts)

    def card(concepts):
        return check_card(never_knew, [one.name for one in concepts], record) if never_knew else {}

    if task is None:
        change, concepts = _held(erasure, concept)
        about = card(concepts)
    else:
        either(settled)  # refuses what there is not
    if edits:
        run_of(edits)
    pictures = read_pictures(foreign) if foreign else {}
    check_writable(out)
    own = plugged(classifier) if classifier else None
    pipe = pipeline(model, revision, local_files_only, device, dtype, low_memory)
    steps = steps or (25 if task is None else 8)
    check_drawing(pipe, range(seeds), steps, guidance, batch)  # before anything is erased
    if task is not None:
        plan, ways, concepts, about = settled(worlds(family_of(pipe)), family_of(pipe))
        among = [*(among or []), *plan.rows]
    if not foreign and "foreign" in controls and family_of(pipe).catalogue is not None:
        pictures = read_pictures(data_folder() / "attacks" / "foreign")
    never = pipeline(never_knew, None, local_files_only, device, dtype, low_memory) if never_knew else None
    about |= {"model": _called(never_knew), "weights": check_never(pipe, never)} if never else {}
    judge = Among(own or classifier_for(pipe), [c.name for c in concepts], among or [], classifier)
    strange = (pictures, Nearest(*gallery(pipe, pictures))) if pictures and "foreign" in controls else None
    asked = {"judge": judge, "attacks": chosen, "controls": controls, "settings": values, "foreign": strange}
    asked |= {"never": never, "guidance": guidance, "batch": batch, "folder": out, "steps": steps}
    if task is None:
        asked |= {"seeds": range(seeds)}
        path = _one(pipe, change, concepts, {"model": model, "never_knew": about}, **asked)
        for row in _lines(path):
            typer.echo(row)
        return
    asked |= {"only": concept, "never_about": about, "edits": edits, "each": each}
    _every(pipe, plan, ways, minutes, record, **asked)


def _called(model: str) -> str:
    """A model as a record names it: a folder with the one above (`without-objects-models/mini-sd`), else as given."""
    folder = Path(model).expanduser()
    return "/".join(folder.resolve().parts[-2:]) if folder.is_dir() else model


def _held(erasure: Path, names: list[str] | None) -> tuple:
    """An erasure or an edit, and its concepts that are attacked; MaceError for one that it does not hold."""
    from ..compare.measure import loaded

    change = loaded(erasure)
    if missing := sorted(set(names or ()) - {c.name for c in change.concepts}):
        held = ", ".join(c.name for c in change.concepts)
        raise MaceError(f"{missing[0]!r} is not in {erasure}; it holds {held}.")
    return change, [c for c in change.concepts if c.name in (names or [c.name])]


def _planned(task: str, methods: str | None, only: list[str] | None, seeds: int, worlds, family=None) -> tuple:
    """Plan, methods and concepts of a task; MaceError for what there is not."""
    from .. import compare
    from .compare import listed

    plan = compare.planned(*compare.find(task, worlds), "recorded", seeds=seeds, trainings=1)
    ways = compare.ways(listed(methods) or compare.SCOPE, plan, compare.tuned_settings(plan.kind), family)
    return plan, compare.one_way(ways), [target[-1] for target in compare.targets(plan, only)]


def _one(pipe, change, concepts: list, about: dict, *, attacks, controls, settings, foreign, folder, **asked) -> Path:
    """Attack an erasure; where its table is."""
    from ..attacks import Result
    from ..attacks import attack as run
    from ..compare import lacking
    from ..concepts import Concept
    from ..evaluate.attacked import write_table
    from ..evaluate.made import made_with
    from ..evaluate.pictures import Drawing
    from ..files import locked

    change.check(pipe)
    judge, seeds, result = asked.pop("judge"), asked["seeds"], Result()

    def tried(one, name: str, control: str, **how) -> Result:
        """The rows of an attack; of several, one that refuses is not measured, in its words."""
        try:
            return run(pipe, change, one, name, control=control, **how)
        except MaceError as error:
            if len(attacks) == 1:
                raise
            missing = {"attack": name, "control": control, "method": change.title, "concept": one.name}
            return Result(not_measured=[missing | {"metric": "ASR", "why": refusal(error)}])

    with locked(folder / ".lock", str(folder), wait=False), Bars() as bars:
        for name in attacks:
            common = {**asked, "folder": folder, "settings": settings.get(name), "progress": bars}
            for kind in controls:
                if kind != "foreign":
                    for one in concepts:
                        result += tried(one, name, kind, judge=judge, **common)
                    continue
                if foreign is None:
                    missing = {"attack": name, "control": kind, "method": change.title, "metric": "ASR"}
                    result += Result(not_measured=[missing | {"why": lacking(pipe, kind)}])
                for word, shown in foreign[0].items() if foreign else ():
                    strange = Concept(word, "a thing", concepts[0].kind)
                    result += tried(strange, name, kind, judge=foreign[1], pictures=shown, **common)
        drawn = Drawing(asked["steps"], asked["guidance"], batch=asked["batch"]).about(pipe)
        about = {"given": about.pop("model"), **about, **drawn, **made_with(pipe, [change], judge)}
        about |= {"device": str(pipe.device), "seeds": len(seeds), "settings": settings}
        return write_table(folder / "attacks.json", result, shlex.join(["mace", *sys.argv[1:]]), about)


def _every(pipe, plan, ways: list, minutes: float | None, record: bool, **asked) -> None:
    """Attack every method of a task, show the table, and record it where all of it is done."""
    from .. import compare
    from ..evaluate import results
    from .compare import report

    with Bars() as bars:
        path = compare.Attacking(plan, ways, **asked).run(pipe, minutes, bars, shlex.join(["mace", *sys.argv[1:]]))
    whole = results.read(path)
    typer.echo(compare.report.markdown(whole))
    for why, names in compare.report.unmeasured(whole).items():
        typer.echo(f"Not measured: {', '.join(names)}: {why}", err=True)
    typer.echo(path)
    if record and any(row["why"] == compare.LATER for row in whole["not_measured"]):
        raise MaceError("The time ran out; incomplete tasks are not recorded: call the same command again.")
    if record:
        typer.echo(compare.record_attacks(path))
        report()


def _lines(path: Path):
    """The success rates in words."""
    import json

    found = json.loads(path.read_text(encoding="utf-8"))
    for row in found["rows"]:
        if row["metric"] in ("ASR", "pre-ASR"):
            told = f"{row['mean']:.1f} % ({row['low']:.1f} to {row['high']:.1f}), n = {row['n']}"
            where = ", ".join(filter(None, [row["attack"], row["control"], row["method"], row["variant"]]))
            yield f"{where}: {row['metric']} {told}"
    for row in found["not_measured"]:
        yield f"{row['attack']}, {row['control']}: not measured, {row['why']}"
    yield str(path)


def register(app: typer.Typer) -> None:
    """Add the command to an app."""
    app.command(
        epilog=example(
            "mace attack runs/ship/erasure.safetensors --attack ring-a-bell --attack wording --out runs/ship/attacks",
            "mace attack runs/ship/erasure.safetensors --foreign pictures/ --steps 8 --out runs/ship/attacks",
            "mace attack --task objects --edits runs/compare-objects-recorded --record --out runs/attacks",
        )
    )(attack)
