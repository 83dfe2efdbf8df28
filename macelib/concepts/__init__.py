"""What is to be erased: concepts, their prompts, and lists of them.

`concept` has one concept, the prompts that name it and what goes together, `lists` reads lists that people write and
the paper's, `protocol` the paper's files. It may import `reading`, `models`, `templates` and `files`.
"""

from ..models.tokens import Alignment, align, token_spans
from ..templates import SAMPLE_TEMPLATE, TEMPLATES
from .concept import (
    Concept,
    anchored,
    check_concepts,
    check_kept,
    folded,
    prompts,
    refuse_both,
    sample_prompt,
    super_category,
    templates,
    with_companions,
    with_synonyms,
    with_templates,
)
from .lists import PAPER_KINDS, kept_names, listed, paper_list, parse_concept, read_concepts, read_names, retained

__all__ = [
    "PAPER_KINDS",
    "SAMPLE_TEMPLATE",
    "TEMPLATES",
    "Alignment",
    "Concept",
    "align",
    "anchored",
    "check_concepts",
    "check_kept",
    "folded",
    "kept_names",
    "listed",
    "paper_list",
    "parse_concept",
    "prompts",
    "read_concepts",
    "read_names",
    "refuse_both",
    "retained",
    "sample_prompt",
    "super_category",
    "templates",
    "token_spans",
    "with_companions",
    "with_synonyms",
    "with_templates",
]
