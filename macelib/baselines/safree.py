"""SAFREE: trigger tokens leave the concepts' subspace (Yoon et al., ICLR 2025, arXiv 2410.12761); text part only."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MaceError
from ..models.text import encode_ids, tokenizers
from ..models.tokens import tokenize
from .columns import last_position, states
from .hooks import Hook, Run
from .registry import Request, Settings, register

FULL = 50  # steps of the denoising that U is counted in


@dataclass(frozen=True)
class SAFREE(Settings):
    """The authors' values for objects and explicit content; latent re-attention is left out."""

    alpha: float = 0.01  # α, how far above the others' mean a token's distance makes it a trigger
    steps: float = 10.0  # U, steps of 50 that read the edited prompt at most
    t0: float = 5.333  # where the self-validating filter opens
    k: float = 2.5  # how steeply
    filter: bool = True  # False: the edited prompt is read at every step


PUBLISHED = {"style": SAFREE(t0=5.5, k=3.5)}
GRID = {"alpha": (0.0, 0.01, 0.1), "steps": (10.0, 25.0, 50.0), "t0": (3.0, 5.333)}


def projector(columns: Tensor) -> Tensor:
    """Π = N (Nᵀ N)⁺ Nᵀ, onto the span of the columns N (d, k)."""
    return columns @ torch.linalg.pinv(columns)


def triggers(outside: Tensor, alpha: float) -> Tensor:
    """Which tokens are triggers, from their distances d_i (n,) to the concepts' subspace: d_i ≥ (1 + α) mean_{j≠i} d_j.

    A single token has no others, and is one.
    """
    n = len(outside)
    if n == 1:
        return torch.ones(1, dtype=torch.bool, device=outside.device)
    return outside >= (1 + alpha) * (outside.sum() - outside) / (n - 1)


def safree_edit(e: Tensor, Q: Tensor, concept: Tensor, alpha: float) -> tuple[Tensor, float]:
    """e_i ← (I − Π_C) Π_I e_i for the triggers among a prompt's n tokens, and b = 1 − mean_i cos(e_i, projected e_i).

    e: (n, d), the prompt's words. Q: (d, n), column i the pooled state of the prompt with word i masked. concept: Π_C.
    """
    outside = Q - concept @ Q
    projected = e @ projector(Q).T
    projected = projected - projected @ concept.T  # (n, d)
    chosen = triggers(outside.norm(dim=0), alpha)
    b = 1 - float(F.cosine_similarity(e, projected, dim=-1).mean())
    return torch.where(chosen[:, None], projected, e), b


def filter_steps(b: float, s: SAFREE, steps: int) -> int:
    """How many of `steps` read the edited prompt: round(U σ(2 k (10 b − t0))), U scaled with the steps."""
    return round(s.steps * steps / FULL / (1 + math.exp(-2 * s.k * (10 * b - s.t0))))


@dataclass(frozen=True, eq=False)
class Safree(Hook):
    """The prompt's trigger tokens, edited for the first steps."""

    concept: Tensor  # Π_C (d, d) float64
    mask: int  # id of the token that stands for a masked one
    alpha: float
    steps: float
    t0: float
    k: float
    filter: bool

    def embed(self, run: Run, e: Tensor) -> Tensor:
        edited, self_b = [], []
        for prompt, row in zip(run.prompts, e, strict=True):
            new, b = self._edited(run.pipe, prompt, row)
            edited.append(new)
            self_b.append(b)
        run.memory |= {"original": e, "edited": torch.stack(edited), "b": self_b}
        return run.memory["edited"]

    def context(self, run: Run, e: Tensor) -> Tensor:
        if not self.filter or "edited" not in run.memory:
            return e
        s = SAFREE(self.alpha, self.steps, self.t0, self.k, self.filter)
        until = torch.tensor([filter_steps(b, s, run.steps) for b in run.memory["b"]], device=e.device)
        now = torch.where((run.step <= until)[:, None, None], run.memory["edited"].to(e), run.memory["original"].to(e))
        return torch.cat([e[: len(e) // 2], now]) if run.guided else now

    def _edited(self, pipe, prompt: str, e: Tensor) -> tuple[Tensor, float]:
        """A prompt's embeddings (T, d) edited, and b."""
        stop = last_position(pipe, prompt) + 1  # of the words
        if stop < 2:
            return e, 0.0
        rows = [torch.tensor(tokenize(t, prompt)[0]).repeat(stop - 1, 1) for t in tokenizers(pipe)]
        for ids in rows:
            ids[range(stop - 1), range(1, stop)] = self.mask
        Q = encode_ids(pipe, rows)[:, stop].double().T.to(e.device)  # (d, n), at [EOS]
        new, b = safree_edit(e[1:stop].double(), Q, self.concept.to(e.device), self.alpha)
        return torch.cat([e[:1], new.to(e), e[stop:]]), b


@register("safree", SAFREE, published=PUBLISHED, grid=GRID)
def safree(request: Request, settings: SAFREE) -> Safree:
    """Of more concepts than a prompt has tokens, or than half the width, little of any prompt is left: noted."""
    pipe, names = request.pipe, [concept.name for concept in request.concepts]
    pooled = [e[last_position(pipe, name) + 1] for e, name in zip(states(pipe, names), names, strict=True)]
    N = torch.stack(pooled).double().T  # (d, K), at [EOS]
    tokenizer = tokenizers(pipe)[0]
    mask = tokenizer.convert_tokens_to_ids("!")
    if mask in (None, tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id):
        raise MaceError('SAFREE masks a token by "!", which this tokenizer does not know.')
    words, half = tokenizer.model_max_length - 2, len(N) // 2
    if N.shape[1] > min(words, half):
        what = f"the {words} tokens of a prompt" if words <= half else f"half of the text's {len(N)} dimensions"
        request.note(f"{N.shape[1]} concepts are more than {what}: their subspace holds most of any prompt.")
    return Safree(projector(N), mask, **vars(settings))
