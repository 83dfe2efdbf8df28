"""Commands `mace export` and `info`: an erasure file for other programs, and what it holds."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Dtype, Force, Local, Model, Revision, example, pipeline


def export(
    erasure: Annotated[Path, typer.Argument(help="an erasure file")],
    out: Annotated[Path, typer.Option("--out", "-o", help="a new folder")] = ...,
    model: Model = "mini-sd",
    format: Annotated[str, typer.Option("--format", "-f", help="pipeline, weights or lora")] = "pipeline",
    force: Force = False,
    revision: Revision = None,
    local_files_only: Local = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Write the erased model for other programs: a diffusers folder, the changed weights, or LoRA files."""
    from ..erasure import Erasure
    from ..erasure.export import check_format

    check_format(format)
    chosen = Erasure.load(erasure)
    pipe = pipeline(model, revision, local_files_only, device, dtype)
    typer.echo(chosen.export(pipe, out, format, force))


def info(
    erasure: Annotated[Path, typer.Argument(help="an erasure file")],
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """What an erasure file holds."""
    from ..erasure import Erasure

    chosen = Erasure.load(erasure)
    pooled = chosen.pooled_left
    about = {
        "file": str(erasure),
        "megabytes": round(erasure.stat().st_size / 1e6, 3),
        "base": chosen.base,
        "prior": chosen.prior_key or None,
        "versions": chosen.versions,
        "stage 1": {"condition": chosen.refinement.condition, "residual": chosen.refinement.residual},
        "stage 3": {"condition": chosen.fusion.condition},
        "truncation": chosen.truncation,
        "config": chosen.config.to_dict(),
        "concepts": [
            {"name": p.concept.name, "anchor": p.concept.anchor, "kind": p.concept.kind, "strength": p.strength}
            | {"rank": p.D.shape[1], "lost": p.statistics.lost}
            | ({"pooled_left": pooled[p.concept.name]} if pooled else {})
            for p in chosen.parts
        ],
    }
    if as_json:
        typer.echo(json.dumps(about, indent=1, ensure_ascii=False))
        return
    typer.echo(f"{erasure}: {len(chosen.parts)} concepts, {about['megabytes']} MB, base {chosen.base[:12]}")
    for c in about["concepts"]:
        typer.echo(f"  {c['name']} -> {c['anchor']} ({c['kind']}, strength {c['strength']:g}, LoRA rank {c['rank']})")
    one = about["stage 1"]
    typer.echo(
        f"  stage 1: condition {one['condition']:.1e}, residual {one['residual']:.1e}, "
        f"R off by {chosen.truncation:.1e} of its change for what the file leaves out"
    )
    for name, share in pooled.items():
        typer.echo(f"  pooled text: {share:.1%} left of what sets {name} apart from its anchor")
    typer.echo(f"  stage 3: condition {about['stage 3']['condition']:.1e}")
    typer.echo("  made with " + ", ".join(f"{k} {v}" for k, v in chosen.versions.items()))


def register(app: typer.Typer) -> None:
    """Add the commands to an app."""
    app.command(
        epilog=example(
            "mace export ship.safetensors --model mini-sd --format pipeline --out erased",
            "mace export ship.safetensors --model CompVis/stable-diffusion-v1-4 --format lora --out for-comfyui",
        )
    )(export)
    app.command(epilog=example("mace info ship.safetensors", "mace info ship.safetensors --json"))(info)
