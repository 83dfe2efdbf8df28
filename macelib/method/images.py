"""The training images of a concept, drawn by the original model, with a manifest of what made them."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers import DPMSolverMultistepScheduler
from PIL import Image

from ..concepts import Concept, sample_prompt
from ..errors import MaceError
from ..files import atomic, hash_file, hash_tensors, locked
from ..models.denoise import is_flow
from ..models.entrances import denoiser, text_weights
from ..models.pipelines import cast, default_guidance, drawing_hash, model_hash
from ..models.sample import generate, image_size
from ..models.swap import applied_edit

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


def training_images(
    pipe,
    concept: Concept,
    n: int = 8,
    folder: str | Path = ".",
    seed: int = 0,
    steps: int = 25,
    guidance: float | None = None,
    size: int | tuple[int, int] | None = None,
    batch: int = 8,
    prompt: str | None = None,
    model: str | None = None,
    autocast: str | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw n pictures of a concept into a folder, with manifest.json: prompt, seed, model, settings and sha256 of each.

    The manifest is written after each batch; a call that was cut short goes on; pictures made otherwise are redone.
    Two processes never draw into one folder at once: the second waits.
    Picture i has seed `seed + i`. prompt: the concept's sample prompt unless given. model: `model_hash`, if known.
    autocast: "bf16" or "fp16", None: as loaded.
    Returns the folder. MaceError where it cannot be written.
    """
    folder, prompt = Path(folder), prompt or sample_prompt(concept)
    made_by = {"model": model or model_hash(pipe), "drawn_by": drawing_hash(pipe), "steps": steps}
    made_by |= {"scheduler": type(pipe.scheduler).__name__, "autocast": autocast}
    guidance = default_guidance(pipe) if guidance is None else guidance
    made_by |= {"guidance": guidance, "size": list(image_size(pipe, size))}
    if (edit := applied_edit(pipe)) is not None:
        made_by["edit"] = edit.key
    elif hasattr(denoiser(pipe), "_macelib_originals"):
        made_by["erased"] = hash_tensors(text_weights(denoiser(pipe)))
    wanted = [{"file": f"{i:04d}.png", "prompt": prompt, "seed": seed + i, **made_by} for i in range(n)]
    (folder := Path(folder)).mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock", f"the pictures in {folder}"):
        kept = {entry["file"]: entry for entry in read_manifest(folder)}
        fresh = [kept[e["file"]] for e in wanted if _vouched(folder, kept.get(e["file"]), e)]
        if kept and len(fresh) < min(len(kept), n):
            log.warning("%s holds pictures of other settings, or damaged ones: they are drawn again.", folder)
        there = {entry["file"] for entry in fresh}
        missing = [entry for entry in wanted if entry["file"] not in there]
        _write_manifest(folder, fresh)  # nothing vouches for what is drawn again, until it is there
        for start in range(0, len(missing), batch):
            some = missing[start : start + batch]
            with cast(pipe, autocast):
                images = generate(pipe, prompt, [e["seed"] for e in some], steps, guidance, size, batch)
            fresh += [_kept(folder, entry, image) for entry, image in zip(some, images, strict=True)]
            _write_manifest(folder, sorted(fresh, key=lambda entry: entry["file"]))
            if callback is not None:
                callback(len(fresh), n)
    return folder


def _kept(folder: Path, entry: dict, image: Image.Image) -> dict:
    """Write a picture; its entry with the file's checksum."""
    with atomic(folder / entry["file"]) as temporary:
        image.save(temporary)
    return {**entry, "sha256": hash_file(folder / entry["file"])}


def _vouched(folder: Path, kept: dict | None, wanted: dict) -> bool:
    """Whether the entry that is kept is the one wanted, and the file is the one that it was written with."""
    return kept == {**wanted, "sha256": hash_file(folder / wanted["file"])}


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


def read_manifest(folder: Path) -> list[dict]:
    """Entries of manifest.json, each of a file in the folder; none where it is missing or damaged."""
    try:
        entries = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["images"]
        return entries if all(Path(entry["file"]).name == entry["file"] for entry in entries) else []
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return []


def _write_manifest(folder: Path, entries: list[dict]) -> None:
    with atomic(folder / "manifest.json") as temporary:
        temporary.write_text(json.dumps({"images": entries}, indent=1, ensure_ascii=False), encoding="utf-8")
