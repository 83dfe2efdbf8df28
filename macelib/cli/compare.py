"""Commands `mace compare` and `report`: every method on one task, and the README's tables from what is recorded."""

import csv
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import MaceError
from ..show.progress import Bars
from .options import Device, Dtype, Local, LowMemory, Model, Revision, example, pipeline


def compare(
    task: Annotated[
        str,
        typer.Option("--task", "-t", help="objects, characters-100, styles, unsafe, captions, ...; or a file.yaml"),
    ],
    methods: Annotated[
        str | None, typer.Option(help="comma-separated; default: all, with `quick` those that need no training")
    ] = None,
    profile: Annotated[str, typer.Option(help="quick, recorded or paper: how much is drawn")] = "quick",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="folder: pictures, what is seen there, TASK.json; runs/compare-..."),
    ] = None,
    model: Model = "mini-sd",
    only: Annotated[list[str] | None, typer.Option(help="erase only this name; repeatable")] = None,
    seeds: Annotated[int | None, typer.Option(help="number of seeds, instead of the profile's", min=1)] = None,
    trainings: Annotated[
        int | None,
        typer.Option(help="seeds of a training; of objects three unless quick, else one", min=1),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="some, with commas between; one with a comma in quotes: '\"time, s\"'")
    ] = None,
    against: Annotated[str | None, typer.Option(help="reference for paired differences (default: mace)")] = None,
    classifier: Annotated[str | None, typer.Option(help="who judges, as in `mace evaluate`; the model's own")] = None,
    features: Annotated[
        str | None,
        typer.Option(help="the CLIP whose image vectors distances are taken of; the judge, or the model's own"),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="local or ray: each method in a process of its own")] = None,
    jobs: Annotated[int | None, typer.Option(help="with --engine: methods in parallel", min=1)] = None,
    batch: Annotated[int, typer.Option(help="pictures drawn at once", min=1)] = 16,
    autocast: Annotated[
        str | None,
        typer.Option(help="bf16 or fp16: precision of the pictures; auto: bf16 where it saves time, as quick has it"),
    ] = None,
    record: Annotated[bool, typer.Option("--record", help="keep the tables in data/results and in the README")] = False,
    revision: Revision = None,
    local_files_only: Local = False,
    device: Device = None,
    dtype: Dtype = None,
    low_memory: LowMemory = False,
) -> None:
    """Erase what a task asks for by every method, with published settings and tuned ones, and measure all alike.

    If interrupted, run the same command again; it resumes.
    """
    from .. import compare as comparing
    from ..batch.engines import make_engine
    from ..evaluate import results
    from ..evaluate.pictures import Drawing
    from ..files import check_writable
    from ..models.families import family_of
    from ..models.pipelines import fast_precision

    def settled(worlds, family=None):
        plan = comparing.planned(*comparing.find(task, worlds), profile, only=only, seeds=seeds, trainings=trainings)
        chosen, among = comparing.tuned_settings(plan.kind), comparing.tried(plan.kind)
        return plan, comparing.ways(listed(methods), plan, chosen, family, among)

    comparing.either(settled)  # refuses what there is not before the model is loaded
    auto = autocast == "auto" or (autocast is None and profile == "quick")
    Drawing(batch=batch, autocast=None if auto else autocast)
    if jobs is not None and engine is None:
        raise MaceError("--jobs belongs to an engine: give --engine local or ray.")
    if record and (only or seeds or methods or metrics or profile == "quick"):
        raise MaceError(
            "A part of a task is not recorded: leave out --only, --seeds, --methods and --metrics, and take --profile "
            "recorded or paper, or leave out --record."
        )
    where = make_engine(engine, jobs=jobs) if engine else None
    if out is not None:
        check_writable(out)
    pipe = pipeline(model, revision, local_files_only, device, dtype, low_memory)
    plan, ways = settled(comparing.worlds(family_of(pipe)), family_of(pipe))
    folder = out or Path("runs") / f"compare-{plan.name}-{profile}"
    with Bars() as bars:
        options = {
            "classifier": classifier,
            "features": features,
            "batch": batch,
            "autocast": fast_precision(pipe) if auto else autocast,
            "engine": where,
            "progress": bars,
        }
        options |= {"metrics": listed(metrics), "against": against, "command": shlex.join(["mace", *sys.argv[1:]])}
        path = comparing.compare(pipe, plan, ways, folder, **options)
    whole = results.read(path)
    typer.echo(comparing.report.markdown(whole))
    missing: dict[tuple[str, str], list[str]] = {}
    for row in whole["not_measured"]:
        missing.setdefault((row["metric"], row["why"]), []).append(row["method"])
    for (metric, why), names in missing.items():
        typer.echo(f"{metric}: not measured, {why} ({', '.join(names)})", err=True)
    typer.echo(path)
    if record:
        for kept in comparing.record(path, plan):
            typer.echo(kept)
        report()


def report(
    check: Annotated[bool, typer.Option("--check", help="fail where README and records disagree")] = False,
) -> None:
    """Put the tables of data/results and data/studies into the README, between their marks, and draw its figures."""
    from ..compare import report as pages

    if check:
        if wrong := pages.disagreements():
            raise MaceError(f"README and records disagree on {', '.join(wrong)}: call mace report.")
        return
    for line in pages.render():
        typer.echo(line)


def listed(text: str | None) -> list[str] | None:
    """ "a,b" as a list, a name with a comma in it in quotes; MaceError where there is nothing in it."""
    if text is None:
        return None
    try:
        names = [name.strip() for row in csv.reader([text], skipinitialspace=True, strict=True) for name in row]
    except csv.Error as error:
        raise MaceError(f"{text!r} has a quote that is not closed, or not opened: write both, or none.") from error
    if not (names := [name for name in names if name]):
        raise MaceError("The list is empty: give names with commas between, or leave the option out.")
    return names


def register(app: typer.Typer) -> None:
    """Add the commands to an app."""
    app.command(
        epilog=example(
            "mace compare --task objects",
            "mace compare --task characters-100 --methods uce,speed,mace --profile recorded --out runs/hundred",
            "mace compare --task objects --model CompVis/stable-diffusion-v1-4 --profile paper --engine ray",
        )
    )(compare)
    app.command(epilog=example("mace report", "mace report --check"))(report)
