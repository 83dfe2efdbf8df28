"""NaN is named where it appears: prompt, part of the pipeline, and why."""

import numpy as np
import pytest
import torch
from tiny_data import tiny_clip, tiny_judge

from macelib import Concept, EraseConfig, MaceError, erase
from macelib.evaluate import ClipClassifier, Judge
from macelib.method.fuse import changed
from macelib.method.masks import attention_maps
from macelib.models.finite import not_finite
from macelib.models.pipelines import cast
from macelib.models.sample import encode_images, generate
from macelib.models.text import encode
from macelib.models.tiny import tiny_pipeline

NAN = float("nan")
SETTINGS = {"images": {"count": 1, "steps": 1}, "train": {"steps": 1}, "stages": "2"}


def spoil(pipe, part):
    """One weight of a part becomes NaN."""
    weight = {
        "denoiser": lambda: pipe.unet.conv_out.bias,
        "VAE": lambda: pipe.vae.decoder.conv_out.bias,
        "text encoder": lambda: next(iter(pipe.text_encoder.parameters())),
    }[part]()
    with torch.no_grad():
        weight.flatten()[:].fill_(NAN)


@pytest.mark.parametrize("part", ["denoiser", "VAE", "text encoder"])
def test_a_picture_that_is_nan_names_its_prompt_and_the_part(part):
    pipe = tiny_pipeline("sd")
    picture = generate(pipe, "a photo of the ship", [0], steps=1)[0]
    assert np.asarray(picture).std() > 0
    spoil(pipe, part)
    with pytest.raises(MaceError, match=f"'a photo of the ship' is NaN: the weights of the {part} hold NaN"):
        generate(pipe, "a photo of the ship", [0], steps=1)
    with pytest.raises(MaceError, match=f"is NaN: the weights of the {part}"):
        erase(pipe, [Concept("ship", "sea")], EraseConfig.from_dict(SETTINGS))
    if part == "text encoder":
        with pytest.raises(MaceError, match="The text 'a ship' is NaN"):
            encode(pipe, ["a ship"])
    if part == "denoiser":
        with torch.no_grad():
            pipe.unet.conv_in.bias.fill_(NAN)
        with pytest.raises(MaceError, match="The attention of 'ship' is NaN"):
            attention_maps(pipe, "ship", [picture], ["a ship"])
    if part == "VAE":
        with torch.no_grad():
            pipe.vae.encoder.conv_out.bias.fill_(NAN)
        with pytest.raises(MaceError, match="What the VAE reads in a picture is NaN"):
            encode_images(pipe, [picture])


def test_the_precision_is_blamed_where_the_weights_are_whole():
    pipe = tiny_pipeline("sd")
    assert "overflows in float32; lower the guidance" in str(not_finite(pipe, "vae", "x"))
    with cast(pipe, "bf16"):
        assert "overflows in bfloat16; load the model in float32" in str(not_finite(pipe, "unet", "x"))
    pipe.vae.to(torch.float16)
    assert "VAE overflows in float16" in str(not_finite(pipe, "vae", "x"))


def test_new_weights_that_overflow_name_the_layer():
    W, large = torch.ones(3, 4, dtype=torch.float16), torch.full((4, 4), 1e5)
    with pytest.raises(MaceError, match=r"new weights of mid\.to_k are NaN or infinite in torch\.float16"):
        changed(W, large, "mid.to_k", torch.zeros(3, 0), torch.zeros(0, 4))
    assert changed(W.float(), large, "mid.to_k", torch.zeros(3, 0), torch.zeros(0, 4)).isfinite().all()


def test_classifiers_that_give_nan_do_not_count():
    picture = generate(tiny_pipeline("sd"), "a ship", [0], steps=1)
    judge, clip = Judge(tiny_judge(["concept:ship", "style:noto"])), ClipClassifier(*tiny_clip())
    for classifier, among in ((judge, None), (clip, ["ship"])):
        assert classifier.top1(picture, among) == ["ship"]
        with torch.no_grad():
            for weight in classifier.model.parameters():
                weight.fill_(NAN)
        with pytest.raises(MaceError, match="gives NaN for a picture"):
            classifier.top1(picture, among)
