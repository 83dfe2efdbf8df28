"""The training images of a concept, drawn by the original model, with a manifest of what made them."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from ..concepts import Concept, sample_prompt
from ..errors import MaceError
from ..files import atomic, hash_tensors
from ..models.entrances import text_weights
from ..models.pipelines import cast, default_guidance, drawing_hash, model_hash
from ..models.sample import generate, image_size
from ..models.swap import applied_edit

log = logging.getLogger(__name__)


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
    """Draw n pictures of a concept into a folder, with manifest.json: prompt, seed, model hash and settings of each.

    The manifest is written after each batch; a call that was cut short goes on; pictures made otherwise are redone.
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
    elif hasattr(pipe.unet, "_macelib_originals"):
        made_by["erased"] = hash_tensors(text_weights(pipe.unet))
    wanted = [{"file": f"{i:04d}.png", "prompt": prompt, "seed": seed + i, **made_by} for i in range(n)]
    kept = {entry["file"]: entry for entry in read_manifest(folder)}
    fresh = [e for e in wanted if kept.get(e["file"]) == e and _readable(folder / e["file"])]
    if kept and len(fresh) < min(len(kept), n):
        log.warning("%s holds pictures of other settings, or damaged ones: they are drawn again.", folder)
    missing = [entry for entry in wanted if entry not in fresh]
    _write_manifest(folder, fresh)  # nothing vouches for what is drawn again, until it is there
    for start in range(0, len(missing), batch):
        some = missing[start : start + batch]
        seeds = [entry["seed"] for entry in some]
        with cast(pipe, autocast):
            images = generate(pipe, prompt, seeds, steps, guidance, size, batch)
        for entry, image in zip(some, images, strict=True):
            with atomic(folder / entry["file"]) as temporary:
                image.save(temporary)
        fresh += some
        _write_manifest(folder, sorted(fresh, key=lambda entry: entry["file"]))
        if callback is not None:
            callback(len(fresh), n)
    return folder


def read_images(folder: str | Path) -> tuple[list[Image.Image], list[dict]]:
    """The pictures of a folder and their entries of manifest.json, in its order; MaceError where there are none."""
    entries = read_manifest(Path(folder))
    if not entries:
        raise MaceError(f"{folder} holds no manifest.json with pictures: make them with training_images.")
    return [Image.open(Path(folder) / entry["file"]).convert("RGB") for entry in entries], entries


def read_manifest(folder: Path) -> list[dict]:
    """Entries of manifest.json; none where it is missing or damaged."""
    try:
        return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["images"]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _write_manifest(folder: Path, entries: list[dict]) -> None:
    with atomic(folder / "manifest.json") as temporary:
        temporary.write_text(json.dumps({"images": entries}, indent=1, ensure_ascii=False), encoding="utf-8")


def _readable(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError):
        return False
    return True
