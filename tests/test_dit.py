"""PixArt, Sana, SD3 and FLUX.1 on small random pipelines of the stock classes, called through their own __call__."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from brute import fuse_reference, fused, refine_reference, relative, weight_of
from diffusers import DiffusionPipeline
from diffusers.models.normalization import RMSNorm
from safetensors.torch import load_file
from tiny_transformers import tiny_transformer

from macelib.baselines import build
from macelib.concepts import Concept, anchored, prompts
from macelib.config import EraseConfig, FuseConfig, ImagesConfig, PriorConfig, RefineConfig, TrainOptions
from macelib.erasure import Erasure
from macelib.errors import MaceError
from macelib.job import erase
from macelib.method.lora.forward import per_sample
from macelib.method.lora.train import TrainConfig, example, train
from macelib.method.prior import prior
from macelib.method.refine import concept_sums, solve_refinement
from macelib.models.attention import trace
from macelib.models.denoise import denoise
from macelib.models.dit import text_mask
from macelib.models.entrances import denoiser, kv_names, pooled_weights, text_attention, text_weights
from macelib.models.offload import offload
from macelib.models.pipelines import cast
from macelib.models.sample import generate
from macelib.models.swap import untouched
from macelib.models.text import added_conditions, read, spans, tokenizers

pytestmark = pytest.mark.usefixtures("cache")

KINDS = ("pixart", "sana", "sd3", "flux")
WORDS = ("a photo of the {}", "the {} in the rain", "{}")
CONCEPTS = [Concept("ship", "sea", templates=WORDS), Concept("frog", "green grass", templates=WORDS)]
CAPTIONS = ["a photo of a house", "a red car in the city", "two dogs"]
CONFIG = EraseConfig(
    companions=(),
    refine=RefineConfig(lambda0=0.05, lambda1=2.0),
    images=ImagesConfig(count=1, steps=1, masks="full"),
    train=TrainOptions(steps=1, lr=0.05, S="own"),
    fuse=FuseConfig(lambda0=0.3, lambda2=1.5),
)


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def pipe(kind):
    return tiny_transformer(kind)


@pytest.fixture(scope="module")
def erasure(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dit")
    (folder / "captions.txt").write_text("\n".join(CAPTIONS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MACELIB_CACHE", str(folder / "cache"))
        config = dataclasses.replace(CONFIG, prior=PriorConfig(captions=str(folder / "captions.txt")))
        return erase(pipe, CONCEPTS, config, progress=False)


def weights(pipe):
    return {name: w.detach().clone() for name, w in text_weights(denoiser(pipe)).items()}


def draw(pipe, prompt="a photo of the ship", **kw):
    """Pixels by the pipeline's own call."""
    side = 32 if "Sana" in type(pipe).__name__ else 64
    options = {"num_inference_steps": 2, "height": side, "width": side, "output_type": "np", **kw}
    if "Sana" in type(pipe).__name__ or "PixArt" in type(pipe).__name__:
        options["use_resolution_binning"] = False
    pipe.set_progress_bar_config(disable=True)
    return torch.from_numpy(pipe(prompt, generator=torch.Generator().manual_seed(0), **options).images)


def heard(pipe, names, prompt):
    """What modules are given, and what they make of it, in the first pass of the pipeline's own call: the last row."""
    found, hooks = {}, []
    for name in names:

        def hear(_, args, out, name=name):
            found.setdefault(name, (args[0][-1].detach(), out[-1].detach()))

        hooks.append(denoiser(pipe).get_submodule(name).register_forward_hook(hear))
    draw(pipe, prompt, num_inference_steps=1)
    for hook in hooks:
        hook.remove()
    return found


def test_what_is_read_is_what_the_entrances_are_given_in_the_pipelines_own_call(pipe, kind):
    prompt = "A Photo of the ship in the rain"
    text, names = read(pipe, [prompt]), [*kv_names(denoiser(pipe)), *pooled_weights(denoiser(pipe))]
    mask = (
        text_mask(pipe, [prompt])[0].bool() if kind in ("pixart", "sana") else torch.ones(text.tokens.shape[1]).bool()
    )
    for name, (given, _) in heard(pipe, names, prompt).items():
        mine = text.pooled[0] if name in pooled_weights(denoiser(pipe)) else text.tokens[0]
        some = slice(None) if mine.ndim == 1 else mask
        assert (mine[some] - given[some]).abs().max() <= 1e-5 * given[some].abs().max(), name
    assert not text.tokens[0][~mask].any() and 0 < mask.sum() <= len(mask)


