"""The training of mini-SD's denoiser: its loss, and what is dropped from the context."""

import threading
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from factory import loop, recipe, unet

NUMBERS = recipe.load(recipe.SHIPPED).unet
BARS = DDPMScheduler(**unet.SCHEDULE).alphas_cumprod


def test_the_exact_velocity_has_no_loss_and_noise_weighs_one():
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(4, 2, 4, 4, generator=generator) for _ in range(2))
    t = torch.tensor([0, 300, 700, 999])
    scheduler = DDPMScheduler(**unet.SCHEDULE)
    exact = scheduler.get_velocity(clean, noise, t)  # the reference
    noisy = scheduler.add_noise(clean, noise, t)

    def guess(sample, *_, **__):
        assert torch.allclose(sample, noisy, atol=1e-6)
        return (exact,)

    assert unet.v_loss(guess, BARS, clean, None, t, noise) < 1e-10
    late = torch.full((4,), 999)
    noisy, exact = scheduler.add_noise(clean, noise, late), scheduler.get_velocity(clean, noise, late) + 1
    assert unet.v_loss(guess, BARS, clean, None, late, noise).item() == pytest.approx(1.0, abs=1e-4)


def test_dropped_context_is_the_empty_prompts():
    n, ends = 4000, torch.full((4000,), 3)
    context, empty = torch.ones(n, 7, 2), torch.zeros(7, 2)
    chance = torch.rand(n, generator=torch.Generator().manual_seed(0))
    kept = unet.drop_context(context, ends, empty, chance, NUMBERS)[..., 0]
    whole, tail = (kept.sum(1) == 0), (kept.sum(1) == 3)
    assert (kept[tail, :3] == 1).all() and (kept[tail, 3:] == 0).all()
    assert whole.float().mean().item() == pytest.approx(NUMBERS.empty, abs=0.02)
    assert tail.float().mean().item() == pytest.approx(NUMBERS.context_dropout, abs=0.03)
    assert (whole | tail | (kept.sum(1) == 7)).all()


def test_the_shipped_recipe_s_denoiser_reads_text_through_cross_attention_alone():
    model = unet.new_unet(NUMBERS, 384)
    layers = [n for n, m in model.named_modules() if n.endswith("attn2") and m.is_cross_attention]
    assert len(layers) == 7 and not model.config.only_cross_attention
    assert {model.get_submodule(n).to_k.in_features for n in layers} == {384}
    assert min(c // h for c, h in zip(NUMBERS.channels, NUMBERS.heads, strict=True)) >= 32
    assert NUMBERS.steps * NUMBERS.batch >= 2_000_000


def test_every_parameter_has_a_gradient_at_the_recipe_s_batch():
    """Compiled on a CPU, two thirds of them had none from a batch of 64 on, where diffusers upsamples otherwise."""
    model = unet.new_unet(replace(NUMBERS, channels=(16, 16, 16), heads=(1, 1, 1)), 8).train()
    latents, noise = torch.randn(2, NUMBERS.batch, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    t = torch.arange(NUMBERS.batch) * 7
    unet.v_loss(model, BARS, latents, torch.ones(NUMBERS.batch, 5, 8) * t[:, None, None] / 900, t, noise).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.norm() > 0]


def test_a_batch_taken_apart_has_the_gradients_of_the_whole(monkeypatch):
    """Each part in a thread of its own, of unlike lengths; what has no part in the loss has no gradient."""
    monkeypatch.setattr(loop, "PART", 2)
    monkeypatch.setattr(loop, "gains_from_bf16", lambda device: False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    model = unet.new_unet(replace(NUMBERS, channels=(16, 16, 16), heads=(1, 1, 1)), 8).train()
    model.idle = torch.nn.Parameter(torch.zeros(2))
    latents, noise = torch.randn(2, 7, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    t = torch.arange(7) * 100
    batch = latents, torch.ones(7, 5, 8) * t[:, None, None] / 900, t, noise
    whole = unet.v_loss(model, BARS, *batch)
    whole.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    seen = []

    def loss(*some):
        seen.append((len(some[0]), threading.get_ident()))
        return unet.v_loss(model, BARS, *some)

    assert loop.backward(model, loss, batch) == pytest.approx(whole.item(), rel=1e-5)
    assert sorted(size for size, _ in seen) == [2, 2, 3] and threading.get_ident() not in dict(map(reversed, seen))
    assert model.idle.grad is None and len(grads) == len([*model.parameters()]) - 1
    for name, p in model.named_parameters():
        if name in grads:
            assert (p.grad - grads[name]).norm() <= 1e-3 * grads[name].norm() + 1e-7, name
