"""What several commands share: options, examples in their help, the pipeline that the options ask for."""

import math
from typing import Annotated

import typer

from ..errors import MaceError, first_line

DTYPES = ("float32", "float16", "bfloat16")
Model = Annotated[str, typer.Option("--model", "-m", help="mini-sd, a local folder, or a hub id")]
Revision = Annotated[str | None, typer.Option(help="branch, tag or commit of a hub id")]
Local = Annotated[bool, typer.Option("--local-files-only", help="load what is on disk, ask no server")]
Device = Annotated[str | None, typer.Option(help="cuda, mps or cpu; the best one there is by default")]
Dtype = Annotated[str | None, typer.Option(help="float32, float16 or bfloat16")]


def finite(guidance: float | None) -> float | None:
    """The value of --guidance; MaceError for NaN and infinity."""
    if guidance is not None and not math.isfinite(guidance):
        raise MaceError(f"guidance is {guidance!r}; allowed: a finite number.")
    return guidance


Guidance = Annotated[
    float | None, typer.Option(help="classifier-free guidance scale; the model's own by default", callback=finite)
]
Force = Annotated[bool, typer.Option(help="use the erasure on a base model it was not made for")]


LowMemory = Annotated[
    bool,
    typer.Option("--low-memory", help="for cards of 8 GB: one part of the model at a time is on the device; slower"),
]

Engine = Annotated[str | None, typer.Option(help="local or ray: in processes of their own, here or on a cluster")]
Jobs = Annotated[int | None, typer.Option(help="with --engine: parallel processes", min=1)]
Threads = Annotated[int | None, typer.Option(help="with --engine: cores of a process", min=1)]
Gpus = Annotated[float | None, typer.Option(help="with --engine ray: GPUs of a process", min=0)]
Address = Annotated[str | None, typer.Option(help="with --engine ray: the cluster")]


def engine_of(name: str | None, jobs, threads, gpus, address):
    """The engine that a command's options ask for, None where none is; MaceError for options without one."""
    from ..batch.engines import make_engine

    options = {"jobs": jobs, "threads": threads, "gpus": gpus, "address": address}
    if name is None:
        if set(options.values()) != {None}:
            raise MaceError("--jobs, --threads, --gpus and --address belong to an engine: give --engine local or ray.")
        return None
    return make_engine(name, **options)


def example(*lines: str) -> str:
    """Epilog of a command: examples that can be copied."""
    return "Examples:\n\n" + "\n\n".join(f"`{line}`" for line in lines)


def counted(things: list) -> str:
    """ "1 concept", "2 concepts"."""
    return f"{len(things)} concept{'s' * (len(things) != 1)}"


def precision(dtype: str | None):
    """The torch.dtype of --dtype, None where it is not given; MaceError for one that there is not."""
    import torch

    if dtype not in (known := {None: None, **{name: getattr(torch, name) for name in DTYPES}}):
        raise MaceError(f"--dtype is {dtype!r}; choose from {', '.join(DTYPES)}.")
    return known[dtype]


def check_device(device: str | None) -> None:
    """MaceError for a device that is not there."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise MaceError(
            f"--device is {device!r}, which is not there ({first_line(error)}): give cuda, mps or cpu."
        ) from error


def pipeline(model, revision, local_files_only, device, dtype, low_memory=False):
    """The pipeline that a command's options ask for; MaceError for a dtype or a device that there is not."""
    from ..models.pipelines import load_pipeline

    kind = precision(dtype)
    check_device(device)
    extra = {"revision": revision, "local_files_only": local_files_only, "device": device}
    extra |= {"low_memory": True} if low_memory else {}
    return load_pipeline(model, dtype=kind, **extra)
