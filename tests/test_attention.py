"""Traced attention against the stock processor, and against the layer's own output rebuilt from the probabilities."""

import pytest
import torch

from macelib.errors import MaceError
from macelib.models.attention import attention_probs, grid, resize, split_heads, trace
from macelib.models.pipelines import cross_attention
from macelib.models.sample import generate
from macelib.models.text import added_conditions, encode
from macelib.models.tiny import KINDS, tiny_pipeline

PROMPT = "a photo of the ship"


@pytest.fixture(scope="module", params=KINDS)
def any_pipe(request):
    return tiny_pipeline(request.param)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


def call_unet(pipe, prompts, seed=0, t=500, size=(16, 16)):
    x = torch.randn(len(prompts), 4, *size, generator=torch.Generator().manual_seed(seed))
    added = added_conditions(pipe, prompts, (64, 64))
    with torch.no_grad():
        return pipe.unet(x, t, encoder_hidden_states=encode(pipe, prompts), added_cond_kwargs=added).sample


def draw(pipe, prompts, seed=0, steps=3, **kw):
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    return pipe(prompts, generator=generators, num_inference_steps=steps, output_type="latent", **kw).images


def processors(pipe):
    return [m.processor for m in cross_attention(pipe.unet).values()]


def test_the_traced_output_is_the_stock_output(any_pipe):
    before, plain = processors(any_pipe), call_unet(any_pipe, [PROMPT] * 2)
    with trace(any_pipe) as outer, trace(any_pipe, tokens=[5]) as inner:
        traced = call_unet(any_pipe, [PROMPT] * 2)
    assert (traced - plain).abs().max() <= 1e-5
    assert all(a is b for a, b in zip(processors(any_pipe), before, strict=True))
    assert outer.layers == inner.layers == list(cross_attention(any_pipe.unet))
    assert torch.allclose(outer.map(5), inner.map(5), atol=1e-6)


def test_the_probabilities_rebuild_the_output_of_each_layer(any_pipe):
    """softmax(QKᵀ) V through to_out is what the stock processor returns."""
    seen, hooks = {}, []
    for name, m in cross_attention(any_pipe.unet).items():
        keep = lambda m, args, kw, out, n=name: seen.update({n: (m, args[0], kw["encoder_hidden_states"], out)})  # noqa: E731
        hooks.append(m.register_forward_hook(keep, with_kwargs=True))
    with trace(any_pipe, heads="each") as maps:
        call_unet(any_pipe, [PROMPT])
    for hook in hooks:
        hook.remove()
    for name, (attn, hidden, context, out) in seen.items():
        A = maps.layer(name)[0].flatten(1, 2)  # (heads, hw, T)
        assert A.shape[0] == attn.heads and torch.allclose(A.sum(-1), torch.ones(A.shape[:2]), atol=1e-5)
        with torch.no_grad():
            rebuilt = (A[None] @ split_heads(attn, attn.to_v(context))).transpose(1, 2).flatten(2)
            assert (attn.to_out[0](rebuilt) - out).abs().max() <= 1e-5
            assert torch.allclose(attention_probs(attn, hidden, context)[0], A, atol=1e-6)


def test_guidance_keeps_the_conditional_half(any_pipe):
    guided, single = {"guidance_scale": 5.0}, {"guidance_scale": 1.0}
    with trace(any_pipe, timesteps="each") as maps:
        draw(any_pipe, [PROMPT, "a frog"], steps=1, **guided)
    with trace(any_pipe, timesteps="each") as plain:
        draw(any_pipe, [PROMPT, "a frog"], steps=1, **single)
    assert maps.layer(maps.layers[0]).shape[0] == 2
    assert torch.allclose(maps.map(5, image=None), plain.map(5, image=None), atol=1e-6)
    with trace(any_pipe, guided=False) as both:
        draw(any_pipe, [PROMPT], steps=1, **guided)
    assert both.layer(both.layers[0]).shape[0] == 2


def test_steps_are_averaged_and_batches_are_joined(pipe):
    with trace(pipe, timesteps="each") as each:
        draw(pipe, [PROMPT, PROMPT])
        draw(pipe, [PROMPT], seed=2)
    with trace(pipe) as mean:
        draw(pipe, [PROMPT, PROMPT])
        draw(pipe, [PROMPT], seed=2)
    assert each.map(5, image=None).shape == (3, 3, 16, 16)  # images, steps
    assert torch.allclose(each.map(5, image=None).mean(1), mean.map(5, image=None), atol=1e-6)
    assert len(each.timesteps) == 6 and each.timesteps[:3] == sorted(each.timesteps[:3], reverse=True)
    name = mean.layers[0]
    stored = [m for run in mean._runs for m in run[name]]
    assert sum(m.numel() for m in stored) == 3 * 256 * 77  # one map per image, however many steps


