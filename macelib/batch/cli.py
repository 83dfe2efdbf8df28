"""Commands `mace run`, `batch`, `params` and `runs`.

Exit codes of `run` and `batch`: 0 all runs are complete; 1 a MaceError, nothing was started; 2 wrong usage; 3 some runs
failed, and their names are on standard error; 130 stopped by Ctrl-C: the same command goes on.
"""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from ..errors import MaceError

FAILED, STOPPED = 3, 130


class Pairs(TyperCommand):
    """A command whose `-p KEY VALUE` may be written with a space; `-p KEY=VALUE` is the same."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        joined, rest = [], list(args)
        while rest:
            word = rest.pop(0)
            joined.append(word)
            if word == "--":
                return super().parse_args(ctx, joined + rest)
            if word in ("-p", "--parameter") and rest:
                name = rest.pop(0)
                joined.append(name if "=" in name or not rest else f"{name}={rest.pop(0)}")
        return super().parse_args(ctx, joined)


Given = Annotated[list[str] | None, typer.Option("--parameter", "-p", metavar="KEY VALUE", help="as often as you like")]
EngineName = Annotated[str, typer.Option("--engine", help="local: processes on this machine; ray: a Ray cluster")]
Jobs = Annotated[int | None, typer.Option("--jobs", "-j", min=1, help="runs at once; one per GPU by default, else one")]
Threads = Annotated[int | None, typer.Option(min=1, help="threads of a run; the cores are shared evenly by default")]
Gpus = Annotated[float | None, typer.Option(min=0, help="ray: GPUs of a run; 0.5 lets two share one")]
Address = Annotated[str | None, typer.Option(help="ray: an existing cluster; one on this machine if there is none")]
Retries = Annotated[int, typer.Option(min=0, help="ray: how often a run is started again when its node dies")]
Force = Annotated[bool, typer.Option("--force", help="redo what is complete, too")]
Root = Annotated[Path, typer.Option("--root", help="folder of all sweeps")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check, list the runs, say how long; start nothing")]
ROOT = Path("papermill_runs")


def run(
    notebook: Annotated[Path, typer.Argument(help="a notebook with a cell tagged `parameters`")],
    parameter: Given = None,
    name: Annotated[str | None, typer.Option("--name", help="of the sweep; the notebook's by default")] = None,
    root: Root = ROOT,
    force: Force = False,
    dry_run: DryRun = False,
) -> None:
    """Run a notebook with some of its parameters, into papermill_runs/NAME/RUN-ID."""
    from .engines import make_engine
    from .runs import plan
    from .sweep import check_name

    name = check_name(name or notebook.stem)
    runs = plan(notebook, [_given(notebook, parameter)], root / name)
    _launch(name, runs, make_engine, root / name, force, dry_run, add=True)


def batch(
    sweep: Annotated[Path, typer.Argument(help="a YAML file: notebook, parameters, grid, zip, list, seeds")],
    parameter: Given = None,
    engine: EngineName = "local",
    jobs: Jobs = None,
    threads: Threads = None,
    gpus: Gpus = None,
    address: Address = None,
    retries: Retries = 3,
    root: Root = ROOT,
    force: Force = False,
    dry_run: DryRun = False,
) -> None:
    """Run a notebook over many parameters; called again, it goes on where it stopped and redoes what failed."""
    from ..reading import located
    from .engines import make_engine
    from .runs import plan
    from .sweep import read_sweep

    chosen = read_sweep(sweep)
    chosen = read_sweep(sweep, _given(chosen.notebook, parameter)) if parameter else chosen
    with located(str(sweep)):
        runs = plan(chosen.notebook, chosen.runs, root / chosen.name)
    if len(runs) < len(chosen.runs):
        typer.echo(f"{len(chosen.runs) - len(runs)} runs have the parameters of another one: done once.", err=True)
    options = {"jobs": jobs, "threads": threads, "gpus": gpus, "address": address, "retries": retries}
    _launch(chosen.name, runs, partial(make_engine, engine, **options), root / chosen.name, force, dry_run)


def params(
    notebook: Annotated[Path, typer.Argument(help="a notebook with a cell tagged `parameters`")],
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Name, type, default and help of a notebook's parameters."""
    from .parameters import read_parameters, table

    found = read_parameters(notebook)
    rows = [dataclasses.asdict(p) for p in found.values()]
    typer.echo(json.dumps(rows, indent=1, ensure_ascii=False) if as_json else table(found))


