"""Loading, and the matrices that MACE changes, on stock pipelines of every layout."""

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from macelib.errors import MaceError
from macelib.models.entrances import kv_names
from macelib.models.pipelines import (
    cross_attention,
    default_device,
    fast_precision,
    kv_weights,
    load_pipeline,
    model_hash,
)
from macelib.models.swap import originals, write
from macelib.models.text import embedding_size
from macelib.models.tiny import KINDS, tiny_pipeline, tiny_tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_pipelines_are_the_same(kind, tmp_path):
    pipe = tiny_pipeline(kind)
    pipe.save_pretrained(tmp_path / "model")
    loaded = load_pipeline(tmp_path / "model", device="cpu")
    assert type(loaded) is type(pipe) and loaded.unet.dtype == torch.float32 and loaded.device.type == "cpu"
    assert model_hash(loaded) == model_hash(pipe)
    half = load_pipeline(str(tmp_path / "model"), device="cpu", dtype=torch.float16)
    assert half.unet.dtype == half.text_encoder.dtype == half.vae.dtype == torch.float16


@pytest.mark.parametrize("kind", KINDS)
def test_cross_attention_comes_in_the_order_of_execution(kind):
    pipe, ran = tiny_pipeline(kind), []
    layers = cross_attention(pipe.unet)
    for name, module in layers.items():
        module.register_forward_hook(lambda *_, n=name: ran.append(n))
    pipe("a ship", num_inference_steps=1, output_type="latent")
    assert ran == list(layers) and len(ran) >= 7
    assert kv_names(pipe.unet)[:2] == [f"{ran[0]}.to_k", f"{ran[0]}.to_v"]
    weights = kv_weights(pipe.unet)
    assert list(weights) == kv_names(pipe.unet) and {w.shape[1] for w in weights.values()} == {embedding_size(pipe)}
    assert all(weights[n] is pipe.unet.get_parameter(f"{n}.weight") for n in weights)


def test_model_hash_sees_the_base_and_not_the_erasure():
    pipe, other = tiny_pipeline("sd"), tiny_pipeline("sd", seed=1)
    base = model_hash(pipe)
    assert base == model_hash(tiny_pipeline("sd")) != model_hash(other)
    weights = kv_weights(pipe.unet)
    with torch.no_grad():
        write(pipe.unet, originals(pipe.unet), {n: w + 1 for n, w in weights.items()})
    assert model_hash(pipe) == base
    del pipe.unet._macelib_originals
    assert model_hash(pipe) != base


def test_unknown_models_are_refused(tmp_path, monkeypatch):
    for bad in ("nosuch", "a/b/c", "./nosuch", None, 5):
        with pytest.raises(MaceError, match=r"is no model here: give mini-sd, a pipeline's folder, or a hub id"):
            load_pipeline(bad)
    with pytest.raises(MaceError, match="is no model here"):
        load_pipeline(tmp_path)
    with pytest.raises(MaceError, match="is no model here"):
        load_pipeline("owner/nosuch", local_files_only=True)
    monkeypatch.setenv("MACELIB_DATA", str(tmp_path))
    with pytest.raises(MaceError, match="does not hold mini-sd: set MACELIB_DATA"):
        load_pipeline("mini-sd")
    tiny_pipeline("sd").save_pretrained(tmp_path / "mini-sd")
    assert load_pipeline("mini-sd", device="cpu").unet.config.sample_size == 16
    unet = UNet2DModel(8, 3, 3, block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownBlock2D",),
                       up_block_types=("UpBlock2D",), layers_per_block=1)  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "plain")
    with pytest.raises(MaceError, match="no UNet with cross-attention"):
        load_pipeline(tmp_path / "plain")


def test_the_tiny_pipeline_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    tiny_pipeline("sd", seed=3)
    assert torch.equal(torch.rand(1), expected)
    with pytest.raises(MaceError, match="sd, sd2, sdxl"):
        tiny_pipeline("sd3")


def test_the_tiny_tokenizer_is_clips():
    tokenizer = tiny_tokenizer(20)
    ids = tokenizer("A photo of the ship").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True).split() == ["a", "photo", "of", "the", "ship"]
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id and len(ids) == 7
    assert len(tokenizer("zyx é").input_ids) > 5  # unknown words fall into letters


def test_default_device_exists():
    torch.zeros(1, device=default_device())


def test_a_fast_precision_is_one_that_the_processor_has(monkeypatch):
    pipe, known = tiny_pipeline("sd"), {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert fast_precision(pipe) is None
    known["avx512_bf16"] = True
    assert fast_precision(pipe) is None, "bf16 vectors alone are slower than float32"
    known["cpu_name"] = "AMD EPYC"
    assert fast_precision(pipe) == "bf16", "but not on AMD's processors"
    del known["cpu_name"]
    known["amx_bf16"] = True
    assert fast_precision(pipe) == "bf16"
    pipe.unet.to(torch.float16)
    assert fast_precision(pipe) is None, "weights in half precision are left as they are"
