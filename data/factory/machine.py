"""What a training runs on, as its card says it: device, processor, precision, versions, and the code's commit."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import torch

from macelib.models.pipelines import gains_from_bf16


def device() -> str:
    """Where trainings run: "cuda" where there is a GPU (CUDA_VISIBLE_DEVICES="" hides it), else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"^model name\s*: (.+)$", told, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def commit() -> str:
    """Of the code that runs, with a plus where the checkout was changed since; or that there is none."""
    root, git = Path(__file__).parent, shutil.which("git")
    asked = (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "."])
    done = [subprocess.run([git, *rest], cwd=root, capture_output=True, text=True) for rest in asked if git]
    if not done or done[0].returncode:
        return "not from a checkout"
    return done[0].stdout.strip() + "+" * bool(done[1].stdout.strip())


def here() -> dict:
    """What a model card says of a run: commit, machine, processor, device, precision, versions."""
    kind = torch.cuda.get_device_name() if device() == "cuda" else f"{torch.get_num_threads()} threads of a CPU"
    return {
        "commit": commit(),
        "machine": platform.machine(),
        "processor": processor(),
        "device": kind,
        "precision": "bf16 autocast" if gains_from_bf16(device()) else "fp32",
        "torch": torch.__version__,
    }