def test_only_the_steps_nearest_to_given_timesteps_are_recorded(pipe):
    with trace(pipe, timesteps="each") as each:
        draw(pipe, [PROMPT], steps=8)
        draw(pipe, [PROMPT, "a dog"], steps=8, seed=3)
    schedule = pipe.scheduler.timesteps.tolist()
    wanted = sorted({min(range(8), key=lambda i: abs(schedule[i] - t)) for t in (480, 210, 190)})
    with trace(pipe, at=(480, 210, 190)) as some:
        draw(pipe, [PROMPT], steps=8)
        draw(pipe, [PROMPT, "a dog"], steps=8, seed=3)
    assert len(some.timesteps) == 2 * len(wanted) == 4 and some.timesteps[:2] == [schedule[i] for i in wanted]
    assert torch.allclose(some.map(5, image=None), each.map(5, image=None)[:, wanted].mean(1), atol=1e-6)


def test_tokens_layers_heads_and_sizes(pipe):
    with trace(pipe, tokens=[4, 5], layers=["mid_block"], heads="each", size=(6, 10)) as maps:
        call_unet(pipe, [PROMPT])
    assert maps.layers == [n for n in cross_attention(pipe.unet) if "mid_block" in n]
    assert maps.map([4, 5]).shape == (2, 6, 10) and maps.map(5, size=(4, 4)).shape == (2, 4, 4)
    assert torch.allclose(maps.map([4, 5]), (maps.map(4) + maps.map(5)) / 2)
    with pytest.raises(MaceError, match="were not recorded"):
        maps.map(6)
    with trace(pipe) as maps:
        call_unet(pipe, [PROMPT], size=(12, 20))
    assert maps.map(5).shape == (12, 20) and maps.layer(maps.layers[2]).shape[2:4] == (3, 5)


def test_heads_that_differ_need_a_layer():
    pipe = tiny_pipeline("sd2")
    with trace(pipe, heads="each") as maps:
        call_unet(pipe, [PROMPT])
    with pytest.raises(MaceError, match="different numbers of heads"):
        maps.map(5)
    assert maps.map(5, layer=maps.layers[0]).shape == (1, 16, 16)


def test_heat_finds_the_words_tokens(pipe):
    prompt = "a photo of the xyz, xyz"  # three letters, so three tokens, twice
    with trace(pipe) as maps:
        call_unet(pipe, [prompt])
    assert torch.equal(maps.heat(prompt, "xyz"), maps.map([5, 6, 7, 9, 10, 11]))
    assert torch.equal(maps.heat(prompt, "photo"), maps.map(2))
    with pytest.raises(MaceError, match="'frog' does not occur"):
        maps.heat(prompt, "frog")


def test_everything_comes_back_after_an_exception(pipe):
    before, hooks = processors(pipe), len(pipe.unet._forward_pre_hooks)
    with pytest.raises(ZeroDivisionError), trace(pipe), trace(pipe):
        call_unet(pipe, [PROMPT])
        raise ZeroDivisionError
    assert all(a is b for a, b in zip(processors(pipe), before, strict=True))
    assert len(pipe.unet._forward_pre_hooks) == hooks


def test_bad_requests_are_refused(pipe):
    for bad, message in (({"heads": "all"}, "heads is 'all'"), ({"layers": ["nosuch"]}, "No layer matches nosuch")):
        with pytest.raises(MaceError, match=message), trace(pipe, **bad):
            pass
    with trace(pipe) as maps, pytest.raises(MaceError, match="No attention was recorded"):
        maps.map(1)


def test_grid_and_resize():
    assert grid(64 * 96, 64, 96) == (64, 96) and grid(8 * 12, 64, 96) == (8, 12)
    assert grid(3 * 5, 11, 18) == (3, 5)  # 11 -> 6 -> 3, 18 -> 9 -> 5
    with pytest.raises(MaceError, match="no level"):
        grid(7, 16, 16)
    m = torch.arange(16.0).reshape(1, 4, 4)
    assert torch.equal(resize(m, (2, 2))[0], torch.tensor([[2.5, 4.5], [10.5, 12.5]]))
    assert resize(m, (9, 5)).shape == (1, 9, 5)


@pytest.mark.parametrize("steps", [1, 2])
def test_batches_that_begin_at_the_same_timestep_are_told_apart(steps):
    """One step a picture: the second batch begins where the first one ended."""
    pipe = tiny_pipeline("sd")
    with trace(pipe) as maps:
        generate(pipe, ["a ship", "a cat", "a dog"], [0, 1, 2], steps=steps, batch=1)
    with trace(pipe) as alone:
        generate(pipe, "a cat", [1], steps=steps)
    assert len(maps.map(1, image=None)) == 3
    assert torch.allclose(maps.map(1, image=1), alone.map(1), atol=1e-6)
