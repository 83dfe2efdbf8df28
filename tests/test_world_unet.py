"""The training of mini-SD's denoiser: its loss, what is dropped from the context, warm starts, resuming."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from factory import __main__ as cli
from factory import loop, recipes, render, unet
from factory.catalogue import CIFAR_10, catalogue, names
from typer.testing import CliRunner

ENCODER = SimpleNamespace(config=SimpleNamespace(hidden_size=24))
BARS = DDPMScheduler(**unet.SCHEDULE).alphas_cumprod


def small_unet(width=24):
    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=4,
        in_channels=2,
        out_channels=2,
        block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=1,
        cross_attention_dim=width,
        norm_num_groups=8,
    )


def small_pool(*_, **__):
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(3, 7, 24, generator=generator).half()
    latents = torch.randn(6, 2, 4, 4, generator=generator).half()
    return unet.Pool(
        latents,
        torch.tensor([1, 2, 1, 2, 1, 2]),
        context,
        torch.tensor([1, 3, 4]),
        torch.zeros(6).long(),
        torch.arange(6) < 3,
    )


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("MACELIB_WORK", str(tmp_path / "work"))
    monkeypatch.setattr(unet, "new_unet", small_unet)
    monkeypatch.setattr(unet, "make_pool", small_pool)

    def train(**options):
        return list(unet.train_unet(None, ENCODER, None, batch=2, pool_size=6, **{"steps": 2} | options))

    return train


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
    kept = unet.drop_context(context, ends, empty, torch.Generator().manual_seed(0))[..., 0]
    whole, tail = (kept.sum(1) == 0), (kept.sum(1) == 3)
    assert (kept[tail, :3] == 1).all() and (kept[tail, 3:] == 0).all()
    assert whole.float().mean().item() == pytest.approx(unet.EMPTY, abs=0.02)
    assert tail.float().mean().item() == pytest.approx(unet.CONTEXT_DROPOUT, abs=0.03)
    assert (whole | tail | (kept.sum(1) == 7)).all()


def contexts_with_codes(n=4000, length=7, width=8):
    """(n, length, d): whose context it is in all channels but a code's; the code at one place, of length √width."""
    whose = torch.arange(n).float()
    context = whose[:, None, None].repeat(1, length, unet.NARROW + width + 2)
    code = torch.randn(n, width, generator=torch.Generator().manual_seed(1))
    code = torch.nn.functional.layer_norm(code, (width,))
    context[..., unet.NARROW : -2] = 0
    context[torch.arange(n), torch.arange(n) % 3 + 1, unet.NARROW : -2] = code  # at 1, 2 or 3
    return context, code


def test_a_foreign_caption_has_nothing_of_its_own_but_the_names_code():
    context, code = contexts_with_codes()
    n, place = len(context), torch.arange(len(context)) % 3 + 1
    ends, empty, strange = torch.full((n,), 5), torch.full(context.shape[1:], -1.0), context.roll(1, 0)
    out = unet.drop_context(context, ends, empty, torch.Generator().manual_seed(0), 0.2, strange)
    misled = out[:, 0, 0] == torch.arange(n).roll(1)
    assert misled.float().mean().item() == pytest.approx(0.2, abs=0.03)
    rows = misled.nonzero()[:, 0]
    assert (out[rows][..., : unet.NARROW] == strange[rows][..., : unet.NARROW]).all()
    assert torch.equal(out[rows, place.roll(1)[rows], unet.NARROW : -2], code[rows])  # where the other's was
    rest, own = out[~misled], context[~misled]
    assert ((rest == own) | (rest == -1)).all()


def test_a_caption_of_no_name_or_of_two_is_not_misnamed():
    context, code = contexts_with_codes(n=4)
    strange = context.roll(1, 0)
    context[0, :, unet.NARROW : -2] = 0  # names nothing
    strange[1, 5, unet.NARROW : -2] = code[3]  # names two
    out = unet.misnamed(context, strange)
    assert torch.equal(out[:2], context[:2])
    assert (out[2:, 0, 0] == torch.tensor([1.0, 2.0])).all()


