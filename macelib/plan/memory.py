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
from ..models.entrances import kv_weights
from ..models.text import pooled_size


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
    F.scaled_dot_product_attention = lambda q, k, v, *_, **__: kernel(q, k, v)[0]
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


def passes(pipe, size: tuple[int, int], T: int, checkpointing: bool = False, rank: int = 1) -> Passes:
    """The passes of a pipeline with a UNet, at this size in pixels (height, width) and of T tokens."""
    copy, coder = _copy(pipe.unet), _copy(pipe.vae)
    like, (height, width) = {"device": "meta", "dtype": copy.dtype}, (n // pipe.vae_scale_factor for n in size)
    x = torch.empty(1, copy.config.in_channels, height, width, **like)
    t, e = torch.zeros(1, device="meta"), torch.empty(1, T, copy.config.cross_attention_dim, **like)
    added = None
    if p := pooled_size(pipe):
        added = {"text_embeds": torch.empty(1, p, **like), "time_ids": torch.empty(1, 6, **like)}
    picture = torch.empty(1, 3, *size, device="meta", dtype=coder.dtype)
    with torch.no_grad():
        denoise = counted(lambda: copy(x, t, e, added_cond_kwargs=added), copy)
        decode = counted(lambda: coder.decode(x.to(coder.dtype)), coder)
        encode = counted(lambda: coder.encode(picture), coder)
    B, D = {}, {}
    for name, w in kv_weights(copy).items():
        B[name] = torch.empty(1, w.shape[0], rank, device="meta", requires_grad=True)
        D[name] = torch.empty(1, rank, w.shape[1], device="meta", requires_grad=True)
    M, S = [torch.empty(1, *size, device="meta")], [torch.zeros(T, dtype=torch.long, device="meta")]
    with per_sample(copy, checkpointing=checkpointing) as forward:
        train = counted(lambda: forward(x, t, e, M, S, B, D, added).sum().backward(), copy)
    return Passes(denoise, decode, encode, train)


def _copy(module: nn.Module) -> nn.Module:
    """The same layers in the same precision, frozen, without their weights."""
    with torch.device("meta"):
        copy = type(module).from_config(module.config)
        return nn.Module.to(copy, module.dtype).requires_grad_(False).eval()  # diffusers' own warns of rounding
