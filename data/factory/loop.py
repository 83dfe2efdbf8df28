"""What the world's trainings share: step schedule, average of the weights, checkpoints, a log, a record of the run.

A training is a generator of `Record`s, so that a progress bar or a test owns what is done with them. All chance comes
from a generator on the CPU that the checkpoint holds, so that samples and batches are the same on every device, and a
training that was killed goes on as if it had not been.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from macelib.files import atomic, hash_tensors
from macelib.models.pipelines import gains_from_bf16
from macelib.models.threads import workers

from .machine import device, here
from .recipe import Training

log = logging.getLogger(__name__)
EVERY = 120.0  # seconds between checkpoints
PART = 32  # samples that a thread takes at a time: few enough for the processor's cache
DIGEST = hashlib.sha256().digest_size  # bytes


@dataclass(frozen=True)
class Record:
    """One training step: its number (from 1), the total, the running mean of the loss, samples per second."""

    step: int
    steps: int
    loss: float
    rate: float


def fast() -> torch.autocast:
    """Context of a training's forward pass: bfloat16 on a device that gains from it; threads share no cast."""
    return torch.autocast(device(), torch.bfloat16, gains_from_bf16(device()), cache_enabled=False)


def backward(module: nn.Module, loss: Callable[..., torch.Tensor], batch: Sequence[torch.Tensor]) -> float:
    """Put the gradients of a mean over a batch into the module's parameters; the mean. batch: tensors of one length.

    On a CPU the batch is taken apart, `PART` samples or more at a time, and each part has threads of its own: they wait
    for each other once a pass, not at every operation.
    """
    size, threads = len(batch[0]), torch.get_num_threads()
    count = max(1, size // PART) if device() == "cpu" else 1
    most = min(threads, count)
    parameters = [p for p in module.parameters() if p.requires_grad]

    def part(i: int) -> tuple[float, Sequence[torch.Tensor]]:
        some = slice(i * size // count, (i + 1) * size // count)
        share = (some.stop - some.start) / size
        value = share * loss(*(tensor[some] for tensor in batch))
        return value.detach(), torch.autograd.grad(value, parameters, allow_unused=True)

    parts = [*workers(most, threads // most).map(part, range(count))] if count > 1 else [part(0)]
    for parameter, *grads in zip(parameters, *(grads for _, grads in parts), strict=True):
        there = [grad for grad in grads if grad is not None]
        parameter.grad = sum(there[1:], there[0]) if there else None
    return float(sum(value for value, _ in parts))


def work_folder() -> Path:
    """Where trainings keep their checkpoints: `$MACELIB_WORK`, or `macelib` in the user's cache folder."""
    root = os.environ.get("MACELIB_WORK") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "macelib"
    return Path(root) / "world"


def schedule(step: int, steps: int, warmup: int, decay: float, since: int = 0) -> float:
    """Warm up, stay, decay linearly over the last `decay` share of the steps: the factor on the learning rate, 0..1.

    since: the step at which the optimizer began.
    """
    up = min(1.0, (step - since + 1) / max(1, warmup))
    down = (steps - step) / max(1.0, decay * steps)
    return max(0.0, min(up, down, 1.0))


class Average:
    """Exponential moving average of a module's parameters and buffers, with a short horizon at the start."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.begin(module)

    def begin(self, module: nn.Module) -> None:
        """Forget what was averaged: the average is the module as it is."""
        self.count = 0
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
        self.count = state["count"]
        for k, v in state["values"].items():
            self.values[k].copy_(v)


def save_checkpoint(path: Path, state: dict) -> None:
    """Write a checkpoint, its SHA-256 in front of it; the one before is kept beside it. MaceError: it cannot be done.

    Killed at any moment, a whole one is left: `.new.pt` until the newest lies at `path`.
    """
    held, new = io.BytesIO(), path.with_suffix(".new.pt")
    torch.save(state, held)
    with atomic(new) as temporary, temporary.open("wb") as file:
        file.write(hashlib.sha256(held.getbuffer()).digest())
        file.write(held.getbuffer())
    if path.exists():
        path.replace(path.with_suffix(".before.pt"))
    new.replace(path)


def load_checkpoint(path: Path) -> dict | None:
    """The newest checkpoint that is whole; damaged ones are named. None: there is none."""
    for found in (path.with_suffix(".new.pt"), path, path.with_suffix(".before.pt")):
        if not found.exists():
            continue
        try:
            data = found.read_bytes()
            if hashlib.sha256(data[DIGEST:]).digest() == data[:DIGEST]:
                return torch.load(io.BytesIO(data[DIGEST:]), weights_only=True, map_location="cpu")
        except OSError as error:
            log.warning("%s: %s", found, error)
        log.warning("The checkpoint %s is damaged: the training goes on from what it kept before.", found)
    return None


def averaged(folder: Path, steps: int) -> dict:
    """The averaged weights of a training's newest checkpoint; ValueError where it has not made all its steps."""
    state = load_checkpoint(folder / "checkpoint.pt") or {"step": 0}
    if state["step"] < steps:
        raise ValueError(f"{folder} holds {state['step']} of {steps} steps of a training: run `make world`")
    return state["parts"]["average"]["values"]


def read_sittings(folder: Path) -> list[dict]:
    """`run.json`: where and when a training ran, a row for each time it was started."""
    path = folder / "run.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def run_steps(
    folder: Path,
    numbers: Training,
    optimizer,
    step_fn: Callable[[int], float],
    parts: dict,
    new_stage: Callable[[int, dict], None] | None = None,
) -> Iterator[Record]:
    """Call `step_fn(step) -> loss` until all steps are made, with schedule, checkpoints, a loss log and `run.json`.

    Every checkpoint lies in `folder`, which is keyed by the recipe; the newest is taken up first. One is written every
    `EVERY` seconds, at the end, and at the end of a stage, which also leaves its averaged weights (fp16). A later stage
    begins with those alone, handed to `new_stage(step, weights)`: a training whose checkpoint was lost goes on from the
    file of its last whole stage as if nothing had been. A damaged one is named, and an earlier one is taken, or the
    checkpoint's own average. `parts` (anything with `state_dict`, or a `torch.Generator`) is what a checkpoint holds.
    FloatingPointError when the loss is not finite: the checkpoint on disk is the last good.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, steps, ends = folder / "checkpoint.pt", numbers.steps, _stage_ends(numbers)
    state = load_checkpoint(path) or {"step": _last_stage(folder, ends), "mean": None, "parts": None}
    first, mean = state["step"], state["mean"]
    for name, part in parts.items() if state["parts"] else ():
        part.set_state(state["parts"][name]) if _chance(part) else part.load_state_dict(state["parts"][name])
    del state
    machine = here()  # when it starts: the checkout may go on
    before = [
        row | {"to_step": min(row["to_step"], first)} for row in read_sittings(folder) if row["from_step"] < first
    ]
    rows = _log_until(folder / "loss.csv", first)
    begun = saved = time.monotonic()

    def keep(step: int) -> None:
        state = {k: v.get_state() if _chance(v) else v.state_dict() for k, v in parts.items()}
        save_checkpoint(path, {"step": step, "mean": mean, "parts": state})
        with atomic(folder / "loss.csv") as temporary, temporary.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        sitting = {**machine, "from_step": first, "to_step": step, "seconds": round(time.monotonic() - begun, 1)}
        with atomic(folder / "run.json") as temporary:
            temporary.write_text(json.dumps([*before, sitting], indent=1), encoding="utf-8")

    for step in range(first, steps):
        since = max((end for end in ends if end <= step), default=0)
        if since and step == since:
            new_stage(step, _stage_weights(folder, step) or _leave(folder, step, parts["average"]))
        warmup = numbers.rewarm if since else numbers.warmup
        for group in optimizer.param_groups:
            group["lr"] = numbers.lr * schedule(step, steps, warmup, numbers.decay, since)
        loss = float(step_fn(step))
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise FloatingPointError(f"{folder.name}: the loss is {loss} at step {step}; the checkpoint is before it")
        mean = loss if mean is None else 0.98 * mean + 0.02 * loss
        if (step + 1) % 50 == 0 or step + 1 == steps:
            rows.append([step + 1, f"{mean:.6f}"])
        now = time.monotonic()
        if step + 1 in ends and step + 1 < steps:
            _leave(folder, step + 1, parts["average"])
        if step + 1 in ends or now - saved > EVERY:
            keep(step + 1)
            saved = time.monotonic()
        yield Record(step + 1, steps, mean, numbers.batch * (step + 1 - first) / (now - begun + 1e-9))


def _stage_file(folder: Path, step: int) -> Path:
    return folder / f"step-{step}.safetensors"


def _last_stage(folder: Path, ends: set[int]) -> int:
    """The last step of the newest stage whose weights are there, without a checkpoint; 0: none is."""
    return next((end for end in sorted(ends, reverse=True) if _stage_weights(folder, end)), 0)


def _leave(folder: Path, step: int, average: Average) -> dict:
    """Write the averaged weights of a stage, with their SHA-256; what was written."""
    values = {name: value.half().cpu().contiguous() for name, value in average.values.items()}
    with atomic(_stage_file(folder, step)) as temporary:
        save_file(values, temporary, {"sha256": hash_tensors(values)})
    return values


def _stage_weights(folder: Path, step: int) -> dict | None:
    """What a stage left; None where there is nothing, or what there is is damaged, which is said."""
    path = _stage_file(folder, step)
    if not path.exists():
        return None
    try:
        with safe_open(path, "pt") as file:
            names, said = file.keys(), (file.metadata() or {}).get("sha256")
            values = {name: file.get_tensor(name) for name in names}
        if said in (None, hash_tensors(values)):
            return values
    except (OSError, SafetensorError) as error:
        log.warning("%s: %s", path, error)
    log.warning("The stage's file %s is damaged: the training goes on from what it kept before.", path)
    return None


def _stage_ends(numbers: Training) -> set[int]:
    ends, total = set(), 0
    for stage in getattr(numbers, "stages", (numbers.steps,)):
        total += stage
        ends.add(total)
    return ends


def _chance(part) -> bool:
    return isinstance(part, torch.Generator)


def _log_until(path: Path, step: int) -> list[list]:
    """The rows of a loss log up to a step: what was logged after the checkpoint is logged again."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.reader(file) if int(row[0]) <= step]
