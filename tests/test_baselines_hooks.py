"""The baselines outside the weights, each against a hand-written form: loops over tokens, heads and sampler steps."""

import math

import pytest
import torch
from brute import relative
from torch import float64

from macelib.baselines import Hook, build
from macelib.baselines.adavd import AdaVD, decomposed, gram_schmidt
from macelib.baselines.safree import SAFREE, filter_steps, projector, safree_edit, triggers
from macelib.baselines.semantic_surgery import calibrate, presence
from macelib.baselines.sld import SLD, safety_step
from macelib.concepts import Concept
from macelib.errors import MaceError
from macelib.models.pipelines import cast
from macelib.models.swap import applied
from macelib.models.text import encode
from macelib.models.tiny import tiny_pipeline

SHIP, FROG = Concept("ship", "sea"), Concept("frog", "grass")
PROMPTS = ["a photo of the ship", "a red dog on the grass"]


@pytest.fixture(params=["sd", "sd2"])
def pipe(request):
    """Predicts ε, and v; in float64, as thresholds would turn rounding into large differences."""
    return tiny_pipeline(request.param).to(torch.float64)


def noise(pipe, n=2):
    return torch.cat([
        torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(i), dtype=pipe.unet.dtype) for i in range(n)
    ])  # fmt: skip


def latents(pipe, prompts=PROMPTS, steps=6, guidance=4.0, **kw):
    """What the pipeline ends at (n, c, h, w), by diffusers alone."""
    options = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "latent", **kw}
    with torch.no_grad():
        return pipe(list(prompts), latents=noise(pipe), **options).images


def states_of(pipe, prompts):
    with torch.no_grad():
        return pipe.encode_prompt(list(prompts), "cpu", 1, False)[0]


def sampled(pipe, choose, steps=6):
    """Hand-written denoising: `choose(step, eps)` gives ε of the whole guidance from eps(e) -> ε."""
    n = len(PROMPTS)
    e_u, e_p, x = states_of(pipe, [""] * n), states_of(pipe, PROMPTS), noise(pipe)
    pipe.scheduler.set_timesteps(steps)
    v_model = pipe.scheduler.config.prediction_type == "v_prediction"
    for step, t in enumerate(pipe.scheduler.timesteps):
        abar = pipe.scheduler.alphas_cumprod[int(t)]

        def eps(e, x=x, t=t, abar=abar):
            with torch.no_grad():
                out = pipe.unet(x, t, encoder_hidden_states=e.to(x).expand(n, -1, -1)).sample
            return abar.sqrt() * out + (1 - abar).sqrt() * x if v_model else out

        total = choose(step, eps, e_u, e_p)
        if v_model:
            total = (total - (1 - abar).sqrt() * x) / abar.sqrt()
        x = pipe.scheduler.step(total, t, x).prev_sample
    return x


def test_the_hand_written_sampler_is_the_pipelines(pipe):
    plain = sampled(pipe, lambda step, eps, u, p: eps(u) + 4.0 * (eps(p) - eps(u)))
    assert relative(plain, latents(pipe)) < 1e-9


# --- negative prompt and SLD --------------------------------------------------------------------------------------


def test_negative_prompt_is_diffusers_own(pipe):
    edit = build(pipe, [SHIP, FROG], "negative-prompt")
    before, wanted = latents(pipe), latents(pipe, negative_prompt=["ship, frog"] * 2)
    with applied(pipe, edit):
        assert relative(latents(pipe), wanted) < 1e-5
        assert torch.equal(latents(pipe, guidance=1.0), latents(pipe, guidance=1.0, negative_prompt=None))
        with pytest.raises(MaceError, match="sets the negative prompt itself"):
            latents(pipe, negative_prompt=["dog"] * 2)
    assert relative(before, wanted) > 1e-3 and torch.equal(latents(pipe), before)


