"""The kinds of change that a method may bring, each put into a pipeline and taken out again bit for bit.

In weights: `TextMap` W' = W R, `OutputMap` W' = Q W, `WeightDelta` W' = W + Δ. Outside of them: a `Hook` on the
prompt's embeddings, on the guided noise prediction or on the values of cross-attention (`macelib.baselines.hooks`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import MaceError
from ..method.fuse import less_identity
from ..models.entrances import parameters
from ..models.swap import keep, originals


class Change:
    """Base of all kinds: a dataclass of tensors, mappings of tensors, and plain values.

    MaceError for a class of the same name as one of another module: files know them by it.
    """

    kinds: ClassVar[dict[str, type]] = {}  # by the name of the class: how a file says what it holds

    def __init_subclass__(cls, **kw):
        super().__init_subclass__(**kw)
        known = Change.kinds.get(cls.__name__, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise MaceError(f"There is a change {cls.__name__!r} already, of {known.__module__}: choose another name.")
        Change.kinds[cls.__name__] = cls

    def put(self, pipe) -> Callable[[], None]:
        """Change the pipeline; returns what takes the change out again."""
        raise NotImplementedError


class WeightChange(Change):
    """A change that lives in weights."""

    def weights(self, W: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The new weights by name, from all of the UNet's (see `parameters`), in the dtype of W."""
        raise NotImplementedError

    @torch.no_grad()
    def put(self, pipe) -> Callable[[], None]:
        unet = pipe.unet
        live, before = parameters(unet), original_parameters(unet)
        new = dict(self.weights(before))
        kept = {name: before[name].detach().clone() for name in new}
        W = originals(unet)
        for name, w in new.items():
            live[name].copy_(w)
        keep(unet, W, new)

        @torch.no_grad()
        def undo() -> None:
            for name, w in kept.items():
                live[name].copy_(w)

        return undo


@dataclass(frozen=True, eq=False)
class TextMap(WeightChange):
    """W' = W R for keys and values (or one of them): one map of text embeddings for all layers."""

    R: Tensor  # (d, d)
    parts: str = "kv"  # "k", "v" or "kv"

    def weights(self, W):
        change = less_identity(self.R).float()
        for name in _kv(W, self.parts, len(self.R)):
            w = W[name]
            yield name, _plus(w, w.float() @ change.to(w.device))


@dataclass(frozen=True, eq=False)
class OutputMap(WeightChange):
    """W_l' = Q_l W_l."""

    Q: dict[str, Tensor]  # layer -> (o, o)

    def weights(self, W):
        for layer, Q in self.Q.items():
            w = W[f"{layer}.weight"]
            yield f"{layer}.weight", (Q.to(w.device).float() @ w.float()).to(w.dtype)


@dataclass(frozen=True, eq=False)
class WeightDelta(WeightChange):
    """W' = W + Δ for any weights of the UNet."""

    delta: dict[str, Tensor]  # name of a parameter -> its change

    def weights(self, W):
        for name, delta in self.delta.items():
            yield name, _plus(W[name], delta.to(W[name].device))


def _plus(w: Tensor, change: Tensor) -> Tensor:
    return (w.float() + change.float()).to(w.dtype)


def _kv(W: Mapping[str, Tensor], parts: str, width: int) -> list[str]:
    """Names of the weights of keys and values (or one of them); MaceError where they read other embeddings."""
    names = [n for n in W if n.endswith(".weight") and ".attn2." in n and kv_part(n.removesuffix(".weight")) in parts]
    if wrong := [name for name in names if W[name].shape[1] != width]:
        raise MaceError(f"{wrong[0]} reads {W[wrong[0]].shape[1]} features, the edit maps {width}: load its own model.")
    return names


def kv_part(layer: str) -> str:
    """ "k" or "v" for a layer's module path, another letter for others.

    >>> kv_part("mid_block.attn2.to_v"), kv_part("mid_block.attn2.to_q") in "kv"
    ('v', False)
    """
    return layer.rsplit("to_", 1)[-1] if layer.endswith((".to_k", ".to_v")) else "-"


def original_parameters(unet: nn.Module) -> dict[str, Tensor]:
    """As `parameters`, what reads the text as it was before an erasure or edit was applied."""
    return dict(parameters(unet)) | {f"{name}.weight": w for name, w in originals(unet).items()}
