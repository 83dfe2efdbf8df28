"""AdaVD: values are kept off the concept's value, token by token (Wang et al., CVPR 2025, arXiv 2412.06143)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.entrances import kv_weights
from .changes import kv_part
from .columns import note_pooled, tokens
from .hooks import Hook
from .registry import Request, Settings, register


@dataclass(frozen=True)
class AdaVD(Settings):
    """The paper's values."""

    a: float = 100.0  # steepness of the gate
    b: float = 0.93  # cosine at which the gate is half open
    c: float = 2.0  # height of the gate: more than 1 subtracts more than the projection


GRID = {"b": (0.5, 0.7, 0.8, 0.93), "c": (1.0, 1.5, 2.0)}


def decomposed(v: Tensor, targets: Tensor, s: AdaVD) -> Tensor:
    """v_j − Σ_i g_ij (⟨v_j, u_i⟩ / ⟨u_i, u_i⟩) u_i,  g_ij = c / (1 + exp(−a (cos(v_j, v_i) − b))).

    v: (..., o), the prompt's values, heads side by side. targets: v_i (k, o). u_i: the v_i made orthogonal in their
    order (Gram-Schmidt); the gates are those of the v_i themselves.
    """
    U = gram_schmidt(targets)  # (k, o), orthonormal; zero for a target in the span of those before
    gate = s.c * torch.sigmoid(s.a * (F.normalize(v, dim=-1) @ F.normalize(targets, dim=-1).T - s.b))
    return v - (gate * (v @ U.T)) @ U


def gram_schmidt(rows: Tensor) -> Tensor:
    """Rows (k, o) made orthonormal in their order; a row that depends on those before becomes zero."""
    basis = torch.zeros_like(rows)
    for i, row in enumerate(rows):
        rest = row
        for _ in range(2):  # twice is enough
            rest = rest - (rest @ basis[:i].T) @ basis[:i]
        size = rest.norm()
        if size > 1e-5 * row.norm():
            basis[i] = rest / size
    return basis


@dataclass(frozen=True, eq=False)
class ValueDecomposition(Hook):
    """The values of both branches, [SOS] aside."""

    e: Tensor  # last subject tokens of the concepts' names (k, d)
    a: float
    b: float
    c: float

    def values(self, v: Tensor, project) -> Tensor:
        new = decomposed(v[:, 1:], project(self.e), AdaVD(self.a, self.b, self.c))
        return torch.cat([v[:, :1], new], 1)


@register("adavd", AdaVD, grid=GRID)
def adavd(request: Request, settings: AdaVD) -> ValueDecomposition:
    """One hook on every layer's values; keys stay. More names than a layer has values are noted."""
    note_pooled(request)
    names = [concept.name for concept in request.concepts]
    narrow = min(len(w) for name, w in kv_weights(request.pipe.unet).items() if kv_part(name) == "v")
    if len(names) > narrow:
        request.note(
            f"{len(names)} names are more than the {narrow} values of the narrowest layer: the last are cut there."
        )
    return ValueDecomposition(tokens(request.pipe, names, "last").T.float().contiguous(), **vars(settings))
