"""Weights under an applied erasure that something else changes: noticed, or right in the end."""

import pytest
import torch
from peft import LoraConfig
from test_erasure import make, weights

from macelib import MaceError
from macelib.evaluate.pictures import Drawing
from macelib.models.pipelines import kv_weights, model_hash
from macelib.models.swap import base_hash, untouched
from macelib.models.tiny import tiny_pipeline


@pytest.fixture(scope="module")
def erasure():
    return make(tiny_pipeline("sd"))


@pytest.fixture
def applied(erasure):
    pipe = tiny_pipeline("sd")
    erasure.apply(pipe)
    return pipe


def fuse_lora(pipe, std=0.05):
    pipe.unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v"]), "mine")
    for name, p in pipe.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=std)
    pipe.fuse_lora(adapter_names=["mine"])


def every_way(erasure, pipe, tmp_path):
    """Whatever needs the original weights."""
    return [
        lambda: erasure.apply(pipe),
        lambda: erasure.apply(pipe, force=True),
        lambda: erasure.remove(pipe),
        lambda: erasure.export(pipe, tmp_path / "weights", "weights"),
        lambda: erasure.export(pipe, tmp_path / "pipeline"),
        lambda: erasure.check(pipe),
        lambda: model_hash(pipe),
        lambda: base_hash(pipe),
        lambda: untouched(pipe).__enter__(),
        lambda: Drawing().about(pipe),
    ]


def test_other_weights_under_an_erasure_are_noticed_everywhere(erasure, applied, tmp_path):
    applied.unet.load_state_dict(tiny_pipeline("sd", seed=5).unet.state_dict())
    before = weights(applied)
    for way in every_way(erasure, applied, tmp_path):
        with pytest.raises(MaceError, match="something else changed them"):
            way()
    assert all(torch.equal(w, before[name]) for name, w in weights(applied).items())


@pytest.mark.parametrize("std", [0.05, 1e-4])
def test_a_fused_lora_is_noticed_and_may_be_taken_out_again(erasure, applied, std):
    original = weights(tiny_pipeline("sd"))
    fuse_lora(applied, std)
    with pytest.raises(MaceError, match="such as a LoRA that was fused"):
        erasure.remove(applied)
    applied.unfuse_lora()
    erasure.apply(applied)  # the erasure's weights but for rounding
    erasure.remove(applied)
    assert all(torch.equal(w, original[name]) for name, w in weights(applied).items())


def test_a_lora_beside_the_weights_does_not_matter(erasure, applied):
    applied.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"]), "mine")
    erasure.remove(applied)
    original = weights(tiny_pipeline("sd"))
    assert all(torch.equal(w, original[name]) for name, w in weights(applied).items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_another_precision_is_still_the_erasure(erasure, applied, dtype):
    applied.unet.to(dtype)
    erasure.remove(applied)
    rounded = {name: w.to(dtype) for name, w in weights(tiny_pipeline("sd")).items()}
    assert all(torch.equal(w, rounded[name]) for name, w in weights(applied).items())


def test_one_nan_is_noticed(erasure, applied):
    with torch.no_grad():
        next(iter(kv_weights(applied.unet).values()))[0, 0] = float("nan")
    with pytest.raises(MaceError, match="something else changed"):
        erasure.remove(applied)


def test_another_text_encoder_under_an_erasure_is_another_base(erasure, applied):
    assert base_hash(applied) == erasure.base
    applied.text_encoder.load_state_dict(tiny_pipeline("sd", seed=5).text_encoder.state_dict())
    with pytest.raises(MaceError, match="another base model"):
        erasure.apply(applied)
    erasure.remove(applied)
