"""Text embeddings exactly as the denoiser reads them: one per token, in some models one per prompt besides.

SD: the encoder's last hidden states, width d. SDXL: the second to last hidden states of both encoders side by side,
width d = d1 + d2; Eq. 2 knows only this joint vector, so one R of size d x d acts on both blocks and mixes them.
Transformers: what the pipeline's own `encode_prompt` gives with what its `__call__` hands to it, and in PixArt and Sana
behind the projection that stands before cross-attention.
"""

import re
from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MaceError
from ..files import hash_tensors, hash_text
from .dit import MASKED, default, encoded, kind_of, projections, text_mask, views
from .entrances import denoiser, is_joint, kv_weights, part_of, pooled_weights
from .families import family_of
from .finite import check_finite
from .offload import runs_on
from .tokens import Alignment, View, align, fits, length, tail, token_spans, tokenize


def _encoders(pipe) -> list:
    """(tokenizer, text encoder) pairs in the order in which the pipeline joins them."""
    pairs = [(getattr(pipe, f"tokenizer{n}", None), getattr(pipe, f"text_encoder{n}", None)) for n in ("", "_2", "_3")]
    pairs = [pair for pair in pairs if None not in pair]
    if not pairs or (getattr(pipe, "unet", None) is None and kind_of(pipe) is None):
        raise MaceError(
            f"{type(pipe).__name__} is no Stable Diffusion, PixArt, Sana or FLUX.1 pipeline with its text encoders."
        )
    return pairs


def _joint(pipe) -> bool:
    """Whether the pipeline is of SDXL's kind: penultimate hidden states, joined over the encoders."""
    return hasattr(pipe, "text_encoder_2")


def tokenizers(pipe) -> list:
    """The pipeline's tokenizers, each with positions of its own; in a UNet's pipeline all have the same.

    (SDXL's two share a vocabulary and differ in padding.) Those of a transformer's pipeline are `View`s.
    """
    pairs = _encoders(pipe)
    return [tokenizer for tokenizer, _ in pairs] if part_of(pipe) == "unet" else views(pipe)


def places(pipe) -> list[tuple[object, int]]:
    """Tokenizers that number the positions of the text, and where the first of each stands: SD3 reads with two."""
    found = tokenizers(pipe)
    return [(t, t.at) for t in found] if isinstance(found[0], View) else [(found[0], 0)]


def spans(pipe, prompt: str, phrase: str) -> list[int]:
    """Positions of the phrase's tokens in the prompt, by every tokenizer; MaceError: it is too long."""
    return sorted({at + i for t, at in places(pipe) for span in token_spans(t, prompt, phrase) for i in span})


def tails(pipe, prompt: str) -> list[int]:
    """Positions of [EOS] and of padding that is read."""
    return [at + i for tokenizer, at in places(pipe) for i in tail(tokenizer, prompt)]


def aligned(pipe, template: str, name: str, anchor: str) -> Alignment:
    """`align` by every tokenizer, as positions of the whole text."""
    found = [(align(tokenizer, template, name, anchor), at) for tokenizer, at in places(pipe)]
    return Alignment(*(torch.cat([vars(a)[part] + at for a, at in found]) for part in ("source", "target", "own")))


def check_prompt(pipe, prompt: str) -> None:
    """MaceError for a prompt that the model would cut."""
    for tokenizer, _ in places(pipe):
        tokenize(tokenizer, prompt)


def prompt_fits(pipe, prompt: str) -> bool:
    """Whether the model reads the prompt to its end."""
    return all(fits(tokenizer, prompt) for tokenizer, _ in places(pipe))


def shortened(pipe, prompt: str) -> str:
    """The prompt up to the last word that the model reads; of a single long word its beginning."""
    if prompt_fits(pipe, prompt):
        return prompt
    end = bisect_left(range(len(prompt)), True, key=lambda n: not prompt_fits(pipe, prompt[:n])) - 1  # read up to here
    begun = re.match(r"(.*\S)\s", prompt[: end + 1], re.DOTALL)  # whole words alone
    return begun[1] if begun else prompt[:end]


def text_length(pipe) -> int:
    """T: how many positions the model reads."""
    return max(at + length(tokenizer) for tokenizer, at in places(pipe))


def missing_text(pipe) -> str:
    """What is to be said of a text encoder that is not loaded, where the pipeline works without it; "" for none."""
    if kind_of(pipe) != "sd3" or pipe.text_encoder_3 is not None:
        return ""
    return "without text_encoder_3: only what the two CLIPs read is erased, and only a model without T5 is erased"


