"""Semantic Surgery: active concepts are subtracted from a prompt (Xiong et al., NeurIPS 2025, arXiv 2510.22851)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..concepts import Concept
from .columns import joined, states
from .hooks import Hook, Run
from .registry import Request, Settings, register

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SemanticSurgery(Settings):
    """The paper's values for objects; β depends on the encoder and on T: see `calibrate`."""

    positive = ("gamma",)
    beta: float = 0.12  # β, presence at which a concept counts as half there
    gamma: float = 0.02  # γ, width of the transition
    tau: float = 0.5  # τ, a concept is active from this ρ on


PUBLISHED = {
    "celebrity": SemanticSurgery(beta=0.28),
    "style": SemanticSurgery(beta=0.3),
    "unsafe": SemanticSurgery(beta=0.06),
}
GRID = {"beta": (0.06, 0.12, 0.2, 0.28, 0.36, 0.44, 0.09, 0.16, 0.24, 0.32, 0.4, 0.5)}  # the wide steps first


def presence(e: Tensor, deltas: Tensor) -> Tensor:
    """s (n, k): the mean over the T positions of cos(Δ_i[t], E(p)[t]); a position with Δ = 0 counts as 0.  (Eq. 6-8)

    e: (n, T, d), of the prompts. deltas: Δ_i = E(c_i) − E("") (k, T, d).
    """
    return torch.einsum("ntd,ktd->nk", F.normalize(e, dim=-1), F.normalize(deltas, dim=-1)) / e.shape[1]


def directions(pipe, names: Sequence[str], empty: Tensor) -> Tensor:
    """Δ_i = E(c_i) − E("") (k, T, d); empty: E("") (T, d). 0 at [SOS], of whose state no more than rounding differs."""
    deltas = states(pipe, names) - empty
    deltas[:, 0] = 0
    return deltas


def share(s: Tensor, beta: float, gamma: float) -> Tensor:
    """ρ = σ((s − β) / γ)."""
    return torch.sigmoid((s - beta) / gamma)


@dataclass(frozen=True, eq=False)
class Surgery(Hook):
    """E'(p) = E(p) − ρ (E(join(active)) − E("")), ρ the largest of the active ρ_i; nothing active: E(p).  (Eq. 9-16)"""

    names: tuple[str, ...]
    deltas: Tensor  # (k, T, d)
    empty: Tensor  # E("") (T, d)
    beta: float
    gamma: float
    tau: float

    def embed(self, run: Run, e: Tensor) -> Tensor:
        rho = share(presence(e, self.deltas.to(e)), self.beta, self.gamma)  # (n, k)
        texts = [self._active(run.pipe, row) for row in rho.detach()]
        distinct = [text for text in dict.fromkeys(texts) if text]
        if not distinct:
            return e
        directions = dict(zip(distinct, states(run.pipe, distinct).to(e) - self.empty.to(e), strict=True))
        new = [
            row if not text else row - r.max() * directions[text] for row, text, r in zip(e, texts, rho, strict=True)
        ]
        return torch.stack(new)

    def _active(self, pipe, rho: Tensor) -> str:
        """The active names joined; where they do not fit, the least present are cut, and said."""
        active = [i for i in range(len(rho)) if rho[i] >= self.tau]
        by_presence = sorted(active, key=lambda i: -float(rho[i]))
        left = list(by_presence)
        while joined(pipe, [self.names[i] for i in sorted(left)])[1]:
            left.pop()
        if len(left) < len(active):
            log.warning(
                "%d of %d active concepts do not fit into one prompt: cut.", len(active) - len(left), len(active)
            )
        return ", ".join(self.names[i] for i in sorted(left))


@register("semantic-surgery", SemanticSurgery, published=PUBLISHED, grid=GRID)
def semantic_surgery(request: Request, settings: SemanticSurgery) -> Surgery:
    """A hook on the prompt; the unconditional branch stays. More active names than fit into a prompt are cut: noted."""
    names = tuple(concept.name for concept in request.concepts)
    if cut := joined(request.pipe, names)[1]:
        request.note(
            f"{len(names) - len(cut)} of {len(names)} names fit into one prompt: where more of them are active, the "
            "least present are cut."
        )
    empty = states(request.pipe, [""])[0]
    deltas = directions(request.pipe, names, empty)
    return Surgery(names, deltas, empty, settings.beta, settings.gamma, settings.tau)


def calibrate(
    pipe, concepts: Sequence[Concept], prompts_with: Sequence[Sequence[str]], prompts_without: Sequence[str]
) -> tuple[float, float]:
    """β for a model, and its error: the midpoint of the mean presence with and without the concept.

    prompts_with: per concept, prompts that hold it. prompts_without: prompts that hold none of them. The error is the
    share of presences on the wrong side of β, the two kinds of prompt weighted alike.
    """
    deltas = directions(pipe, [c.name for c in concepts], states(pipe, [""])[0])
    yes = torch.cat([
        presence(states(pipe, own), delta[None])[:, 0] for own, delta in zip(prompts_with, deltas, strict=True)
    ])  # fmt: skip
    no = presence(states(pipe, prompts_without), deltas).flatten()
    beta = float(yes.mean() + no.mean()) / 2
    return beta, float((yes < beta).double().mean() + (no >= beta).double().mean()) / 2
