"""What several commands share: options, examples in their help, the pipeline that the options ask for."""

import math
from typing import Annotated

import typer

from ..errors import MaceError

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


def example(*lines: str) -> str:
    """Epilog of a command: examples that can be copied."""
    return "Examples:\n\n" + "\n\n".join(f"`{line}`" for line in lines)


def counted(things: list) -> str:
    """ "1 concept", "2 concepts"."""
    return f"{len(things)} concept{'s' * (len(things) != 1)}"


def pipeline(model, revision, local_files_only, device, dtype, low_memory=False):
    """The pipeline that a command's options ask for; MaceError for a dtype that there is not."""
    import torch

    from ..models.pipelines import load_pipeline

    kinds = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, None: None}
    if dtype not in kinds:
        raise MaceError(f"--dtype is {dtype!r}; choose from float32, float16, bfloat16.")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise MaceError(f"--device is {device!r}, which is not there ({reason}): give cuda, mps or cpu.") from error
    extra = {"revision": revision, "local_files_only": local_files_only, "device": device}
    extra |= {"low_memory": True} if low_memory else {}
    return load_pipeline(model, dtype=kinds[dtype], **extra)
