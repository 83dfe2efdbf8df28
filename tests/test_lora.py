"""Stage 2 against finite differences, separate runs, undisturbed runs, and PEFT."""

import copy
import dataclasses
import itertools

import pytest
import torch
from torch import nn

from macelib.erasure.export import peft_config, peft_state, save_peft
from macelib.errors import MaceError
from macelib.method.lora.forward import attention_loss, per_sample
from macelib.method.lora.group import Group, own_directions
from macelib.method.lora.train import Example, TrainConfig, cfis, train
from macelib.models.pipelines import cross_attention, kv_weights, load_pipeline
from macelib.models.text import added_conditions, encode
from macelib.models.tiny import KINDS, tiny_pipeline

NAMES = ["ship", "sea", "frog", "grass", "horse", "field", "dog", "cat"]
CONFIG = TrainConfig(steps=6, lr=1e-2, rank=2, t1=200, t2=400)


@pytest.fixture(scope="module", params=KINDS)
def any_pipe(request):
    return tiny_pipeline(request.param)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


def some_examples(pipe, count, images=2):
    g = torch.Generator().manual_seed(1)
    examples = []
    for i in range(count):
        prompts = [f"a photo of the {NAMES[i]}"] * images
        masks = torch.zeros(images, 1, 64, 64)
        masks[:, :, 8 * (i % 4) : 40, 10:50] = 1
        examples.append(
            Example(
                name=prompts[0].split()[-1],
                latents=torch.randn(images, pipe.unet.config.in_channels, 16, 16, generator=g),
                masks=masks,
                embeddings=encode(pipe, prompts),
                positions=[torch.tensor([5])] * images,
                tails=[torch.arange(6, 77)] * images,
                added=added_conditions(pipe, prompts, (64, 64)),
            )
        )
    return examples


def random_loras(unet, N, r, scale, dtype=torch.float32, seed=0):
    g, shapes = torch.Generator().manual_seed(seed), {k: w.shape for k, w in kv_weights(unet).items()}
    B = {k: scale * torch.randn(N, out, r, generator=g).to(dtype) for k, (out, _) in shapes.items()}
    D = {k: scale * torch.randn(N, r, d, generator=g).to(dtype) for k, (_, d) in shapes.items()}
    return B, D


def inputs(pipe, N, dtype=torch.float32):
    g, example = torch.Generator().manual_seed(3), some_examples(pipe, 1)[0]
    x = torch.randn(N, 4, 16, 16, generator=g).to(dtype)
    e = example.embeddings[:1].repeat(N, 1, 1).to(dtype)
    added = example.added and {k: v[:1].repeat(N, 1).to(dtype) for k, v in example.added.items()}
    M = [torch.rand(1, 20, 24, generator=g).to(dtype) for _ in range(N)]
    S = [torch.tensor([5, 6][: 1 + i % 2]) for i in range(N)]
    return (x, torch.tensor([300] * N), e, M, S), added


def count_unet(pipe):
    calls = []
    return calls, pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))


def test_cfis_is_eq_5():
    xi = cfis(1000, 200, 400, 0.05)
    assert xi.shape == (1000,) and abs(float(xi.sum()) - 1) < 1e-12
    ratio = float(xi[300] / xi[200])  # by hand: σ(5) − σ(−5) over σ(0) − σ(−10)
    s = torch.tensor([5.0, -5.0, 0.0, -10.0], dtype=torch.float64).sigmoid()
    assert abs(ratio - float((s[0] - s[1]) / (s[2] - s[3]))) < 1e-9
    assert xi[50:150].max() < 0.2 * xi[300] and int(xi.argmax()) == 300


