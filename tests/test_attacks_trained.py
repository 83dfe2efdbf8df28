"""Attacks that are trained: concept inversion, UnlearnDiffAtk and relearning, each beside its objective."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_attacks import PROMPT, SHIP, Says, scene, state
from test_attacks import QUICK as UNTRAINED
from torch.overrides import TorchFunctionMode

from macelib.attacks import attack, attacks
from macelib.attacks.inversion import Inversion, Slot, invert, start
from macelib.attacks.relearning import Relearning, loras, relearning, worn
from macelib.attacks.scene import Scene, embeddings, ids_of, reads_prompts
from macelib.attacks.unlearndiffatk import Search, UnlearnDiffAtk, allowed, prefixed, simplex
from macelib.baselines import Run, build
from macelib.concepts import Concept
from macelib.errors import MaceError
from macelib.models.offload import offload
from macelib.models.sample import encode_images, generate
from macelib.models.swap import applied
from macelib.models.text import encode
from macelib.models.tiny import tiny_pipeline

QUICK = {
    "concept-inversion": {"steps": 3, "word": "sea", "batch": 2},
    "unlearndiffatk": {"tokens": 2, "timesteps": 2, "iterations": 2},
    "relearning": {"steps": (1, 2), "batch": 2},
}
SPENT = {"concept-inversion": 3 * 2, "unlearndiffatk": 2 * 2, "relearning": 2 * 2}
DRAWN = {"concept-inversion": 2, "unlearndiffatk": 3, "relearning": 3}  # with the un-attacked one


@pytest.fixture(scope="module", params=["sd", "sd2"])
def either(request):
    return tiny_pipeline(request.param)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


@pytest.fixture(scope="module")
def pictures(pipe):
    return generate(pipe, PROMPT, [7, 8], 2)


@pytest.fixture(scope="module")
def edits(pipe):
    settings = {
        "semantic-surgery": {"beta": 0.0, "gamma": 0.5, "tau": 0.1},
        "sld": {"warmup": 0.0, "threshold": 9.0, "scale": 0.5},
        "adavd": {"b": 0.0, "a": 5.0},
        "safree": {"filter": False},
        "negative-prompt": {},
        "uce": {},
    }
    return {name: build(pipe, [SHIP], name, value, kept=["frog"]) for name, value in settings.items()}


def latents(pipe, n: int = 2):
    return torch.randn(n, 4, 16, 16, generator=torch.Generator().manual_seed(1))


# --- the loss -----------------------------------------------------------------------------------------------------


def test_the_loss_is_the_models_own(either):
    scheduler, e = either.scheduler, encode(either, [PROMPT])
    x, noise = latents(either), latents(either).flip(0)
    for t in (10, 500, 990):
        got = scene(either).loss(PROMPT, e[0], x, noise, t)
        noised = scheduler.add_noise(x, noise, torch.tensor([t]))
        v = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(x, noise, torch.tensor([t])) if v else noise
        with torch.no_grad():
            said = either.unet(noised, t, encoder_hidden_states=e.expand(2, -1, -1)).sample
        assert float(got.detach()) == pytest.approx(float((said - target).square().mean()), rel=1e-4)


@pytest.mark.parametrize("name", ["semantic-surgery", "adavd", "safree", "uce"])
def test_the_loss_sees_what_the_edit_draws_with(pipe, edits, name):
    x, noise, e = latents(pipe), latents(pipe).flip(0), encode(pipe, [PROMPT])
    before = float(scene(pipe).loss(PROMPT, e[0], x, noise, 500).detach())
    with applied(pipe, edits[name]):
        got = scene(pipe).loss(PROMPT, e[0], x, noise, 500)
        noised = pipe.scheduler.add_noise(x, noise, torch.tensor([500]))
        pipe.scheduler.set_timesteps(1000)
        given = pipe.encode_prompt([PROMPT] * 2, "cpu", 1, False)[0]  # E', by the pipeline that draws
        with torch.no_grad():
            said = pipe.unet(noised, 500, encoder_hidden_states=given).sample
    assert float(got.detach()) == pytest.approx(float((said - noise).square().mean()), rel=1e-4)
    assert float(got.detach()) != pytest.approx(before, rel=1e-6)


def test_the_loss_of_guided_edits_takes_what_guidance_reads(either):
    """Of a v model, too: guidance works in ε, the loss in v."""
    x, noise, e = latents(either), latents(either).flip(0), encode(either, [PROMPT, ""])
    edit = build(either, [SHIP], "sld", {"warmup": 0.0, "threshold": 9.0, "scale": 5.0})
    loud = 100 * torch.randn(edit.change.e.shape, generator=torch.Generator().manual_seed(2))  # random weights hear it
    edit = replace(edit, change=replace(edit.change, e=loud))
    either.scheduler.set_timesteps(10)
    t = int(either.scheduler.timesteps[4])
    with applied(either, edit):
        got = scene(either).loss(PROMPT, e[0], x, noise, t)
    x_t, abar = either.scheduler.add_noise(x, noise, torch.tensor([t])), float(either.scheduler.alphas_cumprod[t])
    v = either.scheduler.config.prediction_type == "v_prediction"
    a, b = (abar**0.5, (1 - abar) ** 0.5) if v else (1.0, 0.0)  # ε = a · said + b x_t
    with torch.no_grad():
        said = [either.unet(x_t, t, encoder_hidden_states=c.expand(2, -1, -1)).sample for c in (*e, edit.change.e)]
    p, u, s = (a * one + b * x_t for one in said)
    mu = torch.where(p - s < 9.0, (5.0 * (p - s).abs()).clamp(max=1), 0.0)
    expected = ((p - mu * (s - u) - noise) / a).square().mean()
    plain = ((p - noise) / a).square().mean()
    assert float(got.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert float(got.detach()) != pytest.approx(float(plain), rel=1e-2)


@pytest.mark.parametrize("name", ["semantic-surgery", "sld", None])
def test_gradients_of_a_new_word_are_those_of_finite_differences(pipe, edits, name):
    x, noise = latents(pipe), latents(pipe).flip(0)
    own = copy.deepcopy(pipe).to(torch.float32) if name is None else pipe
    slot = Slot.of(own, PROMPT, "ship", "sea")
    s = own.text_encoder.get_input_embeddings().weight[slot.ids[slot.at]].detach().clone().requires_grad_(True)

    def loss(s):
        return scene(own).loss(slot.prompt, slot.states(own, s), x, noise, 700)

    def both():
        (gradient,) = scene(own).gradient(loss(s), [s], 2)
        way, step = torch.nn.functional.normalize(gradient, dim=0), 0.1 * float(s.norm())
        with torch.no_grad():
            return float(gradient @ way), float(loss(s + step * way) - loss(s - step * way)) / (2 * step)

    if name is None:
        exact, near = both()
    else:
        with applied(own, edits[name]):
            exact, near = both()
    assert exact > 1e-2 and near == pytest.approx(exact, rel=0.05)


# --- the interface ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("control", ["none", "never-knew"])
def test_trained_attacks_leave_the_pipeline_and_keep_their_budget(pipe, edits, pictures, name, control):
    never, learned = tiny_pipeline("sd", seed=1), {"none": 0, "never-knew": 0}  # passes that a gradient goes through
    models = {"none": pipe, "never-knew": never}

    def learning(who):
        return lambda *_: learned.__setitem__(who, learned[who] + torch.is_grad_enabled())

    hooks = [model.unet.conv_in.register_forward_hook(learning(who)) for who, model in models.items()]
    with applied(pipe, edits["semantic-surgery"]):
        before = state(pipe), state(never)
        result = attack(pipe, edits["sld"], SHIP, name, judge=Says(), control=control, settings=QUICK[name], seeds=[0],
                        steps=1, guidance=5.0, pictures=pictures, never=never)  # fmt: skip
        assert (state(pipe), state(never)) == before
    for hook in hooks:
        hook.remove()
    assert learned.pop(control) > 0 and not sum(learned.values())
    spent = result.rows[-1]["budget"]
    assert spent["backward"] == SPENT[name] and spent["pictures"] == DRAWN[name]
    assert spent["forward"] == SPENT[name] + 2 * DRAWN[name]
    assert result.rows[-1]["method"] == ("sld" if control == "none" else "never-knew")


def test_a_search_is_left_out_where_the_concept_shows_and_ends_where_it_is_found(pipe, edits, pictures):
    options = {"settings": QUICK["unlearndiffatk"], "seeds": [0], "steps": 1, "pictures": pictures}
    for words, backward, told in ((["ship"], 0, (True, True)), (["sea", "ship"], 2, (False, True))):
        (row,) = attack(pipe, edits["uce"], SHIP, "unlearndiffatk", judge=Says(*words), **options).rows
        assert (row["pre"], row["success"]) == told and row["budget"]["backward"] == backward


def test_foreign_needs_pictures_where_the_attack_reads_some(pipe, edits):
    result = attack(pipe, edits["uce"], SHIP, "relearning", judge=Says(), control="foreign")
    assert not result.rows and "no pictures" in result.not_measured[0]["why"]


def test_every_attack_has_quick_settings_here():
    assert set(attacks()) == {*UNTRAINED, *QUICK}


@pytest.mark.parametrize("name", ["relearning", "ring-a-bell"])
def test_a_judge_that_fails_leaves_no_attack_behind_and_the_rest_is_done_later(pipe, edits, pictures, tmp_path, name):
    """What an attack puts into the model is out of it while the error is still in someone's hands."""

    class Failing(Says):
        def top1(self, pictures, among=None):
            if len(self.shown) == self.at:
                raise ArithmeticError("of the judge")
            return super().top1(pictures, among)

    options = {"settings": (UNTRAINED | QUICK)[name], "seeds": [0, 1], "steps": 1, "pictures": pictures}
    judge = Says()
    whole = attack(pipe, edits["uce"], SHIP, name, judge=judge, **options)
    before, of_one = state(pipe), len(judge.shown) // 2
    for Failing.at in (1, of_one + 1):  # in the first seed, in the second
        with pytest.raises(ArithmeticError) as error:
            attack(pipe, edits["uce"], SHIP, name, judge=Failing(), folder=tmp_path, **options)
        assert error.value.__traceback__ is not None and state(pipe) == before
    rest = Says()
    again = attack(pipe, edits["uce"], SHIP, name, judge=rest, folder=tmp_path, **options)
    assert len(rest.shown) == of_one
    assert [{**row, "seconds": 0} for row in again.rows] == [{**row, "seconds": 0} for row in whole.rows]


