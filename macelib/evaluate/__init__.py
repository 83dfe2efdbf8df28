"""How well an erasure works: classifiers that look at pictures, the paper's protocols, and their metrics."""

from ..concepts import with_synonyms
from .judge import ClipClassifier, Judge, classifier_for
from .lists import character_lists
from .protocols import Evaluation, celebrities, characters, objects, styles

__all__ = [
    "ClipClassifier",
    "Evaluation",
    "Judge",
    "celebrities",
    "character_lists",
    "characters",
    "classifier_for",
    "objects",
    "styles",
    "with_synonyms",
]  # fmt: skip
