"""How well an erasure works: classifiers that look at pictures, the paper's protocols, and their metrics.

It may import all that erases, `job` too; nothing of `show`, `batch` or `lessons`.
"""

from ..concepts import with_synonyms
from .judge import ClipClassifier, Judge, classifier_for
from .lists import character_lists, object_list, tuning_lists
from .protocols import Evaluation, celebrities, characters, label, objects, styles
from .studies import ablation_study, characters_study, objects_study, tuning_study
from .verdict import verdicts

__all__ = [
    "ClipClassifier",
    "Evaluation",
    "Judge",
    "ablation_study",
    "celebrities",
    "character_lists",
    "characters",
    "characters_study",
    "classifier_for",
    "label",
    "object_list",
    "objects",
    "objects_study",
    "styles",
    "tuning_lists",
    "tuning_study",
    "verdicts",
    "with_synonyms",
]  # fmt: skip