def test_pictures_to_learn_from_are_those_that_the_judge_recognises(pipe, edits):
    options = {"settings": QUICK["relearning"] | {"steps": (1,)}, "seeds": [0], "steps": 1}
    judge = Says("sea", "ship", "ship")
    (row,) = attack(pipe, edits["uce"], SHIP, "relearning", judge=judge, **options).rows
    assert (row["z0"], row["budget"]["pictures"], len(judge.shown)) == (2, 2, 8 + 2)
    result = attack(pipe, edits["uce"], SHIP, "relearning", judge=Says(), **options)
    (missing,) = result.not_measured
    assert not result.rows and "recognises it in none" in missing["why"] and missing["concept"] == "ship"


def test_a_defence_that_an_attack_would_not_see_is_not_measured(pipe, edits, pictures):
    assert [name for name, edit in edits.items() if name != "uce" and reads_prompts(edit.change)] == ["safree"]
    options = {"judge": Says(), "pictures": pictures, "seeds": [0], "steps": 1}
    blind = [("safree", name) for name in ("ring-a-bell", "concept-inversion", "unlearndiffatk")]
    blind += [("negative-prompt", name) for name in QUICK]
    for edit, name in blind:
        result = attack(pipe, edits[edit], SHIP, name, **options)
        assert not result.rows and result.not_measured[0]["why"].startswith("the defence "), (edit, name)
    assert attack(pipe, edits["safree"], SHIP, "relearning", settings=QUICK["relearning"], **options).rows


