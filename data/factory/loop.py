"""What the world's trainings share: step schedule, optimizer, average of the weights, checkpoints, a log.

A training is a generator of `Record`s, so that a progress bar, a notebook or a test owns what is done with them.
Checkpoints lie outside the repository (`work_folder`), and survive a kill: they are written to a temporary name and
renamed.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from macelib.models.pipelines import gains_from_bf16


@dataclass(frozen=True)
class Record:
    """One training step: its number (from 1), the total, the loss, the learning rate and samples per second."""

    step: int
    steps: int
    loss: float
    lr: float
    rate: float


def fast(device: str = "cpu") -> torch.autocast:
    """Context of a training's forward pass: bfloat16 on a device that gains from it."""
    return torch.autocast(device, torch.bfloat16, enabled=gains_from_bf16(device))


def work_folder(name: str) -> Path:
    """Where training `name` keeps its checkpoints: `$MACELIB_WORK`, or the user's cache folder."""
    root = os.environ.get("MACELIB_WORK") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "macelib"
    folder = Path(root) / "world" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def schedule(step: int, steps: int, warmup: int = 200, decay: float = 0.3) -> float:
    """Warm up, stay, decay linearly over the last `decay` share of the steps: the factor on the learning rate, 0..1."""
    up = min(1.0, (step + 1) / warmup)
    down = (steps - step) / max(1.0, decay * steps)
    return max(0.0, min(up, down, 1.0))


class Average:
    """Exponential moving average of a module's parameters and buffers, with a short horizon at the start."""

    def __init__(self, module: nn.Module, decay: float = 0.999):
        self.decay, self.count = decay, 0
        self.values = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        now = module.state_dict()
        floats = [k for k, v in now.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.values[k] for k in floats], [now[k] for k in floats], 1 - decay)
        for k in now.keys() - floats:
            self.values[k].copy_(now[k])

    def state_dict(self) -> dict:
        return {"count": self.count, "values": self.values}

    def load_state_dict(self, state: dict) -> None:
        self.count, self.values = state["count"], state["values"]


class Optimizer:
    """Muon for matrices and (flattened) convolutions, AdamW for everything else, with one learning rate.

    PyTorch's Muon orthogonalises in bfloat16 on every device: on a processor without it, that is most of a step's time.
    """

    def __init__(self, module: nn.Module, lr: float, weight_decay: float = 0.01):
        trained = [p for p in module.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim in (2, 4) and min(p.shape[0], p[0].numel()) > 16]
        chosen = {id(p) for p in matrices}
        rest = [p for p in trained if id(p) not in chosen]
        self.flat = [(p, nn.Parameter(p.data.view(p.shape[0], -1))) for p in matrices]  # share storage
        self.muon = torch.optim.Muon(
            [f for _, f in self.flat], lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.adam = torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
        self.param_groups = [*self.muon.param_groups, *self.adam.param_groups]

    def step(self) -> None:
        for p, flat in self.flat:
            flat.grad = p.grad.view_as(flat)
        self.muon.step()
        self.adam.step()

    def state_dict(self) -> dict:
        return {"muon": self.muon.state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.param_groups = [*self.muon.param_groups, *self.adam.param_groups]


def save_checkpoint(path: Path, step: int, parts: dict) -> None:
    """Write the state of `parts` (anything with `state_dict`, or a `torch.Generator`) and the step, atomically."""
    state = {k: v.get_state() if isinstance(v, torch.Generator) else v.state_dict() for k, v in parts.items()}
    temporary = path.with_suffix(".tmp")
    torch.save({"step": step, "parts": state}, temporary)
    temporary.replace(path)


def load_checkpoint(path: Path, parts: dict) -> int:
    """Restore `parts` in place and return the step; 0 when there is no checkpoint. A damaged file is an error."""
    if not path.exists():
        return 0
    try:
        saved = torch.load(path, weights_only=True)
        for k, v in parts.items():
            v.set_state(saved["parts"][k]) if isinstance(v, torch.Generator) else v.load_state_dict(saved["parts"][k])
    except Exception as error:
        raise ValueError(
            f"the checkpoint {path} does not fit this training ({error}); delete it to start anew"
        ) from error
    return int(saved["step"])


def averaged(name: str) -> dict:
    """The averaged weights of a training's newest checkpoint; `ValueError` when it never ran."""
    path = work_folder(name) / "checkpoint.pt"
    if not path.exists():
        raise ValueError(f"there is no training of the {name} yet: run `python -m factory train {name}`")
    return torch.load(path, weights_only=True, map_location="cpu")["parts"]["average"]["values"]


def run_steps(
    name: str, steps: int, lr: float, batch: int, optimizer, step_fn, parts: dict, *, minutes=None, every=120.0, **shape
) -> Iterator[Record]:
    """Call `step_fn(step) -> loss` until `steps` (or for `minutes`), with schedule, checkpoints and a loss log.

    Every parameter group's learning rate is its `scale` (default 1) times `lr` times the schedule. The newest
    checkpoint is taken up first; one is written every `every` seconds and at the end. Raises `FloatingPointError`
    when the loss is not finite (the checkpoint on disk is then the last good one).
    """
    folder = work_folder(name)
    path = folder / "checkpoint.pt"
    first = load_checkpoint(path, parts)
    begun = saved = time.monotonic()
    log = (folder / "loss.csv").open("a", newline="")
    writer = csv.writer(log)
    mean = None
    for step in range(first, steps):
        factor = schedule(step, steps, **shape)
        for group in optimizer.param_groups:
            group["lr"] = lr * factor * group.get("scale", 1.0)
        loss = float(step_fn(step))
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise FloatingPointError(f"{name}: the loss is {loss} at step {step}; resume with a lower learning rate")
        mean = loss if mean is None else 0.98 * mean + 0.02 * loss
        now = time.monotonic()
        if (step + 1) % 50 == 0:
            writer.writerow([step + 1, f"{mean:.6f}", f"{lr * factor:.6g}"])
            log.flush()
        done = step + 1 == steps or (minutes is not None and now - begun > 60 * minutes)
        if done or now - saved > every:
            save_checkpoint(path, step + 1, parts)
            saved = now
        yield Record(step + 1, steps, mean, lr * factor, batch * (step + 1 - first) / (now - begun + 1e-9))
        if done:
            break
    log.close()
