"""What a classifier takes a picture for, and how sure it is: for people who look at single pictures."""

from collections.abc import Sequence

from PIL import Image


def verdicts(
    classifier, images: Sequence[Image.Image], among: Sequence[str], named: Sequence[str] = ()
) -> list[dict[str, float]]:
    """Probability by name for each picture: of the likeliest, then of those `named` that the classifier can tell.

    classifier: with `probabilities`. One that has a list of its own chooses among all of it; CLIP chooses among `among`
    and `named`, by its own temperature.
    """
    names = list(getattr(classifier, "concepts", None) or dict.fromkeys([*among, *named]))
    asked = [names.index(name) for name in named if name in names]
    found = []
    for row in classifier.probabilities(images, names):  # (names,)
        order = dict.fromkeys([int(row.argmax()), *asked])
        found.append({names[i]: float(row[i]) for i in order})
    return found