@pytest.mark.parametrize(
    "settings",
    [
        SLD(),
        pytest.param(SLD(0.0, 5000.0, 1.0, 0.5, 0.7), marks=pytest.mark.slow),
        pytest.param(SLD(25.0, 20.0, 0.025, 0.5, 0.7), marks=pytest.mark.slow),
    ],
)
def test_sld_is_its_equations_step_by_step(pipe, settings):
    """Warm-up 10, 0 and 25 steps of 50 are 1.2, 0 and 3 of 6."""
    s, e_s, nu = settings, encode(pipe, ["ship, frog"]), torch.zeros(2, 4, 16, 16, dtype=float64)

    def choose(step, eps, u, p):
        nonlocal nu
        e_0, e_p, e_c = eps(u), eps(p), eps(e_s)
        mu = torch.zeros_like(e_p)
        below = e_p - e_c < s.threshold
        mu[below] = torch.minimum(torch.ones((), dtype=float64), s.scale * (e_p - e_c)[below].abs())
        gamma = mu * (e_c - e_0) + s.momentum * nu
        nu = s.beta * nu + (1 - s.beta) * gamma
        return e_0 + 4.0 * ((e_p - e_0) - (gamma if step >= s.warmup * 6 / 50 else 0.0))

    with applied(pipe, build(pipe, [SHIP, FROG], "sld", settings)):
        found = latents(pipe)
        again = latents(pipe)  # the momentum begins anew
        unguided = latents(pipe, guidance=1.0)
    assert relative(found, sampled(pipe, choose)) < 1e-6 and torch.equal(found, again)
    assert relative(found, latents(pipe)) > 2e-3 and torch.equal(unguided, latents(pipe, guidance=1.0))


def test_sld_of_the_prompt_itself_finds_no_gap_under_autocast(monkeypatch):
    """The concepts' pass reads embeddings as precise as the others do."""
    pipe, gaps, read = tiny_pipeline("sd"), [], []
    forward = pipe.unet.forward

    def noted(eps_u, eps_p, eps_s, *rest):
        gaps.append(relative(eps_s, eps_p))
        return safety_step(eps_u, eps_p, eps_s, *rest)

    def heard(*args, **kw):
        read.append(kw["encoder_hidden_states"].dtype)
        return forward(*args, **kw)

    monkeypatch.setattr("macelib.baselines.sld.safety_step", noted)
    monkeypatch.setattr(pipe.unet, "forward", heard)
    with applied(pipe, build(pipe, [SHIP], "sld")), cast(pipe, "bf16"):
        latents(pipe, ["ship"] * 2)
    assert len(gaps) == 6 and max(gaps) < 1e-2 and read == [torch.float32] * 12


def test_sld_limits():
    u, p, c, nu = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(4))
    same, _ = safety_step(u, p, p, torch.zeros_like(nu), SLD(), True)
    assert torch.equal(same, p)  # ε_p = ε_S: μ = 0
    full, _ = safety_step(u, p, c, nu, SLD(scale=1e9, threshold=1e9, momentum=0.0), True)
    assert relative(full, p - (c - u)) < 1e-5  # μ = 1 everywhere
    waiting, momentum = safety_step(u, p, c, nu, SLD(beta=0.0), False)
    assert torch.equal(waiting, p) and momentum.abs().max() > 0  # builds up during the warm-up


def test_names_past_the_models_tokens_are_cut_and_said():
    pipe = tiny_pipeline("sd")
    many = [Concept("ship " + " ".join(["dog"] * i), "sea") for i in range(1, 30)]
    edit = build(pipe, many, "sld")
    assert len(edit.notes) == 1 and "of 29 names do not fit into one prompt and are cut" in edit.notes[0]
    assert build(pipe, many[:3], "negative-prompt").notes == []


# --- Semantic Surgery ---------------------------------------------------------------------------------------------


def cosine(a, b):
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size else 0.0


def test_presence_token_by_token():
    pipe = tiny_pipeline("sd")
    e, e_0 = encode(pipe, PROMPTS), encode(pipe, [""])[0]
    deltas = encode(pipe, ["ship", "frog"]) - e_0
    assert deltas[:, 0].abs().max() == 0  # [SOS] is the same in every prompt
    for n in range(2):
        for k in range(2):
            expected = sum(cosine(deltas[k, t], e[n, t]) for t in range(77)) / 77
            assert abs(float(presence(e, deltas)[n, k]) - expected) < 1e-6


