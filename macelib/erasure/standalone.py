"""An erasure as one LoRA on the original model: the truncated singular value decomposition of every layer's change.

No LoRA of a rank comes nearer to ΔW = W* − W in the Frobenius norm (Eckart and Young 1936).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MaceError
from ..method.fuse import less_identity

WORST = 0.01  # ||ΔW − B A|| / ||ΔW|| of the worst layer, where no rank is given
WHOLE = 1e-5  # the same, below which nothing is left out
LABEL = "lora_unet_label_emb_0_0"  # what other programs call the layer that reads SDXL's pooled text


@dataclass(frozen=True)
class Standalone:
    """LoRAs by layer, W + B A."""

    B: dict[str, Tensor]  # (out, r), float32
    A: dict[str, Tensor]  # (r, d), float32
    errors: dict[str, float]  # ||ΔW − B A|| / ||ΔW||
    whole: bool  # nothing is left out of any layer

    @property
    def size(self) -> int:
        """Bytes of all factors."""
        return sum(4 * (b.numel() + self.A[name].numel()) for name, b in self.B.items())

    @property
    def worst(self) -> tuple[str, float]:
        """The layer with the largest error, and that error."""
        return max(self.errors.items(), key=lambda item: item[1])

    def weights(self, W: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """W + B A by layer, computed in float32, in the dtype of W."""
        return {n: torch.addmm(W[n].float(), b.to(W[n].device), self.A[n].to(W[n].device)).to(W[n].dtype)
                for n, b in self.B.items()}  # fmt: skip

    def kohya(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """The tensors of a file under the keys of kohya's programs, which ComfyUI, A1111 and diffusers read, too.

        alpha is the rank, so that the scale is 1. names: see `module_names`.
        """
        found = {}
        for name, b in self.B.items():
            key = names[name]
            found |= {f"{key}.lora_up.weight": b, f"{key}.lora_down.weight": self.A[name]}
            found[f"{key}.alpha"] = torch.tensor(float(b.shape[1]))
        return found

    def said(self, bytes_of_weights: int) -> str:
        """Rank, size and error in words."""
        rank = next(iter(self.B.values())).shape[1]
        name, error = self.worst
        text = f"lora_standalone.safetensors: rank {rank}, {self.size / 1e6:.2f} MB"
        text += f", ‖ΔW − BA‖ / ‖ΔW‖ {error:.2g} in the worst layer ({name})."
        if self.size >= bytes_of_weights:
            text += (
                f" The changed weights themselves take less, {bytes_of_weights / 1e6:.2f} MB: use the format weights, "
                "or give a smaller rank."
            )
        return text


def check_rank(rank: int | str | None) -> None:
    """MaceError unless the rank is 1 or more, "full", or None."""
    if rank in (None, "full") or (type(rank) is int and rank >= 1):
        return
    raise MaceError(f'The rank is {rank!r}; allowed: 1 or more, "full", or none (an error of {WORST:.0%} at most).')


def standalone(erasure, W: Mapping[str, Tensor], rank: int | str | None = None) -> Standalone:
    """The LoRA of an erasure on the original weights W (out, d), by layer; all layers have one rank.

    (diffusers scales a file of several ranks wrongly.) rank: "full": nothing is left out; None: the smallest with an
    error of `WORST` at most in every layer. MaceError for another rank.
    """
    check_rank(rank)
    if not isinstance(rank, int):
        worst = WORST if rank is None else WHOLE
        rank = max(needed(delta, worst) for _, delta in _changes(erasure, W))
    B, A, errors = {}, {}, {}
    for name, delta in _changes(erasure, W):
        B[name], A[name], errors[name] = truncated(delta, rank)
        A[name] = F.pad(A[name], (0, W[name].shape[1] - A[name].shape[1]))  # beside a pooled text: as it is
    return Standalone(B, A, errors, max(errors.values()) <= WHOLE)


def _changes(erasure, W: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """ΔW = W (R̃ − I) + Σ B D* of every layer (out, d), float64; W (R − I) of the pooled text's columns."""
    change = less_identity(erasure.fusion.R_tilde)
    for name, (b, d) in erasure.lora.items():
        w = W[name].double()
        yield name, (w @ change.to(w.device)).addmm_(b.to(w), d.to(w))
    for name, p in erasure.pooled.items():
        w = W[name].double()
        yield name, w[:, :p] @ less_identity(erasure.pooled_refinement.R).to(w.device)


def needed(delta: Tensor, worst: float) -> int:
    """The smallest rank for delta (out, d), float64, with a relative Frobenius error of `worst`; 1 or more."""
    left_out = _left_out(torch.linalg.eigvalsh(_square(delta)))
    return max(1, int((left_out > worst * left_out[-1]).sum()))


def truncated(delta: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """Factors (out, rank), (rank, d) in float32, on the CPU, of delta (out, d) in float64, and their relative error."""
    values, U = torch.linalg.eigh(_square(delta))
    r, total = min(rank, len(values)), float(_left_out(values)[-1])
    error = float(_left_out(values)[-r - 1]) / total if r < len(values) and total else 0.0
    U = U[:, -r:].flip(1)  # (side, r), largest first
    left, right = (delta @ U, U.T) if delta.shape[0] > delta.shape[1] else (U, U.T @ delta)
    left, right = F.pad(left, (0, rank - r)), F.pad(right, (0, 0, 0, rank - r))
    return left.float().cpu().contiguous(), right.float().cpu().contiguous(), error


def _square(delta: Tensor) -> Tensor:
    """ΔW ΔWᵀ or ΔWᵀ ΔW, whichever is smaller: its eigenvalues are the squares of the singular values."""
    side = delta.T if delta.shape[0] > delta.shape[1] else delta
    return side @ side.T


def _left_out(values: Tensor) -> Tensor:
    """The error where everything up to a direction is cut, from ascending eigenvalues."""
    return values.clamp(min=0).cumsum(0).sqrt()


def module_names(layers, unet) -> dict[str, str]:
    """The name of every layer in kohya's programs: diffusers' own for SD 1 and 2, the original modules' for SDXL."""
    if getattr(unet.config, "addition_embed_type", None) != "text_time":
        return {name: "lora_unet_" + name.replace(".", "_") for name in layers}
    return {name: "lora_unet_" + _original(name, unet.config.layers_per_block + 1) for name in layers}


def _original(name: str, per_block: int) -> str:
    """The module of the original SDXL that diffusers calls `name`; a block holds `per_block` of its modules."""
    if name.startswith("add_embedding"):
        return LABEL.removeprefix("lora_unet_")
    side, block, index, rest = re.fullmatch(
        r"(down|mid|up)_blocks?(?:\.(\d+))?\.attentions\.(\d+)\.(.+)", name
    ).groups()
    at = {
        "down": lambda: f"input_blocks_{1 + int(block) * per_block + int(index)}_1",
        "mid": lambda: "middle_block_1",
        "up": lambda: f"output_blocks_{int(block) * per_block + int(index)}_1",
    }[side]()
    return f"{at}_{rest.replace('.', '_')}"