def embedding_size(pipe) -> int:
    """d: the width of a token's embedding as the model reads it."""
    if part_of(pipe) == "unet":
        return sum(encoder.config.hidden_size for _, encoder in _encoders(pipe))
    return next(iter(kv_weights(denoiser(pipe)).values())).shape[1]


def text_hash(pipe) -> str:
    """What the embeddings depend on: the encoders' weights, the vocabularies, padding and length; hex."""
    parts = []
    for tokenizer, encoder in _encoders(pipe):
        parts.append(hash_tensors(dict(encoder.state_dict())))
        parts += [sorted(tokenizer.get_vocab().items()), tokenizer.pad_token_id, tokenizer.model_max_length]
    if part_of(pipe) == "transformer":
        parts += [(view.length, view.before, view.masked) for view in views(pipe)]
        parts += [hash_tensors(dict(module.state_dict())) for module in projections(denoiser(pipe)).values()]
    return hash_text(*parts)


def pooled_size(pipe) -> int:
    """p: the width of the pooled text that the model reads besides the tokens; 0 where it reads none."""
    weights = pooled_weights(denoiser(pipe))
    if part_of(pipe) == "transformer":
        return next((w.shape[1] for w in weights.values()), 0)
    pooled = [e.config.projection_dim for _, e in _encoders(pipe) if _projects(e)]
    return pooled[0] if weights and pooled else 0


def _projects(encoder) -> bool:
    """Whether the encoder's first output is a vector per prompt: the class with a projection."""
    return hasattr(encoder, "text_projection")


@dataclass(frozen=True)
class Reading:
    """What a model reads of n prompts, float32, on the device of the text encoder."""

    tokens: Tensor  # (n, T, d), zero where padding is masked: it adds nothing to any sum
    pooled: Tensor  # (n, p), SDXL: the projected [EOS] of the second encoder; p = 0 where none is read

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
    found = _read(pipe, distinct, batch)
    index = {prompt: row for row, prompt in enumerate(distinct)}
    if not bool(torch.isfinite(found.tokens).all() and torch.isfinite(found.pooled).all()):
        for row, prompt in enumerate(distinct):
            check_finite(pipe, "text_encoder", f"The text {prompt!r}", found.tokens[row])
            check_finite(pipe, "text_encoder_2", f"The pooled text of {prompt!r}", found.pooled[row])
    return found if len(prompts) == len(distinct) else found[[index[prompt] for prompt in prompts]]


def _read(pipe, prompts: list[str], batch: int) -> Reading:
    """What the model reads of the prompts, by the pipeline's own code where it is a transformer's."""
    if part_of(pipe) == "unet":
        read_by = tokenizers(pipe)
        ids = [torch.tensor([tokenize(t, p)[0] for p in prompts], dtype=torch.long) for t in read_by]  # (m, T) each
        ids = ids if prompts else [torch.empty(0, t.model_max_length, dtype=torch.long) for t in read_by]
        return read_ids(pipe, ids, batch)
    for prompt in prompts:
        check_prompt(pipe, prompt)
    parts = [encoded(pipe, prompts[start : start + batch]) for start in range(0, len(prompts), batch)]
    if not parts:
        T = text_length(pipe)
        return Reading(torch.empty(0, T, embedding_size(pipe)), torch.empty(0, pooled_size(pipe)))
    return Reading(*(torch.cat(some) for some in zip(*parts, strict=True)))


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
    """What the denoiser reads besides the tokens, a row per prompt; None where that is nothing.

    size: (height, width) in pixels. SDXL: text_embeds (n, p), time_ids (n, 6) of an uncropped image. PixArt, Sana: mask
    (n, T), and in PixArt's largest resolution and aspect_ratio. SD3, FLUX: pooled (n, p), and FLUX's guidance (n,).
    """
    kind, model, n = kind_of(pipe), denoiser(pipe), len(prompts)
    if kind in MASKED:
        added = {"mask": text_mask(pipe, prompts)}
        if kind == "pixart" and model.config.sample_size == 128:
            ratio = torch.tensor([[size[0] / size[1]]])
            added |= {"resolution": torch.tensor([size]).float().repeat(n, 1), "aspect_ratio": ratio.repeat(n, 1)}
        return added
    if not pooled_weights(model):
        return None
    pooled = read(pipe, prompts).pooled
    if is_joint(model):
        guidance = family_of(pipe).scale() or default(pipe, "guidance_scale")
        distilled = getattr(model.config, "guidance_embeds", False)
        return {"pooled": pooled} | ({"guidance": torch.full((n,), float(guidance))} if distilled else {})
    time_ids = torch.tensor([*size, 0, 0, *size], dtype=pooled.dtype, device=pooled.device)
    return {"text_embeds": pooled, "time_ids": time_ids.repeat(n, 1)}
