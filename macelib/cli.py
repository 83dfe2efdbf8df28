"""The command line `mace`: erase, generate, evaluate, study, export, info, bench; batch commands from `macelib.batch`.

Exit codes: 0 done; 1 a MaceError, whose sentence is on standard error; 2 wrong usage.
"""

import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from .batch.cli import register
from .errors import MaceError, explained
from .progress import Bars

app = typer.Typer(
    name="mace",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Erase concepts from text-to-image diffusion models, and take it back.",
)

Model = Annotated[str, typer.Option("--model", "-m", help="mini-sd, a local folder, or a hub id")]
Revision = Annotated[str | None, typer.Option(help="branch, tag or commit of a hub id")]
Local = Annotated[bool, typer.Option("--local-files-only", help="load what is on disk, ask no server")]
Device = Annotated[str | None, typer.Option(help="cuda, mps or cpu; the best one there is by default")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16")]
Guidance = Annotated[float | None, typer.Option(help="classifier-free guidance scale; the model's own by default")]
Force = Annotated[bool, typer.Option(help="use the erasure on a base model it was not made for")]


def example(*lines: str) -> str:
    """Epilog of a command: examples that can be copied."""
    return "Examples:\n\n" + "\n\n".join(f"`{line}`" for line in lines)


@app.command(
    epilog=example(
        'mace erase "ship=sea" "frog=grass" --model mini-sd --out runs/ship',
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
    from .batch.engines import make_engine
    from .concepts import check_concepts, parse_concept, read_concepts
    from .config import EraseConfig

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
    check_concepts(chosen)  # before anything slow
    if engine is None and (jobs, threads, gpus, address) != (None,) * 4:
        raise MaceError("--jobs, --threads, --gpus and --address belong to an engine: give --engine local or ray.")
    options = {"jobs": jobs, "threads": threads, "gpus": gpus, "address": address}
    where = make_engine(engine, **options) if engine else None
    from .job import erase as run

    pipe = _pipeline(model, revision, local_files_only, device, dtype)
    with Bars() as bars:
        erasure = run(pipe, chosen, settings, progress=bars, folder=out, engine=where)
    path = erasure.save(out / "erasure.safetensors")
    typer.echo(f"{path}: {len(chosen)} concepts, {path.stat().st_size / 1e6:.2f} MB")


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
    from .erasure import Erasure
    from .files import atomic

    numbers = _seeds(seeds)
    chosen = Erasure.load(erasure) if erasure else None
    if (strength or only or without) and chosen is None:
        raise MaceError("--strength, --only and --without change an erasure: give one with --erasure.")
    if chosen is not None:
        chosen = chosen.only(only) if only else chosen
        chosen = chosen.without(without) if without else chosen
        chosen = chosen.scaled(_strengths(strength)) if strength else chosen
    from .sample import generate as draw

    pipe = _pipeline(model, revision, local_files_only, device, dtype)
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


@app.command(epilog=example("mace evaluate runs/ship/erasure.safetensors --images 50 --out runs/ship/evaluation"))
def evaluate(
    erasure: Annotated[Path, typer.Argument(help="an erasure file")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder of the results")] = ...,
    model: Model = "mini-sd",
    images: Annotated[int, typer.Option(help="pictures per class", min=3)] = 50,
    steps: Annotated[int, typer.Option(help="denoising steps", min=1)] = 25,
    guidance: Guidance = None,
    batch: Annotated[int, typer.Option(help="pictures drawn at once", min=1)] = 8,
    force: Force = False,
    revision: Revision = None,
    local_files_only: Local = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Acc_e, Acc_s, Acc_g and H_o of an erasure by the objects protocol, with the original model's row."""
    from .erasure import Erasure

    try:
        from .evaluate import protocols
    except ImportError as error:
        raise MaceError(
            f'The evaluation cannot be loaded ({error}): install it with pip install "macelib[evaluate]".'
        ) from error
    chosen = Erasure.load(erasure)
    pipe = _pipeline(model, revision, local_files_only, device, dtype)
    chosen.check(pipe, force)
    drawing = {"steps": steps, "guidance": guidance, "batch": batch}
    with Bars() as bars:
        result = protocols.objects(pipe, chosen, images=images, folder=out, force=force, progress=bars, **drawing)
    typer.echo(result)


@app.command(
    epilog=example(
        "mace study objects --images 50 --out runs/objects",
        "mace study characters --count 100 --autocast bf16 --out runs/characters",
    )
)
def study(
    protocol: Annotated[
        str,
        typer.Argument(help="objects: the paper's ten, one by one; characters: many together; tuning: many of neither"),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder: erasures, pictures, tables")] = ...,
    model: Model = "mini-sd",
    config: Annotated[Path | None, typer.Option("--config", "-c", help="settings in a YAML file")] = None,
    only: Annotated[list[str] | None, typer.Option(help="objects: some of the ten")] = None,
    count: Annotated[int, typer.Option(help="characters, tuning: how many are erased, and as many kept", min=1)] = 100,
    images: Annotated[int, typer.Option(help="objects: pictures per class and synonym", min=3)] = 50,
    seeds: Annotated[
        int, typer.Option(help="characters, tuning: seeds per prompt, five prompts a name (tuning: two)", min=3)
    ] = 5,
    steps: Annotated[int, typer.Option(help="denoising steps", min=1)] = 25,
    guidance: Guidance = None,
    batch: Annotated[int, typer.Option(help="pictures drawn at once", min=1)] = 8,
    autocast: Annotated[str | None, typer.Option(help="bf16 or fp16: precision of the counted pictures")] = None,
    record: Annotated[bool, typer.Option("--record", help="keep the tables in data/studies and in the README")] = False,
    revision: Revision = None,
    local_files_only: Local = False,
    device: Device = None,
    dtype: Dtype = None,
) -> None:
    """Erase what a protocol of the paper asks for, and measure it. Cut short, the same command goes on.

    Choose settings by `mace study tuning`: then the other two stay a test of them.
    """
    from .config import EraseConfig
    from .evaluate import studies

    if protocol not in ("objects", "characters", "tuning"):
        raise MaceError(f"There is no study {protocol!r}: choose objects, characters or tuning.")
    settings = EraseConfig.load(config) if config else EraseConfig()
    pipe = _pipeline(model, revision, local_files_only, device, dtype)
    drawing = {"steps": steps, "guidance": guidance, "batch": batch, "autocast": autocast}
    with Bars() as bars:
        drawing["progress"] = bars
        if protocol == "objects":
            result = studies.objects_study(pipe, out, settings, only=only, images=images, **drawing)
        else:
            measure = studies.characters_study if protocol == "characters" else studies.tuning_study
            result = measure(pipe, out, settings, count=count, seeds=range(seeds), **drawing)
    typer.echo(result)
    if record:
        from .evaluate import record as records

        typer.echo(records.record(protocol, result))


@app.command(
    epilog=example(
        "mace export ship.safetensors --model mini-sd --format pipeline --out erased",
        "mace export ship.safetensors --model CompVis/stable-diffusion-v1-4 --format lora --out for-comfyui",
    )
)
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
    from .erasure import Erasure
    from .export import check_format

    check_format(format)
    chosen = Erasure.load(erasure)
    pipe = _pipeline(model, revision, local_files_only, device, dtype)
    typer.echo(chosen.export(pipe, out, format, force))


@app.command(epilog=example("mace info ship.safetensors", "mace info ship.safetensors --json"))
def info(
    erasure: Annotated[Path, typer.Argument(help="an erasure file")],
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """What an erasure file holds."""
    from .erasure import Erasure

    chosen = Erasure.load(erasure)
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
    typer.echo(f"  stage 3: condition {about['stage 3']['condition']:.1e}")
    typer.echo("  made with " + ", ".join(f"{k} {v}" for k, v in chosen.versions.items()))


@app.command(epilog=example("mace bench", "mace bench --concepts 1000 --products mixed --reference 0"))
def bench(
    concepts: Annotated[int, typer.Option(help="how many to erase", min=1)] = 100,
    products: Annotated[str, typer.Option(help="fp64, mixed or both")] = "both",
    reference: Annotated[int, typer.Option(help="concepts of the per-layer reference; 0: leave it out", min=0)] = 5,
    toggle: Annotated[bool, typer.Option(help="time switching one concept, too")] = True,
) -> None:
    """Time and memory of stages 1 and 3 at SD v1.4 shapes: random data, text encoding excluded."""
    from .bench import run

    with Bars() as bars:
        lines = run(concepts, products, reference, toggle, progress=bars)
    for line in lines:
        typer.echo(line)


def _pipeline(model, revision, local_files_only, device, dtype):
    import torch

    from .pipelines import load_pipeline

    kinds = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, None: None}
    if dtype not in kinds:
        raise MaceError(f"--dtype is {dtype!r}; choose from float32, float16, bfloat16.")
    extra = {"revision": revision, "local_files_only": local_files_only, "device": device}
    return load_pipeline(model, dtype=kinds[dtype], **extra)


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
    from .prior import read_captions

    names = []
    for value in values:
        names += read_captions(value) if value.endswith(".txt") else [value]
    if both := {name.lower() for name in names} & {name.lower() for name in erased}:
        raise MaceError(f"{', '.join(sorted(both))}: to be erased and to be kept; take it out of one of the lists.")
    return names


def _strengths(texts: list[str]) -> dict[str, float]:
    """ "ship=0.5" as a mapping."""
    try:
        return {name.strip(): float(value) for name, _, value in (text.rpartition("=") for text in texts)}
    except ValueError as error:
        raise MaceError(f"--strength is {', '.join(texts)}; give name=number, such as ship=0.5.") from error


register(app)


def main() -> None:
    """Entry point: a MaceError is one sentence on standard error and exit code 1."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        with explained():
            app()
    except MaceError as error:
        typer.echo(f"mace: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
