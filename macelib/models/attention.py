"""Attention to the text: A = softmax(Q Kᵀ / √d_head), recorded while the pipeline draws.

In cross-attention the softmax runs over the tokens. In joint attention it runs over tokens and picture together, and A
is what the picture's queries give to the tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from ..errors import MaceError
from .dit import kind_of
from .entrances import denoiser, is_joint, text_attention
from .text import spans, text_length


def attention_probs(
    attn: Attention, hidden: Tensor, context: Tensor, key: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """A = softmax(Q Kᵀ · scale) over the tokens, float32 or better: (N, heads, hw, T).

    hidden: (N, hw, c). context: (N, T, d). key: K (N, T, inner) when it is known. mask: additive, (N, 1, T).
    """
    query, key = attn.to_q(hidden), attn.to_k(context) if key is None else key
    if getattr(attn, "norm_q", None) is not None:  # Sana's, over all heads
        query, key = attn.norm_q(query), attn.norm_k(key)
    query, key = split_heads(attn, query), split_heads(attn, key)
    scores = (query * attn.scale) @ key.transpose(-1, -2)  # (N, heads, hw, T)
    if mask is not None:
        scores = scores + mask[:, None]
    return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1)


def joint_probs(attn, hidden: Tensor, context: Tensor | None, rotary: tuple | None = None, T: int = 0) -> Tensor:
    """A of the picture's queries and the text's keys, out of the softmax over text and picture: (N, heads, hw, T).

    hidden: (N, hw, c), and context (N, T, c) in a stream of its own; or, without one, both in one stream, T tokens
    first: (N, T + hw, c). rotary: cosines and sines of the positions, tokens first.
    """
    query, key = split_heads(attn, attn.to_q(hidden)), split_heads(attn, attn.to_k(hidden))
    if attn.norm_q is not None:
        query, key = attn.norm_q(query), attn.norm_k(key)
    if context is not None:
        T, text = context.shape[1], split_heads(attn, attn.add_k_proj(context))
        key = torch.cat([text if attn.norm_added_k is None else attn.norm_added_k(text), key], 2)
    else:
        query = query[:, :, T:]
    if rotary is not None:
        key = apply_rotary_emb(key, rotary, sequence_dim=2)
        query = apply_rotary_emb(query, tuple(part[T:] for part in rotary), sequence_dim=2)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5  # (N, heads, hw, T + hw)
    return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(-1)[..., :T]


def split_heads(attn: Attention, x: Tensor) -> Tensor:
    """(N, length, heads · width) as (N, heads, length, width)."""
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


def grid(length: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a layer that reads `length` positions of a latent height x width; halves round up."""
    h, w = height, width
    while h * w > length and (h > 1 or w > 1):
        h, w = (h + 1) // 2, (w + 1) // 2
    if h * w != length:
        raise MaceError(f"{length} positions are no level of a latent of {height}x{width}: this UNet is unknown here.")
    return h, w


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., h, w) to `size`: bilinear where it grows, mean of the area where it shrinks."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    if size[0] * size[1] < maps.shape[-2] * maps.shape[-1]:
        flat = F.interpolate(flat, size=tuple(size), mode="area")
    else:
        flat = F.interpolate(flat, size=tuple(size), mode="bilinear", align_corners=False)
    return flat.reshape(*maps.shape[:-2], *size)


