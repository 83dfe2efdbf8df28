"""Masks from every source, and what happens where nothing is found."""

import numpy as np
import pytest
import torch
from PIL import Image

from macelib.concepts import Concept
from macelib.errors import MaceError
from macelib.method import masks
from macelib.method.lora.train import TrainConfig, example, train
from macelib.method.masks import Grounding, attention_maps, drawn_and_read, grounding, make_masks, otsu
from macelib.models.attention import trace
from macelib.models.sample import generate
from macelib.models.tiny import KINDS, tiny_pipeline

SHIP = Concept("ship", "sea")


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


def pictures(n, size=(64, 48)):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(n)]


def test_full_and_styles(pipe):
    M = make_masks("full", pipe, SHIP, pictures(2))
    assert M.shape == (2, 1, 48, 64) and M.dtype == torch.float32 and (M == 1).all()
    style = make_masks("attention", pipe, Concept("noto", "art", "style"), pictures(1))
    assert (style == 1).all()


def test_alpha_from_masks_backgrounds_and_transparency(pipe):
    background = pictures(2)
    images = [image.copy() for image in background]
    for image in images:
        image.paste((255, 0, 0), (8, 4, 40, 20))
    expected = torch.zeros(2, 1, 48, 64)
    expected[:, :, 4:20, 8:40] = 1
    found = make_masks("alpha", pipe, SHIP, images, known=background)
    assert float((found - expected).abs().mean()) < 0.01
    assert torch.equal(make_masks("alpha", pipe, SHIP, images, known=expected), expected)
    for image, mask in zip(images, expected, strict=True):
        image.putalpha(Image.fromarray((255 * mask[0]).byte().numpy()))
    assert torch.equal(make_masks("alpha", pipe, SHIP, images), expected)
    with pytest.raises(MaceError, match="needs `known`"):
        make_masks("alpha", pipe, SHIP, background)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_masks_cut_the_concepts_map(kind, monkeypatch):
    pipe = tiny_pipeline(kind)
    images = pictures(3)
    heat = attention_maps(pipe, "ship", images, ["a photo of the ship"] * 3, batch=3)
    assert heat.shape == ((3, 6, 8) if kind == "sdxl" else (3, 12, 16)) and (heat > 0).all()  # its first attention
    monkeypatch.setattr(masks, "CONTRAST", 0.0)  # random weights hardly tell the tokens apart
    M = make_masks("attention", pipe, SHIP, images)
    assert set(M.unique().tolist()) <= {0.0, 1.0} and M.shape == (3, 1, 48, 64)
    big = torch.nn.functional.interpolate(heat[:, None], size=(48, 64), mode="bilinear")
    for m, h in zip(M, big, strict=True):
        assert 0 < m.mean() < 1 and h[m == 1].min() >= h[m == 0].max()
    with pytest.raises(MaceError, match="does not name 'ship'"):
        make_masks("attention", pipe, SHIP, images, prompts=["a frog"] * 3)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_out_of_the_passes_that_draw_the_pictures(kind, monkeypatch):
    """The mean over the steps nearest to the noise levels, picked by hand; the pictures are the same, bit for bit."""
    pipe, prompts = tiny_pipeline(kind), ["a photo of the ship", "a photo of the frog"]
    with trace(pipe, timesteps="each") as each:
        plain = generate(pipe, prompts, [3, 4], steps=9, guidance=3.0)
    passes = []
    hook = pipe.unet.register_forward_hook(lambda *_: passes.append(1))
    images, heats = drawn_and_read(pipe, ["ship", "frog"], prompts, [3, 4], steps=9, guidance=3.0)
    hook.remove()
    assert len(passes) == 9 and [i.tobytes() for i in images] == [i.tobytes() for i in plain]
    schedule = np.array(each.timesteps)
    steps = sorted({int(abs(schedule - 1000 * level).argmin()) for level in masks.NOISE_LEVELS})
    assert 1 < len(steps) < 9
    for i, heat in enumerate(heats):
        assert torch.allclose(heat, each.map(5, image=i)[steps].mean(0), atol=1e-6)
    monkeypatch.setattr(masks, "CONTRAST", 0.0)
    M = make_masks("drawing", pipe, SHIP, images, maps=heats)
    assert M.shape == (2, 1, 64, 64) and all(0 < float(m.mean()) < 1 for m in M)
    with pytest.raises(MaceError, match="needs `maps`"):
        make_masks("drawing", pipe, SHIP, images)
    with pytest.raises(MaceError, match="'a frog' does not name 'ship'"):
        drawn_and_read(pipe, ["ship"], ["a frog"], [0], steps=1)


def test_otsu_separates_two_classes():
    g = torch.Generator().manual_seed(0)
    low, high = 0.1 * torch.randn(500, generator=g), 3 + 0.1 * torch.randn(100, generator=g)
    values = torch.cat([low, high])
    cut = otsu(values)
    assert low.max() < cut <= high.min()
    tries = torch.linspace(float(values.min()), float(values.max()), 400)[1:-1]  # by brute force: within-class variance
    cost = [
        sum(float(p.var(unbiased=False)) * len(p) for p in (values[values < c], values[values >= c])) for c in tries
    ]
    here = sum(float(p.var(unbiased=False)) * len(p) for p in (values[values < cut], values[values >= cut]))
    assert here <= min(cost) * 1.01


