"""Commands `mace export` and `info`: an erasure file for other programs, and what it holds."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..errors import MaceError
from .options import Device, Dtype, Force, Local, Model, Revision, counted, example, pipeline


def export(
    erasure: Annotated[Path, typer.Argument(help="an erasure file")],
    out: Annotated[Path, typer.Option("--out", "-o", help="a new folder")] = ...,
    model: Model = "mini-sd",
    format: Annotated[str, typer.Option("--format", "-f", help="pipeline, weights or lora")] = "pipeline",
    rank: Annotated[
        str | None, typer.Option(help="of lora_standalone: a number, or full; unless given, an error of 1 % at most")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="whose picture shows what a LoRA leaves out; the first concept's unless given")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="denoising steps of that picture")] = 20,
    force: Force = False,
    revision: Revision = None,
    local_files_only: Local = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Write the erased model for other programs: a diffusers folder, the changed weights, or LoRA files."""
    from ..erasure import Erasure
    from ..erasure.export import check_folder, check_format
    from ..erasure.standalone import check_rank
    from ..files import check_writable

    check_format(format)
    budget = int(rank) if rank and rank.isdecimal() else rank
    check_rank(budget)
    check_folder(out)
    check_writable(out)
    chosen = Erasure.load(erasure)
    pipe = pipeline(model, revision, local_files_only, device, dtype)
    typer.echo(chosen.export(pipe, out, format, force, rank=budget, prompt=prompt, steps=steps))
    if format == "lora":
        typer.echo((out / "README.txt").read_text(encoding="utf-8").rstrip())


def info(
    erasure: Annotated[Path, typer.Argument(help="an erasure file")],
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """What an erasure file holds."""
    from ..erasure.header import summary

    said = summary(erasure) or _loaded(erasure)
    about = {"file": str(erasure), "megabytes": round(erasure.stat().st_size / 1e6, 3), **said}
    if as_json:
        typer.echo(json.dumps(about, indent=1, ensure_ascii=False))
        return
    try:
        lines = _lines(erasure, about)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise MaceError(f"{erasure} is damaged ({error!r}): copy or make it again.") from error
    for line in lines:  # a name must not steer the terminal
        typer.echo("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))


def _lines(erasure: Path, about: dict) -> list[str]:
    """What `info` says to people."""
    concepts, one = about["concepts"], about["stage 1"]
    lines = [f"{erasure}: {counted(concepts)}, {about['megabytes']} MB, base {about['base'][:12]}"]
    lines.append(f"  {about['settings']}")
    for c in concepts:
        lines.append(f"  {c['name']} -> {c['anchor']} ({c['kind']}, strength {c['strength']:g}, LoRA rank {c['rank']})")
    lines.append(
        f"  stage 1: condition {one['condition']:.1e}, residual {one['residual']:.1e}, "
        f"R off by {about['truncation']:.1e} of its change for what the file leaves out"
    )
    for c in concepts:
        if "pooled_left" in c:
            lines.append(f"  pooled text: {c['pooled_left']:.1%} left of what sets {c['name']} apart from its anchor")
    lines.append(f"  stage 3: condition {about['stage 3']['condition']:.1e}")
    return [*lines, "  made with " + ", ".join(f"{k} {v}" for k, v in about["versions"].items())]


def _loaded(path: Path) -> dict:
    """`header.summary` of a file that does not say how well its solves went: they are done again."""
    from ..erasure import Erasure
    from ..erasure.store import solved

    erasure = Erasure.load(path)
    pooled = erasure.pooled_left
    concepts = [
        {"name": p.concept.name, "anchor": p.concept.anchor, "kind": p.concept.kind, "strength": p.strength}
        | {"rank": p.D.shape[1], "lost": p.statistics.lost}
        | ({"pooled_left": pooled[p.concept.name]} if pooled else {})
        for p in erasure.parts
    ]
    said = {"base": erasure.base, "versions": erasure.versions, "truncation": erasure.truncation}
    said |= {"config": erasure.config.to_dict(), "prior": erasure.prior_key or None, "settings": erasure.config.title}
    stages = solved(erasure)
    return said | {name: stages[name] for name in ("stage 1", "stage 3")} | {"concepts": concepts}


def register(app: typer.Typer) -> None:
    """Add the commands to an app."""
    app.command(
        epilog=example(
            "mace export ship.safetensors --model mini-sd --format pipeline --out erased",
            "mace export ship.safetensors --model CompVis/stable-diffusion-v1-4 --format lora --rank 64 --out comfyui",
        )
    )(export)
    app.command(epilog=example("mace info ship.safetensors", "mace info ship.safetensors --json"))(info)