class Maps:
    """What `trace` recorded: per layer the probabilities, reduced as asked; all on the pipeline's device but `each`."""

    def __init__(self, pipe, tokens, heads, timesteps, size):
        self.tokens: list[int] | None = tokens  # recorded positions; None: all T
        self.timesteps: list[float] = []  # of every recorded call of the denoiser, as it is given them
        self._pipe = pipe
        self._heads, self._steps, self._size = heads, timesteps, size
        self._runs: list[dict[str, list[Tensor]]] = []  # a run: one denoising of one batch
        self._counts: list[dict[str, int]] = []

    @property
    def layers(self) -> list[str]:
        """Recorded layers by module path, in the order of execution."""
        return list(self._runs[0]) if self._runs else []

    def layer(self, name: str) -> Tensor:
        """A of one layer: (n, heads, h, w, tokens), with (n, steps, heads, ...) in front for timesteps="each".

        heads is 1 for heads="mean". Mean over the UNet calls unless timesteps="each".
        """
        if name not in self.layers:
            raise MaceError(f"{name!r} was not traced; recorded: {', '.join(self.layers) or 'nothing'}.")
        runs = []
        for run, count in zip(self._runs, self._counts, strict=True):
            each = self._steps == "each"
            runs.append(torch.stack(run[name], 1) if each else run[name][0] / count[name])
        return torch.cat(runs)

    def map(
        self,
        positions: int | Sequence[int],
        *,
        image: int | None = 0,
        layer: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Mean map of tokens over the layers (or one): (h, w); with (n, steps, heads) of what is not reduced in front.

        positions: token positions, 0 is the start token. image: None keeps all n. size: (h, w), the largest layer's by
        default. MaceError: nothing recorded, a position that was not, heads="each" over layers that differ in heads.
        """
        if not self._runs:
            raise MaceError("No attention was recorded: draw with the pipeline inside `with trace(pipe) as maps:`.")
        index = self._index([positions] if isinstance(positions, int) else list(positions))
        found = [
            self.layer(n)[..., index].mean(-1) for n in ([layer] if layer else self.layers)
        ]  # (n, .., heads, h, w)
        if len({m.shape[:-2] for m in found}) > 1:
            raise MaceError('The layers have different numbers of heads: pass layer="...", or trace with heads="mean".')
        size = size or self._size or max((tuple(m.shape[-2:]) for m in found), key=lambda hw: hw[0] * hw[1])
        total = torch.stack([resize(m, size) for m in found]).mean(0)
        total = total.squeeze(-3) if self._heads == "mean" else total
        return total if image is None else total[image]

    def heat(self, prompt: str, word: str, **kw) -> Tensor:
        """`map` of the tokens of every occurrence of a word or phrase in the prompt; MaceError where there is none."""
        positions = spans(self._pipe, prompt, word)
        if not positions:
            raise MaceError(f"{word!r} does not occur in {prompt!r}: give a word or phrase of the prompt.")
        return self.map(positions, **kw)

    def _index(self, positions: list[int]) -> list[int]:
        known = self.tokens if self.tokens is not None else range(text_length(self._pipe))
        if missing := [p for p in positions if p not in known] or not positions:
            raise MaceError(f"The token positions {missing if positions else positions} were not recorded.")
        return [list(known).index(p) for p in positions]

    def _new_run(self) -> None:
        self._runs.append({})
        self._counts.append({})

    def _record(self, name: str, A: Tensor, hw: tuple[int, int]) -> None:
        """Add A (n, heads, hw, T) of one UNet call."""
        A = A.detach() if self.tokens is None else A.detach()[..., self.tokens]
        A = A.mean(1, keepdim=True) if self._heads == "mean" else A
        A = A.unflatten(2, hw)  # (n, heads, h, w, tokens)
        kept = self._runs[-1].setdefault(name, [])
        self._counts[-1][name] = self._counts[-1].get(name, 0) + 1
        if self._steps == "each":
            kept.append(A.cpu())
        elif kept:
            kept[0] += A
        else:
            kept.append(A.clone())


class _Recorder:
    """Attention processor: the one that was there before, and a record of its probabilities."""

    def __init__(self, name: str, inner: Callable, record: Callable):
        self.name, self.inner, self.record = name, inner, record

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, *args, **kwargs):
        rotary = args[0] if args else kwargs.get("image_rotary_emb")
        self.record(self.name, attn, hidden_states, encoder_hidden_states, attention_mask, rotary)
        return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)


@contextmanager
def replaced(unet, processors: Mapping[str, Callable]) -> Iterator[None]:
    """Processors by module path of an attention layer, put in and taken out again whatever happens."""
    modules = {name: unet.get_submodule(name) for name in processors}
    before = {name: module.processor for name, module in modules.items()}
    try:
        for name, processor in processors.items():
            modules[name].set_processor(processor)
        yield
    finally:
        for name, module in modules.items():
            module.set_processor(before[name])


@contextmanager
def trace(
    pipe,
    tokens: Sequence[int] | None = None,
    layers: Sequence[str] | None = None,
    heads: Literal["mean", "each"] = "mean",
    timesteps: Literal["mean", "each"] = "mean",
    size: tuple[int, int] | None = None,
    guided: bool | None = None,
    at: Sequence[float] | None = None,
) -> Iterator[Maps]:
    """Record how a picture attends to the text while the pipeline draws; what it draws is the same, bit for bit.

    tokens: positions to record (None: all). layers: module paths, or parts of them such as "up_blocks" (None: all).
    size: (h, w) of the maps. guided: the batch holds the unconditional half first (None: found out); only the other
    half is recorded. at: timesteps, 0-999, of which the nearest of the scheduler's are recorded (None: all).
    Sums are kept, not steps, unless timesteps="each". Images of later batches are added to n.
    """
    for field, value in (("heads", heads), ("timesteps", timesteps)):
        if value not in ("mean", "each"):
            raise MaceError(f'{field} is {value!r}; allowed: "mean" or "each".')
    model = denoiser(pipe)
    modules = text_attention(model)
    chosen = [n for n in modules if layers is None or any(part in n for part in layers)]
    if not chosen:
        raise MaceError(f"No layer matches {', '.join(layers)}; the model has {', '.join(modules)}.")
    maps = Maps(pipe, None if tokens is None else [int(t) for t in tokens], heads, timesteps, size)
    call = {"n": None, "t": float("-inf"), "guided": False, "hw": (0, 0), "T": 0, "schedule": None, "on": True}

    def before(_, args, kwargs):
        given = dict(zip(("sample", "timestep"), args, strict=False)) | kwargs
        sample, t = given.get("sample", given.get("hidden_states")), float(torch.as_tensor(given["timestep"]).max())
        schedule = getattr(pipe.scheduler, "timesteps", None)  # a pipeline's call sets a new one
        if sample.shape[0] != call["n"] or t > call["t"] or schedule is not call["schedule"]:
            maps._new_run()
            call["scale"] = 1.0 if schedule is None or not t else float(schedule[0]) / t  # FLUX is given t / 1000
        call.update(n=sample.shape[0], t=t, guided=_guided(pipe, sample, guided), hw=_extent(sample, given))
        call.update(schedule=schedule, T=given["encoder_hidden_states"].shape[1])
        call["on"] = at is None or schedule is None or _nearest(schedule, call["scale"] * t, at)
        if call["on"]:
            maps.timesteps.append(t)

    def record(name, attn, hidden, context, mask, rotary):
        if not call["on"]:
            return
        half = slice(len(hidden) // 2, None) if call["guided"] else slice(None)
        if isinstance(context, tuple):
            raise MaceError("Image prompts (IP-Adapter) cannot be traced: unload the adapter first.")
        with torch.no_grad():
            if is_joint(model):
                A = joint_probs(attn, hidden[half], None if context is None else context[half], rotary, call["T"])
            else:
                A = attention_probs(attn, hidden[half], context[half], mask=None if mask is None else mask[half])
            maps._record(name, A, grid(A.shape[2], *call["hw"]))

    hook = model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        with replaced(model, {n: _Recorder(n, modules[n].processor, record) for n in chosen}):
            yield maps
    finally:
        hook.remove()


def _nearest(schedule: Tensor, t: float, at: Sequence[float]) -> bool:
    """Whether t, of a schedule, is the nearest of it to one of the timesteps `at`."""
    index = int((schedule - t).abs().argmin())
    return index in {int((schedule - a).abs().argmin()) for a in at}


def _extent(sample: Tensor, given: Mapping) -> tuple[int, int]:
    """Height and width of what the denoiser is given: a latent (n, c, h, w), or FLUX's patches with their places."""
    if sample.ndim == 4:
        return tuple(sample.shape[-2:])
    return tuple(int(n) + 1 for n in given["img_ids"].reshape(-1, 3).amax(0)[1:])


def _guided(pipe, sample: Tensor, told: bool | None) -> bool:
    """Whether the UNet's batch is the same latents twice, for classifier-free guidance."""
    if told is not None:
        return told
    half = len(sample) // 2
    known = getattr(pipe, "do_classifier_free_guidance", kind_of(pipe) == "pixart")  # whose pipeline does not say
    both = known and len(sample) == 2 * half > 0
    return bool(both and torch.equal(sample[:half], sample[half:]))
