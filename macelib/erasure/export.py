"""An erasure for other programs: a diffusers folder, the changed weights alone, or LoRA files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ..errors import MaceError
from ..files import atomic
from ..method.fuse import Fusion, fused_weight, less_identity
from ..models.entrances import pooled_columns
from ..models.swap import originals, untouched

LABEL = "lora_unet_label_emb_0_0"  # what other programs call the layer that reads SDXL's pooled text
FORMATS = {
    "pipeline": "The erased pipeline: DiffusionPipeline.from_pretrained(FOLDER).",
    "weights": "unet.safetensors holds the changed weights: "
    "pipe.unet.load_state_dict(safetensors.torch.load_file(FILE), strict=False).",
    "lora": "ComfyUI, A1111: lora_standalone.safetensors on the original model, strength 1 (UNet only).\n"
    "diffusers: load base.safetensors into pipe.unet (load_state_dict, strict=False), then "
    'pipe.load_lora_weights(FOLDER, weight_name="lora.safetensors").',
}


def check_format(format: str) -> None:
    """MaceError for a format that is not in FORMATS."""
    if format not in FORMATS:
        raise MaceError(f"There is no export format {format!r}; choose from {', '.join(FORMATS)}.")


def export(erasure, pipe, folder: str | Path, format: str = "pipeline", force: bool = False) -> Path:
    """Write the erased model into a new folder, with a README.txt on loading it; the pipeline is left as it was.

    MaceError: unknown format, a folder that holds something, a pipeline of another base (unless `force`), no LoRA for
    "lora".
    """
    check_format(format)
    check_folder(folder)
    if not erasure.parts:
        raise MaceError("This erasure holds no concept: there is nothing to export.")
    if format == "lora" and not any(D.numel() for _, D in erasure.lora.values()):
        raise MaceError("This erasure is of stage 1 alone and has no LoRA: export it as pipeline or weights.")
    erasure.check(pipe, force)
    with new_folder(folder, format) as temporary:
        _WRITERS[format](erasure, pipe, temporary)
    return Path(folder)


def check_folder(folder: str | Path) -> None:
    """MaceError for a folder that holds something, or is none."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MaceError(f"{folder} exists and is not empty: export to a new folder.")


@contextmanager
def new_folder(folder: str | Path, format: str) -> Iterator[Path]:
    """A folder to export into, with a README.txt on loading what is written there; none is left after an error."""
    check_folder(folder)
    if Path(folder).exists():
        Path(folder).rmdir()
    with atomic(folder) as temporary, torch.no_grad():
        temporary.mkdir(parents=True)
        yield temporary
        (temporary / "README.txt").write_text(FORMATS[format] + "\n", encoding="utf-8")


def _pipeline(erasure, pipe, folder: Path) -> None:
    with untouched(pipe):
        erasure.apply(pipe, force=True)
        pipe.save_pretrained(folder)


def _weights(erasure, pipe, folder: Path) -> None:
    _save(dict(erasure.weights(originals(pipe.unet))), folder / "unet.safetensors")


def _lora(erasure, pipe, folder: Path) -> None:
    W, fusion = originals(pipe.unet), erasure.fusion
    left, right = low_rank(fusion.R_tilde - torch.eye(erasure.width, dtype=fusion.R_tilde.dtype))
    base, kohya = {}, {}
    for name, (B, D) in erasure.lora.items():
        base[name] = fused_weight(W[name], Fusion(fusion.R_tilde, []), [], name, torch.float32)  # W R̃
        up = torch.cat([W[name].cpu().double() @ left, B.double()], 1)  # (out, ρ + Σr): W R̃ = W + (W left) right
        down = torch.cat([right, D.double()])  # (ρ + Σr, d)
        key = "lora_unet_" + name.replace(".", "_")
        kohya |= {f"{key}.lora_up.weight": up.float(), f"{key}.lora_down.weight": down.float()}
        kohya[f"{key}.alpha"] = torch.tensor(float(len(down)))  # alpha = rank: scale 1
    for name, p in erasure.pooled.items():
        base[name] = pooled_columns(W[name], erasure.pooled_refinement.R)
        left, right = low_rank(less_identity(erasure.pooled_refinement.R))
        up, down = W[name][:, :p].cpu().double() @ left, F.pad(right, (0, W[name].shape[1] - p))
        kohya |= {f"{LABEL}.lora_up.weight": up.float(), f"{LABEL}.lora_down.weight": down.float()}
        kohya[f"{LABEL}.alpha"] = torch.tensor(float(len(down)))
    _save(base, folder / "base.safetensors")
    save_peft(folder / "lora.safetensors", *({n: pair[i] for n, pair in erasure.lora.items()} for i in (0, 1)))
    save_file(kohya, folder / "lora_standalone.safetensors")


_WRITERS = {"pipeline": _pipeline, "weights": _weights, "lora": _lora}


def low_rank(M: Tensor, tolerance: float = 1e-5) -> tuple[Tensor, Tensor]:
    """M (d, d) as (d, ρ) times (ρ, d) with the smallest ρ for a relative Frobenius error of `tolerance`; ρ >= 1."""
    U, S, Vh = torch.linalg.svd(M)
    tail = S.square().flip(0).cumsum(0).flip(0).sqrt()  # error if cut before this direction
    rank = max(1, int((tail > tolerance * tail[0]).sum()))
    return U[:, :rank] * S[:rank], Vh[:rank]


def _save(weights: dict[str, Tensor], path: Path) -> None:
    """Weights by layer as entries of the UNet's state dict."""
    save_file({f"{name}.weight": w.contiguous().cpu() for name, w in weights.items()}, path)


def peft_state(
    B: dict[str, Tensor], D: dict[str, Tensor], alpha: float | None = None, prefix: str = "unet"
) -> dict[str, Tensor]:
    """One LoRA under the names of PEFT and diffusers; PEFT multiplies by alpha / r, so B is divided by it."""
    state = {}
    for name in B:
        r = D[name].shape[0]
        state[f"{prefix}.{name}.lora_A.weight"] = D[name].contiguous().cpu()  # (r, d)
        state[f"{prefix}.{name}.lora_B.weight"] = (B[name] * (r / (alpha or r))).contiguous().cpu()  # (out, r)
    return state


def peft_config(D: dict[str, Tensor], alpha: float | None = None):
    """`peft.LoraConfig` of a LoRA whose layers have one rank."""
    from peft import LoraConfig

    r = next(iter(D.values())).shape[0]
    return LoraConfig(r=r, lora_alpha=alpha or r, target_modules=list(D), init_lora_weights=False)


def save_peft(path: str | Path, B: dict[str, Tensor], D: dict[str, Tensor], alpha: float | None = None) -> Path:
    """Write one LoRA as safetensors for `pipe.load_lora_weights(path)`, with its LoraConfig in the header."""
    config = {k: v for k, v in peft_config(D, alpha).to_dict().items() if v is not None}
    about = {f"unet.{k}": sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    header = {"format": "pt", "lora_adapter_metadata": json.dumps(about, default=str)}
    with atomic(path) as temporary:
        save_file(peft_state(B, D, alpha), temporary, metadata=header)
    return Path(path)
