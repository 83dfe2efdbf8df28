"""The pictures that an evaluation looks at: each (state of the model, prompt, seed) is drawn once."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock
from PIL import Image

from ..errors import MaceError
from ..files import atomic, hash_file, hash_tensors, hash_text, write_json
from ..models.about import made
from ..models.entrances import denoiser, text_weights
from ..models.pipelines import AUTOCAST, cast, default_guidance, drawing_hash
from ..models.sample import generate, image_size
from ..models.swap import applied_edit, base_hash
from ..models.text import check_prompt

Job = tuple[str, int]  # prompt, seed


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn."""

    steps: int = 25  # denoising steps
    guidance: float | None = None  # classifier-free guidance scale; None: the pipeline's own
    size: int | tuple[int, int] | None = None  # pixels, or (height, width); None: the model's own
    batch: int = 8  # pictures drawn at once
    autocast: Literal["bf16", "fp16"] | None = None  # precision; None: as loaded. bf16 halves the time with AMX

    def __post_init__(self):
        if self.autocast not in (None, *AUTOCAST):
            raise MaceError(f"autocast is {self.autocast!r}; allowed: {', '.join(AUTOCAST)} or None.")

    def pictures(
        self,
        pipe,
        jobs: Sequence[Job],
        folder: str | Path | None = None,
        state: str = "pictures",
        around: Callable[[int], AbstractContextManager] = nullcontext,
    ) -> Iterator[tuple[list[Job], list[Image.Image]]]:
        """Jobs and their pictures, batch by batch, by the pipeline as it is now.

        With a folder they are kept in a sub-folder of this state of the model, with manifest.json (model, weights,
        settings, what they were made with; prompt and seed of each); pictures that are there already are read. around:
        entered while so many are drawn.
        """
        about = self.about(pipe)
        place = _place(folder, state, about) if folder else None
        known = _read(place, about) if place else {}
        for prompt in dict.fromkeys(prompt for prompt, _ in jobs):
            check_prompt(pipe, prompt)  # refuses one that is too long before the first picture is drawn
        for start in range(0, len(jobs), self.batch):
            some = list(jobs[start : start + self.batch])
            images = [_open(place, job, known.get(job)) for job in some]
            missing = [i for i, image in enumerate(images) if image is None]
            if missing:
                prompts, seeds = zip(*(some[i] for i in missing), strict=True)
                options = {"steps": self.steps, "guidance": self.guidance, "size": self.size, "batch": self.batch}
                with cast(pipe, self.autocast), around(len(missing)):
                    drawn = generate(pipe, prompts, seeds, **options)
                for i, image in zip(missing, drawn, strict=True):
                    images[i] = image
                if place:
                    known |= {some[i]: _save(place, some[i], images[i]) for i in missing}
                    _write(place, about | {"made": made(pipe)}, known)
            yield some, images

    def place(self, pipe, folder: str | Path, state: str = "pictures") -> Path:
        """The sub-folder that keeps the pictures of the pipeline as it is now."""
        return _place(folder, state, self.about(pipe))

    def kept(self, pipe, folder: str | Path, state: str = "pictures") -> set[Job]:
        """The jobs whose pictures are in the folder."""
        about = self.about(pipe)
        return set(_read(_place(folder, state, about), about))

    def about(self, pipe) -> dict:
        """Everything that the pictures depend on besides prompt and seed."""
        values = asdict(self) | {"size": list(image_size(pipe, self.size))}
        values.pop("batch")
        values["guidance"] = default_guidance(pipe) if self.guidance is None else self.guidance
        weights = hash_tensors(text_weights(denoiser(pipe)))
        about = {"model": base_hash(pipe), "weights": weights, "drawn_by": drawing_hash(pipe)}
        if (edit := applied_edit(pipe)) is not None:  # its hooks are in no weights
            about["edit"] = edit.key
        return about | {"scheduler": type(pipe.scheduler).__name__, **values}


def _place(folder: str | Path, state: str, about: dict) -> Path:
    return Path(folder) / f"{state}-{hash_text(json.dumps(about))[:12]}"


def file_of(job: Job) -> str:
    """Name of a picture's file."""
    return f"{hash_text(*job)[:16]}.png"


def _save(place: Path, job: Job, image: Image.Image) -> str:
    """Write a picture; its checksum."""
    with atomic(place / file_of(job)) as temporary:
        image.save(temporary)
    return hash_file(place / file_of(job))


def _write(place: Path, about: dict, known: dict[Job, str]) -> None:
    """manifest.json; what another process has drawn meanwhile stays in it."""
    with FileLock(place / ".manifest.lock"):
        known = _read(place, about) | known
        entries = [{"file": file_of(job), "prompt": job[0], "seed": job[1], "sha256": s} for job, s in known.items()]
        write_json(place / "manifest.json", {**about, "images": entries})


def _read(place: Path, about: dict) -> dict[Job, str]:
    """Checksum by job from manifest.json; none where it is missing, damaged or of another state of the model."""
    try:
        found = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
        theirs, ours = ({**values, "images": None, "made": None} for values in (found, json.loads(json.dumps(about))))
        if theirs != ours:
            return {}
        return {(entry["prompt"], entry["seed"]): entry["sha256"] for entry in found["images"]}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}


def _open(place: Path | None, job: Job, checksum: str | None) -> Image.Image | None:
    """A kept picture; None where there is none, or one that is not as it was written."""
    if place is None or checksum is None or hash_file(place / file_of(job)) != checksum:
        return None
    with Image.open(place / file_of(job)) as image:
        return image.convert("RGB")
