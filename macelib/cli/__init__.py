"""The command line `mace`. Here: the app and `erase`.

`draw` has generate, `measure` evaluate, study and bench, `artefact` export and info, `world` concepts and notebooks,
`macelib.batch.cli` run, batch, params and runs.
Exit codes: 0 done; 1 a MaceError, whose sentence is on standard error; 2 wrong usage. All of macelib may be imported,
inside the commands, so that `--help` does not wait for it.
"""

import dataclasses
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from ..batch import cli as batch
from ..errors import MaceError, explained
from ..show.progress import Bars
from . import artefact, draw, measure, world
from .draw import _seeds, _strengths
from .options import Device, Dtype, Local, Model, Revision, counted, example, pipeline

__all__ = ["_seeds", "_strengths", "app", "erase", "main"]

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
    concepts: Annotated[list[str] | None, typer.Argument(help='"name=anchor", as many as you like')] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder: erasure.safetensors, training images, LoRAs")] = ...,
    model: Model = "mini-sd",
    list_: Annotated[Path | None, typer.Option("--list", "-l", help="concepts in a .yaml, .csv, .json or .txt")] = None,
    kind: Annotated[
        str, typer.Option(help="kind of the concepts given as arguments: object, style, celebrity or explicit")
    ] = "object",
    preset: Annotated[
        str | None, typer.Option(help="paper, mini or untested: fills what is open; the model's own by default")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="settings for all concepts as for objects, celebrities, styles or explicit, whatever kind"),
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="settings in a YAML file")] = None,
    seed: Annotated[int | None, typer.Option(help="instead of the settings' seed")] = None,
    captions: Annotated[
        str | None, typer.Option(help="captions to preserve: builtin, or a .txt, .json (COCO) or .csv")
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="a name that must stay, or a .txt with one a line; as many as you like")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="local or ray: groups of concepts train in processes of their own, here or on a cluster"),
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="of an engine: groups at once", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="of an engine: cores of a group", min=1)] = None,
    gpus: Annotated[float | None, typer.Option(help="of --engine ray: GPUs of a group", min=0)] = None,
    address: Annotated[str | None, typer.Option(help="of --engine ray: the cluster")] = None,
    revision: Revision = None,
    local_files_only: Local = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Erase concepts: stages 1-3. Cut short, the same command goes on where it stopped."""
    from ..batch.engines import make_engine
    from ..concepts import parse_concept, read_concepts
    from ..config import EraseConfig
    from ..job import check
    from ..job import erase as run

    chosen = [parse_concept(text, kind) for text in concepts or ()]
    chosen += read_concepts(list_) if list_ else []
    settings = EraseConfig.load(config) if config else EraseConfig()
    if seed is not None:
        settings = dataclasses.replace(settings, seed=seed)
    settings = _by_preset(settings, preset, task)
    if captions is not None:
        settings = dataclasses.replace(settings, prior=dataclasses.replace(settings.prior, captions=captions))
    if keep:
        if settings.prior.domain:
            raise MaceError(f"prior.domain in {config} and --keep both say what must stay: give one of them.")
        settings = settings.keeping(_kept(keep, [concept.name for concept in chosen]))
    check(chosen, settings, out)  # before the model is loaded
    if engine is None and (jobs, threads, gpus, address) != (None,) * 4:
        raise MaceError("--jobs, --threads, --gpus and --address belong to an engine: give --engine local or ray.")
    options = {"jobs": jobs, "threads": threads, "gpus": gpus, "address": address}
    where = make_engine(engine, **options) if engine else None
    from ..files import locked

    with locked(out / ".lock", str(out), wait=False):
        pipe = pipeline(model, revision, local_files_only, device, dtype)
        with Bars() as bars:
            erasure = run(pipe, chosen, settings, progress=bars, folder=out, engine=where)
        path = erasure.save(out / "erasure.safetensors")
    size = f"{path.stat().st_size / 1e6:.2f} MB"
    typer.echo(f"{path}: {counted(chosen)}, {size}; {erasure.config.title}")


def _by_preset(settings, preset: str | None, task: str | None):
    """The settings with a preset to fill them, and a row of it for all concepts; MaceError where there is none such."""
    if preset is None and task is None:
        return settings
    chosen = type(settings).preset(preset or settings.preset_name or "mini", task)  # says what is wrong with either
    row = settings.defaults if task is None else chosen.defaults
    return dataclasses.replace(settings, preset_name=preset or settings.preset_name, defaults=row)


def _kept(values: list[str], erased: list[str]) -> list[str]:
    """Names to keep, from the command line and from files of names; MaceError where one is to be erased."""
    from ..concepts import kept_names, refuse_both

    names = kept_names(values)
    refuse_both(erased, names)
    return names


for commands in (draw, measure, artefact, world, batch):
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