def test_surgery_prompt_by_prompt():
    """β between the concepts' presences: one prompt is operated on, and so is one concept of the two."""
    pipe = tiny_pipeline("sd")
    e, e_0 = encode(pipe, PROMPTS), encode(pipe, [""])[0]
    s = presence(e, encode(pipe, ["ship", "frog"]) - e_0)
    order = s.flatten().sort().values
    beta = float(order[-2:].mean()) if order[-1] - order[-2] > 1e-4 else float(order[-1]) - 1e-3
    edit = build(pipe, [SHIP, FROG], "semantic-surgery", {"beta": beta, "gamma": 0.001})
    expected = []
    for n, prompt in enumerate(PROMPTS):
        rho = [1 / (1 + math.exp(-(float(s[n, k]) - beta) / 0.001)) for k in range(2)]
        active = [name for name, r in zip(["ship", "frog"], rho, strict=True) if r >= 0.5]
        text = ", ".join(active)
        expected.append(e[n] - max(rho) * (encode(pipe, [text])[0] - e_0) if active else encode(pipe, [prompt])[0])
    with applied(pipe, edit), torch.no_grad():
        found, negative = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
        several, _ = pipe.encode_prompt(PROMPTS, "cpu", 2, False)
        given, _ = pipe.encode_prompt(None, "cpu", 1, False, prompt_embeds=e)
    assert relative(found, torch.stack(expected)) < 1e-5
    assert sum(not torch.equal(a, b) for a, b in zip(found, e, strict=True)) == 1
    assert torch.equal(several[::2], found) and torch.equal(several[1::2], found)
    assert torch.equal(negative, encode(pipe, ["", ""])) and torch.equal(given, e)


def test_surgery_cuts_the_least_present_of_too_many_active(caplog):
    pipe = tiny_pipeline("sd")
    many = [Concept("ship " + " ".join(["dog"] * i), "sea") for i in range(1, 30)]
    edit = build(pipe, many, "semantic-surgery", {"beta": 0.0, "tau": 0.0})
    with applied(pipe, edit), torch.no_grad():
        pipe.encode_prompt("a photo of the ship", "cpu", 1, False)
    assert "29 active concepts do not fit into one prompt: cut" in caplog.text
    assert "of 29 names fit into one prompt" in edit.notes[0] and not build(pipe, many[:3], "semantic-surgery").notes


def test_calibration_is_the_midpoint_and_its_error():
    pipe = tiny_pipeline("sd")
    with_, without = [["the ship", "a ship at sea"], ["the frog", "a green frog"]], ["a red dog", "the cat"]
    beta, error = calibrate(pipe, [SHIP, FROG], with_, without)
    deltas = encode(pipe, ["ship", "frog"]) - encode(pipe, [""])
    yes = [float(presence(encode(pipe, [p]), deltas[k : k + 1])) for k in range(2) for p in with_[k]]
    no = [float(presence(encode(pipe, [p]), deltas[k : k + 1])) for k in range(2) for p in without]
    assert abs(beta - (sum(yes) / 4 + sum(no) / 4) / 2) < 1e-6
    assert abs(error - (sum(s < beta for s in yes) / 4 + sum(s >= beta for s in no) / 4) / 2) < 1e-6


# --- SAFREE -------------------------------------------------------------------------------------------------------


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=float64)


def test_projector_and_triggers_by_definition():
    N = random(12, 3, seed=1)
    Q = torch.linalg.svd(N, full_matrices=False).U
    assert relative(projector(N), Q @ Q.T) < 1e-12
    assert relative(projector(torch.cat([N, N[:, :1]], 1)), Q @ Q.T) < 1e-12  # dependent columns
    d = torch.tensor([1.0, 2.0, 1.5, 1.51])
    expected = [d[i] >= 1.01 * sum(d[j] for j in range(4) if j != i) / 3 for i in range(4)]
    assert triggers(d, 0.01).tolist() == [bool(x) for x in expected] == [False, True, False, False]
    assert triggers(torch.tensor([0.0]), 0.01).tolist() == [True]