# --- devices ------------------------------------------------------------------------------------------------------


def test_words_and_embeddings_go_where_the_model_runs(pipe):
    """Shown on a device that every machine has."""
    seen, places = [], []

    class Spy(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.Tensor.index_copy:
                places.extend(one.device.type for one in args if isinstance(one, torch.Tensor))
            return func(*args, **(kwargs or {}))

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(9, 4, device="meta")

        def get_input_embeddings(self):
            return self.table

        def forward(self, ids):
            return (self.table(ids),)

    class Unet(Encoder):
        dtype = torch.float32

        def forward(self, x, t, encoder_hidden_states, return_dict):
            seen.extend([x.device.type, encoder_hidden_states.device.type])
            return (x,)

    other = SimpleNamespace(text_encoder=Encoder(), unet=Unet(), scheduler=pipe.scheduler)
    with Spy():
        e = embeddings(other, torch.arange(5), torch.ones(2, 4), [1, 3])
    assert tuple(e.shape) == (5, 4) and places == ["meta"] * 3
    Scene(other, SHIP, (PROMPT,), (0,))._predicted(PROMPT, torch.ones(5, 4), torch.ones(2, 4, 8, 8), 500)
    assert seen == ["meta"] * 2  # given on the CPU, as a loaded edit's embeddings are


def test_with_low_memory_loras_are_where_the_denoiser_will_be(pipe):
    away = offload(tiny_pipeline("sd"), "meta")
    trained = loras(away.unet, 2, torch.Generator().manual_seed(0))
    assert {w.device.type for pair in trained.values() for w in pair} == {"meta"}
    assert {w.device.type for w in away.unet.parameters()} == {"cpu"}
    with pytest.raises(MaceError, match="without low memory"):
        embeddings(away, ids_of(away, PROMPT), torch.ones(1, 32, requires_grad=True), [1])


# --- concept inversion --------------------------------------------------------------------------------------------


def test_inversion_is_textual_inversion(pipe, pictures):
    """The same steps by another route: the word's row of the embedding table is trained by Adam, as diffusers does."""
    z0, settings = encode_images(pipe, pictures), Inversion(steps=4, lr=5e-3, batch=2, word="sea")
    slot = Slot.of(pipe, PROMPT, "ship", "sea")
    found = list(invert(scene(pipe, latents=z0), slot, settings, seed=5))
    other, generator = copy.deepcopy(pipe), torch.Generator().manual_seed(5)
    table = other.text_encoder.get_input_embeddings().weight
    optimizer, losses = torch.optim.Adam([table], lr=5e-3), []
    for _ in range(4):
        x = z0[torch.randint(2, (2,), generator=generator)]
        noise = torch.randn(x.shape, generator=generator)
        t = int(torch.randint(1000, (), generator=generator))
        e = other.text_encoder(ids_of(other, "a photo of the sea")[None])[0].expand(2, -1, -1)
        said = other.unet(other.scheduler.add_noise(x, noise, torch.tensor([t])), t, encoder_hidden_states=e).sample
        loss = torch.nn.functional.mse_loss(said, noise)
        (gradient,) = torch.autograd.grad(loss, [table])
        table.grad = torch.zeros_like(table)
        table.grad[slot.ids[slot.at]] = gradient[slot.ids[slot.at]]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert [loss for loss, _ in found] == pytest.approx(losses, rel=1e-3)
    assert (found[-1][1] - table[slot.ids[slot.at]]).abs().max() < 1e-3
    start = pipe.text_encoder.get_input_embeddings().weight[slot.ids[slot.at]]
    assert (found[-1][1] - start).abs().max() > 5e-3


def test_it_begins_at_the_super_category(pipe, edits, pictures):
    begins = {("axolotl", "a green field"): "field", ("field mouse", "a field"): "thing", ("frog", "field"): "thing"}
    for (name, anchor), word in begins.items():  # the catalogue calls a frog an animal: no single token here
        assert start(Scene(pipe, Concept(name, anchor), (), ())) == word
    strange, options = Concept("horse field", "the sea"), {"seeds": [0], "steps": 1, "pictures": pictures}
    settings = {**QUICK["concept-inversion"], "word": "", "steps": 1}
    found = attack(pipe, edits["uce"], strange, "concept-inversion", judge=Says(), settings=settings, **options)
    assert found.rows[0]["token"].startswith("an embedding that began as 'sea'")


def test_a_word_of_several_tokens_is_refused(pipe):
    with pytest.raises(MaceError, match="several tokens"):
        Slot.of(pipe, PROMPT, "ship", "xylophone")


# --- UnlearnDiffAtk -----------------------------------------------------------------------------------------------


def test_projection_on_the_simplex_is_the_nearest_point():
    u = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = simplex(u)
    for row, point in zip(u, got, strict=True):  # by sorting
        ordered = row.sort(descending=True).values
        sums = (ordered.cumsum(0) - 1) / torch.arange(1, 41)
        tau = sums[int((ordered > sums).sum()) - 1]
        assert (point - (row - tau).clamp(min=0)).abs().max() < 1e-9


def test_tokens_stand_before_the_prompt_and_are_no_special_ones(pipe):
    ids, words = prefixed(pipe, PROMPT, 3), pipe.tokenizer("a photo of the ship").input_ids
    assert len(ids) == 77 and ids[0] == words[0] and ids[4 : 4 + len(words) - 1].tolist() == words[1:]
    assert ids[4 + len(words) - 1 :].unique().tolist() == [pipe.tokenizer.pad_token_id]
    assert not set(allowed(pipe).tolist()) & set(pipe.tokenizer.all_special_ids)
    with pytest.raises(MaceError, match="no room"):
        prefixed(pipe, " ".join(["ship"] * 74), 3)


def test_what_was_found_is_a_prompt_where_it_reads_back_as_itself(pipe):
    search = Search(scene(pipe, latents=latents(pipe)), PROMPT, UnlearnDiffAtk(tokens=2), seed=0)
    vocabulary = pipe.tokenizer.get_vocab()
    for tokens, text in ((["red</w>", "frog</w>"], f"red frog {PROMPT}"), (["red</w>", "fro"], PROMPT)):
        ids = prefixed(pipe, PROMPT, 2)
        ids[1:3] = torch.tensor([vocabulary[token] for token in tokens])
        assert search.text(ids) == text
    assert (ids_of(pipe, f"red frog {PROMPT}")[3:] == prefixed(pipe, PROMPT, 2)[3:]).all()


def test_a_step_samples_tokens_and_gives_their_gradient_to_all(pipe):
    settings = UnlearnDiffAtk(tokens=2, lr=0.01, decay=0.1)
    attacked = scene(pipe, latents=latents(pipe))
    search = Search(attacked, PROMPT, settings, seed=4)
    generator, V = torch.Generator().manual_seed(4), len(allowed(pipe))
    u = torch.full((2, V), 1 / V)
    loss = search.step(500)
    drawn = torch.multinomial(u, 1, generator=generator)[:, 0]
    x = attacked.latents[torch.randint(2, (1,), generator=generator)]
    noise = torch.randn(x.shape, generator=generator)
    ids = prefixed(pipe, PROMPT, 2)
    ids[1:3] = allowed(pipe)[drawn]
    with torch.no_grad():  # as the encoder reads ids
        e = pipe.text_encoder(ids[None])[0]
    assert loss == pytest.approx(float(attacked.loss(PROMPT, e[0], x, noise, 500).detach()), rel=1e-4)
    words = pipe.text_encoder.get_input_embeddings().weight.detach()[ids[1:3]].clone().requires_grad_(True)
    again = attacked.loss(PROMPT, embeddings(pipe, ids, words, [1, 2]), x, noise, 500)
    (gradient,) = torch.autograd.grad(again, [words])
    table = pipe.text_encoder.get_input_embeddings().weight.detach()[allowed(pipe)]
    expected = (gradient @ table.T).clamp(-1, 1) + 0.1 * u  # chain rule over hot @ table; Adam's weight decay
    moved = simplex(u - 0.01 * expected / (expected.abs() + 1e-8))  # Adam's first step
    assert (search.u - moved).abs().max() < 1e-4 and search.u.sum(1) == pytest.approx(1, abs=1e-4)


# --- relearning ---------------------------------------------------------------------------------------------------


def test_a_worn_lora_is_a_change_of_the_weights(pipe, edits):
    other, generator = copy.deepcopy(pipe), torch.Generator().manual_seed(0)
    trained = {n: (A, B.detach() + 0.1) for n, (A, B) in loras(pipe.unet, 4, generator).items()}
    assert len(trained) == 8 * sum(name.endswith("attn2") for name, _ in pipe.unet.named_modules())
    with torch.no_grad():
        for name, (A, B) in trained.items():
            other.unet.get_submodule(name).weight += B @ A
    x, e = latents(pipe), encode(pipe, [PROMPT] * 2)
    with torch.no_grad(), worn(pipe.unet, trained):
        got = pipe.unet(x, 500, encoder_hidden_states=e).sample
    with torch.no_grad():
        expected = other.unet(x, 500, encoder_hidden_states=e).sample
        plain = pipe.unet(x, 500, encoder_hidden_states=e).sample
    assert (got - expected).abs().max() < 1e-4 < (plain - expected).abs().max()


@pytest.mark.slow
def test_relearning_lowers_the_loss_on_its_pictures(pipe, edits, pictures):
    z0 = encode_images(pipe, pictures)
    attacked, e = scene(pipe, latents=z0), encode(pipe, [PROMPT])[0]

    def measured():
        noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(9))
        return sum(float(attacked.loss(PROMPT, e, z0, noise, t).detach()) for t in (100, 500, 900))

    before = measured()
    run = relearning(attacked, Relearning(steps=(10,), lr=2e-2, batch=2))(attacked, PROMPT, 0)
    next(run)  # the LoRA is worn while its picture is looked at
    after = measured()
    run.close()
    assert after < 0.95 * before and measured() == pytest.approx(before, rel=1e-6)


def test_run_of_a_hook_is_told_the_step(pipe, edits):
    seen = []

    class Told(type(edits["semantic-surgery"].change)):
        def context(self, run: Run, e):
            seen.append((run.step, run.steps, run.guided))
            return e

    edit = copy.copy(edits["semantic-surgery"])
    object.__setattr__(edit, "change", Told(**vars(edit.change)))
    pipe.scheduler.set_timesteps(10)
    with applied(pipe, edit):
        scene(pipe).loss(
            PROMPT, encode(pipe, [PROMPT])[0], latents(pipe), latents(pipe), int(pipe.scheduler.timesteps[3])
        )
    assert seen == [(3, 10, False)]
