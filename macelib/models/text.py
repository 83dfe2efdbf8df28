"""Text embeddings exactly as the UNet's cross-attention reads them.

SD: the encoder's last hidden states, width d. SDXL: the second to last hidden states of both encoders side by side,
width d = d1 + d2; Eq. 2 knows only this joint vector, so one R of size d x d acts on both blocks and mixes them.
"""

import torch
from torch import Tensor

from ..errors import MaceError
from ..files import hash_tensors, hash_text
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


@torch.no_grad()
def encode(pipe, prompts: list[str], batch: int = 64) -> Tensor:
    """Embeddings (n, T, d), float32, on the device of the pipeline's text encoder; each distinct prompt is read once.

    MaceError for a prompt that is longer than the model reads, before any is encoded.
    """
    distinct = list(dict.fromkeys(prompts))
    ids = [torch.tensor([tokenize(t, p)[0] for p in distinct], dtype=torch.long) for t in tokenizers(pipe)]  # (m, T)
    e = encode_ids(pipe, ids, batch)
    index = {prompt: row for row, prompt in enumerate(distinct)}
    return e if len(prompts) == len(distinct) else e[[index[prompt] for prompt in prompts]]


@torch.no_grad()
def encode_ids(pipe, ids: list[Tensor], batch: int = 64) -> Tensor:
    """Embeddings (n, T, d), float32, of padded token ids (n, T), one tensor per tokenizer of the pipeline."""
    pairs, rows = _encoders(pipe), []
    if not len(ids[0]):
        return torch.empty(0, tokenizers(pipe)[0].model_max_length, embedding_size(pipe))
    for start in range(0, len(ids[0]), batch):
        states = [_hidden(e, i[start : start + batch], _joint(pipe)) for (_, e), i in zip(pairs, ids, strict=True)]
        rows.append(torch.cat(states, dim=-1).float())  # (batch, T, d)
    return torch.cat(rows)


def _hidden(encoder, ids: Tensor, penultimate: bool) -> Tensor:
    """Hidden states (n, T, d) of one encoder, as its Stable Diffusion pipeline takes them."""
    ids = ids.to(encoder.device)
    if penultimate:
        return encoder(ids, output_hidden_states=True).hidden_states[-2]
    use_mask = getattr(encoder.config, "use_attention_mask", False)
    if use_mask:
        raise MaceError("A text encoder that masks its padding is not supported: use one of Stable Diffusion's CLIPs.")
    return encoder(ids)[0]


@torch.no_grad()
def added_conditions(pipe, prompts: list[str], size: tuple[int, int]) -> dict[str, Tensor] | None:
    """What SDXL's UNet reads besides the tokens: text_embeds (n, p), time_ids (n, 6) of an uncropped image; else None.

    size: (height, width) in pixels.
    """
    if getattr(pipe.unet.config, "addition_embed_type", None) != "text_time":
        return None
    distinct = list(dict.fromkeys(prompts))
    options = {"device": pipe.text_encoder_2.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    pooled = pipe.encode_prompt(distinct, **options)[2]  # (m, p)
    time_ids = torch.tensor([*size, 0, 0, *size], dtype=pooled.dtype, device=pooled.device)
    return {
        "text_embeds": pooled[[distinct.index(p) for p in prompts]],
        "time_ids": time_ids.repeat(len(prompts), 1),
    }
