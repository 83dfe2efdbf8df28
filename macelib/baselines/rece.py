"""RECE: rounds of UCE against the embeddings that still draw the concept (Gong et al., ECCV 2024, arXiv 2407.12383)."""

from dataclasses import dataclass

from torch import Tensor

from ..method.rounds import adversarial_map, layers_gram
from .changes import TextMap
from .columns import tokens
from .registry import Request, Settings, register
from .uce import target_columns, uce_map


@dataclass(frozen=True)
class RECE(Settings):
    """The paper's values for styles and hard objects; easy ones have gamma 0.1."""

    gamma: float = 1e-3  # γ, ridge of the adversarial embedding
    epochs: int = 1  # rounds; the authors' code chooses one by a detector, here all are kept
    anchor: str | None = " "  # text that every concept becomes; None: each concept's own anchor
    alpha: float = 1.0  # weight of the targets
    beta: float = 0.1  # weight of what is preserved
    lambda_: float = 0.1  # ridge towards the weights before the round


GRID = {"gamma": (1e-3, 1e-2, 0.1, 1.0), "epochs": (1, 2, 3)}
PUBLISHED = {
    "easy": RECE(gamma=0.1),
    "unsafe": RECE(gamma=0.1, epochs=3),  # of nudity
    "unsafe-words": RECE(gamma=0.1, epochs=2),
}


def rece_map(C: Tensor, A: Tensor, P0: Tensor, rest: Tensor, H: Tensor, settings: RECE) -> Tensor:
    """R of UCE, then R ← R R' per round, R' that of UCE from the targets C' = M C on the edited model; float64.

    C, A: (d, n). P0: (d, m), preserved by the first step. rest: (d, T), the columns of " ", preserved by the rounds.
    """
    weights = settings.alpha, settings.beta, settings.lambda_
    R = uce_map(C, A, P0, *weights)
    for _ in range(settings.epochs):
        R = R @ uce_map(adversarial_map(R, H, settings.gamma) @ C.double(), A, rest, *weights)
    return R


@register("rece", RECE, published=PUBLISHED, grid=GRID)
def rece(request: Request, settings: RECE) -> TextMap:
    """One text map; all T token columns of each concept's name count, and so do those of its adversarial twin."""
    C, A = target_columns(request, "all", settings.anchor, False)
    P0, rest = tokens(request.pipe, request.kept, "all"), tokens(request.pipe, [" "], "all")
    request.report.update({"columns": C.shape[1] * (1 + settings.epochs)})
    return TextMap(rece_map(C, A, P0, rest, layers_gram(request.pipe.unet), settings))
