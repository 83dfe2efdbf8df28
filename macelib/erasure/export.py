"""An erasure for other programs: a diffusers folder, the changed weights alone, or LoRA files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..concepts import sample_prompt
from ..errors import MaceError
from ..files import atomic, check_named
from ..method.fuse import changed, less_identity
from ..models.entrances import denoiser, part_of, pooled_columns
from ..models.sample import check_drawing, generate
from ..models.swap import originals, untouched, write
from ..models.text import check_prompt
from .standalone import Standalone, check_rank, module_names, standalone

FORMATS = {
    "pipeline": "The erased pipeline: DiffusionPipeline.from_pretrained(FOLDER).",
    "weights": "{part}.safetensors holds the changed weights: "
    "pipe.{part}.load_state_dict(safetensors.torch.load_file(FILE), strict=False).",
    "lora": "ComfyUI, A1111: lora_standalone.safetensors on the original model, strength 1 (UNet only).\n"
    "diffusers: load base.safetensors into pipe.unet (load_state_dict, strict=False), then "
    'pipe.load_lora_weights(FOLDER, weight_name="lora.safetensors").',
}


IN_DIFFUSERS = (
    'diffusers: pipe.load_lora_weights(FOLDER, weight_name="lora_standalone.safetensors") on the original model.\n'
    "Or load base.safetensors into pipe.transformer (load_state_dict, strict=False), then lora.safetensors in this way."
)


def check_format(format: str) -> None:
    """MaceError for a format that is not in FORMATS."""
    if format not in FORMATS:
        raise MaceError(f"There is no export format {format!r}; choose from {', '.join(FORMATS)}.")


def export(
    erasure,
    pipe,
    folder: str | Path,
    format: str = "pipeline",
    force: bool = False,
    rank: int | str | None = None,
    prompt: str | None = None,
    steps: int = 20,
) -> Path:
    """Write the erased model into a new folder, with a README.txt on loading it; the pipeline is left as it was.

    rank: of lora_standalone.safetensors, see `standalone`; what it leaves out is measured on a picture of the `prompt`
    (None: the first concept's) in `steps`, and said in README.txt.
    MaceError: unknown format, a folder that holds something, a pipeline of another base (unless `force`), no LoRA for
    "lora", a rank for another format.
    """
    check_format(format)
    check_rank(rank)
    if rank is not None and format != "lora":
        raise MaceError(f"A rank goes with the format lora, not with {format}: leave it out.")
    check_folder(folder)
    if not erasure.parts:
        raise MaceError("This erasure holds no concept: there is nothing to export.")
    if format == "lora" and not any(D.numel() for _, D in erasure.lora.values()):
        raise MaceError("This erasure is of stage 1 alone and has no LoRA: export it as pipeline or weights.")
    if format == "lora" and not hasattr(pipe, "load_lora_weights"):
        raise MaceError(f"{type(pipe).__name__} loads no LoRA: export it as pipeline or weights.")
    erasure.check(pipe, force)
    prompt = prompt or sample_prompt(erasure.concepts[0])
    if format == "lora":
        check_prompt(pipe, prompt)
        check_drawing(pipe, (), steps)
    with new_folder(folder, format, part_of(pipe)) as temporary:
        if format == "lora":
            said = _lora(erasure, pipe, temporary, rank, prompt, steps)
            use = FORMATS[format] if part_of(pipe) == "unet" else IN_DIFFUSERS
            (temporary / "README.txt").write_text(f"{use}\n\n{said}\n", encoding="utf-8")
        else:
            _WRITERS[format](erasure, pipe, temporary)
    return Path(folder)


def check_folder(folder: str | Path) -> None:
    """MaceError for a folder that holds something, is none, or has no name."""
    folder = check_named(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MaceError(f"{folder} exists and is not empty: export to a new folder.")


@contextmanager
def new_folder(folder: str | Path, format: str, part: str = "unet") -> Iterator[Path]:
    """A folder to export into, with a README.txt on loading what is written there; none is left after an error.

    part: what the pipeline calls its denoiser.
    """
    check_folder(folder)
    if Path(folder).exists():
        Path(folder).rmdir()
    with atomic(folder) as temporary, torch.no_grad():
        temporary.mkdir(parents=True)
        (temporary / "README.txt").write_text(FORMATS[format].format(part=part) + "\n", encoding="utf-8")
        yield temporary


def _pipeline(erasure, pipe, folder: Path) -> None:
    with untouched(pipe):
        erasure.apply(pipe, force=True)
        pipe.save_pretrained(folder)


def _weights(erasure, pipe, folder: Path) -> None:
    _save(dict(erasure.weights(originals(denoiser(pipe)))), folder / f"{part_of(pipe)}.safetensors")


def _lora(erasure, pipe, folder: Path, rank: int | str | None, prompt: str, steps: int) -> str:
    """Write both ways to use a LoRA; what is to be said of the standalone one."""
    W, change = originals(denoiser(pipe)), less_identity(erasure.fusion.R_tilde).float()
    base = {name: changed(W[name], change, name) for name in erasure.lora}  # W R̃
    base |= {name: pooled_columns(W[name], erasure.pooled_refinement.R) for name in erasure.pooled}
    _save(base, folder / "base.safetensors")
    B, D = ({n: pair[i] for n, pair in erasure.lora.items()} for i in (0, 1))
    save_peft(folder / "lora.safetensors", B, D, prefix=part_of(pipe))
    found = standalone(erasure, W, rank)
    if part_of(pipe) == "unet":
        save_file(found.kohya(module_names(found.B, denoiser(pipe))), folder / "lora_standalone.safetensors")
    else:
        save_peft(folder / "lora_standalone.safetensors", found.B, found.A, prefix=part_of(pipe))
    said = found.said(sum(W[name].numel() * W[name].element_size() for name in found.B))
    if not found.whole:
        gap = _largest_difference(erasure, pipe, found, prompt, steps)
        said += f"\nOf 256 levels, a picture of {prompt!r} ({steps} steps) differs by {gap:.1f} at most from apply's."
    if erasure.pooled and part_of(pipe) == "unet":
        said += (
            "\nThe pooled text's map is lora_unet_label_emb_0_0: a program that does not know this key leaves it out."
        )
    return said


def _largest_difference(erasure, pipe, found: Standalone, prompt: str, steps: int) -> float:
    """Between a picture by the applied erasure and one by the standalone LoRA: 0 to 255."""
    pictures = []
    with untouched(pipe):
        W = originals(denoiser(pipe))
        for new in (dict(erasure.weights(W)), found.weights(W)):
            write(denoiser(pipe), W, new)
            (picture,) = generate(pipe, prompt, [0], steps)
            pictures.append(torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).int())
    return float((pictures[0] - pictures[1]).abs().max())


_WRITERS = {"pipeline": _pipeline, "weights": _weights}


def _save(weights: dict[str, Tensor], path: Path) -> None:
    """Weights by layer as entries of the denoiser's state dict."""
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


def save_peft(
    path: str | Path, B: dict[str, Tensor], D: dict[str, Tensor], alpha: float | None = None, prefix: str = "unet"
) -> Path:
    """Write one LoRA as safetensors for `pipe.load_lora_weights(path)`, with its LoraConfig in the header."""
    config = {k: v for k, v in peft_config(D, alpha).to_dict().items() if v is not None}
    about = {f"{prefix}.{k}": sorted(v) if isinstance(v, set) else v for k, v in config.items()}
    header = {"format": "pt", "lora_adapter_metadata": json.dumps(about, default=str)}
    with atomic(path) as temporary:
        save_file(peft_state(B, D, alpha, prefix), temporary, metadata=header)
    return Path(path)
