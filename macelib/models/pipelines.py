"""Loading pipelines, here or again elsewhere; their precision, their guidance, and the hashes that tell them apart."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging as transformers_logging

from ..errors import MaceError, first_line
from ..files import data_folder, hash_tensors, hash_text
from .dit import PIPELINES, kind_of
from .entrances import cross_attention, denoiser, parameters, part_of, text_encoders, text_weights
from .entrances import kv_weights as kv_weights  # known from here, too
from .families import families, family_of
from .forwards import with_forward
from .offload import offload, runs_on
from .threads import say_if_late

SHIPPED = tuple(family.shipped for family in families() if family.shipped)  # models that come with the package
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def default_device() -> torch.device:
    """cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@contextmanager
def cast(pipe, autocast: str | None) -> Iterator[None]:
    """The pipeline computes in "bf16" or "fp16"; None: as it is loaded. The text, its keys and values always as loaded.

    In W* e of an erasure large entries cancel, so that rounding W* or e to eight bits would move names that stay. It is
    a small part of the work. MaceError for another precision.
    """
    if autocast not in (None, *AUTOCAST):
        raise MaceError(f"autocast is {autocast!r}; allowed: {', '.join(AUTOCAST)} or None.")
    if autocast is None:
        yield
        return
    exact = [*text_encoders(pipe), *(denoiser(pipe).get_submodule(name) for name in text_weights(denoiser(pipe)))]
    with ExitStack() as stack:
        for module in exact:
            stack.enter_context(with_forward(module, partial(_as_loaded, module)))
        stack.enter_context(torch.autocast(runs_on(denoiser(pipe)).type, AUTOCAST[autocast]))
        yield


def _as_loaded(module: nn.Module, forward: Callable) -> Callable:
    """The module's forward pass in the precision of its weights, whatever autocast is on."""
    weight = next(module.parameters())

    def exact(*args, **kwargs):
        args = [a.to(weight.dtype) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
        with torch.autocast(runs_on(module).type, enabled=False):
            return forward(*args, **kwargs)

    return exact


def fast_precision(pipe) -> str | None:
    """The autocast that saves time at no loss to see (see `cast`): "bf16" for float32 weights where it is computed.

    None elsewhere: weights in half precision are fast as they are, and few processors gain from it.
    """
    return "bf16" if denoiser(pipe).dtype == torch.float32 and gains_from_bf16(runs_on(denoiser(pipe)).type) else None


def gains_from_bf16(device: str) -> bool:
    """Whether bfloat16 saves time on this kind of device ("cpu", "cuda").

    Processors with bf16 tiles (AMX) gain, and AMD's with bf16 vectors: mini-SD's denoiser makes 111 passes a second in
    bf16, 62 in float32. Another maker's with bf16 vectors alone did not: 67 and 97. One with neither makes 3 and 48.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    known = torch.cpu.get_capabilities()
    return bool(known.get("amx_bf16") or (known.get("avx512_bf16") and "AMD" in known.get("cpu_name", "")))


def load_pipeline(
    model: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    local_files_only: bool = False,
    low_memory: bool = False,
    **kw,
) -> DiffusionPipeline:
    """A pipeline of a kind that `check_pipeline` knows: "mini-sd", a folder, or a hub id; without a safety checker.

    dtype: float32 unless given. low_memory: its parts wait in the machine's memory, one at a time is on the device (see
    `offload`). Safetensors only. MaceError: unknown model, or one that is no such pipeline.
    """
    source, hub = _locate(model)
    dtype = dtype or torch.float32
    options = {"revision": revision, "local_files_only": local_files_only, "dtype": dtype, "device": device, **kw}
    options |= {"low_memory": True} if low_memory else {}
    again = (str(model) if hub or str(model) in SHIPPED else str(Path(source).resolve()), options)
    kw = {"use_safetensors": True, **kw}
    where = {"revision": revision, "local_files_only": local_files_only} if hub else {"local_files_only": True}
    try:
        index = DiffusionPipeline.load_config(source, **where)
        if "safety_checker" in index:
            kw = {"safety_checker": None, "requires_safety_checker": False, **kw}
        with _quiet():
            pipe = DiffusionPipeline.from_pretrained(source, dtype=dtype, **where, **kw).to(dtype=dtype)
    except (OSError, ValueError, SafetensorError) as error:
        raise MaceError(f"{_unknown(model)} ({first_line(error)})") from error
    check_pipeline(pipe)
    pipe.set_progress_bar_config(disable=True)
    pipe._macelib_source = again  # for processes that load it, too
    device = device or default_device()
    pipe = offload(pipe, device) if low_memory else pipe.to(device)
    say_if_late(runs_on(denoiser(pipe)).type, torch.get_num_threads())
    return pipe


def elsewhere(pipe) -> tuple:
    """What `load_again` takes in another process; MaceError for a pipeline that `load_pipeline` has not loaded."""
    source = pipe.__dict__.get("_macelib_source")
    if source is None:
        raise MaceError("An engine loads the model in each of its processes: load it with macelib.load_pipeline.")
    return *source, pipe.scheduler, denoiser(pipe).dtype


def load_again(model: str, options: dict, scheduler, dtype: torch.dtype) -> DiffusionPipeline:
    """The pipeline of another process (`elsewhere`), as far as loading makes it: what was changed since is missing.

    The process sees the GPU that it is to use, whatever its number is: only the kind of device is taken over.
    """
    device = options["device"] and str(options["device"]).split(":")[0]
    pipe = load_pipeline(model, **{**options, "device": device, "dtype": dtype})
    pipe.scheduler = scheduler
    return pipe


def default_guidance(pipe) -> float | None:
    """The guidance scale of a pipeline unless one is given, as its family says; None: what its own call takes."""
    return family_of(pipe).scale()


def guidance_option(pipe, guidance: float | None) -> dict[str, float]:
    """The argument of a pipeline's call for this guidance scale, by default its own; none where the call has one."""
    guidance = default_guidance(pipe) if guidance is None else guidance
    return {} if guidance is None else {"guidance_scale": guidance}


