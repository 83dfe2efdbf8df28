"""SDXL's pooled text: its map against least squares on the vectors, in the model, in the artefact, and exported."""

import dataclasses

import pytest
import torch
from brute import refine_reference, relative
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from test_erasure import draw

from macelib.concepts import Concept, anchored, prompts
from macelib.config import EraseConfig, FuseConfig, ImagesConfig, PriorConfig, RefineConfig, TrainOptions
from macelib.erasure import Erasure
from macelib.errors import MaceError
from macelib.job import erase
from macelib.method.lora.work import _refine
from macelib.method.pooled import share_left
from macelib.method.prior import prior
from macelib.models.entrances import POOLED, pooled_columns, text_weights
from macelib.models.swap import untouched
from macelib.models.text import pooled_size, read
from macelib.models.tiny import tiny_pipeline

pytestmark = pytest.mark.usefixtures("cache")

CONCEPTS = [Concept("ship", "the sea"), Concept("frog", "grass")]
CAPTIONS = ["a photo of a house", "a red car in the city", "two dogs", "a green field"]
CONFIG = EraseConfig(
    companions=(),
    refine=RefineConfig(lambda0=0.05, lambda1=2.0),
    images=ImagesConfig(count=1, steps=1, masks="full"),
    train=TrainOptions(steps=1),
    fuse=FuseConfig(lambda0=0.3),
)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sdxl")


@pytest.fixture(scope="module")
def erasure(pipe, tmp_path_factory):
    captions = tmp_path_factory.mktemp("captions") / "captions.txt"
    captions.write_text("\n".join(CAPTIONS))
    return erase(pipe, CONCEPTS, dataclasses.replace(CONFIG, prior=PriorConfig(captions=str(captions))))


def weights(pipe):
    return {name: w.detach().clone() for name, w in text_weights(pipe.unet).items()}