@pytest.mark.parametrize("loss", ["squared", "norm"])
def test_attention_loss_is_eq_3(loss):
    g = torch.Generator().manual_seed(0)
    A, M = torch.rand(2, 3, 4, 7, generator=g), torch.rand(2, 4, generator=g)
    S = [torch.tensor([1, 4]), torch.tensor([6])]
    expected = []
    for n in range(2):
        norms = [torch.linalg.matrix_norm(A[n, :, :, int(i)] * M[n], ord="fro") for i in S[n]]
        total = sum(norm**2 for norm in norms)
        expected.append(total if loss == "squared" else total.sqrt())  # one norm over all of S
    assert torch.allclose(attention_loss(A, M, S, loss), torch.stack(expected), rtol=1e-6)


@pytest.mark.parametrize("loss", ["squared", "norm"])
def test_gradient_of_the_loss_equals_finite_differences(loss):
    pipe = tiny_pipeline("sd")
    pipe.unet.double()
    (x, t, e, M, S), _ = inputs(pipe, 2, torch.float64)
    fields, h = dict(zip("BD", random_loras(pipe.unet, 2, 2, 0.2, torch.float64), strict=True)), 1e-5
    names = [list(fields["B"])[i] for i in (0, 5)]  # first to_k, third to_v
    with per_sample(pipe.unet, loss) as forward:
        for field, name in itertools.product("BD", names):
            p = fields[field][name].requires_grad_(True)
            forward(x, t, e, M, S, **fields).sum().backward()
            direction = torch.randn(p.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
            ends = []
            with torch.no_grad():
                for sign in (1, -1):
                    moved = {**fields, field: {**fields[field], name: p + sign * h * direction}}
                    ends.append(float(forward(x, t, e, M, S, **moved).sum()))
            numeric = (ends[0] - ends[1]) / (2 * h)
            assert abs(numeric) > 1e-6 and abs(float((p.grad * direction).sum()) / numeric - 1) < 1e-5
            p.requires_grad_(False)


def test_per_sample_forward_equals_one_model_per_sample(any_pipe):
    """Attention of a batch with N LoRAs against N copies of the UNet with W + B D written into the weights."""
    pipe = any_pipe
    (x, t, e, M, S), added = inputs(pipe, 3)
    B, D = random_loras(pipe.unet, 3, 2, 0.3)
    with per_sample(pipe.unet) as forward, torch.no_grad():
        losses = forward(x, t, e, M, S, B, D, added)
    for i in range(3):
        unet = copy.deepcopy(pipe.unet)
        with torch.no_grad():
            for name, w in kv_weights(unet).items():
                w += B[name][i] @ D[name][i]
        zero = {k: torch.zeros_like(v[:1]) for k, v in B.items()}, {k: v[:1] for k, v in D.items()}
        with per_sample(unet) as forward, torch.no_grad():
            one = added and {k: v[i : i + 1] for k, v in added.items()}
            alone = forward(x[i : i + 1], t[i : i + 1], e[i : i + 1], M[i : i + 1], S[i : i + 1], *zero, one)
        assert abs(float(alone[0] / losses[i]) - 1) < 1e-5


@pytest.mark.parametrize("D", ["scaled", pytest.param("own", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [*KINDS, pytest.param("mini-sd", marks=pytest.mark.slow)])
def test_many_concepts_in_one_pass_equal_separate_runs(kind, D):
    """On random networks in fp64: there many gradients are as small as AdamW's eps, which magnifies fp32's rounding."""
    pipe, bound = (load_pipeline(kind, device="cpu"), 1e-5) if kind == "mini-sd" else (tiny_pipeline(kind), 1e-8)
    if kind != "mini-sd":
        pipe.unet.double()
    config = dataclasses.replace(CONFIG, steps=4, lr=1e-3, concepts_per_pass=4, D=D)
    examples = some_examples(pipe, 4)
    calls, _ = count_unet(pipe)
    together = train(pipe, examples, config).finish()
    at_once = len(calls)
    apart = [train(pipe, [e], config).finish() for e in examples]
    assert at_once == config.steps and len(calls) - at_once == 4 * config.steps
    for i, alone in enumerate(apart):
        for mine, theirs in zip(together.select(i), alone.select(examples[i].name), strict=True):
            assert max(float((mine[k] - theirs[k]).abs().max()) for k in mine) <= bound
    B, _ = together.select("frog")
    assert max(float(b.abs().max()) for b in B.values()) > 2e-3  # it did train


@pytest.mark.slow
def test_training_lowers_the_attention_and_leaves_the_unet_alone(pipe):
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    processors = {n: m.processor for n, m in cross_attention(pipe.unet).items()}
    pipe.unet.conv_in.weight.requires_grad_(True)
    config = dataclasses.replace(CONFIG, steps=24, timesteps="uniform")
    records = list(train(pipe, some_examples(pipe, 2), config))
    assert [r.step for r in records] == list(range(1, 25)) and records[0].names == ["ship", "sea"]
    assert records[0].losses.shape == records[0].timesteps.shape == (2,)
    first, last = (torch.stack([r.losses for r in part]).mean(0) for part in (records[:8], records[-8:]))
    assert (last < 0.9 * first).all()
    assert all(torch.equal(v, before[k]) for k, v in pipe.unet.state_dict().items())
    assert all(m.processor is processors[n] for n, m in cross_attention(pipe.unet).items())
    assert pipe.unet.conv_in.weight.requires_grad and not pipe.unet.is_gradient_checkpointing


def test_nothing_runs_after_the_last_cross_attention(any_pipe):
    unet, ran = any_pipe.unet, []
    leaves = {n: m for n, m in unet.named_modules() if not list(m.children()) and not isinstance(m, nn.Dropout)}
    hooks = [m.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, m in leaves.items()]
    (x, t, e, M, S), added = inputs(any_pipe, 1)
    with torch.no_grad():
        unet(x, t, encoder_hidden_states=e, added_cond_kwargs=added)
        everything, last = list(ran), list(cross_attention(unet))[-1]
        ran.clear()
        with per_sample(unet) as forward:
            forward(x, t, e, M, S, *random_loras(unet, 1, 1, 0.1), added)
    for hook in hooks:
        hook.remove()
    expected = everything[: everything.index(f"{last}.to_k") + 1]  # to_q, to_k, then nothing
    assert sorted(ran) == sorted(expected) and "conv_out" not in ran and len(ran) < len(everything) - 5


def test_gradient_checkpointing_gives_the_same_gradients(any_pipe):
    gradients, saved = [], []
    (x, t, e, M, S), added = inputs(any_pipe, 2)
    for on in (False, True):
        B, D = random_loras(any_pipe.unet, 2, 1, 0.3)
        for p in (*B.values(), *D.values()):
            p.requires_grad_(True)
        sizes = []
        with per_sample(any_pipe.unet, checkpointing=on) as forward:
            with torch.autograd.graph.saved_tensors_hooks(lambda s, z=sizes: z.append(s.numel()) or s, lambda s: s):
                loss = forward(x, t, e, M, S, B, D, added).sum()
            loss.backward()
        gradients.append([p.grad for p in (*B.values(), *D.values())])
        saved.append(sum(sizes))
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, atol=1e-6 * float(a.abs().max()) + 1e-12)
    assert saved[1] < saved[0]
    assert not any_pipe.unet.is_gradient_checkpointing


@pytest.mark.parametrize("autocast", ["bf16", "fp16"])
def test_autocast_is_near_float32(pipe, autocast):
    (x, t, e, M, S), _ = inputs(pipe, 2)
    found = []
    for enabled in (False, True):
        B, D = random_loras(pipe.unet, 2, 1, 0.2)
        name = list(B)[2]
        B[name].requires_grad_(True)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[autocast]
        with per_sample(pipe.unet) as forward, torch.autocast("cpu", dtype=dtype, enabled=enabled):
            losses = forward(x, t, e, M, S, B, D)
        losses.sum().backward()
        found.append((losses.detach(), B[name].grad))
    assert found[1][0].dtype == torch.float32 and not torch.equal(found[0][0], found[1][0])
    assert torch.allclose(found[0][0], found[1][0], rtol=0.02)
    assert torch.cosine_similarity(found[0][1].flatten(), found[1][1].flatten(), dim=0) > 0.98
    run = train(pipe, some_examples(pipe, 1), dataclasses.replace(CONFIG, autocast=autocast)).finish()
    assert all(b.dtype == torch.float32 and torch.isfinite(b).all() for b in run.B.values())


@pytest.mark.parametrize(
    ("timesteps", "D"),
    [("cfis", "own"), *(pytest.param(t, "scaled", marks=pytest.mark.slow) for t in ("cfis", "adaptive"))],
)
def test_resumed_training_equals_an_undisturbed_run(pipe, tmp_path, timesteps, D):
    config = dataclasses.replace(CONFIG, timesteps=timesteps, concepts_per_pass=2, D=D)
    examples = some_examples(pipe, 4)
    whole, path = train(pipe, examples, config).finish(), tmp_path / "state.safetensors"
    for record in train(pipe, examples, config, path, every=2):
        if record.names[0] == "frog" and record.step == 5:
            break  # killed in the second pass, one step after it was saved
    calls, hook = count_unet(pipe)
    again = train(pipe, examples, config, path, every=2).finish()
    hook.remove()
    assert len(calls) == 2  # steps 5 and 6 of the second pass
    assert all(torch.equal(again.B[k], whole.B[k]) and torch.equal(again.D[k], whole.D[k]) for k in whole.B)


def test_unusable_checkpoints_are_reported_and_not_used(pipe, tmp_path, caplog):
    examples, path = some_examples(pipe, 1), tmp_path / "state.safetensors"
    train(pipe, examples, CONFIG, path).finish()
    other = dataclasses.replace(CONFIG, lr=2e-2)
    found = train(pipe, examples, other, path).finish()
    assert "other settings" in caplog.text
    expected = train(pipe, examples, other).finish()
    assert all(torch.equal(found.B[k], expected.B[k]) for k in found.B)
    path.write_bytes(path.read_bytes()[:1000])
    train(pipe, examples, other, path).finish()
    assert "cannot be read" in caplog.text


def test_seed_and_name_decide_the_run(pipe):
    example = some_examples(pipe, 1)
    runs = [train(pipe, example, dataclasses.replace(CONFIG, seed=s)).finish() for s in (0, 0, 1)]
    name = next(iter(runs[0].D))
    assert torch.equal(runs[0].D[name], runs[1].D[name]) and not torch.equal(runs[0].D[name], runs[2].D[name])


def test_own_directions_answer_the_own_tokens_and_little_else(pipe):
    """Two prompts whose tokens are of 12 directions; the own tokens, two of each, have two more directions."""
    g = torch.Generator().manual_seed(0)
    example, directions = some_examples(pipe, 1)[0], torch.linalg.qr(torch.randn(64, 64, generator=g)).Q
    e = torch.randn(2, 77, 12, generator=g) @ directions[:12]
    for prompt, token in ((0, 5), (0, 6), (1, 2), (1, 3)):
        e[prompt, token] += 4 * directions[12] + directions[13 + token % 2]
    example.embeddings, example.positions = e, [torch.tensor([5, 6]), torch.tensor([2, 3])]
    one, three, six = (own_directions(example, r) for r in (1, 3, 6))
    own = torch.cat([e[0, 5:7], e[1, 2:4]])  # (4, d)
    others = torch.cat([e[0, [0, 1, 2, 3, 4, *range(7, 77)]], e[1, [0, 1, *range(4, 77)]]])
    assert float(one[0] @ own.mean(0)) == pytest.approx(1, abs=1e-5)
    plain = own.mean(0) / own.mean(0).square().sum()  # answers 1, too, but everything else as well
    assert (others @ one[0]).norm() < 0.2 * (others @ plain).norm()
    assert torch.equal(one, three[:1]) and torch.equal(three, six[:3]) and three[1:].any(1).all()
    assert float(three[1] @ three[2]) < float(three[1].norm() * three[2].norm())
    assert six[:4].any(1).all() and not six[4:].any()  # four tokens: a mean and three deviations


def test_with_its_own_directions_a_lora_trains_B_alone(pipe):
    examples, config = some_examples(pipe, 2), dataclasses.replace(CONFIG, D="own", steps=8, rank=1)
    records = list(run := train(pipe, examples, config))
    assert records[-1].losses.sum() < records[0].losses.sum()
    for i, example in enumerate(examples):
        B, D = run.loras.select(i)
        assert all(torch.equal(d, own_directions(example, 1)) for d in D.values())
        assert [name for name, b in B.items() if not b.any()] == list(B)[-1:]  # nothing reads the last layer's values


def test_timesteps_follow_their_options(pipe):
    drawn = {}
    for how in ("cfis", "uniform", "adaptive"):
        run = train(pipe, some_examples(pipe, 8), dataclasses.replace(CONFIG, timesteps=how))
        drawn[how] = torch.cat([run.groups[0].draw()[0] for _ in range(25)])
    inside = {how: float(((t > 150) & (t < 450)).float().mean()) for how, t in drawn.items()}
    assert inside["cfis"] > 0.95 and 0.2 < inside["uniform"] < 0.4 and 0.2 < inside["adaptive"] < 0.4
    group = train(pipe, some_examples(pipe, 1), dataclasses.replace(CONFIG, timesteps="adaptive")).groups[0]
    for t, loss in ((120, 9.0), (820, 1.0)):  # bins 2 and 16; the other eighteen take the mean, 5
        group._remember(torch.tensor([loss]), torch.tensor([t]))
    p = group._density(0)
    assert abs(float(p.max() / p.sum()) * 50 - (0.9 * 9 / 100 + 0.1 / 20)) < 1e-6 and p[120] == p.max()
    assert float(p[820] / p.sum()) * 50 == pytest.approx(0.9 * 1 / 100 + 0.1 / 20)


def test_own_and_tail_are_S(pipe):
    example = some_examples(pipe, 1)[0]
    assert example.S(0, "own").tolist() == [5] and example.S(0, "own+tail").tolist() == list(range(5, 77))
    losses = [
        next(iter(train(pipe, [example], dataclasses.replace(CONFIG, S=which)))).losses for which in ("own", "own+tail")
    ]
    assert losses[1] > losses[0]
    with pytest.raises(MaceError, match="tails"):
        train(pipe, [dataclasses.replace(example, tails=None)], dataclasses.replace(CONFIG, S="own+tail")).finish()


def test_nan_and_divergence_stop_with_the_cure(pipe):
    example = some_examples(pipe, 1)[0]
    broken = dataclasses.replace(example, latents=example.latents * float("nan"))
    with pytest.raises(MaceError, match=r"'ship' became NaN .* step 1: lower lr"):
        train(pipe, [broken], CONFIG).finish()
    grows = train(pipe, [example], dataclasses.replace(CONFIG, steps=40))
    with pytest.raises(MaceError, match=r"'ship' diverged by step \d+: .* lower lr"):
        for record in grows:
            if record.step == 5:
                grows.groups[0].first /= 1000  # as if the loss had grown a thousandfold


def test_bad_examples_are_refused(pipe):
    example = some_examples(pipe, 1)[0]
    for change, message in (
        ({"masks": torch.zeros(2, 1, 8, 8)}, "masks of 'ship' are empty"),
        ({"positions": [torch.tensor([], dtype=torch.long)] * 2}, "S is empty"),
        ({"masks": torch.ones(3, 1, 8, 8)}, "as many"),
    ):
        with pytest.raises(MaceError, match=message):
            dataclasses.replace(example, **change)
    with pytest.raises(MaceError, match="one size"):
        train(pipe, [example, dataclasses.replace(example, latents=torch.zeros(2, 4, 8, 8))], CONFIG)
    with pytest.raises(MaceError, match="at least one example"):
        train(pipe, [], CONFIG)
    for bad in ({"timesteps": "late"}, {"rank": 0}, {"t1": 500}, {"autocast": "fp8"}):
        with pytest.raises(MaceError, match=next(iter(bad))):
            dataclasses.replace(CONFIG, **bad)


@pytest.mark.parametrize("alpha", [None, 8.0])
def test_diffusers_loads_the_lora(any_pipe, tmp_path, alpha):
    pipe, path = copy.deepcopy(any_pipe), tmp_path / "lora.safetensors"
    (x, t, e, _, _), added = inputs(pipe, 1)
    B, D = ({k: v[0] for k, v in field.items()} for field in random_loras(pipe.unet, 1, 2, 0.3))
    merged = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        for name, w in kv_weights(merged).items():
            w += B[name] @ D[name]
        plain, expected = (u(x, t, encoder_hidden_states=e, added_cond_kwargs=added)[0] for u in (pipe.unet, merged))
        save_peft(path, B, D, alpha)
        pipe.load_lora_weights(path)
        loaded = pipe.unet(x, t, encoder_hidden_states=e, added_cond_kwargs=added)[0]
        config = next(iter(pipe.unet.peft_config.values()))
        assert config.r == 2 and config.lora_alpha == (alpha or 2)
        assert list(kv_weights(pipe.unet)) == list(B)  # found beneath the LoRA
        pipe.unload_lora_weights()
        pipe.unet.load_lora_adapter(peft_state(B, D), prefix="unet")
        adapter = pipe.unet(x, t, encoder_hidden_states=e, added_cond_kwargs=added)[0]
    assert (expected - plain).abs().max() > 1e-3
    assert (loaded - expected).abs().max() <= 1e-5 and (adapter - expected).abs().max() <= 1e-5


def test_peft_itself_takes_the_lora(pipe):
    from peft import inject_adapter_in_model, set_peft_model_state_dict

    (x, t, e, _, _), _ = inputs(pipe, 1)
    B, D = ({k: v[0] for k, v in field.items()} for field in random_loras(pipe.unet, 1, 2, 0.3))
    merged, unet = copy.deepcopy(pipe.unet), copy.deepcopy(pipe.unet)
    inject_adapter_in_model(peft_config(D), unet)
    set_peft_model_state_dict(unet, {k.removeprefix("unet."): v for k, v in peft_state(B, D).items()})
    with torch.no_grad():
        for name, w in kv_weights(merged).items():
            w += B[name] @ D[name]
        a, b = (u(x, t, encoder_hidden_states=e)[0] for u in (unet, merged))
    assert (a - b).abs().max() <= 1e-5


def test_the_rank_sets_directions_not_the_size_of_the_change(pipe, monkeypatch):
    """Rows of D that are all the same change W as one row does: the rate needs no other value for another rank."""

    def same_rows(self, generator):
        r = self.config.rank
        return torch.cat([torch.randn(d, generator=generator).repeat(r) for _, d in self._shapes()])

    monkeypatch.setattr(Group, "_random", same_rows)
    changes = []
    for rank in (1, 4):
        config = dataclasses.replace(CONFIG, rank=rank, steps=3, clip=0.0)
        B, D = train(pipe, some_examples(pipe, 1), config).finish().select(0)
        changes.append({name: B[name] @ D[name] for name in B})
    one, four = (torch.cat([change.flatten() for change in some.values()]) for some in changes)
    assert (four - one).norm() <= 0.05 * one.norm() and one.norm() > 0
