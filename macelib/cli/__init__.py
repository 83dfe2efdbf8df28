"""The command line `mace`. Here: the app, `erase` and `generate`.

`measure` has evaluate, study and bench; `artefact` export and info; `world` concepts and notebooks;
`macelib.batch.cli` run, batch, params and runs.
Exit codes: 0 done; 1 a MaceError, whose sentence is on standard error; 2 wrong usage. All of macelib may be imported,
inside the commands, so that `--help` does not wait for it.
"""

import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from ..batch import cli as batch
from ..errors import MaceError, explained
from ..show.progress import Bars
from . import artefact, measure, world
from .options import Device, Dtype, Force, Guidance, Local, Model, Revision, counted, example, pipeline

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
        "mace erase --list concepts.csv --keep cat --keep names-to-keep.txt --out runs/many",
        "mace erase --list styles.csv --kind style --config settings.yaml --out runs/styles",
        "mace erase --list hundreds.csv --engine ray --out /shared/runs/hundreds",
    )
)
def erase(
    concepts: Annotated[list[str] | None, typer.Argument(help='"name=anchor", as many as you like')] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="folder: erasure.safetensors, training images, LoRAs")] = ...,
    model: Model = "mini-sd",
    list_: Annotated[Path | None, typer.Option("--list", "-l", help="concepts in a .yaml, .csv, .json or .txt")] = None,
    kind: Annotated[str, typer.Option(help="kind of the concepts given as arguments: object or style")] = "object",
    config: Annotated[Path | None, typer.Option("--config", "-c", help="settings in a YAML file")] = None,
    seed: Annotated[int | None, typer.Option(help="instead of the settings' seed")] = None,
    captions: Annotated[str | None, typer.Option(help="captions to preserve: .txt, .json (COCO) or .csv")] = None,
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
    pipe = pipeline(model, revision, local_files_only, device, dtype)
    with Bars() as bars:
        erasure = run(pipe, chosen, settings, progress=bars, folder=out, engine=where)
    path = erasure.save(out / "erasure.safetensors")
    typer.echo(f"{path}: {counted(chosen)}, {path.stat().st_size / 1e6:.2f} MB")


@app.command(
    epilog=example(
        'mace generate "a photo of the ship" --erasure runs/ship/erasure.safetensors --out pictures --seeds 0-3',
        'mace generate "a photo of the ship" -e ship.safetensors --strength ship=0.5 --out half',
    )
)
def generate(
    prompts: Annotated[list[str], typer.Argument(help="what to draw")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder of the pictures and their manifest.json")] = ...,
    model: Model = "mini-sd",
    erasure: Annotated[Path | None, typer.Option("--erasure", "-e", help="none: the original model")] = None,
    seeds: Annotated[str, typer.Option(help="0-3 or 0,5,7: one picture per prompt and seed")] = "0",
    steps: Annotated[int, typer.Option(help="denoising steps", min=1)] = 25,
    guidance: Guidance = None,
    strength: Annotated[list[str] | None, typer.Option(help="name=0.5; 0 draws the concept as before")] = None,
    only: Annotated[list[str] | None, typer.Option(help="erase these of the erasure's concepts alone")] = None,
    without: Annotated[list[str] | None, typer.Option(help="leave these of the erasure's concepts out")] = None,
    batch: Annotated[int, typer.Option(help="pictures drawn at once", min=1)] = 8,
    force: Force = False,
    revision: Revision = None,
    local_files_only: Local = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Draw pictures, with or without an erasure."""
    from ..erasure import Erasure
    from ..files import atomic

    numbers = _seeds(seeds)
    chosen = Erasure.load(erasure) if erasure else None
    if (strength or only or without) and chosen is None:
        raise MaceError("--strength, --only and --without change an erasure: give one with --erasure.")
    if chosen is not None:
        chosen = chosen.only(only) if only else chosen
        chosen = chosen.without(without) if without else chosen
        chosen = chosen.scaled(_strengths(strength)) if strength else chosen
    from ..models.sample import generate as draw

    pipe = pipeline(model, revision, local_files_only, device, dtype)
    if chosen is not None:
        chosen.apply(pipe, force)
    jobs = [(prompt, seed) for prompt in prompts for seed in numbers]
    settings = {} if guidance is None else {"guidance": guidance}
    entries = []
    with Bars() as bars:
        for start in range(0, len(jobs), batch):
            some = jobs[start : start + batch]
            pictures = draw(pipe, [p for p, _ in some], [s for _, s in some], steps=steps, batch=batch, **settings)
            for i, (picture, (prompt, seed)) in enumerate(zip(pictures, some, strict=True), start):
                name = f"{i:04d}.png"
                with atomic(out / name) as temporary:
                    picture.save(temporary)
                entries.append({"file": name, "prompt": prompt, "seed": seed, "steps": steps, **settings})
            bars("pictures", len(entries), len(jobs), some[-1][0])
    about = {"model": model, "erasure": chosen and {"file": str(erasure), "strengths": chosen.strengths}}
    with atomic(out / "manifest.json") as temporary:
        temporary.write_text(json.dumps({**about, "images": entries}, indent=1, ensure_ascii=False), encoding="utf-8")
    typer.echo(f"{out}: {len(entries)} pictures")


def _seeds(text: str) -> list[int]:
    """ "0-3" and "0,5,7" as numbers."""
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            raise MaceError(f"--seeds is {text!r}; give numbers such as 0-3 or 0,5,7.")
        if int(last or first) < int(first):
            raise MaceError(f"--seeds is {text!r}: {part.strip()} runs backwards.")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def _kept(values: list[str], erased: list[str]) -> list[str]:
    """Names to keep, from the command line and from files of names; MaceError where one is to be erased."""
    from ..concepts import kept_names, refuse_both

    names = kept_names(values)
    refuse_both(erased, names)
    return names


def _strengths(texts: list[str]) -> dict[str, float]:
    """ "ship=0.5" as a mapping."""
    try:
        return {name.strip(): float(value) for name, _, value in (text.rpartition("=") for text in texts)}
    except ValueError as error:
        raise MaceError(f"--strength is {', '.join(texts)}; give name=number, such as ship=0.5.") from error


for commands in (measure, artefact, world, batch):
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