def test_safree_edit_token_by_token():
    e, Q, concept = random(5, 12, seed=1), random(12, 5, seed=2), projector(random(12, 2, seed=3))
    found, b = safree_edit(e, Q, concept, 0.01)
    inside = torch.linalg.svd(Q, full_matrices=False).U
    distances = [float((q - concept @ q).norm()) for q in Q.T]
    cosines = []
    for i in range(5):
        new = inside @ (inside.T @ e[i])
        new = new - concept @ new
        cosines.append(cosine(e[i], new))
        trigger = distances[i] >= 1.01 * (sum(distances) - distances[i]) / 4
        assert relative(found[i], new if trigger else e[i]) < 1e-12
    assert abs(b - (1 - sum(cosines) / 5)) < 1e-12
    assert not torch.equal(found, e)


def test_filter_counts_steps_of_fifty():
    s = SAFREE()
    for b in (0.0, 0.5, 0.5333, 0.6, 1.0):
        assert filter_steps(b, s, 50) == round(10 / (1 + math.exp(-5 * (10 * b - 5.333))))
    assert filter_steps(1.0, s, 25) == 5 and filter_steps(0.0, s, 50) == 0


@pytest.mark.slow
def test_safree_in_the_pipeline(pipe):
    """Pooled states of masked prompts by the text encoder itself; the first steps alone read the edited prompt."""
    tokenizer, tower = pipe.tokenizer, pipe.text_encoder

    def pooled(ids):
        with torch.no_grad():
            end = ids.index(tokenizer.eos_token_id)
            return tower(torch.tensor([ids]))[0][0, end].float().double()

    def ids_of(text):
        return tokenizer(text, padding="max_length")["input_ids"]

    concept = projector(torch.stack([pooled(ids_of(c)) for c in ("ship", "frog")], 1))
    expected, steps = [], []
    for prompt in PROMPTS:
        ids, n = ids_of(prompt), len(tokenizer(prompt)["input_ids"]) - 2
        masked = [[*ids[:i], tokenizer.convert_tokens_to_ids("!"), *ids[i + 1 :]] for i in range(1, n + 1)]
        e = states_of(pipe, [prompt])[0]
        new, b = safree_edit(e[1 : n + 1].double(), torch.stack([pooled(m) for m in masked], 1), concept, 0.01)
        expected.append(torch.cat([e[:1], new, e[n + 1 :]]))
        steps.append(b)
    settings = {"steps": 50.0 * 2 / 6, "t0": 0.0}  # the filter wide open: U = 2 of 6 steps
    assert all(filter_steps(b, SAFREE(**settings), 6) == 2 for b in steps)
    with applied(pipe, build(pipe, [SHIP, FROG], "safree", {**settings, "filter": False})):
        assert relative(states_of(pipe, PROMPTS), torch.stack(expected)) < 1e-6
        always = latents(pipe)
    with applied(pipe, build(pipe, [SHIP, FROG], "safree", settings)):
        some, once = latents(pipe), latents(pipe, guidance=1.0)
    new, old = torch.stack(expected), states_of(pipe, PROMPTS)

    def choose(step, eps, u, p):
        return eps(u) + 4.0 * (eps(new if step <= 2 else old) - eps(u))

    assert relative(some, sampled(pipe, choose)) < 1e-6
    assert relative(always, sampled(pipe, lambda step, eps, u, p: eps(u) + 4.0 * (eps(new) - eps(u)))) < 1e-6
    assert relative(once, sampled(pipe, lambda step, eps, u, p: eps(new if step <= 2 else old))) < 1e-6
    assert relative(some, always) > 1e-4 and relative(some, latents(pipe)) > 1e-4


def test_safree_of_more_concepts_than_tokens_is_said():
    pipe = tiny_pipeline("sd", length=8)
    many = [Concept(name, "sea") for name in ("ship", "frog", "dog", "cat", "horse", "man", "woman")]
    assert "7 concepts are more than the 6 tokens" in build(pipe, many, "safree").notes[0]
    assert build(pipe, many[:6], "safree").notes == []


# --- AdaVD --------------------------------------------------------------------------------------------------------


def test_decomposition_value_by_value():
    v, targets, s = random(2, 4, 9, seed=1), random(3, 9, seed=2), AdaVD(a=7.0, b=0.2, c=2.0)
    basis = []
    for t in targets:
        rest = t - sum((t @ u) * u for u in basis) if basis else t
        basis.append(rest / rest.norm())
    for n in range(2):
        for j in range(4):
            new = v[n, j].clone()
            for t, u in zip(targets, basis, strict=True):
                g = 2.0 / (1 + math.exp(-7.0 * (cosine(v[n, j], t) - 0.2)))
                new -= g * (v[n, j] @ u) * u
            assert relative(decomposed(v, targets, s)[n, j], new) < 1e-12


