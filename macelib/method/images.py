"""The training images of a concept, drawn by the original model, with a manifest of what made them."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from torch import Tensor

from ..concepts import Concept, sample_prompt
from ..errors import MaceError
from ..files import atomic, hash_file, hash_tensors, locked, read_tensors, save_tensors, write_json
from ..models.about import made
from ..models.denoise import is_flow
from ..models.entrances import denoiser, text_weights
from ..models.pipelines import cast, default_guidance, drawing_hash, model_hash
from ..models.sample import generate, image_size
from ..models.swap import applied_edit
from .masks import drawn_and_read

log = logging.getLogger(__name__)


@contextmanager
def scheduled(pipe, scheduler: str) -> Iterator[None]:
    """The pipeline with its own scheduler, or with DPM-Solver++ on the same noise schedule."""
    own = pipe.scheduler
    try:
        if scheduler == "dpm++":
            if is_flow(own):
                raise MaceError(
                    f"DPM-Solver++ on a noise schedule does not fit {type(own).__name__}, which goes along a flow: set "
                    "images.scheduler to own."
                )
            pipe.scheduler = DPMSolverMultistepScheduler.from_config(own.config)
        yield
    finally:
        pipe.scheduler = own


@dataclass(frozen=True)
class Asked:
    """Training pictures of one concept: picture i has seed `seed + i`."""

    concept: Concept
    folder: Path
    seed: int = 0
    prompt: str | None = None  # None: the concept's sample prompt

    @property
    def text(self) -> str:
        """What is drawn."""
        return self.prompt or sample_prompt(self.concept)


def training_images(
    pipe, concept: Concept, n: int = 8, folder: str | Path = ".", seed: int = 0, *, prompt: str | None = None, **how
) -> Path:
    """Draw n pictures of one concept into a folder, which is returned; how: as `draw_together` takes it."""
    draw_together(pipe, [Asked(concept, Path(folder), seed, prompt)], n, **how)
    return Path(folder)


def draw_together(
    pipe,
    asked: Sequence[Asked],
    n: int = 8,
    steps: int = 25,
    guidance: float | None = None,
    size: int | tuple[int, int] | None = None,
    batch: int = 8,
    model: str | None = None,
    autocast: str | None = None,
    maps: bool = False,
    callback: Callable[[int, int], None] | None = None,
) -> None:
    """Draw n pictures of each concept into its folder, with manifest.json: prompt, seed, model, settings and sha256.

    A batch holds pictures of several concepts, so that it is full to the last one. The manifests are written after each
    batch; a call that was cut short goes on; pictures made otherwise are redone. Two processes never draw into one
    folder at once: the second waits. model: `model_hash`, if known. autocast: "bf16" or "fp16", None: as loaded.
    maps: each picture's attention to the concept is kept beside it, out of the passes that draw it: see `read_maps`.
    callback(done, total) counts pictures. MaceError where a folder cannot be written.
    """
    made_by = _made_by(pipe, steps, guidance, size, model, autocast)
    with ExitStack() as stack:
        for folder in sorted({one.folder for one in asked}):  # in one order, so that no two processes block each other
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / ".lock", f"the pictures in {folder}"))
        books = [_Book(one, n, made_by, maps, made(pipe)) for one in asked]
        todo = [(book, entry) for book in books for entry in book.missing]
        for start in range(0, len(todo), batch):
            some, began = todo[start : start + batch], time.perf_counter()
            pictures = _drawn(pipe, some, maps)
            each = (time.perf_counter() - began) / len(some)
            for (book, entry), *drawn in zip(some, *pictures, strict=True):
                book.keep(entry, *drawn)
                book.seconds += each
            for book in {id(book): book for book, _ in some}.values():
                book.write()
            if callback is not None:
                callback(sum(len(book.entries) for book in books), n * len(books))


def _made_by(pipe, steps: int, guidance, size, model: str | None, autocast: str | None) -> dict:
    """What a picture depends on besides prompt and seed."""
    made_by = {"model": model or model_hash(pipe), "drawn_by": drawing_hash(pipe), "steps": steps}
    made_by |= {"scheduler": type(pipe.scheduler).__name__, "autocast": autocast}
    guidance = default_guidance(pipe) if guidance is None else guidance
    made_by |= {"guidance": guidance, "size": list(image_size(pipe, size))}
    if (edit := applied_edit(pipe)) is not None:
        made_by["edit"] = edit.key
    elif hasattr(denoiser(pipe), "_macelib_originals"):
        made_by["erased"] = hash_tensors(text_weights(denoiser(pipe)))
    return made_by


class _Book:
    """The pictures that a folder has of those that are asked for, and those that are missing."""

    def __init__(self, asked: Asked, n: int, made_by: dict, maps: bool, made: dict):
        self.folder, self.made = asked.folder, made
        about = made_by | ({"map_of": asked.concept.name} if maps else {})
        wanted = [{"file": f"{i:04d}.png", "prompt": asked.text, "seed": asked.seed + i, **about} for i in range(n)]
        kept = {entry["file"]: entry for entry in read_manifest(self.folder)}
        self.entries = [kept[e["file"]] for e in wanted if kept.get(e["file"]) == self._vouched(e)]
        if kept and len(self.entries) < min(len(kept), n):
            log.warning("%s holds pictures of other settings, or damaged ones: they are drawn again.", self.folder)
        self.seconds = seconds(self.folder / "manifest.json") * (len(self.entries) / max(len(kept), 1))
        there = {entry["file"] for entry in self.entries}
        self.missing = [entry for entry in wanted if entry["file"] not in there]
        self.write()  # nothing vouches for what is drawn again, until it is there

    def _vouched(self, entry: dict) -> dict:
        """The entry with the checksums of its files as they are."""
        file = self.folder / entry["file"]
        maps = {"map_sha256": hash_file(_map_file(file))} if "map_of" in entry else {}
        return {**entry, "sha256": hash_file(file), **maps}

    def keep(self, entry: dict, image: Image.Image, heat: Tensor | None) -> None:
        """Write a picture, and its map."""
        with atomic(self.folder / entry["file"]) as temporary:
            image.save(temporary)
        if heat is not None:
            save_tensors(_map_file(self.folder / entry["file"]), {"map": heat})
        self.entries.append(self._vouched(entry))

    def write(self) -> None:
        """The manifest of what is there, and the seconds that drawing it took."""
        entries = sorted(self.entries, key=lambda entry: entry["file"])
        write_json(self.folder / "manifest.json", {"made": self.made, "seconds": self.seconds, "images": entries})


def _drawn(pipe, some: Sequence[tuple[_Book, dict]], maps: bool) -> tuple[list[Image.Image], list[Tensor | None]]:
    """A batch of pictures, and of each the attention to its concept (h, w), or None."""
    entries = [entry for _, entry in some]
    prompts, seeds = [entry["prompt"] for entry in entries], [entry["seed"] for entry in entries]
    how = entries[0]
    options = {"steps": how["steps"], "guidance": how["guidance"], "size": tuple(how["size"]), "batch": len(some)}
    with cast(pipe, how["autocast"]):
        if not maps:
            return generate(pipe, prompts, seeds, **options), [None] * len(some)
        return drawn_and_read(pipe, [entry["map_of"] for entry in entries], prompts, seeds, **options)


def read_images(folder: str | Path) -> tuple[list[Image.Image], list[dict]]:
    """The pictures of a folder and their entries of manifest.json, in its order.

    MaceError where there are none, and for a picture that is not the one the manifest was written with.
    """
    folder = Path(folder)
    entries = read_manifest(folder)
    if not entries:
        raise MaceError(f"{folder} holds no manifest.json with pictures: make them with training_images.")
    for entry in entries:
        if "sha256" in entry and entry["sha256"] != hash_file(folder / entry["file"]):
            raise MaceError(f"{folder / entry['file']} is missing or was changed: make it again with training_images.")
    try:
        return [Image.open(folder / entry["file"]).convert("RGB") for entry in entries], entries
    except (OSError, SyntaxError) as error:
        raise MaceError(f"A picture in {folder} cannot be read ({error}): make it again.") from error


def read_maps(folder: str | Path) -> list[Tensor]:
    """The attention (h, w) of a folder's pictures to their concept, in the manifest's order.

    MaceError where a map is missing, or is not the one the manifest was written with.
    """
    folder, found = Path(folder), []
    for entry in read_manifest(folder):
        file = _map_file(folder / entry["file"])
        if "map_sha256" not in entry or entry["map_sha256"] != hash_file(file):
            raise MaceError(f"{file} is missing or was changed: draw the pictures again, with maps.")
        found.append(read_tensors(file)[1]["map"])
    return found


def _map_file(picture: Path) -> Path:
    return picture.with_suffix(".map.safetensors")


def read_manifest(folder: Path) -> list[dict]:
    """Entries of manifest.json, each of a file in the folder; none where it is missing or damaged."""
    try:
        entries = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["images"]
        return entries if all(Path(entry["file"]).name == entry["file"] for entry in entries) else []
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []


def seconds(path: Path) -> float:
    """What making something took, as a JSON file beside it says; 0 where that is not known."""
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return 0.0