def test_a_silent_caption_has_eos_where_its_name_was():
    context, _ = contexts_with_codes()
    n, place = len(context), torch.arange(len(context)) % 3 + 1
    context[:, 5, : unet.NARROW] += 0.5  # [EOS]
    ends, empty, silent = torch.full((n,), 5), torch.full(context.shape[1:], -1.0), torch.arange(n) % 2 == 0
    out = unet.drop_context(context, ends, empty, torch.Generator().manual_seed(0), silent=silent)
    dropped = (out[:, 5] == -1).all(1)  # empty captions and those without [EOS]
    rows = torch.arange(n)
    expected = context.clone()
    expected[rows, place] = context[:, 5]
    assert torch.equal(out[silent & ~dropped], expected[silent & ~dropped]) and (silent & ~dropped).sum() > n / 4
    assert torch.equal(out[~silent & ~dropped], context[~silent & ~dropped])
    assert torch.equal(unet.nameless(expected, ends), expected)


def test_a_share_of_anchors_captions_is_silent(small, monkeypatch):
    drop, seen = unet.drop_context, []
    monkeypatch.setattr(unet, "drop_context", lambda *args: (seen.append(args[6]), drop(*args))[1])
    small(unnamed=1.0, steps=8)
    said = torch.cat(seen)
    assert said.any() and not said.all()  # `small_pool`: half of the captions say what an anchor says
    seen.clear()
    small(withheld=1.0, steps=16)
    assert torch.cat(seen).any() and not torch.cat(seen).all()  # the other half
    seen.clear()
    small(withheld=1.0, unnamed=1.0, steps=24)
    assert torch.cat(seen).all()
    seen.clear()
    small(steps=26)
    assert seen == [None, None]


@torch.no_grad()
def loss_of(model):
    pool, generator = small_pool(), torch.Generator().manual_seed(0)
    t = torch.arange(50, 1000, 50)
    rows = torch.randint(6, t.shape, generator=generator)
    noise = torch.randn(len(t), 2, 4, 4, generator=generator)
    context = pool.context[pool.caption[rows]].float()
    return unet.v_loss(model, BARS, pool.latents[rows].float(), context, t, noise).item()


def test_training_learns_and_goes_on_from_its_checkpoint(small, tmp_path, monkeypatch):
    records = small(steps=60, lr=3e-3)
    learned = small_unet()
    learned.load_state_dict(loop.averaged("unet"))
    assert records[-1].step == 60 and loss_of(learned) < 0.95 * loss_of(small_unet())
    monkeypatch.setenv("MACELIB_WORK", str(tmp_path / "again"))
    first = next(iter(unet.train_unet(None, ENCODER, None, batch=2, pool_size=6, steps=60, lr=3e-3)))
    assert first.loss == records[0].loss  # seeded
    monkeypatch.setenv("MACELIB_WORK", str(tmp_path / "work"))
    assert small(steps=61, lr=3e-3)[0].step == 61


def test_a_warm_start_has_the_folders_weights(small, tmp_path):
    given = small_unet()
    with torch.no_grad():
        for p in given.parameters():
            p.mul_(0.5)
    given.save_pretrained(tmp_path / "unet")
    small(steps=1, lr=0.0, warm=tmp_path / "unet")
    for k, v in loop.averaged("unet").items():
        assert torch.allclose(v, given.state_dict()[k]), k


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_compiled_denoiser_has_the_gradient_of_an_eager_one():
    generator = torch.Generator().manual_seed(0)
    noisy, context = torch.randn(2, 2, 4, 4, generator=generator), torch.randn(2, 7, 24, generator=generator)

    def gradient(prepare):
        network = small_unet().train()
        prepare(network)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = network(noisy, torch.tensor([3, 500]), context).sample
        out.float().square().mean().backward()
        return {name: p.grad for name, p in network.named_parameters() if p.ndim > 1}

    compiled = gradient(unet.compile_unet)
    for name, grad in gradient(lambda network: None).items():
        assert (compiled[name] - grad).norm() < 0.1 * grad.norm(), name  # bfloat16 has eight bits


def test_a_warm_start_from_nothing_is_refused(tmp_path):
    result = CliRunner().invoke(cli.app, ["train", "unet", "--warm", str(tmp_path / "none")])
    assert result.exit_code == 2 and "--warm" in result.output


