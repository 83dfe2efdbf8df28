"""Small random pipelines in the layouts of PixArt, Sana, SD3 and FLUX.1, of stock classes: see `models.tiny`."""

import inspect
import json
from functools import lru_cache

import torch
from diffusers import (
    AutoencoderDC,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from macelib.models.tiny import WORDS, tiny_tokenizer, tiny_vae
from macelib.templates import SAMPLE_TEMPLATE, TEMPLATES

WIDTH = 32  # of every transformer, two heads of 16


def tiny_transformer(kind: str, seed: int = 0) -> DiffusionPipeline:
    """A random pipeline on the CPU: "pixart" (Sigma), "sana", "sd3" (with 3.5-medium's second attention) or "flux".

    Their tokenizers are trained on the templates' words. Pictures are small: 32 or 64 pixels. The same seed gives the
    same weights; the global random state is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = {"pixart": _pixart, "sana": _sana, "sd3": _sd3, "flux": _flux}[kind]()
        for _name, p in pipe.transformer.named_parameters():  # some begin at zero: blocks that do nothing
            if p.ndim > 1 and not p.any():
                p.data.normal_(std=0.02)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _pixart() -> PixArtSigmaPipeline:
    tokenizer = tiny_unigram()
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=_t5(tokenizer, 24),
        vae=tiny_vae(1.5, shift=0.06),
        transformer=PixArtTransformer2DModel(
            sample_size=16, num_layers=2, in_channels=4, out_channels=8, num_attention_heads=2, attention_head_dim=16,
            cross_attention_dim=WIDTH, caption_channels=24, norm_num_groups=8,
        ),
        scheduler=DPMSolverMultistepScheduler(beta_schedule="linear"),
    )  # fmt: skip


def _sana() -> SanaPipeline:
    tokenizer = tiny_bpe()
    text = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=12, query_pre_attn_scalar=12, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=Gemma2Model(text),
        vae=AutoencoderDC(
            latent_channels=4, attention_head_dim=4, encoder_block_types="ResBlock", decoder_block_types="ResBlock",
            encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
            encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), ()), decoder_qkv_multiscales=((), (), ()),
            downsample_block_type="conv", upsample_block_type="interpolate", scaling_factor=0.41407,
        ),
        transformer=SanaTransformer2DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
            num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=WIDTH, caption_channels=24,
            sample_size=8, qk_norm="rms_norm_across_heads",
        ),
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )  # fmt: skip


def _sd3() -> StableDiffusion3Pipeline:
    first, second, third = tiny_tokenizer(), tiny_tokenizer(pad="!"), tiny_unigram()
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=16, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=48, caption_projection_dim=WIDTH, pooled_projection_dim=32, out_channels=4,
            pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=tiny_vae(1.5, shift=0.06),
        text_encoder=CLIPTextModelWithProjection(_clip(first, "quick_gelu")),
        tokenizer=first,
        text_encoder_2=CLIPTextModelWithProjection(_clip(second, "gelu")),
        tokenizer_2=second,
        text_encoder_3=_t5(third, 48),
        tokenizer_3=third,
    )  # fmt: skip


def _flux() -> FluxPipeline:
    first, second = tiny_tokenizer(), tiny_unigram()
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=tiny_vae(1.5, shift=0.06),
        text_encoder=CLIPTextModel(_clip(first, "quick_gelu")),
        tokenizer=first,
        text_encoder_2=_t5(second, 48),
        tokenizer_2=second,
        transformer=FluxTransformer2DModel(
            in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=48, pooled_projection_dim=24, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
        ),
    )  # fmt: skip
    pipe.default_sample_size = 16
    return pipe


def _clip(tokenizer, act: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, hidden_act=act, projection_dim=16, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def _t5(tokenizer, width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=12, d_ff=2 * width, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False,
    )  # fmt: skip
    return T5EncoderModel(config)


def _texts() -> list[str]:
    return [*SAMPLE_TEMPLATE.values(), WORDS, *(t for kind in ("object", "style") for t in TEMPLATES[kind])]


def tiny_unigram() -> T5Tokenizer:
    """A T5 tokenizer (Unigram) of pieces that are learned from the templates' words; the fewest pieces win.

    (The scores that are learned with them differ in their last digits from call to call.)
    """
    pieces = [(piece, -3.0 - 0.001 * i) for i, piece in enumerate(_pieces())]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=[*special, *pieces], extra_ids=0, model_max_length=512)


@lru_cache(maxsize=1)
def _pieces() -> list[str]:
    """The vocabulary of a trained Unigram model."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    trained.train_from_iterator(
        _texts(), trainers.UnigramTrainer(vocab_size=400, show_progress=False, initial_alphabet=letters)
    )
    return sorted(trained.get_vocab())


def tiny_bpe() -> GemmaTokenizer:
    """A Gemma tokenizer (BPE with bytes to fall back on) that is trained on the templates' and Sana's words."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{i:02X}>" for i in range(256))]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    trained.train_from_iterator([*_texts(), *instruction], trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    return GemmaTokenizer(vocab=trained.get_vocab(), merges=merges, add_bos_token=True, model_max_length=10**4)
