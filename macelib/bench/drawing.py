"""Time to draw, with the machine to itself and beside a busy process."""

import os
import subprocess
import sys
import time

import torch

from ..errors import MaceError
from ..models.sample import generate
from ..models.threads import OTHERS, WAITING


def drawing(pipe, pictures: int = 8, steps: int = 15, progress=None, model: str | None = None) -> str:
    """Seconds to draw pictures with the machine to itself, and beside a process that keeps one core busy.

    model: the name of the pipeline, to measure PyTorch's own way to wait, too, with the machine to itself.
    """
    tell, total, own = progress or (lambda *_: None), 3 if model else 2, ""
    alone = seconds(pipe, pictures, steps)
    tell("drawing", 1, total, "alone")
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        beside = seconds(pipe, pictures, steps)
    finally:
        busy.kill()
        busy.wait()
    tell("drawing", 2, total, "beside a busy process")
    if model:
        spinning = _spinning(model, pictures, steps)
        own = f" ({alone / spinning:.2f} times the {spinning:.2f} s of threads that spin, PyTorch's default)"
        tell("drawing", 3, total, "with threads that spin")
    return (
        f"drawing {pictures} pictures in {steps} steps with {torch.get_num_threads()} threads: {alone:.2f} s{own}; "
        f"beside a busy process {beside:.2f} s, {beside / alone:.1f} times as long"
    )


def seconds(pipe, pictures: int, steps: int) -> float:
    """Time to draw the pictures of one prompt."""
    generate(pipe, "a photo of the ship", range(pictures), steps=2)  # the libraries' own start is not measured
    start = time.perf_counter()
    generate(pipe, "a photo of the ship", range(pictures), steps=steps)
    return time.perf_counter() - start


def _spinning(model: str, pictures: int, steps: int) -> float:
    """`seconds` in a process whose threads wait as PyTorch has them wait by itself."""
    code = "import torch, macelib, macelib.bench as b; print(b.seconds(macelib.load_pipeline({!r}), {}, {}))"
    environment = {name: value for name, value in os.environ.items() if name not in (*WAITING, *OTHERS)}
    command = [sys.executable, "-c", code.format(model, pictures, steps)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MaceError(f"Drawing in another process failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
    return float(done.stdout)