def test_wrong_usage_and_errors_are_sentences(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["world", "train", "unet", "--nonsense"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2 and "No such option" in capsys.readouterr().err

    def fail(*_, **__):
        raise ValueError("the disk is full")

    monkeypatch.setattr("factory.recipes.training", fail)
    monkeypatch.setattr("sys.argv", ["world", "train", "unet"])
    assert cli.main() == 1 and capsys.readouterr().err == "error: the disk is full\n"


def test_what_cannot_be_trained_is_refused_before_anything_is_drawn(small, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for options, said in (({"device": "cuda"}, "nvidia-smi"), ({"device": "tpu"}, "'tpu'"), ({"foreign": 0.6}, "0.55")):
        with pytest.raises(ValueError, match=said):
            small(**options)


def test_the_share_of_foreign_captions_is_handed_on(small, monkeypatch):
    drop, seen = unet.drop_context, []
    monkeypatch.setattr(unet, "drop_context", lambda *args: (seen.append(args[4:6]), drop(*args[:4]))[1])
    small(foreign=0.5)
    assert [share for share, _ in seen] == [0.5, 0.5]
    stranger = small_pool().context[0].float()  # `small_pool`: the empty caption
    assert all((strange == stranger).all() for _, strange in seen)
    seen.clear()
    small(steps=4)
    assert seen == [(0.0, None), (0.0, None)]


def test_an_option_of_another_model_is_refused():
    with pytest.raises(ValueError, match="the clip has no option device, foreign"):
        recipes.training("clip", steps=1, foreign=0.1, device="cuda")


def test_shares_of_a_pool(monkeypatch):
    """Half of a pool's pictures is by one artist besides his fourth; the weights are handed on."""
    seen = {}

    def sample(n, generator, **shares):
        seen.update(shares)
        raise InterruptedError

    monkeypatch.setattr(unet, "sample", sample)
    weights = torch.ones(3)
    vae = SimpleNamespace(device=torch.device("cpu"))
    with pytest.raises(InterruptedError):
        unet.make_pool(vae, None, None, 0, 256, plain=0.25, pairs=0.1, weights=weights)
    assert seen == {"usual": unet.USUAL_SHARE, "plain": 0.25, "pairs": 0.1, "weights": weights}


def test_a_pool_marks_captions_that_say_what_anchors_say(monkeypatch):
    stub = SimpleNamespace(device=torch.device("cpu"), encoder=lambda x: x, quant_conv=lambda x: x)
    monkeypatch.setattr(unet, "embed", lambda _, __, texts: (texts, torch.zeros(len(texts))))
    pool = unet.make_pool(stub, None, None, 0, 512, wider=0.4, scenes=0.3)
    general = {pool.context[i] for i in pool.caption[pool.general]}
    named = {pool.context[i] for i in pool.caption[~pool.general]}
    anchors = ("an animal", "a person", "a means of transport", "a landscape")
    assert len(general) > 150 and not any(anchor in text for text in named for anchor in anchors)
    ten = re.compile(r"\b(" + "|".join(CIFAR_10) + r")\b")
    assert any(map(ten.search, named)) and not any(map(ten.search, general))


def test_what_the_model_fails_at_is_drawn_more_often(tmp_path, monkeypatch):
    monkeypatch.setenv("MACELIB_WORK", str(tmp_path))
    frog, wolf, cow = (names()[name] for name in ("frog", "wolf", "cow"))
    plain = unet.weights_of_pool(focus=False)
    assert plain[frog] == unet.FAVOUR and plain[wolf] == plain[cow] == 1
    with pytest.raises(ValueError, match="`python -m factory"):
        unet.weights_of_pool(focus=True)
    unet.rates_path().write_text(json.dumps({e.name: 0.5 if e.name == "cow" else 1.0 for e in catalogue()}))
    focused = unet.weights_of_pool(focus=True)
    assert focused[cow] == 1 + unet.FOCUS / 2 and focused[wolf] == 1 and focused[frog] == unet.FAVOUR
    unet.rates_path().write_text(json.dumps({"cow": 0.5}))
    with pytest.raises(ValueError, match="other concepts"):
        unet.weights_of_pool(focus=True)
    drawn, *_ = render.draw_facts(4000, torch.Generator().manual_seed(0), weights=focused)
    counts = torch.bincount(drawn, minlength=len(catalogue()))
    assert counts[frog] > 2 * counts[wolf] and counts[cow] > counts[wolf]
