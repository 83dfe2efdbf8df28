"""Command `mace plan`: what an erasure will take, before it is run."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from .options import Device, Dtype, Local, LowMemory, Model, Revision, example, pipeline
from .settings import Captions, Concepts, Config, Keep, Kind, List, Preset, Seed, Task, settled


def plan(
    concepts: Concepts = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="the folder that `mace erase` will use")] = None,
    model: Model = "mini-sd",
    list_: List = None,
    kind: Kind = "object",
    preset: Preset = None,
    task: Task = None,
    config: Config = None,
    seed: Seed = None,
    captions: Captions = None,
    keep: Keep = None,
    as_json: Annotated[bool, typer.Option("--json", help="for programs: bytes and seconds")] = False,
    revision: Revision = None,
    local_files_only: Local = False,
    device: Device = None,
    dtype: Dtype = None,
    low_memory: LowMemory = False,
) -> None:
    """What `mace erase` with the same options will take: pictures, passes, time, memory, disk, and what is missing.

    A few passes of the model are timed; nothing is drawn or trained.
    """
    from ..job import check
    from ..plan import plan as planned

    chosen, settings = settled(concepts, list_, kind, config, seed, preset, task, captions, keep, low_memory)
    check(chosen, settings, out)  # before the model is loaded
    pipe = pipeline(model, revision, local_files_only, device, dtype, low_memory)
    found = planned(pipe, chosen, settings, out)
    typer.echo(json.dumps(dataclasses.asdict(found), indent=1, ensure_ascii=False) if as_json else found)


def register(app: typer.Typer) -> None:
    """Add the command to an app."""
    app.command(
        epilog=example(
            'mace plan "ship=the sea" --model CompVis/stable-diffusion-v1-4 --out runs/ship',
            "mace plan --list hundreds.csv --task celebrities --low-memory",
        )
    )(plan)
