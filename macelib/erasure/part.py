"""What an erasure holds of one concept: the factors of its statistics, its LoRA, and its pooled text."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..concepts import Concept
from ..method.refine import ConceptStatistics

STRONGEST = 2.0  # largest strength


@dataclass(frozen=True, eq=False, repr=False)
class Part:
    """What an erasure holds of one concept."""

    concept: Concept
    statistics: ConceptStatistics  # factors of X, G, C: Q, Y (d, k), Gq, Cq (k, k)
    B: Tensor  # (out of all layers, r), rows in the order of Erasure.layers
    D: Tensor  # (L, r, d)
    pooled: Tensor | None = None  # (2, n, p): pooled text of its prompts, and with its anchor; None: the model has none
    weight: float = 1.0  # of the statistics, by the kind of concept
    strength: float = 1.0  # 0: drawn as before, 1: erased

    @property
    def sums(self) -> Tensor:
        """X, G, C of the concept as they enter Eq. 2 and Eq. 7: (3, d, d) fp64."""
        s = self.statistics.scaled(self.strength)
        return self.weight * torch.stack([s.X(), s.G(), s.C()])
