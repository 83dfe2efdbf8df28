"""The command line `mace`. Here: the app and `erase`.

`draw` has generate, `measure` evaluate, study and bench, `compare` compare and report, `attack` attack, `artefact`
export and info, `plan` plan, `world` concepts and notebooks, `macelib.batch.cli` run, batch, params and runs.
Exit codes: 0 done; 1 a MaceError, whose sentence is on standard error; 2 wrong usage. All of macelib may be imported,
inside the commands, so that `--help` does not wait for it.
"""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from ..batch import cli as batch
from ..errors import MaceError, explained
from ..show.progress import Bars
from . import artefact, attack, compare, draw, measure, plan, world
from .draw import _seeds, _strengths
from .options import (
    Address,
    Device,
    Dtype,
    Engine,
    Gpus,
    Jobs,
    Local,
    LowMemory,
    Model,
    Revision,
    Threads,
    counted,
    engine_of,
    example,
    pipeline,
)
from .settings import Captions, Concepts, Config, Keep, Kind, List, Preset, Seed, Task, _by_preset, _kept, settled

__all__ = ["_by_preset", "_kept", "_seeds", "_strengths", "app", "erase", "main"]

app = typer.Typer(
    name="mace",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"macelib {__version__}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="say which version this is")
    ] = False,
) -> None:
    """Erase concepts from text-to-image diffusion models, and take it back."""


@app.command(
    epilog=example(
        'mace erase "ship=the sea" "frog=grass" --model mini-sd --out runs/ship',
        "mace erase --list people.csv --task celebrities --keep cat --keep names-to-keep.txt --out runs/many",
        'mace erase "ship=ground" --preset paper --model CompVis/stable-diffusion-v1-4 --out runs/ship-as-published',
        "mace erase --list styles.csv --kind style --config settings.yaml --out runs/styles",
        "mace erase --list hundreds.csv --engine ray --out /shared/runs/hundreds",
    )
)
def erase(
    concepts: Concepts = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder: erasure.safetensors, training images, LoRAs")] = ...,
    model: Model = "mini-sd",
    list_: List = None,
    kind: Kind = "object",
    preset: Preset = None,
    task: Task = None,
    config: Config = None,
    seed: Seed = None,
    captions: Captions = None,
    keep: Keep = None,
    engine: Engine = None,
    jobs: Jobs = None,
    threads: Threads = None,
    gpus: Gpus = None,
    address: Address = None,
    revision: Revision = None,
    local_files_only: Local = False,
    device: Device = None,
    dtype: Dtype = None,
    low_memory: LowMemory = False,
) -> None:
    """Erase concepts: stages 1-3. If interrupted, run the same command again; it resumes.

    It first says what it will take, as `mace plan` does. With --engine, groups of concepts train at the same time.
    """
    from ..files import locked
    from ..job import check
    from ..job import erase as run
    from ..plan import plan as planned

    chosen, settings = settled(concepts, list_, kind, config, seed, preset, task, captions, keep, low_memory)
    check(chosen, settings, out)  # before the model is loaded
    where = engine_of(engine, jobs, threads, gpus, address)
    with locked(out / ".lock", str(out), wait=False):
        pipe = pipeline(model, revision, local_files_only, device, dtype, low_memory)
        typer.echo(planned(pipe, chosen, settings, out), err=True)
        with Bars() as bars:
            erasure = run(pipe, chosen, settings, progress=bars, folder=out, engine=where)
        path = erasure.save(out / "erasure.safetensors")
    size = f"{path.stat().st_size / 1e6:.2f} MB"
    typer.echo(f"{path}: {counted(chosen)}, {size}; {erasure.config.title}")


for commands in (draw, measure, compare, attack, plan, artefact, world, batch):
    commands.register(app)


def main() -> None:
    """Entry point: a MaceError is one sentence on standard error and exit code 1."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        with explained():
            app()
    except MaceError as error:
        typer.echo(f"mace: {error}", err=True)
        sys.exit(1)