def test_the_phrase_stands_where_its_letters_are(pipe, kind):
    """Its tokens, decoded, are its letters, and nothing else's are; in Sana not those of the instruction."""
    prompt, phrase = "the cat and the cat sleeping", "cat"
    found, at = spans(pipe, prompt, phrase), 0
    for view in tokenizers(pipe):
        ids, _ = view.read(prompt)
        own = [i - at for i in found if at <= i < at + view.length]
        text = "".join(view.tokenizer.convert_ids_to_tokens([ids[i] for i in own])).replace("</w>", "").replace("▁", "")
        assert text == "catcat"
        at += view.length


def counted(view, text, phrase):
    """Positions before the phrase, behind it, and of [EOS] and the padding that is read, by counting characters."""
    _, offsets = view.read(text)
    words = [i for i, (a, b) in enumerate(offsets) if a < b]
    start = text.index(phrase)
    before = [*range(words[0]), *(i for i in words if offsets[i][1] <= start)]
    behind = [i for i in words if offsets[i][0] >= start + len(phrase)]
    return before, behind, [i for i in range(words[-1] + 1, view.length) if offsets[i][0] >= 0]


def rows(pipe, concept):
    """e^f and e^g of Eq. 1, (n, d) each, and all tokens, (m, d): pairs by counting, one prompt at a time; float64."""
    f, g, every = [], [], []
    for prompt, other in zip(prompts(concept), anchored(concept), strict=True):
        e, a = (read(pipe, [text]).tokens[0].double() for text in (prompt, other))
        every.append(e)
        at = 0
        for view in tokenizers(pipe):
            parts = zip(counted(view, prompt, concept.name), counted(view, other, concept.anchor), strict=True)
            for mine, theirs in parts:
                f += [e[at + i] for i, _ in zip(mine, theirs, strict=False)]
                g += [a[at + j] for _, j in zip(mine, theirs, strict=False)]
            at += view.length
    return torch.stack(f), torch.stack(g), torch.cat(every)


def test_stages_1_and_3_equal_least_squares_on_the_tokens(pipe):
    """Eq. 1 and Eq. 7 by QR on raw rows, every entrance of the model, float64; the pooled text's map likewise."""
    known = [rows(pipe, concept) for concept in CONCEPTS]
    f, g = (torch.cat([found[i] for found in known]) for i in (0, 1))
    p = read(pipe, CAPTIONS).tokens.flatten(0, 1).double() / len(CAPTIONS) ** 0.5
    sums = [concept_sums(pipe, concept) for concept in CONCEPTS]
    X, G = (sum(found[i] for found in sums) for i in (0, 1))
    P = prior(pipe, CAPTIONS)
    R = solve_refinement(X, G, P.P, 2.0, 0.05).R
    layers, draws = kv_names(denoiser(pipe)), torch.Generator().manual_seed(0)
    W = {name: w.double() for name, w in weights(pipe).items()}
    B, D = (
        [{name: 0.1 * torch.randn(shape(W[name]), generator=draws).double() for name in layers} for _ in CONCEPTS]
        for shape in (lambda w: (w.shape[0], 2), lambda w: (2, w.shape[1]))
    )
    fusion = fused(R, D, [found[2] for found in sums], P.P, 1.5, 0.3)
    for name in layers:
        W1 = refine_reference(W[name], f, g, p, 2.0, 0.05)
        assert relative(W[name] @ R, W1) <= 1e-9 < relative(W[name], W1)
        star = fuse_reference(
            W[name], W1, [b[name] for b in B], [d[name] for d in D], [r[2] for r in known], p, 1.5, 0.3
        )
        assert relative(weight_of(W[name], fusion, B, name), star) <= 1e-9 < relative(W1, star)


def test_the_pooled_map_equals_least_squares_on_the_vectors(pipe, kind, erasure):
    if kind in ("pixart", "sana"):
        assert not erasure.pooled and erasure.pooled_refinement is None
        return
    ((name, p),) = erasure.pooled.items()
    f, g = (torch.cat([read(pipe, texts(c)).pooled for c in CONCEPTS]) for texts in (prompts, anchored))
    u, W = read(pipe, CAPTIONS).pooled.double() / len(CAPTIONS) ** 0.5, weights(pipe)[name].double()
    expected = refine_reference(W, f, g, u, 2 * 2.0, 2 * 0.05)
    assert W.shape[1] == p and relative(W @ erasure.pooled_refinement.R, expected) <= 1e-9 < relative(W, expected)


