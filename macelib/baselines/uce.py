"""UCE: unified concept editing, closed form (Gandikota et al., WACV 2024, arXiv 2308.14761, Eq. 7)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..method.refine import cholesky
from .changes import TextMap
from .columns import anchors, expand, note_pooled, tokens
from .registry import Request, Settings, register


@dataclass(frozen=True)
class UCE(Settings):
    """Today's official defaults; the paper's tables were made by the older code, `PAPER`."""

    tokens: Literal["last", "all"] = "last"  # columns of a text: its last subject token, or all T
    anchor: str | None = ""  # text that every concept becomes; None: each concept's own anchor
    expand: bool = False  # five templates per name beside the bare name
    alpha: float = 1.0  # weight of the targets
    beta: float | None = 1.0  # weight of what is preserved; None: max(0.1, 1/m) for m preserved texts
    lambda_: float = 0.5  # ridge towards the original weights


PAPER = UCE(tokens="all", anchor=" ", beta=None, lambda_=0.1)
# Where no names to keep are told, beta says nothing, and lambda_ / alpha all: no two of these ratios are equal.
GRID = {"tokens": ("last", "all"), "lambda_": (0.05, 0.5, 5.0), "alpha": (0.2, 1.0, 5.0)}


def uce_map(C: Tensor, A: Tensor, P0: Tensor, alpha: float = 1.0, beta: float = 1.0, lambda_: float = 0.5) -> Tensor:
    """R = (α A Cᵀ + β P0 P0ᵀ + λ I) (α C Cᵀ + β P0 P0ᵀ + λ I)⁻¹, float64.

    C, A: (d, n), targets and anchors in the same order. P0: (d, m), m may be 0. MaceError: a singular right bracket.
    """
    C, A, P0 = C.double(), A.double(), P0.double()
    same = beta * P0 @ P0.T + lambda_ * torch.eye(len(C), dtype=C.dtype, device=C.device)
    L = cholesky(alpha * C @ C.T + same, "raise lambda_")
    return torch.cholesky_solve((alpha * A @ C.T + same).T, L).T.contiguous()


@register("uce", UCE, published={"style": UCE(anchor="art"), "paper": PAPER}, grid=GRID)
def uce(request: Request, settings: UCE) -> TextMap:
    """One text map from the columns of the targets, their anchors and the names to keep."""
    C, A = target_columns(request, settings.tokens, settings.anchor, settings.expand)
    P0 = tokens(request.pipe, request.kept, settings.tokens)
    beta = max(0.1, 1 / max(1, len(request.kept))) if settings.beta is None else settings.beta
    request.report.update({"columns": C.shape[1]})
    return TextMap(uce_map(C, A, P0, settings.alpha, beta, settings.lambda_))


def target_columns(
    request: Request, which: Literal["last", "all"], anchor: str | None, expanded: bool
) -> tuple[Tensor, Tensor]:
    """C and A (d, n): the columns of the targets' texts, and of the same texts with the anchor in the name's place.

    An anchor that is a text for all concepts is not put into templates.
    """
    note_pooled(request)
    names, becomes = [], []
    for concept in request.concepts:
        texts = expand(concept.name, concept.kind) if expanded else [concept.name]
        names += texts
        becomes += anchors(concept, anchor, len(texts), expanded)
    return tokens(request.pipe, names, which), tokens(request.pipe, becomes, which)
