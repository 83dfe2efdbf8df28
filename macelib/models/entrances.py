"""Where text enters a model: the linear layers that read it, and so the weights that an erasure changes.

Constant text: cross-attention's keys and values read one vector per token, in a UNet as in PixArt and Sana. Joint
attention (SD3, FLUX): one linear layer at the entrance, behind which text and picture change together. Some models read
a second text besides: one pooled vector per prompt, in SDXL in the first columns of a linear layer, beside the numbers
of the picture's size.
"""

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ..errors import MaceError

POOLED = "add_embedding.linear_1"  # SDXL: reads the pooled text and the time ids, side by side
ENTRANCE, POOLED_JOINT = "context_embedder", "time_text_embed.text_embedder.linear_1"  # SD3 and FLUX
JOINT = ("SD3Transformer2DModel", "FluxTransformer2DModel")


def denoiser(pipe) -> nn.Module:
    """The part of a pipeline that denoises: its UNet or its transformer; MaceError for what has neither."""
    if (model := getattr(pipe, part_of(pipe), None)) is None:
        raise MaceError(f"{pipe!r:.80} is no pipeline: give one as macelib.load_pipeline returns it.")
    return model


def part_of(pipe) -> str:
    """What the pipeline calls its denoiser: "unet" or "transformer"."""
    return "unet" if getattr(pipe, "unet", None) is not None else "transformer"


def text_encoders(pipe) -> list[nn.Module]:
    """The pipeline's text encoders that are there, in its order."""
    found = (getattr(pipe, name, None) for name in ("text_encoder", "text_encoder_2", "text_encoder_3"))
    return [encoder for encoder in found if encoder is not None]


def is_joint(model: nn.Module) -> bool:
    """Whether text and picture attend to each other in one softmax (SD3, FLUX)."""
    return any(kind.__name__ in JOINT for kind in type(model).__mro__)


def cross_attention(model: nn.Module) -> dict[str, Attention]:
    """Every cross-attention layer (attn2) by module path, in the order in which the model runs them."""
    order = ("down_blocks", "mid_block", "up_blocks", "transformer_blocks")
    found = {n: m for n, m in model.named_modules() if n.rsplit(".", 1)[-1] == "attn2" and m.is_cross_attention}
    return {n: found[n] for block in order for n in found if n.split(".")[0] == block}


def text_attention(model: nn.Module) -> dict[str, nn.Module]:
    """Every layer in which a picture attends to the text, by module path, in the order in which the model runs them."""
    if not is_joint(model):
        return cross_attention(model)
    blocks = ((kind, getattr(model, kind, ())) for kind in ("transformer_blocks", "single_transformer_blocks"))
    return {f"{kind}.{i}.attn": block.attn for kind, some in blocks for i, block in enumerate(some)}


def kv_names(model: nn.Module) -> list[str]:
    """Module paths of the matrices that MACE changes, in the order of execution: those that read the text's tokens.

    "...attn2.to_k" and "...attn2.to_v"; with joint attention the one at the entrance.
    """
    if is_joint(model):
        return [ENTRANCE]
    return [f"{name}.{part}" for name in cross_attention(model) for part in ("to_k", "to_v")]


def kv_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights W_k, W_v (out, d) by module path, without those of a loaded LoRA."""
    return _weights(model, kv_names(model))


def pooled_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weight (out, p + more) by module path whose first p columns read the pooled text; empty where none does."""
    sdxl = getattr(model.config, "addition_embed_type", None) == "text_time"
    return _weights(model, [POOLED_JOINT] if is_joint(model) else [POOLED] if sdxl else [])


def text_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every weight that an erasure changes: `kv_weights` and `pooled_weights`."""
    return {**kv_weights(model), **pooled_weights(model)}


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every weight and bias by its name in the model's state dict, without those of a loaded LoRA."""
    return {n.replace(".base_layer.", "."): p for n, p in model.named_parameters() if ".lora_" not in n}


def pooled_columns(W: Tensor, R: Tensor) -> Tensor:
    """W (out, p + more) with W R in its first p columns and the others as they are, computed in float32; R: (p, p)."""
    p, change = len(R), (R - torch.eye(len(R)).to(R)).to(W.device, torch.float32)
    text = W[:, :p].float()
    return torch.cat([torch.addmm(text, text, change).to(W.dtype), W[:, p:]], 1)


def _weights(model: nn.Module, names: list[str]) -> dict[str, nn.Parameter]:
    modules = {name: model.get_submodule(name) for name in names}
    return {name: getattr(module, "base_layer", module).weight for name, module in modules.items()}