def test_applied_removed_saved_and_fused_anew_bit_for_bit(pipe, erasure, tmp_path):
    before, picture = weights(pipe), draw(pipe)
    with untouched(pipe):
        erasure.apply(pipe)
        after, erased = weights(pipe), draw(pipe)
        Erasure.load(erasure.save(tmp_path / "e.safetensors")).apply(pipe)
        assert all(torch.equal(w, after[name]) for name, w in weights(pipe).items())
        erasure.only("ship").apply(pipe)
        one = weights(pipe)
        (erasure.only("frog") + erasure.only("ship")).apply(pipe)
        assert max(relative(w, after[name]) for name, w in weights(pipe).items()) < 1e-5
        erasure.remove(pipe)
        assert all(torch.equal(w, before[name]) for name, w in weights(pipe).items())
        assert torch.equal(draw(pipe), picture) and not torch.equal(erased, picture)
    assert min(relative(w, before[name]) for name, w in after.items()) > 1e-4
    assert max(relative(w, after[name]) for name, w in one.items()) > 1e-4
    assert erasure.layers == {name: before[name].shape[0] for name in kv_names(denoiser(pipe))}


def test_the_entrances_give_what_the_map_says_in_the_pipelines_own_call(pipe, erasure):
    """W (R̃ e) + Σ B D* e + bias, of what the layer is given."""
    prompt, W, change = "a photo of the ship", weights(pipe), erasure.fusion.R_tilde.float()
    with untouched(pipe):
        erasure.apply(pipe)
        found = heard(pipe, list(W), prompt)
    for name, (e, out) in found.items():
        bias = denoiser(pipe).get_submodule(name).bias
        if name in erasure.pooled:
            expected = W[name] @ (erasure.pooled_refinement.R.float() @ e)
        else:
            B, D = erasure.lora[name]
            expected = (e @ change.T) @ W[name].T + (e @ D.T) @ B.T
        expected = expected if bias is None else expected + bias
        assert (out - expected).abs().max() <= 1e-4 * expected.abs().max(), name


def fresh_one(pipe):
    """The same pipeline once more, with its original weights."""
    return tiny_transformer(next(k for k in KINDS if k in type(pipe).__name__.lower().replace("stablediffusion", "sd")))


def test_exports_draw_what_the_applied_erasure_draws(pipe, erasure, tmp_path):
    with untouched(pipe):
        erasure.apply(pipe)
        wanted = draw(pipe)
    erasure.export(pipe, tmp_path / "pipeline")
    erasure.export(pipe, tmp_path / "weights", "weights")
    assert (draw(DiffusionPipeline.from_pretrained(tmp_path / "pipeline")) - wanted).abs().max() < 1e-5
    fresh = tiny_transformer(
        next(k for k in KINDS if k in type(pipe).__name__.lower().replace("stablediffusion", "sd"))
    )
    loaded = load_file(tmp_path / "weights" / "transformer.safetensors")
    assert not fresh.transformer.load_state_dict(loaded, strict=False).unexpected_keys
    assert (draw(fresh) - wanted).abs().max() < 1e-5
    if "PixArt" in type(pipe).__name__:
        with pytest.raises(MaceError, match="loads no LoRA: export it as pipeline or weights"):
            erasure.export(pipe, tmp_path / "lora", "lora")
        return
    erasure.export(pipe, tmp_path / "lora", "lora", rank="full")
    for base, name in ((False, "lora_standalone.safetensors"), (True, "lora.safetensors")):
        other = fresh_one(pipe)
        if base:
            other.transformer.load_state_dict(load_file(tmp_path / "lora" / "base.safetensors"), strict=False)
        other.load_lora_weights(tmp_path / "lora", weight_name=name)
        assert (draw(other) - wanted).abs().max() < 1 / 255, name


