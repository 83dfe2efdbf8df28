"""The training of mini-SD's denoiser: its loss, and what is dropped from the context."""

import shutil

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
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


def test_a_long_training_s_pass_is_compiled_where_that_pays(monkeypatch, caplog):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    loss = lambda forward: forward(torch.ones(3, 2)).square().mean()  # noqa: E731
    monkeypatch.setattr(loop, "gains_from_bf16", lambda device: True)
    monkeypatch.setattr(loop.shutil, "which", lambda name: "/usr/bin/g++")
    monkeypatch.setattr(torch, "compile", lambda module: module.forward)  # one that is right
    assert loop.compiled(model, 5, loss) is model
    assert loop.compiled(model, 2000, loss) == model.forward and not caplog.text
    monkeypatch.setattr(torch, "compile", lambda module: lambda x: module[1](module[0](x).detach()))
    assert loop.compiled(model, 2000, loss) is model
    assert "Compiled, 0.weight and 1 more learn nothing right" in caplog.text
    assert all(p.grad is None for p in model.parameters())
    monkeypatch.setattr(loop, "device", lambda: "cpu")
    monkeypatch.setattr(loop.shutil, "which", lambda name: None)
    assert loop.compiled(model, 2000, loss) is model


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
def test_every_part_of_a_compiled_denoiser_learns(monkeypatch):
    """At a batch of 64, from which diffusers upsamples another way, all behind the last upsampler learned nothing."""
    monkeypatch.setattr(loop, "gains_from_bf16", lambda device: True)
    blocks = {"block_out_channels": (16, 16), "layers_per_block": 1, "norm_num_groups": 8, "add_attention": False}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    model = UNet2DModel(sample_size=8, in_channels=4, out_channels=4, **blocks, **kinds).train()
    x = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    loss = lambda forward: forward(x, torch.tensor(5), return_dict=False)[0].square().mean()  # noqa: E731
    forward = loop.compiled(model, 2000, loss)
    assert forward is not model and not loop.changed_gradients(model, forward, loss)