def _locate(model: str | Path) -> tuple[str, bool]:
    """Where the model is, and whether that is the hub."""
    if str(model) in SHIPPED:
        folder = data_folder() / str(model)
        if not (folder / "model_index.json").is_file():
            raise MaceError(
                f"{folder} does not hold {model}: set MACELIB_DATA to the folder of macelib's data, or train it with "
                "`make world`."
            )
        return str(folder), False
    if isinstance(model, (str, Path)) and Path(model).expanduser().is_dir():
        return str(Path(model).expanduser()), False
    parts = str(model).split("/")
    if len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~"):
        raise MaceError(_unknown(model))
    return str(model), True


def _unknown(model) -> str:
    shipped = ", ".join(SHIPPED)
    return f"{str(model)!r} is no model here: give {shipped}, a pipeline's folder, or a hub id such as owner/name."


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes on the missing safety checker, and without bars that would stay in a notebook."""
    modules = (diffusers_logging, transformers_logging)
    before = [(m, m.get_verbosity(), m.is_progress_bar_enabled()) for m in modules]
    try:
        for module in modules:
            module.set_verbosity_error()
            module.disable_progress_bar()
        yield
    finally:
        for module, verbosity, bar in before:
            module.set_verbosity(verbosity)
            if bar:
                module.enable_progress_bar()


def check_pipeline(pipe) -> None:
    """MaceError unless the places where text enters the pipeline's denoiser are known here."""
    if kind_of(pipe) is not None:
        return
    if not isinstance(getattr(pipe, "unet", None), UNet2DConditionModel) or not cross_attention(pipe.unet):
        raise MaceError(
            f"{type(pipe).__name__} has no UNet with cross-attention, and is none of {', '.join(PIPELINES)}: where its "
            "text enters is not known here; load a Stable Diffusion 1, 2, XL or 3, PixArt, Sana or FLUX.1 pipeline."
        )


def drawing_hash(pipe) -> str:
    """What pictures depend on besides `model_hash`: a sample of every weight of UNet and VAE, scheduler, guidance."""
    some = {
        f"{part}.{name}": p.detach().flatten()[:64]
        for part in (part_of(pipe), "vae")
        for name, p in getattr(pipe, part).named_parameters()
    }
    settings = sorted((k, str(v)) for k, v in pipe.scheduler.config.items() if not k.startswith("_"))
    return hash_text(hash_tensors(some), type(pipe.scheduler).__name__, settings, default_guidance(pipe))


def model_hash(pipe) -> str:
    """Identity of the base model: hash over the original weights that read the text, and the text encoders.

    An erasure does not change it. MaceError where something else has changed the weights under an applied erasure.
    """
    from .text import text_hash

    return hash_text(hash_tensors(kept_weights(denoiser(pipe)) or text_weights(denoiser(pipe))), text_hash(pipe))


def kept_weights(unet) -> dict[str, torch.Tensor] | None:
    """The original weights that read the text, which an applied erasure keeps, by name; None where none is applied.

    MaceError where something else has changed the weights since: nobody can tell then what the original ones are.
    """
    kept = getattr(unet, "_macelib_originals", None)
    if kept is not None:
        check_written(parameters(unet), unet._macelib_written)
    return kept


def check_written(weights: dict[str, torch.Tensor], written: dict[str, torch.Tensor]) -> None:
    """MaceError where weights are not those of the `signature` that is given; what rounding changes is allowed."""
    for name, now in signature({name: weights[name] for name in written}).items():
        allowed = 2 * torch.finfo(weights[name].dtype).eps * written[name].norm()
        if not bool((now - written[name]).norm() <= allowed):
            raise MaceError(
                f"The weights of {name} are not those that the applied erasure wrote: something else changed them, "
                "such as a LoRA that was fused, or weights that were loaded. Undo that, or load the pipeline anew."
            )


def signature(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """W s of every W (out, ...), s a fixed row of signs: (out,) float64, on the CPU. It tells weights apart.

    Rounding, as where a LoRA was fused and unfused, or by another precision, moves it by as little as it moves W.
    """
    found, signs = {}, torch.Generator().manual_seed(0)
    for name, w in weights.items():
        flat = w.detach().cpu().double().reshape(len(w), -1)  # (out, d)
        found[name] = flat @ (torch.randint(2, flat.shape[1:], generator=signs).double() * 2 - 1)
    return found
