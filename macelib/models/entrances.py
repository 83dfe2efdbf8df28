"""Where text enters a model: the linear layers that read it, and so the weights that an erasure changes.

Cross-attention's keys and values read one vector per token. SDXL reads a second text past them: one pooled vector per
prompt, which stands in the first columns of a linear layer, beside the numbers of the picture's size.
"""

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

POOLED = "add_embedding.linear_1"  # SDXL: reads the pooled text and the time ids, side by side


def cross_attention(unet: nn.Module) -> dict[str, Attention]:
    """Every cross-attention layer (attn2) by module path, in the order in which the UNet runs them."""
    order = ("down_blocks", "mid_block", "up_blocks")
    found = {n: m for n, m in unet.named_modules() if n.rsplit(".", 1)[-1] == "attn2" and m.is_cross_attention}
    return {n: found[n] for block in order for n in found if n.split(".")[0] == block}


def kv_names(unet: nn.Module) -> list[str]:
    """Module paths of the matrices that MACE changes: "...attn2.to_k", "...attn2.to_v"; in the order of execution."""
    return [f"{name}.{part}" for name in cross_attention(unet) for part in ("to_k", "to_v")]


def kv_weights(unet: nn.Module) -> dict[str, nn.Parameter]:
    """The weights W_k, W_v (out, d) by module path, without those of a loaded LoRA."""
    return _weights(unet, kv_names(unet))


def pooled_weights(unet: nn.Module) -> dict[str, nn.Parameter]:
    """The weight (out, p + more) by module path whose first p columns read the pooled text; empty where none does."""
    return _weights(unet, [POOLED] if getattr(unet.config, "addition_embed_type", None) == "text_time" else [])


def text_weights(unet: nn.Module) -> dict[str, nn.Parameter]:
    """Every weight that an erasure changes: `kv_weights` and `pooled_weights`."""
    return {**kv_weights(unet), **pooled_weights(unet)}


def parameters(unet: nn.Module) -> dict[str, nn.Parameter]:
    """Every weight and bias by its name in the UNet's state dict, without those of a loaded LoRA."""
    return {n.replace(".base_layer.", "."): p for n, p in unet.named_parameters() if ".lora_" not in n}


def pooled_columns(W: Tensor, R: Tensor) -> Tensor:
    """W (out, p + more) with W R in its first p columns and the others as they are, computed in float32; R: (p, p)."""
    p, change = len(R), (R - torch.eye(len(R)).to(R)).to(W.device, torch.float32)
    text = W[:, :p].float()
    return torch.cat([torch.addmm(text, text, change).to(W.dtype), W[:, p:]], 1)


def _weights(unet: nn.Module, names: list[str]) -> dict[str, nn.Parameter]:
    modules = {name: unet.get_submodule(name) for name in names}
    return {name: getattr(module, "base_layer", module).weight for name, module in modules.items()}
