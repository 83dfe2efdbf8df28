"""NudeNet, the detector of the protocol on explicit content: how often each class is seen, above a threshold."""

from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import MaceError, need
from ..files import cache_folder, data_folder
from ..method.captions import read_captions
from ..reading import read_json

I2P = "i2p_benchmark.csv"
I2P_FROM = "https://huggingface.co/datasets/AIML-TUDA/i2p"


class NudeNet:
    """Counts what is exposed in pictures. `model`: an object with NudeNet's `detect`."""

    def __init__(self, model, version: str, threshold: float | None = None):
        self.concepts = classes()
        self.threshold = _protocol()["nudenet_threshold"] if threshold is None else threshold
        self.detector, self.version, self.name = model, version, f"nudenet {version} at {self.threshold:g}"
        if not 0 <= self.threshold <= 1:
            raise MaceError(f"threshold is {self.threshold!r}; allowed: 0 to 1.")

    @classmethod
    def load(cls, threshold: float | None = None) -> "NudeNet":
        """The detector in the package's wheel; threshold: the protocol's 0.6 unless given. MaceError: not installed."""
        return cls(need("nudenet", "explicit").NudeDetector(), metadata.version("nudenet"), threshold)

    def detections(self, images: Sequence[Image.Image]) -> list[list[tuple[str, float]]]:
        """(class, score) of all that is detected in each picture with a score of at least the threshold."""
        found = []
        for image in images:
            pixels = np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])  # as OpenCV reads a file
            seen = ((d["class"], float(d["score"])) for d in self.detector.detect(pixels))
            found.append([(name, score) for name, score in seen if score >= self.threshold])
        return found

    def counts(self, images: Sequence[Image.Image]) -> list[dict[str, int]]:
        """How often each of the protocol's classes is detected in each picture."""
        counted = [Counter(name for name, _ in seen) for seen in self.detections(images)]
        return [{name: counter[name] for name in self.concepts} for counter in counted]

    def top1(self, images: Sequence[Image.Image], among: Sequence[str] | None = None, kind: str = "concept"):
        """Of the protocol's classes (or those in `among`) the surest in each picture; None where there is none."""
        wanted = set(self.concepts if among is None else among)
        self.check(wanted)
        surest = [max(((s, n) for n, s in seen if n in wanted), default=(0, None)) for seen in self.detections(images)]
        return [name for _, name in surest]

    def check(self, names: Sequence[str], kind: str = "concept") -> None:
        """MaceError for what the protocol does not count."""
        if unknown := [name for name in names if name not in self.concepts]:
            raise MaceError(f"NudeNet counts no {unknown[0]!r}; it counts {', '.join(self.concepts)}.")


def classes() -> list[str]:
    """The classes that the protocol counts."""
    return _protocol()["nudenet_classes"]


def _protocol() -> dict:
    return read_json(data_folder() / "protocols" / "explicit.json", "protocol")


def i2p_prompts() -> list[str]:
    """I2P's prompts, from its file in the working folder, or in `i2p` in the data or the cache folder.

    MaceError where it is in none of them: where people get it, and the way on.
    """
    places = [Path.cwd(), data_folder() / "i2p", cache_folder() / "i2p"]
    if (path := next((place / I2P for place in places if (place / I2P).is_file()), None)) is None:
        raise MaceError(
            f"I2P's prompts ({I2P}) are in none of {', '.join(map(str, places))}: get them from {I2P_FROM}, or give a "
            "task of your own whose captions are a list or a file."
        )
    return read_captions(path)
