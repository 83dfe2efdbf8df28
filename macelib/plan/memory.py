"""Memory and arithmetic of a model's passes, counted on PyTorch's meta device: real layers and shapes, no data.

Self-attention is counted as fused kernels do it, without a matrix (hw, hw). What an allocator adds is not seen.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..method.lora.forward import per_sample
from ..models.denoise import denoise
from ..models.entrances import denoiser, kv_weights
from ..models.text import added_conditions, embedding_size, text_length
from .clock import latent_shape


@dataclass(frozen=True)
class Pass:
    """What one pass takes for one sample, beside the weights; both grow with the batch."""

    bytes: int  # at the peak
    flop: int  # floating-point operations


@dataclass(frozen=True)
class Passes:
    """The passes that an erasure is made of, for one picture or sample."""

    denoise: Pass  # one call of the denoiser, forward
    decode: Pass  # latents to a picture
    encode: Pass  # a picture to latents
    train: Pass  # forward and backward of stage 2


class Count(TorchDispatchMode):
    """Counts operations, and the bytes of all storages that are alive but for those of the given tensors."""

    def __init__(self, without):
        super().__init__()
        self.now = self.peak = self.flop = 0
        self.known: dict[int, int] = {t.untyped_storage()._cdata: 0 for t in without}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flop += formula(*args, **(kwargs or {}), out_val=out)
        for storage in (t.untyped_storage() for t in tree_leaves(out) if isinstance(t, Tensor)):
            if storage._cdata not in self.known:
                self.known[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata)
        return out

    def _gone(self, key: int) -> None:
        self.now -= self.known.pop(key, 0)


@contextmanager
def fused() -> Iterator[None]:
    """Scaled dot-product attention by the kernel that keeps no matrix of probabilities; in recomputations, too."""
    own, kernel = F.scaled_dot_product_attention, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    F.scaled_dot_product_attention = lambda query, key, value, *_, **__: kernel(query, key, value)[0]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own


def counted(call: Callable[[], object], *modules: nn.Module) -> Pass:
    """Peak and arithmetic of a call, beside the weights of these modules."""
    weights = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    with Count(weights) as count, fused():
        call()
    return Pass(count.peak, count.flop)


def passes(pipe, size: tuple[int, int], checkpointing: bool = False, rank: int = 1) -> Passes:
    """The passes of a pipeline, at this size in pixels (height, width)."""
    copy, coder, latents = _copy(denoiser(pipe)), _copy(pipe.vae), latent_shape(pipe, size)
    like = {"device": "meta", "dtype": copy.dtype}
    x, e = torch.empty(1, *latents, **like), torch.empty(1, text_length(pipe), embedding_size(pipe), **like)
    t, added = torch.zeros(1, device="meta"), added_conditions(pipe, ["a table"], size)
    added = added and {name: value.to("meta") for name, value in added.items()}
    z, picture = (torch.empty(1, *shape, device="meta", dtype=coder.dtype) for shape in (latents, (3, *size)))
    with torch.no_grad():
        once = counted(lambda: denoise(copy, x, t, e, added), copy)
        decode = counted(lambda: coder.decode(z), coder)
        encode = counted(lambda: coder.encode(picture), coder)
    B, D = {}, {}
    for name, w in kv_weights(copy).items():
        B[name] = torch.empty(1, w.shape[0], rank, device="meta", requires_grad=True)
        D[name] = torch.empty(1, rank, w.shape[1], device="meta", requires_grad=True)
    M, S = [torch.empty(1, *size, device="meta")], [torch.zeros(e.shape[1], dtype=torch.long, device="meta")]
    with per_sample(copy, checkpointing=checkpointing) as forward:
        train = counted(lambda: forward(x, t, e, M, S, B, D, added).sum().backward(), copy)
    return Passes(once, decode, encode, train)


def _copy(module: nn.Module) -> nn.Module:
    """The same layers in the same precision, frozen, without their weights."""
    with torch.device("meta"):
        copy = type(module).from_config(module.config)
        return nn.Module.to(copy, "meta", module.dtype).requires_grad_(False).eval()  # diffusers' own warns of rounding
