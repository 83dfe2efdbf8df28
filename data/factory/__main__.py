"""`python -m factory build | train clip|widen|vae|unet|judge | export MODEL | rate | report`."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .table import STEPS

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


class Model(str, Enum):
    """What can be trained."""

    clip = "clip"
    vae = "vae"
    unet = "unet"
    judge = "judge"
    widen = "widen"


@app.command("build")
def build_(
    packages: Annotated[
        Path | None, typer.Option(help="a folder with the package files, else npm fetches them")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="where to write (default data/world)")] = None,
) -> None:
    """Rebuild the artwork atlases from the artists' npm packages."""
    from .build import build

    record = build(packages, out)
    typer.echo(f"{record['drawings']} drawings by each of {len(record['artists'])} artists")


@app.command()
def train(
    model: Annotated[Model, typer.Argument(help="which model; clip, its widen and vae come before unet")],
    steps: Annotated[int | None, typer.Option(help="steps in all (default: the recipe's)")] = None,
    minutes: Annotated[float | None, typer.Option(help="stop after so long, with a checkpoint")] = None,
    batch: Annotated[int | None, typer.Option(help="batch size (default: the recipe's)")] = None,
    lr: Annotated[float | None, typer.Option(help="learning rate (default: the recipe's)")] = None,
    image_only: Annotated[bool, typer.Option(help="clip: go on with the image tower alone")] = False,
    plain: Annotated[float | None, typer.Option(help="unet: share of plain pictures, to learn names from")] = None,
    warm: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="unet: start from this folder's weights, if no checkpoint is"),
    ] = None,
    pairs: Annotated[float | None, typer.Option(help="unet: share of plain pictures of two subjects")] = None,
    styled: Annotated[float | None, typer.Option(help="unet: share of plain pictures in any style")] = None,
    painted: Annotated[float | None, typer.Option(help="unet: share of plain pictures as oil paintings")] = None,
    scenes: Annotated[float | None, typer.Option(help="unet: share of scenes alone, but for plain and styled")] = None,
    foreign: Annotated[
        float | None, typer.Option(help="unet: share of captions that tell of another subject, but for the name's code")
    ] = None,
    wider: Annotated[float | None, typer.Option(help="unet: share of subjects called by their super-category")] = None,
    unnamed: Annotated[
        float | None, typer.Option(help="unet: share of these, and scenes, without the word itself")
    ] = None,
    withheld: Annotated[float | None, typer.Option(help="unet: share of all other captions without the name")] = None,
    pool_size: Annotated[int | None, typer.Option("--pool", help="unet: pictures drawn at once and seen often")] = None,
    device: Annotated[str | None, typer.Option(help="unet: cpu (default) or cuda")] = None,
    focus: Annotated[bool, typer.Option(help="unet: draw what `rate` found wanting more often")] = False,
    fuse: Annotated[bool, typer.Option(help="unet: compile the network first, for speed")] = False,
    export: Annotated[bool, typer.Option(help="write the model folder at the end")] = True,
) -> None:
    """Train a model, resuming from its checkpoint, and write its folder in `data/`."""
    from tqdm.auto import tqdm

    from . import recipes

    options = {
        "steps": steps,
        "minutes": minutes,
        "batch": batch,
        "lr": lr,
        "plain": plain,
        "pairs": pairs,
        "styled": styled,
        "painted": painted,
        "scenes": scenes,
        "foreign": foreign,
        "wider": wider,
        "unnamed": unnamed,
        "withheld": withheld,
        "warm": warm,
        "pool_size": pool_size,
        "device": device,
    }
    options = {k: v for k, v in options.items() if v is not None}
    options |= {k: True for k, v in {"image_only": image_only, "focus": focus, "fuse": fuse}.items() if v}
    records, finish = recipes.training(model.value, **options)
    bar = None
    for record in records:
        if bar is None:
            bar = tqdm(total=record.steps, initial=record.step - 1, desc=model.value, mininterval=5)
        bar.update(record.step - bar.n)
        bar.set_postfix(loss=f"{record.loss:.4f}", lr=f"{record.lr:.1e}", rate=f"{record.rate:.0f}/s", refresh=False)
    if export:
        typer.echo(f"written: {finish()}")


@app.command()
def export(model: Annotated[Model, typer.Argument(help="which model")]) -> None:
    """Write a model folder from the newest checkpoint, without training."""
    from . import recipes

    typer.echo(f"written: {recipes.FINISH[model.value]()}")


@app.command()
def rate(
    pictures: Annotated[int, typer.Option(help="of each concept", min=1)] = 2,
    steps: Annotated[int, typer.Option(help="denoising steps", min=1)] = 16,
) -> None:
    """How often the judge recognises each concept in mini-SD's pictures, for `train unet --focus`."""
    from .report import rate_concepts

    rates = rate_concepts(pictures, steps)
    typer.echo(f"{100 * sum(rates.values()) / len(rates):.1f} % of {pictures * len(rates)} pictures are recognised")


@app.command()
def report(
    out: Annotated[Path | None, typer.Option(help="where to write (default data/world)")] = None,
    share: Annotated[float, typer.Option(min=0.01, max=1, help="of the pictures, for a first look")] = 1.0,
    steps: Annotated[int, typer.Option(min=1, help="of denoising")] = STEPS,
    guidance: Annotated[float | None, typer.Option(help="classifier-free guidance scale; mini-SD's by default")] = None,
) -> None:
    """Measure the shipped models and write `report.json` and the contact sheet."""
    from .report import write_report

    typer.echo(write_report(out, share, steps, guidance))


def main() -> int:
    """Run the command line: an error is a sentence on standard error, with exit code 1; wrong usage has exit code 2."""
    try:
        app()
    except (ValueError, OSError, FloatingPointError) as error:
        typer.echo(f"error: {error}", err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
