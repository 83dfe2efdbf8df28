"""Text embeddings exactly as the UNet reads them: one per token for cross-attention, in SDXL one per prompt besides.

SD: the encoder's last hidden states, width d. SDXL: the second to last hidden states of both encoders side by side,
width d = d1 + d2; Eq. 2 knows only this joint vector, so one R of size d x d acts on both blocks and mixes them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MaceError
from ..files import hash_tensors, hash_text
from .entrances import pooled_weights
from .finite import check_finite
from .offload import runs_on
from .tokens import tokenize


def _encoders(pipe) -> list:
    """(tokenizer, text encoder) pairs in the order in which the pipeline joins them."""
    pairs = [(getattr(pipe, f"tokenizer{n}", None), getattr(pipe, f"text_encoder{n}", None)) for n in ("", "_2")]
    pairs = [pair for pair in pairs if None not in pair]
    if not pairs or getattr(pipe, "unet", None) is None or getattr(pipe, "text_encoder_3", None) is not None:
        raise MaceError(f"{type(pipe).__name__} is no Stable Diffusion 1, 2 or XL pipeline with its text encoders.")
    return pairs


def _joint(pipe) -> bool:
    """Whether the pipeline is of SDXL's kind: penultimate hidden states, joined over the encoders."""
    return hasattr(pipe, "text_encoder_2")


def tokenizers(pipe) -> list:
    """The pipeline's tokenizers; SDXL's two share a vocabulary and differ in padding: token positions agree."""
    return [tokenizer for tokenizer, _ in _encoders(pipe)]


def embedding_size(pipe) -> int:
    """d: the width of a token's embedding as cross-attention reads it."""
    return sum(encoder.config.hidden_size for _, encoder in _encoders(pipe))


def text_hash(pipe) -> str:
    """What the embeddings depend on: the encoders' weights, the vocabularies, padding and length; hex."""
    parts = []
    for tokenizer, encoder in _encoders(pipe):
        parts.append(hash_tensors(dict(encoder.state_dict())))
        parts += [sorted(tokenizer.get_vocab().items()), tokenizer.pad_token_id, tokenizer.model_max_length]
    return hash_text(*parts)


def pooled_size(pipe) -> int:
    """p: the width of the pooled text that the model reads besides the tokens; 0 where it reads none."""
    pooled = [e.config.projection_dim for _, e in _encoders(pipe) if _projects(e)]
    return pooled[0] if pooled_weights(pipe.unet) and pooled else 0


def _projects(encoder) -> bool:
    """Whether the encoder's first output is a vector per prompt: the class with a projection."""
    return hasattr(encoder, "text_projection")


@dataclass(frozen=True)
class Reading:
    """What a model reads of n prompts, float32, on the device of the text encoder."""

    tokens: Tensor  # (n, T, d)
    pooled: Tensor  # (n, p), SDXL: the projected [EOS] of the second encoder; p = 0 elsewhere

    def __getitem__(self, rows) -> "Reading":
        return Reading(self.tokens[rows], self.pooled[rows])


def quick_hash(pipe) -> str:
    """Hash of a sample of the encoders' weights, which tells soon whether they are still the same ones; hex."""
    encoders = [encoder for _, encoder in _encoders(pipe)]
    some = {f"{i}.{n}": w.flatten()[:64] for i, e in enumerate(encoders) for n, w in e.state_dict().items()}
    return hash_tensors(some)


@torch.no_grad()
def read(pipe, prompts: list[str], batch: int = 64) -> Reading:
    """What the model reads of the prompts; each distinct one is encoded once.

    MaceError for a prompt that is longer than the model reads, before any is encoded, and for embeddings that are NaN.
    """
    distinct = list(dict.fromkeys(prompts))
    read_by = tokenizers(pipe)
    ids = [torch.tensor([tokenize(t, p)[0] for p in distinct], dtype=torch.long) for t in read_by]  # (m, T) each
    ids = ids if distinct else [torch.empty(0, t.model_max_length, dtype=torch.long) for t in read_by]
    found, index = read_ids(pipe, ids, batch), {prompt: row for row, prompt in enumerate(distinct)}
    if not bool(torch.isfinite(found.tokens).all() and torch.isfinite(found.pooled).all()):
        for row, prompt in enumerate(distinct):
            check_finite(pipe, "text_encoder", f"The text {prompt!r}", found.tokens[row])
            check_finite(pipe, "text_encoder_2", f"The pooled text of {prompt!r}", found.pooled[row])
    return found if len(prompts) == len(distinct) else found[[index[prompt] for prompt in prompts]]


@torch.no_grad()
def read_ids(pipe, ids: list[Tensor], batch: int = 64) -> Reading:
    """What the model reads of padded token ids (n, T), one tensor per tokenizer of the pipeline."""
    pairs, p, rows, vectors = _encoders(pipe), pooled_size(pipe), [], []
    if not len(ids[0]):
        return Reading(torch.empty(0, ids[0].shape[1], embedding_size(pipe)), torch.empty(0, p))
    for start in range(0, len(ids[0]), batch):
        some = [_hidden(e, i[start : start + batch], _joint(pipe)) for (_, e), i in zip(pairs, ids, strict=True)]
        rows.append(torch.cat([states for states, _ in some], dim=-1).float())  # (batch, T, d)
        found = [vector for _, vector in some if vector is not None] if p else []
        vectors.append(found[0].float() if found else rows[-1].new_empty(len(rows[-1]), 0))  # (batch, p)
    return Reading(torch.cat(rows), torch.cat(vectors))


def encode_ids(pipe, ids: list[Tensor], batch: int = 64) -> Tensor:
    """The tokens (n, T, d) of `read_ids`."""
    return read_ids(pipe, ids, batch).tokens


def encode(pipe, prompts: list[str], batch: int = 64) -> Tensor:
    """The tokens (n, T, d) of `read`."""
    return read(pipe, prompts, batch).tokens


def _hidden(encoder, ids: Tensor, penultimate: bool) -> tuple[Tensor, Tensor | None]:
    """Hidden states (n, T, d) of one encoder, as its Stable Diffusion pipeline takes them, and its vectors (n, p)."""
    ids = ids.to(runs_on(encoder))
    if penultimate:
        out = encoder(ids, output_hidden_states=True)
        return out.hidden_states[-2], out[0] if _projects(encoder) else None
    use_mask = getattr(encoder.config, "use_attention_mask", False)
    if use_mask:
        raise MaceError("A text encoder that masks its padding is not supported: use one of Stable Diffusion's CLIPs.")
    return encoder(ids)[0], None


@torch.no_grad()
def added_conditions(pipe, prompts: list[str], size: tuple[int, int]) -> dict[str, Tensor] | None:
    """What SDXL's UNet reads besides the tokens: text_embeds (n, p), time_ids (n, 6) of an uncropped image; else None.

    size: (height, width) in pixels.
    """
    if not pooled_weights(pipe.unet):
        return None
    pooled = read(pipe, prompts).pooled
    time_ids = torch.tensor([*size, 0, 0, *size], dtype=pooled.dtype, device=pooled.device)
    return {"text_embeds": pooled, "time_ids": time_ids.repeat(len(prompts), 1)}
