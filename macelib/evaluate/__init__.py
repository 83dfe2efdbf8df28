"""How well an erasure works: classifiers that look at pictures, the paper's protocols, and their metrics.

It may import all that erases, `job` too; nothing of `show`, `batch` or `lessons`.
"""

from ..concepts import with_synonyms
from .classifiers import Classifier, ImageClassifier, classifier_for, load_classifier, plugged
from .companions import Pairs, pairs
from .distances import ClipFeatures, distances
from .explicit import NudeNet
from .judge import ClipClassifier, Judge
from .listed import Listed, measure_prompts
from .lists import character_lists, companion_lists, object_list, tuning_lists
from .prompts import Prompt, draw_prompts, read_prompts
from .protocols import Evaluation, celebrities, characters, objects, styles
from .record import recorded, recorded_verdict
from .studies import ablation_study, characters_study, grid_study, objects_study, pairs_study, tuning_study
from .tuning import Grid, Tuning
from .verdict import verdicts
from .work import label

__all__ = [
    "Classifier",
    "ClipClassifier",
    "ClipFeatures",
    "Evaluation",
    "Grid",
    "ImageClassifier",
    "Judge",
    "Listed",
    "NudeNet",
    "Pairs",
    "Prompt",
    "Tuning",
    "ablation_study",
    "celebrities",
    "character_lists",
    "characters",
    "characters_study",
    "classifier_for",
    "companion_lists",
    "distances",
    "draw_prompts",
    "grid_study",
    "label",
    "load_classifier",
    "measure_prompts",
    "object_list",
    "objects",
    "objects_study",
    "pairs",
    "pairs_study",
    "plugged",
    "read_prompts",
    "recorded",
    "recorded_verdict",
    "styles",
    "tuning_lists",
    "tuning_study",
    "verdicts",
    "with_synonyms",
]  # fmt: skip