def test_decomposition_limits():
    t = random(1, 9, seed=1)
    assert relative(decomposed(t, t, AdaVD()), -t) < 1e-2  # the gate is open (1.998): over-subtracted by design
    assert relative(decomposed(t, t, AdaVD(c=1.0)), t) < 1.01 and decomposed(t, t, AdaVD(c=1.0, b=0.0)).norm() < 1e-9
    away = random(1, 9, seed=2)
    assert relative(decomposed(away, t, AdaVD()), away) < 1e-9
    U = gram_schmidt(torch.cat([t, 2 * t, away]))
    assert U[1].norm() == 0 and relative(U @ U.T, torch.diag(torch.tensor([1.0, 0.0, 1.0], dtype=float64))) < 1e-12


def test_adavd_in_every_layer(pipe):
    """The values that each layer reads, from W_v by hand: [SOS] and keys stay, both branches change."""
    edit = build(pipe, [SHIP, FROG], "adavd", {"a": 3.0, "b": 0.0})
    last = [len(pipe.tokenizer(w)["input_ids"]) - 2 for w in ("ship", "frog")]
    e_t = torch.stack([encode(pipe, [w])[0, i] for w, i in zip(("ship", "frog"), last, strict=True)])
    seen = {}
    with applied(pipe, edit):
        layers = {n: m for n, m in pipe.unet.named_modules() if n.endswith(("attn2.to_v", "attn2.to_k"))}
        hooks = [
            m.register_forward_hook(lambda m, a, out, n=n: seen.__setitem__(n, (a[0], out))) for n, m in layers.items()
        ]
        changed = latents(pipe, steps=1)
        for hook in hooks:
            hook.remove()
    for name, (e, out) in seen.items():
        W = pipe.unet.get_submodule(name).weight.detach()
        plain = e @ W.T
        assert relative(out[:, 0], plain[:, 0]) < 1e-12
        if name.endswith("to_k"):
            assert relative(out, plain) < 1e-12
        else:
            expected = decomposed(plain[:, 1:], e_t.to(W) @ W.T, AdaVD(3.0, 0.0))
            assert relative(out[:, 1:], expected) < 1e-9 and relative(out[:, 1:], plain[:, 1:]) > 1e-2
    assert relative(changed, latents(pipe, steps=1)) > 1e-4


# --- hooks at large -----------------------------------------------------------------------------------------------


def test_pooled_texts_are_refused():
    pipe = tiny_pipeline("sdxl")
    for name in ("negative-prompt", "sld", "semantic-surgery", "safree", "esd-x"):
        with pytest.raises(MaceError, match="pooled text"):
            build(pipe, [SHIP], name).apply(pipe)
    build(pipe, [SHIP], "adavd").apply(pipe).remove(pipe)


def test_a_unet_called_after_a_denoising_is_no_further_step():
    pipe = tiny_pipeline("sd")
    with applied(pipe, build(pipe, [SHIP], "sld")), torch.no_grad():
        latents(pipe)
        with pytest.raises(MaceError, match="call the pipeline, not its UNet alone"):
            pipe.unet(noise(pipe), 1, encoder_hidden_states=encode(pipe, PROMPTS))


def test_what_fails_while_a_hook_is_put_leaves_nothing_behind(monkeypatch):
    pipe = tiny_pipeline("sd")
    hook = build(pipe, [SHIP], "sld").change
    monkeypatch.setattr(pipe.unet, "register_forward_hook", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        hook.put(pipe)
    assert "encode_prompt" not in vars(pipe) and not pipe.unet._forward_pre_hooks


def test_a_failing_hook_leaves_the_pipeline_usable(pipe):
    class Broken(Hook):
        def embed(self, run, e):
            raise ValueError("no")

    before, undo = latents(pipe), Broken().put(pipe)
    with pytest.raises(ValueError, match="no"):
        latents(pipe)
    undo()
    assert torch.equal(latents(pipe), before)
