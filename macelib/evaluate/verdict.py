"""What a classifier takes a picture for, and how sure it is: for people who look at single pictures."""

from collections.abc import Sequence

import torch
from PIL import Image

from .judge import ClipClassifier, Judge


@torch.no_grad()
def verdicts(
    classifier: Judge | ClipClassifier, images: Sequence[Image.Image], among: Sequence[str], named: Sequence[str] = ()
) -> list[dict[str, float]]:
    """Probability by name for each picture: of the likeliest, then of those `named` that the classifier can tell.

    A judge chooses among all concepts that it knows, CLIP among `among`, by its own temperature.
    """
    names = classifier.concepts if isinstance(classifier, Judge) else list(dict.fromkeys([*among, *named]))
    shares = _logits(classifier, images, names).softmax(-1)  # (n, names)
    asked = [names.index(name) for name in named if name in names]
    found = []
    for row in shares:
        order = dict.fromkeys([int(row.argmax()), *asked])
        found.append({names[i]: float(row[i]) for i in order})
    return found


def _logits(classifier, images: Sequence[Image.Image], names: Sequence[str]) -> torch.Tensor:
    if isinstance(classifier, Judge):
        return classifier.logits(images)[0]
    texts = classifier.text_vectors([classifier.template.format(name) for name in names])
    return classifier.model.logit_scale.exp().cpu() * classifier.image_vectors(images) @ texts.T
