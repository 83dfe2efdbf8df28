"""Notebook 02's maps and masks: by token, block and time, the sliders, and overlap with exact masks."""

import pytest
import torch

from macelib import MaceError, trace
from macelib.lessons import load_model, residual
from macelib.lessons import maps as m
from macelib.models.pipelines import cross_attention
from macelib.models.sample import generate

PROMPT = "a photo of the ship by the sea"


@pytest.fixture(scope="module")
def pipe():
    return load_model("tiny")


@pytest.fixture(scope="module")
def drawn(pipe):
    with trace(pipe, timesteps="each") as maps:
        image = generate(pipe, PROMPT, [0], 3, 5.0)[0]
    return image, maps


def test_pieces(pipe):
    assert m.pieces(pipe.tokenizer, PROMPT) == ["[BOS]", *PROMPT.split(), "[EOS]"]
    assert m.pieces(pipe.tokenizer, "") == ["[BOS]", "[EOS]"]


def test_names_of_layers(pipe):
    layers = list(cross_attention(pipe.unet))
    assert m.block(layers[0]) == "down 0" and "mid" in {m.block(layer) for layer in layers}
    assert len({m.short(layer) for layer in layers}) == len(layers)
    assert m.short("up_blocks.1.attentions.2.transformer_blocks.3.attn2") == "up 1.2.3"


def test_blocks_are_means_of_their_layers(drawn):
    _, maps = drawn
    blocks = m.by_block(maps, [5])
    assert len(blocks) < len(maps.layers) and len({heat.shape for heat in blocks.values()}) == 1
    size = tuple(blocks["mid"].shape[-2:])
    for name, heat in blocks.items():
        some = [maps.map([5], layer=layer, size=size) for layer in maps.layers if m.block(layer) == name]
        assert torch.allclose(heat, sum(some) / len(some), atol=1e-7)


def test_shares_add_up_to_one(pipe, drawn):
    _, maps = drawn
    groups = {"[BOS]": [0], **residual.groups(pipe.tokenizer, PROMPT, "ship")}
    parts = m.shares(maps, groups)
    assert torch.allclose(sum(parts.values()), torch.ones(3), atol=1e-5)
    by_hand = sum(maps.layer(layer)[0, 1, 0, :, :, 5].mean() for layer in maps.layers) / len(maps.layers)
    assert parts["own"][1] == pytest.approx(float(by_hand), abs=1e-6)


def test_view_shows_the_step_and_layer_that_is_asked_for(drawn):
    image, maps = drawn
    layer = maps.layers[1]
    shown = m.view(image, maps, 5, 2, layer, "ship").axes[0].images[1].get_array()
    assert torch.allclose(torch.as_tensor(shown.data), maps.layer(layer)[0, 2, 0, :, :, 5].double())
    mean = m.view(image, maps, 5).axes[0].images[1].get_array()
    assert torch.allclose(torch.as_tensor(mean.data), maps.map(5).mean(0).double())


def test_sliders_redraw_when_let_go(pipe, drawn):
    image, maps = drawn
    box = m.explorer(image, maps, m.pieces(pipe.tokenizer, PROMPT), 5)
    *sliders, picture, message = box.children
    assert all(slider.continuous_update is False for slider in sliders)
    seen = {bytes(picture.value)}
    for slider, value in zip(sliders, (2, 1, maps.layers[0]), strict=True):
        slider.value = value
        seen.add(bytes(picture.value))
    assert len(seen) == 4 and message.value == ""


def test_overlap():
    mask, alpha = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    mask[0, :, :2], alpha[0, :, 1:3] = 1, 0.9  # 8 and 8 places, 4 in both
    assert m.iou(mask, alpha).tolist() == pytest.approx([1 / 3, 1])
    heat = alpha[:1, 0] * 0.02 + 0.01
    assert m.iou(m.cut(heat, (4, 4)), alpha[:1]).item() == m.best_iou(heat, alpha[:1]).item() == 1


def test_renderings_come_with_their_masks(pipe):
    images, alpha = m.exact(pipe, ["ship", "frog"], [False, True], seed=1)
    assert alpha.shape == (2, 1, 64, 64) and images[0].size == (64, 64)
    assert all(0.1 < float(a.mean()) < 0.9 for a in alpha)
    again, _ = m.exact(pipe, ["ship", "frog"], [False, True], seed=1)
    assert images[1].tobytes() == again[1].tobytes()
    with pytest.raises(MaceError, match="no renderings of shipp: choose among airplane"):
        m.exact(pipe, ["shipp"], [False])


def test_maps_of_given_pictures(pipe):
    """One image at a time gives what the batch gives; a prompt without its phrase is refused."""
    images, _ = m.exact(pipe, ["ship", "frog"], [False, False])
    both = m.noised(pipe, images, ["a photo of the ship", "a frog"], ["ship", "frog"], 300)
    one = m.noised(pipe, images[:1], ["a photo of the ship"], ["ship"], 300)
    assert set(both) == {m.ALL, "down 0", "down 1", "mid", "up 1", "up 2"} and both[m.ALL].shape == (2, 16, 16)
    assert torch.allclose(both[m.ALL][0], one[m.ALL][0], atol=1e-5)
    with pytest.raises(MaceError, match="does not hold 'ship'"):
        m.noised(pipe, images[:1], ["a frog"], ["ship"], 300)
