"""The forward pass of stage 2: sample i of a batch reads its prompt through its own LoRA; no layer runs in vain."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor
from torch.nn.utils.rnn import pad_sequence

from ...errors import MaceError
from ...models.attention import attention_probs, grid, replaced, split_heads
from ...models.entrances import cross_attention


class _Done(Exception):
    """The last cross-attention is reached: the rest of the UNet is not needed."""


def attention_loss(A: Tensor, M: Tensor, S: Sequence[LongTensor], loss: str = "squared") -> Tensor:
    """Σ_{i∈S} ||A^i ⊙ M||_F² (Eq. 3) of one layer, per sample: (N,); loss "norm": the square root of that.

    A: (N, heads, hw, T). M: (N, hw). S: token positions per sample. The sums run over heads and hw. "norm" is what the
    authors' code takes: one norm over all of S together, not one per token.
    """
    index = pad_sequence([s.to(A.device) for s in S], batch_first=True)  # (N, s)
    real = pad_sequence([torch.ones(len(s), device=A.device) for s in S], batch_first=True)
    chosen = A.gather(-1, index[:, None, None].expand(*A.shape[:3], -1))  # (N, heads, hw, s)
    masked = chosen * M[:, None, :, None] * real[:, None, None]
    if loss == "squared":
        return masked.square().sum((1, 2, 3))
    return torch.linalg.vector_norm(masked, dim=(1, 2, 3))


def at_size(M: Tensor, size: tuple[int, int], mask: str = "soft") -> Tensor:
    """A mask (1, H, W) at a layer's size, flat (hw,): "soft", means over areas; "nearest", the nearest pixel > 0.5."""
    if mask == "soft":
        return F.adaptive_avg_pool2d(M, size).flatten()
    return (F.interpolate(M[None], size=size, mode="nearest") > 0.5).to(M).flatten()


class PerSample:
    """Forward pass in which to_k and to_v of sample i add LoRA i, up to the last cross-attention; see `per_sample`."""

    def __init__(self, unet, loss: str, mask: str, checkpointing: bool):
        self.unet, self.loss, self.mask = unet, loss, mask
        self.names = list(cross_attention(unet))
        self.stops_inside = not checkpointing  # an exception must not pass through a checkpointed block
        self.losses: list[Tensor] | None = None  # None: not in the forward pass (a block is being recomputed)

    def __call__(self, x, t, e, M, S, B, D, added=None) -> Tensor:
        """Loss of Eq. 3 per sample: (N,).

        x: noisy latents (N, c, h, w). t: (N,). e: (N, T, d). M: N masks (1, H, W). S: N lists of token positions. B, D:
        by layer, (N, out, r) and (N, r, d). added: what SDXL's UNet reads besides.
        """
        self.M, self.S, self.B, self.D, self.hw, self.losses, self.at = M, S, B, D, x.shape[-2:], [], {}
        try:
            self.unet(x, t, encoder_hidden_states=e, added_cond_kwargs=added, return_dict=False)
        except _Done:
            return torch.stack(self.losses).sum(0)
        finally:
            self.losses = None
        raise MaceError("The UNet did not run its last cross-attention layer: its blocks are unknown here.")

    def masks(self, length: int) -> Tensor:
        """M at the resolution of a layer that reads `length` positions: (N, hw)."""
        if length not in self.at:
            size = grid(length, *self.hw)
            self.at[length] = torch.stack([at_size(M, size, self.mask) for M in self.M])
        return self.at[length]

    def projected(self, attn, name: str, e: Tensor) -> Tensor:
        """W e + B_i D_i e of sample i: (N, T, inner), Eq. 4; without autocast, as large entries of W R cancel in it."""
        B, D = self.B[name], self.D[name]  # (N, out, r), (N, r, d)
        with contextlib.nullcontext() if e.is_meta else torch.autocast(e.device.type, enabled=False):
            plain = attn.get_submodule(name.rsplit(".", 1)[1])(e)
            return plain + ((e.to(D) @ D.transpose(1, 2)) @ B.transpose(1, 2)).to(plain)

    def processor(self, name: str) -> Callable:
        """Attention processor of one layer: the stock one's result from W + B D, and the layer's loss."""

        def attend(attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
            e = encoder_hidden_states
            A = attention_probs(attn, hidden_states, e, self.projected(attn, f"{name}.to_k", e), attention_mask)
            loss = attention_loss(A, self.masks(A.shape[2]), self.S, self.loss)  # (N,); in a recomputation, too
            if self.losses is not None:
                self.losses.append(loss)
                if name == self.names[-1] and self.stops_inside:
                    raise _Done
            value = split_heads(attn, self.projected(attn, f"{name}.to_v", e))
            out = (A.to(value) @ value).transpose(1, 2).flatten(2)  # (N, hw, inner)
            return attn.to_out[1](attn.to_out[0](out))

        return attend

    def stop(self, *_) -> None:
        """Forward hook of the block that holds the last cross-attention."""
        if self.losses is not None:
            raise _Done


@contextmanager
def per_sample(unet, loss: str = "squared", mask: str = "soft", checkpointing: bool = False) -> Iterator[PerSample]:
    """`PerSample` in place of the UNet's cross-attention, weights frozen; what was there comes back at the end."""
    run = PerSample(unet, loss, mask, checkpointing)
    frozen = [p for p in unet.parameters() if p.requires_grad]
    training, before = unet.training, unet.is_gradient_checkpointing
    hook = None if run.stops_inside else unet.get_submodule(_holder(run.names[-1])).register_forward_hook(run.stop)
    try:
        unet.requires_grad_(False).eval()
        if checkpointing and not before:
            unet.enable_gradient_checkpointing()
        elif before and not checkpointing:
            unet.disable_gradient_checkpointing()
        with replaced(unet, {name: run.processor(name) for name in run.names}):
            yield run
    finally:
        if hook is not None:
            hook.remove()
        for p in frozen:
            p.requires_grad_(True)
        unet.train(training)
        if unet.is_gradient_checkpointing != before:
            unet.enable_gradient_checkpointing() if before else unet.disable_gradient_checkpointing()


def _holder(name: str) -> str:
    """Module path of the transformer that holds a cross-attention layer."""
    return name.split(".transformer_blocks.")[0]
