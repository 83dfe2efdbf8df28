"""Concepts that a model never knew, and who recognises them: the nearest picture in CLIP's image space."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from ..errors import MaceError
from ..files import hash_tensors, hash_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def read_pictures(folder: str | Path) -> dict[str, list[Image.Image]]:
    """Pictures by concept, from sub-folders or files that bear its name ("axolotl.png"); on white where transparent.

    MaceError: no folder, no picture in it, one that cannot be read.
    """
    folder, found = Path(folder), {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.suffix.lower() not in SUFFIXES:
            continue
        name = path.stem if path.parent == folder else path.relative_to(folder).parts[0]
        try:
            image = Image.open(path).convert("RGBA")
        except (OSError, SyntaxError) as error:
            raise MaceError(f"The picture {path} cannot be read ({error}): give another.") from error
        white = Image.new("RGBA", image.size, "white")
        found.setdefault(name.replace("-", " "), []).append(Image.alpha_composite(white, image).convert("RGB"))
    if not found:
        raise MaceError(f"{folder} holds no pictures: give a folder with one sub-folder or file for each concept.")
    return found


class Nearest:
    """Judges a picture by the most similar one of a gallery (cosine of CLIP's image vectors)."""

    def __init__(self, clip, gallery: Mapping[str, Sequence[Image.Image]], name: str = "nearest"):
        """clip: has image_vectors(pictures) -> (n, d). gallery: pictures by the name of what they show."""
        if len(gallery) < 2 or not all(gallery.values()):
            raise MaceError(
                "The nearest of a gallery needs pictures of two concepts or more, and one of each at least."
            )
        self.clip, self.name = clip, name
        self.names = [concept for concept, pictures in gallery.items() for _ in pictures]
        self.vectors = self._vectors([picture for pictures in gallery.values() for picture in pictures])
        self.key = hash_text(name, *self.names, hash_tensors({"gallery": self.vectors}))  # of its CLIP, too

    @torch.no_grad()
    def _vectors(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        return F.normalize(self.clip.image_vectors(list(pictures)).float().cpu(), dim=-1)

    def top1(self, pictures: Sequence[Image.Image], among=None) -> list[str]:
        """The name of the nearest picture of the gallery, one for each picture."""
        return [self.names[i] for i in (self._vectors(pictures) @ self.vectors.T).argmax(1).tolist()]