def test_what_is_read_is_what_the_pipeline_reads(pipe):
    some = ["a ship", "a photo of the sea", "a ship"]
    stock = pipe.encode_prompt(some, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    found = read(pipe, some)
    assert (found.tokens - stock[0]).abs().max() <= 1e-6 and (found.pooled - stock[2]).abs().max() <= 1e-6
    assert found.pooled.shape == (3, pooled_size(pipe)) and read(tiny_pipeline(), some).pooled.shape == (3, 0)


def test_the_map_equals_least_squares_on_the_vectors(pipe, erasure):
    """Eq. 1 with a row per prompt, by QR; λ1 and λ0 count for each of the two concepts."""
    f, g = (torch.cat([read(pipe, texts(c)).pooled for c in CONCEPTS]) for texts in (prompts, anchored))
    p = read(pipe, CAPTIONS).pooled.double() / len(CAPTIONS) ** 0.5
    W = weights(pipe)[POOLED][:, : pooled_size(pipe)].double()
    expected = refine_reference(W, f, g, p, 2 * 2.0, 2 * 0.05)
    assert relative(W @ erasure.pooled_refinement.R, expected) <= 1e-9
    assert relative(W, expected) > 0.01 and erasure.pooled_refinement.residual < 1e-12
    half = erasure.scaled({"ship": 0.25})
    n = len(prompts(CONCEPTS[0]))
    g = torch.cat([0.75 * f[:n].double() + 0.25 * g[:n].double(), g[n:].double()])
    assert relative(W @ half.pooled_refinement.R, refine_reference(W, f, g, p, 2 * 2.0, 2 * 0.05)) <= 1e-9


def test_prior_of_the_vectors(pipe):
    u = read(pipe, CAPTIONS).pooled.double()
    found = prior(pipe, CAPTIONS)
    assert relative(found.pooled, u.T @ u / len(u)) <= 1e-9
    assert torch.equal(prior(pipe, CAPTIONS).pooled, found.pooled)  # from the cache
    fewer = prior(pipe, CAPTIONS, domain=["a big cat"], lambda3=2.0, exclude=[Concept("house", "field")])
    cat = read(pipe, ["a big cat"]).pooled.double()
    assert relative(fewer.pooled, u[1:].T @ u[1:] / 3 + 2 * cat.T @ cat) <= 1e-6  # fp32: read in other batches
    assert prior(tiny_pipeline(), CAPTIONS).pooled is None


def test_applied_in_the_text_columns_alone_and_removed_bit_for_bit(pipe, erasure):
    before, p = weights(pipe), pooled_size(pipe)
    erasure.apply(pipe)
    after = weights(pipe)
    assert torch.equal(after[POOLED][:, p:], before[POOLED][:, p:])  # time ids
    R = erasure.pooled_refinement.R
    assert relative(after[POOLED][:, :p], before[POOLED][:, :p].double() @ R) < 1e-6
    assert relative(after[POOLED], before[POOLED]) > 1e-2
    erasure.remove(pipe)
    assert all(torch.equal(w, before[name]) for name, w in weights(pipe).items())


def test_the_pipeline_s_own_call_reads_the_mapped_vector_and_an_empty_one_as_before(pipe, erasure):
    layer, p, seen = pipe.unet.get_submodule(POOLED), pooled_size(pipe), []
    W, bias = layer.weight.detach().clone(), layer.bias.detach()
    hook = layer.register_forward_hook(lambda _, args, out: seen.append((args[0].detach(), out.detach())))
    with untouched(pipe):
        erasure.apply(pipe)
        pipe("a photo of the ship", num_inference_steps=1, guidance_scale=5.0, output_type="latent")
    hook.remove()
    (x, out), u = seen[0], read(pipe, ["a photo of the ship"]).pooled[0]
    assert not x[0, :p].any() and torch.allclose(x[1, :p], u, atol=1e-6)  # unconditional first
    mapped = torch.cat([erasure.pooled_refinement.R.float() @ u, x[1, p:]])
    assert torch.allclose(out[1], W @ mapped + bias, atol=1e-5)
    assert not torch.allclose(out[1], W @ x[1] + bias, atol=1e-3)
    assert torch.allclose(out[0], W @ x[0] + bias, atol=1e-6)


def test_saved_loaded_and_refused_per_concept(pipe, erasure, tmp_path):
    again, W = Erasure.load(erasure.save(tmp_path / "e.safetensors")), weights(pipe)
    assert torch.equal(again.pooled_P, erasure.pooled_P) and again.pooled == {POOLED: pooled_size(pipe)}
    written = dict(erasure.weights(W))
    assert all(torch.equal(w, written[name]) for name, w in again.weights(W)) and POOLED in written
    alone = erasure.only("ship")
    fresh = pooled_columns(W[POOLED], alone.pooled_refinement.R)
    both = again.only("ship") + again.only("frog")
    assert torch.equal(dict(alone.weights(W))[POOLED], fresh)
    assert relative(dict(both.weights(W))[POOLED], written[POOLED]) < 1e-6
    assert relative(dict(erasure.scaled(0.0).weights(W))[POOLED], W[POOLED]) < 1e-6
    assert torch.equal(dict(erasure.without("ship", "frog").weights(W))[POOLED], W[POOLED])


def test_what_is_left_is_measured(pipe, erasure):
    f, g = (read(pipe, texts(CONCEPTS[0])).pooled.double() for texts in (prompts, anchored))
    R = erasure.pooled_refinement.R
    expected = float(torch.stack([R @ a - b for a, b in zip(f, g, strict=True)]).norm() / (f - g).norm())
    assert abs(erasure.pooled_left["ship"] - expected) < 1e-9 and 0 < expected < 0.6
    assert share_left(torch.eye(len(R)).double(), torch.stack([f, g])) == 1.0
    assert erasure.scaled(0.0).pooled_left["ship"] == pytest.approx(1, abs=1e-6)


def test_stage_2_runs_in_a_model_that_holds_the_map(pipe, erasure):
    before = weights(pipe)
    with untouched(pipe):
        _refine(pipe, erasure.refinement.R, erasure.pooled_refinement.R)
        found = weights(pipe)
    assert torch.equal(found[POOLED], pooled_columns(before[POOLED], erasure.pooled_refinement.R))
    assert all(relative(found[name], before[name]) > 1e-6 for name in before)


@pytest.mark.slow
def test_exports_hold_it(pipe, erasure, tmp_path):
    original = draw(pipe)
    with untouched(pipe):
        erasure.apply(pipe)
        wanted = draw(pipe)
    for format in ("pipeline", "weights", "lora"):
        erasure.export(pipe, tmp_path / format, format, rank="full" if format == "lora" else None)
    assert (draw(DiffusionPipeline.from_pretrained(tmp_path / "pipeline")) - wanted).abs().max() < 1e-5
    fresh = tiny_pipeline("sdxl")
    fresh.unet.load_state_dict(load_file(tmp_path / "weights" / "unet.safetensors"), strict=False)
    assert (draw(fresh) - wanted).abs().max() < 1e-5
    fresh = tiny_pipeline("sdxl")
    fresh.unet.load_state_dict(load_file(tmp_path / "lora" / "base.safetensors"), strict=False)
    fresh.load_lora_weights(tmp_path / "lora", weight_name="lora.safetensors")
    assert (draw(fresh) - wanted).abs().max() < 1e-4
    fresh = tiny_pipeline("sdxl")
    fresh.load_lora_weights(tmp_path / "lora", weight_name="lora_standalone.safetensors")
    assert (draw(fresh) - wanted).abs().max() < 1 / 255 < (wanted - original).abs().max()
    file = load_file(tmp_path / "lora" / "lora_standalone.safetensors")
    down = file["lora_unet_label_emb_0_0.lora_down.weight"]
    assert down.shape[1] == text_weights(pipe.unet)[POOLED].shape[1] and not down[:, pooled_size(pipe) :].any()


def test_a_model_without_it_is_refused(erasure):
    with pytest.raises(MaceError, match="one for the pooled text, the pipeline has other shapes"):
        erasure.apply(tiny_pipeline("sd"), force=True)