def runs(
    sweep: Annotated[str | None, typer.Argument(help="a sweep's name, YAML file or folder; none: lists them")] = None,
    root: Root = ROOT,
    everything: Annotated[
        bool, typer.Option("--all", help="also runs of earlier code, notebooks and parameters")
    ] = False,
) -> None:
    """Index of a sweep: a table here, index.csv and index.html in its folder; or which sweeps there are."""
    from .index import find, sweeps

    if sweep is not None:
        return _index(find(sweep, root), everything)
    if not (found := sweeps(root)):
        typer.echo(f"{root} has no runs.")
    for name, states in found.items():
        typer.echo(f"{name}: " + ", ".join(f"{number} {state}" for state, number in sorted(states.items())))


def register(app: typer.Typer) -> None:
    """Add the commands to an app."""
    app.command(cls=Pairs, epilog=_example("mace run notebooks/06_erase_and_evaluate.ipynb -p images 20 -p seed 1"))(
        run
    )
    lines = ["mace batch notebooks/sweeps/lambda_rank.yaml --jobs 2", "mace batch sweep.yaml -p model SD --engine ray"]
    app.command(cls=Pairs, epilog=_example(*lines))(batch)
    app.command(epilog=_example("mace params notebooks/06_erase_and_evaluate.ipynb"))(params)
    app.command(epilog=_example("mace runs lambda_rank", "mace runs notebooks/sweeps/lambda_rank.yaml --all"))(runs)


def _launch(name, runs, engine, folder: Path, force: bool, dry_run: bool, add: bool = False) -> None:
    """Launch runs, write the index, exit with a code that says how it went."""
    from .estimate import forecast
    from .launch import describe, launch, varied
    from .runs import remember

    engine = engine()  # before anything is written
    if dry_run:
        for run in runs:
            typer.echo(f"{run.id}  {run.state:10}  {describe(run, varied(runs))}")
        typer.echo(forecast(runs, getattr(engine, "jobs", None) or 1, force))
        return
    remember(folder, name, runs, add)
    try:
        summary = launch(runs, engine, force)
    except KeyboardInterrupt:
        typer.echo("Stopped. The same command goes on where it was.", err=True)
        raise typer.Exit(STOPPED) from None
    _index(folder, rows=len(runs) > 1)
    if len(runs) == 1:
        _ended(runs[0])
    if summary.failed:
        listed = ", ".join(summary.failed)
        typer.echo(
            f"mace: {len(summary.failed)} of {len(runs)} runs failed: {listed}. Their notebooks say why.", err=True
        )
        raise typer.Exit(FAILED)


def _ended(run) -> None:
    """How a single run ended, the page to open, and what the notebook says of its results, which comes last."""
    from .runs import READABLE, SUMMARY, figures

    folder = Path(run.folder)
    typer.echo("\n".join(map(str, [*figures(folder), folder / READABLE, f"{run.folder}: {run.state}"])))
    if (folder / SUMMARY).exists():
        typer.echo("\n" + (folder / SUMMARY).read_text(encoding="utf-8").rstrip())


def _index(folder: Path, everything: bool = False, rows: bool = True) -> None:
    """Write the index and show its varied columns."""
    from .index import write

    frame, table, page = write(folder, everything)
    metrics = [m for m in frame.attrs["metrics"] if not m.endswith((".low", ".high"))]
    short = [m for m in metrics if "." not in m] or metrics
    if rows:
        typer.echo(frame[["run", "status", *frame.attrs["varied"], *short[:6]]].to_string(index=False, max_colwidth=40))
    typer.echo(f"{table}\n{page}")


def _given(notebook: Path, texts: list[str] | None) -> dict:
    """Parameters of the command line, read by the types that the notebook says."""
    from .parameters import Parameter, from_text, read_parameters

    known, values = read_parameters(notebook), {}
    for text in texts or ():
        name, equal, value = text.partition("=")
        if not equal or not name:
            raise MaceError(f"-p {text} has no value: write -p KEY VALUE.")
        if name in values:
            raise MaceError(f"-p {name} is given twice: keep one.")
        values[name] = from_text(known.get(name) or Parameter(name, "any", None), value)
    return values


def _example(*lines: str) -> str:
    """Epilog of a command: examples that can be copied."""
    return "Examples:\n\n" + "\n\n".join(f"`{line}`" for line in lines)
