"""What making edits and drawing pictures takes: seconds and memory, of what was there already, too."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..bench import Meter
from ..erasure import Erasure
from ..files import write_json
from ..groups import grouped
from ..method.images import seconds
from ..models.entrances import text_encoders

EVERY = 0.05  # seconds between looks at the memory
KEPT = ("images/*/manifest.json", "seconds/*.json")  # what says how long training pictures and LoRAs took
Batch = tuple[int, float, float]  # pictures that were drawn at once, seconds, megabytes


@contextmanager
def spending(device: str) -> Iterator[dict[str, float]]:
    """What is spent meanwhile, in the mapping afterwards: "seconds", and the most "megabytes" (of a GPU: its own)."""
    cuda, found = device == "cuda", {}
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    with Meter(EVERY) as meter:
        yield found
    memory = torch.cuda.max_memory_allocated() if cuda else meter.base + meter.peak
    found |= {"seconds": meter.seconds, "megabytes": memory / 1e6}


def known_seconds(work: Path) -> dict[str, float]:
    """By file in a folder of training pictures and LoRAs the seconds that making them has taken so far."""
    return {str(file.relative_to(work)): seconds(file) for pattern in KEPT for file in work.glob(pattern)}


def used_by(pipe, edit, work: Path) -> list[str]:
    """Those of these files that belong to an edit; none where it needed no training pictures."""
    if not isinstance(edit, Erasure) or edit.config.stages == "1":
        return []
    groups = grouped(pipe, edit, work)
    files = [group.pictures(concept) / "manifest.json" for group in groups for concept in group.concepts]
    return [str(file.relative_to(work)) for file in (*files, *(group.spent for group in groups))]


class Strain:
    """What drawing takes, kept in a file batch by batch: entered for every batch, `keep` when its pictures are kept."""

    def __init__(self, place: Path, key: str, known: list[Batch], device: str):
        self.place, self.key, self.batches, self.device = place, key, [*known], device
        self.kept = len(known)

    @contextmanager
    def __call__(self, pictures: int) -> Iterator[None]:
        with spending(self.device) as spent:
            yield
        self.batches.append((pictures, spent["seconds"], spent["megabytes"]))

    def keep(self) -> None:
        """Write what is new."""
        if len(self.batches) > self.kept:
            self.kept = len(self.batches)
            write_json(self.place, {"key": self.key, "batches": self.batches}, None)


@contextmanager
def encoding(pipe) -> Iterator[list[float]]:
    """Seconds that the pipeline's text encoders take meanwhile, in a list of one."""
    spent, started, hooks = [0.0], [0.0], []

    def after(*_) -> None:
        spent[0] += time.perf_counter() - started[0]

    for encoder in text_encoders(pipe):
        hooks.append(encoder.register_forward_pre_hook(lambda *_: started.__setitem__(0, time.perf_counter())))
        hooks.append(encoder.register_forward_hook(after))
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()