def test_nothing_found_is_reported_and_falls_back(pipe, monkeypatch, caplog):
    images = pictures(3)
    box = torch.zeros(48, 64)
    box[10:20, 10:30] = 1
    answers = {id(images[0]): box, id(images[1]): None, id(images[2]): torch.zeros(48, 64)}
    detect = lambda image, phrase: answers[id(image)]  # noqa: E731
    M = make_masks("grounding", pipe, SHIP, images, detect=detect, fallback=("full",))
    assert torch.equal(M[0, 0], box) and (M[1:] == 1).all()
    assert "grounding found no 'ship' in image 1, 2: the mask there comes from full" in caplog.text
    monkeypatch.setattr(masks, "CONTRAST", 1e9)  # no map is that clear
    caplog.clear()
    M = make_masks("grounding", pipe, SHIP, images, detect=detect)
    assert (M[1:] == 1).all() and "attention found no 'ship'" in caplog.text and "comes from full" in caplog.text
    with pytest.raises(MaceError, match="grounding found no 'ship' in image 1, 2: allow a fallback"):
        make_masks("grounding", pipe, SHIP, images, detect=detect, fallback=())


def test_bad_requests_are_refused(pipe):
    with pytest.raises(
        MaceError, match="no mask source 'magic': choose from attention, drawing, grounding, alpha, full"
    ):
        make_masks("magic", pipe, SHIP, pictures(1))
    with pytest.raises(MaceError, match="one size"):
        make_masks("full", pipe, SHIP, [*pictures(1), *pictures(1, (32, 32))])
    with pytest.raises(MaceError, match="one size"):
        make_masks("full", pipe, SHIP, [])


def test_a_missing_grounding_model_is_an_error():
    with pytest.raises(MaceError, match=r"nosuch-detector.* cannot be loaded"):
        grounding("cpu", "./nosuch-detector", "./nosuch-segmenter")


def test_a_hub_that_gives_no_reason_is_named_all_the_same(monkeypatch):
    monkeypatch.setattr(masks, "urlopen", lambda *_, **__: (_ for _ in ()).throw(TimeoutError()))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(MaceError, match=r"needs some/detector .* cannot be loaded \(TimeoutError\)"):
        masks.check_grounding("some/detector")


@pytest.mark.parametrize("kind", KINDS)
def test_images_and_masks_make_an_example_that_trains(kind):
    pipe, images = tiny_pipeline(kind), pictures(2, (64, 64))
    concept = Concept("red ship", "sea")
    made = example(pipe, concept, images, make_masks("full", pipe, concept, images))
    assert made.latents.shape == (2, 4, 16, 16) and [s.tolist() for s in made.positions] == [[5, 6]] * 2
    assert made.tails[0].tolist() == list(range(7, 77)) and (made.added is None) == (kind != "sdxl")
    loras = train(pipe, [made], TrainConfig(steps=2, lr=1e-3)).finish()
    assert loras.names == ["red ship"] and any((b != 0).any() for b in loras.B.values())


@pytest.fixture(scope="module")
def tiny_grounding():
    """The real architectures with random weights and a small vocabulary."""
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SamConfig,
        SamImageProcessor,
        SamMaskDecoderConfig,
        SamModel,
        SamProcessor,
        SamPromptEncoderConfig,
        SamVisionConfig,
        SwinConfig,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "ship", "red"]
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = BertTokenizer(vocab=vocab, do_lower_case=True)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = GroundingDinoForObjectDetection(
            GroundingDinoConfig(
                backbone_config=SwinConfig(
                    image_size=64,
                    embed_dim=8,
                    depths=[1, 1, 1, 1],
                    num_heads=[1, 1, 2, 2],
                    window_size=4,
                    out_features=["stage2", "stage3", "stage4"],
                ),
                text_config=BertConfig(vocab_size=len(vocab), max_position_embeddings=64, **size),
                d_model=32,
                encoder_layers=1,
                decoder_layers=2,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=16,
                decoder_ffn_dim=16,
                num_queries=6,
                max_text_len=16,
                disable_custom_kernels=True,
            )
        ).eval()
        sam = SamModel(
            SamConfig(
                vision_config=SamVisionConfig(
                    **{k: v for k, v in size.items() if k != "intermediate_size"},
                    image_size=64,
                    patch_size=8,
                    window_size=4,
                    output_channels=16,
                    global_attn_indexes=[0],
                    num_pos_feats=8,
                    mlp_dim=16,
                ),
                prompt_encoder_config=SamPromptEncoderConfig(
                    hidden_size=16, image_size=64, patch_size=8, mask_input_channels=4
                ),
                mask_decoder_config=SamMaskDecoderConfig(
                    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_dim=16, iou_head_hidden_dim=16
                ),
            )
        ).eval()
    processor = GroundingDinoProcessor(
        GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 128}), tokenizer
    )
    sam_processor = SamProcessor(SamImageProcessor(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}))
    return processor, detector, sam_processor, sam


def test_grounding_runs_on_the_real_architectures(pipe, tiny_grounding, caplog):
    image = pictures(1)[0]
    find = Grounding(*tiny_grounding, threshold=0.0, text_threshold=0.0)
    boxes = find.boxes(image, "Ship")
    assert boxes.shape == (6, 4) and (boxes[:, 2:] >= boxes[:, :2]).all() and boxes[:, 0::2].max() <= 65
    mask = find(image, "ship")
    assert mask.shape == (48, 64) and set(mask.unique().tolist()) <= {0.0, 1.0}
    strict = Grounding(*tiny_grounding, threshold=1.0)
    assert strict(image, "ship") is None
    M = make_masks("grounding", pipe, SHIP, [image], detect=strict, fallback=("full",))
    assert (M == 1).all() and "grounding found no 'ship' in image 0" in caplog.text