def test_traced_attention_is_the_softmax_that_is_computed(pipe, kind, monkeypatch):
    """Against what the stock attention is given: its queries, keys and mask; what is drawn is the same, bit for bit."""
    seen, stock, picture = [], F.scaled_dot_product_attention, draw(pipe, num_inference_steps=1)

    def spy(query, key, value, attn_mask=None, **kw):
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        seen.append((scores if attn_mask is None else scores + attn_mask).softmax(-1)[-1])  # (heads, Lq, Lk)
        return stock(query, key, value, attn_mask=attn_mask, **kw)

    with trace(pipe, heads="each") as maps:
        traced = draw(pipe, num_inference_steps=1)
    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    draw(pipe, num_inference_steps=1)
    assert torch.equal(traced, picture)
    T, layers = read(pipe, ["a ship"]).tokens.shape[1], list(text_attention(denoiser(pipe)))
    assert maps.layers == layers
    if kind in ("pixart", "sana"):
        seen = [A for A in seen if A.shape[-1] == T and A.shape[-2] != T]
    else:  # text and picture in one
        seen = [A for A in seen if A.shape[-1] > T and A.shape[-1] == A.shape[-2]]
        seen = [A[:, T:, :T] if kind == "flux" else A[:, : A.shape[1] - T, A.shape[1] - T :] for A in seen]
    seen = seen[-len(layers) :]
    for name, A in zip(layers, seen, strict=True):
        assert (maps.layer(name)[-1].flatten(1, 2) - A).abs().max() < 1e-5, name
    assert maps.heat("a photo of the ship", "ship").shape == maps.layer(layers[0]).shape[1:4]


def test_steps_near_given_timesteps_are_recorded_however_the_denoiser_counts_them(pipe):
    with trace(pipe, timesteps="each") as each:
        draw(pipe, num_inference_steps=4)
    with trace(pipe, at=[float(pipe.scheduler.timesteps[i]) for i in (1, 3)]) as some:
        draw(pipe, num_inference_steps=4)
    assert some.timesteps == [each.timesteps[i] for i in (1, 3)] and len(each.timesteps) == 4
    assert torch.allclose(some.map(5), each.map(5)[[1, 3]].mean(0), atol=1e-6)


