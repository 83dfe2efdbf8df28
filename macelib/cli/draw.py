"""Command `mace generate`: pictures of prompts and seeds, and the manifest that they can be drawn again from."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import MaceError
from ..reading import seeds as read_seeds
from ..show.progress import Bars
from .options import Device, Dtype, Force, Guidance, Local, LowMemory, Model, Revision, example, pipeline

MOST = 1_000_000  # pictures of one call


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
    low_memory: LowMemory = False,
) -> None:
    """Draw pictures, with or without an erasure. The same call into the same folder draws the same again."""
    from ..erasure import Erasure, versions
    from ..files import check_writable, locked

    numbers = _seeds(seeds, MOST // len(prompts))
    chosen = Erasure.load(erasure) if erasure else None
    if (strength or only or without) and chosen is None:
        raise MaceError("--strength, --only and --without change an erasure: give one with --erasure.")
    if chosen is not None:
        chosen = chosen.only(only) if only else chosen
        chosen = chosen.without(without) if without else chosen
        chosen = chosen.scaled(_strengths(strength)) if strength else chosen
    check_writable(out)
    jobs = [(prompt, seed) for prompt in prompts for seed in numbers]
    planned = [{"file": f"{i:04d}.png", "prompt": prompt, "seed": seed} for i, (prompt, seed) in enumerate(jobs)]
    with locked(out / ".lock", str(out), wait=False):
        _refuse_others(out, {"images": planned}, {"images"})  # before the model is loaded
        from ..models.about import about
        from ..models.sample import check_drawing
        from ..models.text import check_prompt

        pipe = pipeline(model, revision, local_files_only, device, dtype, low_memory)
        if chosen is not None:
            chosen.apply(pipe, force)
        settings = {} if guidance is None else {"guidance": guidance}
        made = {"given": model, **about(pipe), "steps": steps, **settings, "versions": versions()}
        made["erasure"] = chosen and {"file": str(erasure), "base": chosen.base, "strengths": chosen.strengths}
        _refuse_others(out, {**made, "images": planned}, {*made, "images"})
        check_drawing(pipe, numbers, steps, guidance, batch)
        for prompt in prompts:
            check_prompt(pipe, prompt)
        _draw(pipe, out, made, planned, batch, steps=steps, **settings)
    typer.echo(f"{out}: {len(jobs)} pictures")


def _draw(pipe, out: Path, made: dict, planned: list[dict], batch: int, **settings) -> None:
    """Draw the pictures that are planned; the manifest tells of those that are there."""
    from ..files import atomic, write_json
    from ..models.sample import generate as draw

    def tell(count: int) -> None:
        write_json(out / "manifest.json", {**made, "images": planned[:count]})

    tell(0)  # the folder is this call's from now on
    with Bars() as bars:
        bars("pictures", 0, len(planned))
        for start in range(0, len(planned), batch):
            some = planned[start : start + batch]
            pictures = draw(pipe, [e["prompt"] for e in some], [e["seed"] for e in some], batch=batch, **settings)
            for picture, entry in zip(pictures, some, strict=True):
                with atomic(out / entry["file"]) as temporary:
                    picture.save(temporary)
            tell(start + len(some))
            bars("pictures", start + len(some), len(planned), some[-1]["prompt"])


def _refuse_others(out: Path, manifest: dict, fields: set[str]) -> None:
    """MaceError where a folder holds pictures of another call, as far as these fields of its manifest tell."""
    if not any(out.glob("*.png")):
        return
    try:
        found = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        same = all(found[name] == manifest[name] for name in fields - {"images"})
        same = same and found["images"] == manifest["images"][: len(found["images"])]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        same = False
    if not same:
        raise MaceError(f"{out} holds pictures that this call did not draw: choose a new folder, or empty this one.")


def _seeds(text: str, most: int = MOST) -> list[int]:
    """ "0-3" and "0,5,7" as numbers."""
    return read_seeds(text, most, "--seeds is")


def _strengths(texts: list[str]) -> dict[str, float]:
    """ "ship=0.5" as a mapping; MaceError for another form, and for a name that stands twice."""
    found: dict[str, float] = {}
    for name, _, value in (text.rpartition("=") for text in texts):
        try:
            number = float(value)
        except ValueError:
            number = None
        if number is None or not name.strip():
            raise MaceError(f"--strength is {', '.join(texts)}; give name=number, such as ship=0.5.")
        if name.strip() in found:
            raise MaceError(f"--strength gives {name.strip()!r} twice: keep one.")
        found[name.strip()] = number
    return found


def register(app: typer.Typer) -> None:
    """Add the command to an app."""
    app.command(
        epilog=example(
            'mace generate "a photo of the ship" --erasure runs/ship/erasure.safetensors --out pictures --seeds 0-3',
            'mace generate "a photo of the ship" -e ship.safetensors --strength ship=0.5 --out half',
        )
    )(generate)
