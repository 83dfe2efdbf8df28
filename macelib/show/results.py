"""What a run shows while it goes on and leaves behind: progress, metrics.json, figures, and what it ran on."""

import json
import math
import numbers
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch

from ..erasure import versions
from ..errors import MaceError
from ..files import atomic, locked, write_json, write_text
from . import progress


def record(run_folder: str | Path, **metrics) -> Path:
    """Add metrics to `run_folder`/metrics.json, in place of those of the same name; returns its path.

    Values: finite numbers (of NumPy and PyTorch, too), texts, true, false, null, and lists and mappings of these.
    MaceError names what cannot be recorded (NaN, infinity, other types), before anything is written.
    """
    path, plain = Path(run_folder) / "metrics.json", {key: _plain(value, key) for key, value in metrics.items()}
    with locked(path.with_name(".metrics.lock"), str(path)):  # another process adds its own meanwhile
        return write_json(path, {**read(run_folder), **plain}, allow_nan=False)


def read(run_folder: str | Path) -> dict:
    """What was recorded in a run folder: {} where nothing was; MaceError for a damaged file."""
    path = Path(run_folder) / "metrics.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise MaceError(f"{path} cannot be read ({error}): delete it and run again.") from error
    if not isinstance(found, dict):
        raise MaceError(f"{path} holds no metrics: delete it and run again.")
    return found


def summarise(run_folder: str | Path, *parts: object) -> Path:
    """Write what is to be read first into `run_folder`/summary.txt, which `mace run` shows at the end."""
    return write_text(Path(run_folder) / "summary.txt", "\n\n".join(map(str, parts)) + "\n")


def save_figure(run_folder: str | Path, name: str, fig) -> Path:
    """Write a Matplotlib figure as `run_folder`/`name`.png, less than 150 kB; returns its path."""
    from .viz import png

    path = Path(run_folder) / f"{name}.png"
    with atomic(path) as temporary:
        temporary.write_bytes(fig._repr_png_() if hasattr(fig, "_repr_png_") else png(fig))
    return path


def environment() -> dict:
    """Library versions, machine, device and, in a checkout, the git commit; nothing that names a user or a path."""
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "mps" if torch.backends.mps.is_available() else "cpu"
    return {
        "versions": versions(),
        "system": platform.system(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name() if cuda else device,
        "threads": torch.get_num_threads(),
        "commit": _commit(Path(__file__).resolve().parent.parent),
    }


class Bars(progress.Bars):
    """Progress bars of a notebook, gone at the end: `with Bars() as bars: erase(..., progress=bars)`."""

    def __init__(self):
        super().__init__(leave=False, mininterval=1)


def _commit(folder: Path) -> str | None:
    """HEAD of the checkout that the package is in, with "+" where tracked files were changed."""
    if not (folder / ".git").exists():
        return None
    try:
        done = [
            subprocess.run(
                ["git", "-C", str(folder), *command],
                capture_output=True, text=True, timeout=20, check=True, env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done[0] + ("+" if done[1] else "")


def _plain(value, name: str):
    """The value as JSON knows it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, f"{name}.{key}") for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, f"{name}[{i}]") for i, inner in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # NumPy and PyTorch scalars
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Real):
        if not math.isfinite(value):
            raise MaceError(f"{name} is {value}: only finite numbers are recorded; find out where it comes from.")
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    raise MaceError(f"{name} is a {type(value).__name__}: record numbers, texts, or lists and mappings of these.")
