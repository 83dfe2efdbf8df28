"""What pictures depend on besides prompt and seed, as a file can keep it: enough to draw them again."""

import json
import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import __version__
from ..files import hash_tensors
from .entrances import denoiser, text_weights
from .pipelines import default_guidance, drawing_hash, model_hash
from .sample import image_size


def model_name(pipe) -> str | None:
    """What a pipeline was loaded by: of a folder its name alone; None for one that was made otherwise."""
    source = pipe.__dict__.get("_macelib_source", (None, {}))[0]
    return Path(source).name if source and Path(source).is_absolute() else source


def versions(pipe=None) -> dict[str, str]:
    """Versions of the libraries that an erasure is made with; of a pipeline, too, the name of its model."""
    found = {"python": platform.python_version(), "macelib": __version__}
    for name in ("torch", "diffusers", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found | ({"model": name} if pipe is not None and (name := model_name(pipe)) else {})


def made(pipe) -> dict:
    """What is to be known besides settings to draw a pipeline's pictures again: model, scheduler, precision, versions.

    A manifest's pictures are told from others by its other entries.
    """
    return {**_by_name(pipe), "versions": versions()}


def about(pipe) -> dict:
    """Name, revision and hashes of the model, its scheduler with all settings, guidance, size and precision, as it is.

    A model from a folder goes by the folder's name; `weights` tells the original from an erased one.
    """
    return {
        **_by_name(pipe),
        "model": model_hash(pipe),
        "weights": hash_tensors(text_weights(denoiser(pipe))),
        "drawn_by": drawing_hash(pipe),
        "guidance": default_guidance(pipe),
        "size": list(image_size(pipe)),
    }


def _by_name(pipe) -> dict:
    """What no weights have to be read for."""
    options = pipe.__dict__.get("_macelib_source", (None, {}))[1]
    settings = {name: _plain(value) for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    return {
        "model_name": model_name(pipe),
        "revision": options.get("revision"),
        "precision": str(denoiser(pipe).dtype).removeprefix("torch."),
        "scheduler": {"class": type(pipe.scheduler).__name__, **json.loads(json.dumps(settings, default=str))},
    }


def _plain(value):
    """A setting as JSON can hold it: infinity, which DPM-Solver++ has for a limit, and NaN in words."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
