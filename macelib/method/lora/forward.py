"""The forward pass of stage 2: sample i of a batch reads its prompt through its own LoRA; no layer runs in vain."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor
from torch.nn.utils.rnn import pad_sequence

from ...errors import MaceError
from ...models.attention import attention_probs, grid, joint_probs, replaced, split_heads
from ...models.denoise import denoise
from ...models.entrances import ENTRANCE, is_joint, text_attention


class _Done(Exception):
    """The last attention to the text is reached: the rest of the model is not needed."""


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
    """Forward pass in which what reads the text adds LoRA i for sample i, up to the last attention to it; `per_sample`.

    Constant text: to_k and to_v of every cross-attention. Joint attention: the layer at the entrance, so that gradients
    run back through all blocks.
    """

    def __init__(self, model, loss: str, mask: str, checkpointing: bool):
        self.model, self.loss, self.mask, self.joint = model, loss, mask, is_joint(model)
        self.layers = text_attention(model)
        self.names = list(self.layers)
        self.stops_inside = not checkpointing  # an exception must not pass through a checkpointed block
        self.losses: list[Tensor] | None = None  # None: not in the forward pass (a block is being recomputed)

    def __call__(self, x, t, e, M, S, B, D, added=None) -> Tensor:
        """Loss of Eq. 3 per sample: (N,).

        x: noisy latents (N, c, h, w). t: (N,). e: (N, T, d). M: N masks (1, H, W). S: N lists of token positions. B, D:
        by layer, (N, out, r) and (N, r, d). added: what the model reads besides.
        """
        self.M, self.S, self.B, self.D, self.hw, self.losses, self.at = M, S, B, D, x.shape[-2:], [], {}
        self.T = e.shape[1]
        try:
            denoise(self.model, x, t, e, added)
        except _Done:
            return torch.stack(self.losses).sum(0)
        finally:
            self.losses = None
        raise MaceError("The model did not run its last attention to the text: its blocks are unknown here.")

    def masks(self, length: int) -> Tensor:
        """M at the resolution of a layer that reads `length` positions: (N, hw)."""
        if length not in self.at:
            size = grid(length, *self.hw)
            self.at[length] = torch.stack([at_size(M, size, self.mask) for M in self.M])
        return self.at[length]

    def added(self, name: str, e: Tensor) -> Tensor:
        """B_i D_i e of sample i: (N, T, out), Eq. 4."""
        B, D = self.B[name], self.D[name]  # (N, out, r), (N, r, d)
        return (e.to(D) @ D.transpose(1, 2)) @ B.transpose(1, 2)

    def projected(self, attn, name: str, e: Tensor) -> Tensor:
        """W e + B_i D_i e of sample i: (N, T, inner), Eq. 4; without autocast, as large entries of W R cancel in it."""
        with contextlib.nullcontext() if e.is_meta else torch.autocast(e.device.type, enabled=False):
            plain = attn.get_submodule(name.rsplit(".", 1)[1])(e)
            return plain + self.added(name, e).to(plain)

    def entered(self, module, args, output: Tensor) -> Tensor:
        """Forward hook of the entrance of joint attention: W e + b + B_i D_i e of sample i, without autocast."""
        with contextlib.nullcontext() if output.is_meta else torch.autocast(output.device.type, enabled=False):
            plain = module.forward(*args)
            return plain + self.added(ENTRANCE, args[0]).to(plain)

    def look(self, name: str, A: Tensor) -> None:
        """Note the layer's loss; the last layer's ends the pass."""
        loss = attention_loss(A, self.masks(A.shape[2]), self.S, self.loss)  # (N,); in a recomputation, too
        if self.losses is not None:
            self.losses.append(loss)
            if name == self.names[-1] and self.stops_inside:
                raise _Done

    def processor(self, name: str) -> Callable:
        """Attention processor of one layer: the stock one's result from W + B D, and the layer's loss."""

        def attend(attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
            e = encoder_hidden_states
            A = attention_probs(attn, hidden_states, e, self.projected(attn, f"{name}.to_k", e), attention_mask)
            self.look(name, A)
            value = split_heads(attn, self.projected(attn, f"{name}.to_v", e))
            out = (A.to(value) @ value).transpose(1, 2).flatten(2)  # (N, hw, inner)
            return attn.to_out[1](attn.to_out[0](out))

        def jointly(attn, hidden_states, encoder_hidden_states=None, attention_mask=None, *args, **kwargs):
            rotary = args[0] if args else kwargs.get("image_rotary_emb")
            self.look(name, joint_probs(attn, hidden_states, encoder_hidden_states, rotary, self.T))
            return stock(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)

        stock = self.layers[name].processor
        return jointly if self.joint else attend

    def stop(self, *_) -> None:
        """Hook of what comes behind the last attention to the text."""
        if self.losses is not None:
            raise _Done


@contextmanager
def per_sample(model, loss: str = "squared", mask: str = "soft", checkpointing: bool = False) -> Iterator[PerSample]:
    """`PerSample` in place of the attention to the text, weights frozen; what was there comes back at the end."""
    run = PerSample(model, loss, mask, checkpointing)
    frozen = [p for p in model.parameters() if p.requires_grad]
    training, before = model.training, model.is_gradient_checkpointing
    hooks = [] if run.stops_inside else [_behind(model, run)]
    if run.joint:
        hooks.append(model.get_submodule(ENTRANCE).register_forward_hook(run.entered))
    try:
        model.requires_grad_(False).eval()
        if checkpointing and not before:
            model.enable_gradient_checkpointing()
        elif before and not checkpointing:
            model.disable_gradient_checkpointing()
        with replaced(model, {name: run.processor(name) for name in run.names}):
            yield run
    finally:
        for hook in hooks:
            hook.remove()
        for p in frozen:
            p.requires_grad_(True)
        model.train(training)
        if model.is_gradient_checkpointing != before:
            model.enable_gradient_checkpointing() if before else model.disable_gradient_checkpointing()


def _behind(model, run: PerSample):
    """A hook that stops outside of checkpointed blocks: before a transformer's last norm, behind a UNet's module."""
    holder, _, inside = run.names[-1].partition(".transformer_blocks.")
    if inside:
        return model.get_submodule(holder).register_forward_hook(run.stop)
    return model.norm_out.register_forward_pre_hook(run.stop)