def prepared(pipe, concept=CONCEPTS[0], **settings):
    """A training example of one random picture."""
    picture = generate(pipe, "a frog", [3], steps=1)
    masks = torch.zeros(1, 1, *picture[0].size[::-1])
    masks[..., : masks.shape[-1] // 2] = 1
    return example(pipe, concept, picture, masks, config=TrainConfig(**settings))


@pytest.mark.parametrize("loss", ["squared", "norm"])
def test_gradients_equal_finite_differences(pipe, loss, monkeypatch):
    """Of Eq. 3 with respect to B and D of every entrance, in float64, along random directions."""
    exact = (
        (lambda x: x if x.dtype == torch.float64 else x.to(torch.float32)),
        lambda norm, x: F.rms_norm(x, x.shape[-1:], norm.weight, norm.eps),
    )
    monkeypatch.setattr(torch.Tensor, "float", exact[0])  # the stock classes go to float32 at some places
    monkeypatch.setattr(RMSNorm, "forward", exact[1])
    ex, model = prepared(pipe), denoiser(pipe)
    g = torch.Generator().manual_seed(1)
    shapes = {name: text_weights(model)[name].shape for name in kv_names(model)}
    start = [
        {n: (0.3 * torch.randn(1, *s, generator=g)).double() for n, s in sizes.items()}
        for sizes in ({n: (o, 2) for n, (o, _) in shapes.items()}, {n: (2, d) for n, (_, d) in shapes.items()})
    ]
    added = {key: value.double() for key, value in (ex.added or {}).items()} or None
    given = ex.latents.double(), torch.tensor([300]), ex.embeddings.double(), [ex.masks[0].double()], [ex.positions[0]]
    model.double()
    try:
        with per_sample(model, loss) as forward:

            def value(B, D):
                return forward(*given, B, D, added=added).sum()

            B, D = ({n: p.clone().requires_grad_() for n, p in part.items()} for part in start)
            value(B, D).backward()
            grads = [p.grad for part in (B, D) for p in part.values()]
            for direction in range(2):
                g = torch.Generator().manual_seed(direction)
                steps = [{n: torch.randn(p.shape, generator=g).double() for n, p in part.items()} for part in start]
                flat = [step for part in steps for step in part.values()]
                slope = float(sum((d * s).sum() for d, s in zip(grads, flat, strict=True) if d is not None))

                def at(h, steps=steps):
                    moved = [
                        {n: p + h * step[n] for n, p in part.items()} for part, step in zip(start, steps, strict=True)
                    ]
                    with torch.no_grad():
                        return float(value(*moved))

                h = 1e-6  # small, as Sana's own attention has kinks (ReLU)
                found = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
                assert found == pytest.approx(slope, rel=1e-5) and abs(slope) > 1e-6
    finally:
        model.to(torch.float32)


def test_concepts_trained_in_one_pass_equal_separate_runs(pipe):
    examples = [prepared(pipe, concept) for concept in CONCEPTS]
    config = TrainConfig(steps=3, lr=0.02)
    together = train(pipe, examples, config).finish()
    for i, one in enumerate(examples):
        alone = train(pipe, [one], config).finish()
        assert max(b.abs().max() for b in alone.B.values()) > 1e-3
        for name, b in alone.B.items():
            assert (together.B[name][i] - b[0]).abs().max() < 1e-5
            assert (together.D[name][i] - alone.D[name][0]).abs().max() < 1e-5


def test_autocast_changes_little(pipe):
    """Loss of Eq. 3 and a picture, in bf16, whose step is 1/256."""
    losses = []
    for autocast in (None, "bf16"):
        (record,) = train(pipe, [prepared(pipe)], TrainConfig(steps=1, lr=0.02, autocast=autocast))
        losses.append(float(record.losses))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    with cast(pipe, "bf16"):
        picture = draw(pipe, num_inference_steps=1)
    gap = (picture - draw(pipe, num_inference_steps=1)).abs()
    assert gap.mean() < 0.02 and gap.any()


def test_training_lowers_the_attention_to_the_phrase_inside_the_mask(pipe):
    run = train(pipe, [prepared(pipe)], TrainConfig(steps=25, lr=0.05, timesteps="uniform"))
    losses = [float(record.losses) for record in run]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_checkpointed_blocks_give_the_same_gradient(pipe):
    found = []
    for checkpointing in (False, True):
        run = train(pipe, [prepared(pipe)], TrainConfig(steps=1, lr=0.02, gradient_checkpointing=checkpointing))
        found.append(run.finish().B)
    assert all((found[0][name] - b).abs().max() < 1e-5 for name, b in found[1].items())


def test_one_pass_is_the_denoisers_own(pipe):
    """`denoise` on what the entrances read, against the pass of the pipeline's call on its own inputs."""
    model, seen = denoiser(pipe), []
    hook = model.register_forward_hook(lambda _, a, k, out: seen.append((a, k, out[0])), with_kwargs=True)
    draw(pipe, num_inference_steps=1, guidance_scale=3.5)
    hook.remove()
    args, kw, out = seen[0]
    x, t = (args[0] if args else kw["hidden_states"])[-1:], kw["timestep"][-1:]
    if x.ndim == 3:  # FLUX's patches
        x = pipe._unpack_latents(x, 64, 64, pipe.vae_scale_factor)
        t = t * 1000
    prompt = ["a photo of the ship"]
    added = added_conditions(pipe, prompt, (64, 64))
    with torch.no_grad():
        found = denoise(model, x, t, read(pipe, prompt).tokens, added)
    assert relative(found, out[-1:]) < 1e-4


def test_it_is_said_which_pipelines_fit(pipe):
    class Other(type(pipe)):
        pass

    other = Other.__new__(Other)
    other.__dict__ |= pipe.__dict__
    with pytest.raises(MaceError, match="where its text enters is not known here"):
        erase(other, CONCEPTS[:1], CONFIG, progress=False)


def test_without_t5_sd3_is_erased_as_far_as_it_reads(caplog):
    pipe = tiny_transformer("sd3")
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    config = dataclasses.replace(CONFIG, prior=PriorConfig(use=False), stages="1")
    with caplog.at_level(logging.WARNING):
        erasure = erase(pipe, CONCEPTS[:1], config, progress=False)
    assert "without text_encoder_3" in caplog.text and "without text_encoder_3" in erasure.title
    assert spans(pipe, "a photo of the ship", "ship") == [5]
    with pytest.raises(MaceError, match="another base model"):
        erasure.apply(tiny_transformer("sd3"))
    erasure.apply(pipe)


def test_other_methods_say_that_they_need_a_unet(pipe):
    with pytest.raises(MaceError, match=r"uce is written for models with a UNet; \w+Pipeline has none: choose mace"):
        build(pipe, CONCEPTS[:1], "uce")


def test_with_low_memory_it_erases_the_same(pipe, kind, erasure, tmp_path):
    """One part at a time on the device, by accelerate's hooks, here with the CPU as both places."""
    other = offload(fresh_one(pipe), "cpu")
    config = dataclasses.replace(erasure.config, train=TrainOptions(steps=1, lr=0.05, S="own"))
    found = erase(other, CONCEPTS, config, progress=False)
    assert relative(found.refinement.R, erasure.refinement.R) < 1e-9
    assert max(relative(b, erasure.lora[name][0]) for name, (b, _) in found.lora.items() if b.any()) < 1e-4
    found.apply(other)
    found.remove(other)
