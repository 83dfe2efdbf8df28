"""Attacks: the interface, its controls and its rows, and the attacks that train nothing, each beside its equation."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from brute import DDIM
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from PIL import Image

from macelib.attacks import LEVELS, Nearest, attack, attacks, judge_key, read_pictures, wordings
from macelib.attacks.completion import Completion, begun, completed, shares
from macelib.attacks.noise import NoisyDDIM
from macelib.attacks.registry import _ATTACKS, named
from macelib.attacks.ring_a_bell import direction, pairs
from macelib.attacks.scene import Scene, in_ddim, reworded, says
from macelib.baselines import Run, build
from macelib.concepts import Concept
from macelib.errors import MaceError
from macelib.evaluate.lists import object_list
from macelib.files import data_folder, hash_tensors
from macelib.models.mini import catalogue
from macelib.models.sample import generate
from macelib.models.swap import applied, applied_edit
from macelib.models.text import encode
from macelib.models.tiny import tiny_pipeline
from macelib.models.tokens import fits, occurrences

SHIP = Concept("ship", "sea")
PROMPT = "a photo of the ship"
QUICK = {"ring-a-bell": {"etas": (1.0,), "neutral": "sea"}, "noise": {"etas": (1.0, 1.5), "scales": (1.0,)}}
QUICK |= {"completion": {"percent": (50,), "steps": 2}, "wording": {"levels": ("name",)}}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


@pytest.fixture(scope="module")
def uce(pipe):
    return build(pipe, [SHIP], "uce", kept=["frog"])


@pytest.fixture(scope="module")
def surgery(pipe):
    return build(pipe, [SHIP], "semantic-surgery", {"beta": 0.0, "gamma": 0.5, "tau": 0.1})


class Says:
    """Judges by the order of the pictures: what it says of the first, the second, ... of all that it is shown."""

    def __init__(self, *names):
        self.names, self.shown = list(names), []

    def top1(self, pictures, among=None):
        self.shown += list(pictures)
        return [self.names.pop(0) if self.names else "sea" for _ in pictures]


def scene(pipe, **kw) -> Scene:
    return Scene(pipe, SHIP, (PROMPT,), (0,), **{"steps": 4, **kw})


def state(pipe) -> str:
    parts = {f"{n}.{k}": w for n in ("unet", "vae", "text_encoder") for k, w in getattr(pipe, n).state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for n in ("unet", "text_encoder")
             for m in getattr(pipe, n).modules()]  # fmt: skip
    gradients = [p.grad is None for p in [*pipe.unet.parameters(), *pipe.text_encoder.parameters()]]
    own = ["forward" in m.__dict__ for m in pipe.unet.modules()]
    scheduler = pipe.scheduler
    return f"{hash_tensors(parts)} {hooks} {all(gradients)} {any(own)} {id(scheduler)} {applied_edit(pipe)!r}"


def generated(pipe, edit, prompt: str) -> list:
    with applied(pipe, edit):
        return generate(pipe, prompt, [0], 2)


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=int) for image in images])


# --- the interface ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("control", ["none", "original", "no-attack"])
def test_the_pipeline_is_left_bit_for_bit(pipe, uce, surgery, name, control):
    with applied(pipe, surgery):
        before = state(pipe)
        attack(pipe, uce, SHIP, name, judge=Says(), control=control, settings=QUICK[name], seeds=[0], steps=2)
        assert state(pipe) == before


def test_what_is_drawn_comes_from_the_edit_and_without_it_from_the_original(pipe, uce):
    words = {"none": Says(), "original": Says(), "never-knew": Says()}
    for control, judge in words.items():
        other = tiny_pipeline("sd", seed=1)
        attack(pipe, uce, SHIP, "noise", judge=judge, control=control, never=other, seeds=[3], steps=2,
               settings={"etas": (0.0,), "scales": (1.0,)})  # fmt: skip
    drawn = generate(pipe, PROMPT, [3], 2)
    with applied(pipe, uce):
        edited = generate(pipe, PROMPT, [3], 2)
    foreign = generate(other, PROMPT, [3], 2)
    for control, expected in {"none": edited, "original": drawn, "never-knew": foreign}.items():
        assert (pixels(words[control].shown[:1]) == pixels(expected)).all(), control
        own = pixels(words[control].shown[1:]) - pixels(expected)  # η = 0: the pipeline's own DDIM
        assert np.abs(own).max() <= 1, control
    assert np.abs(pixels(edited) - pixels(drawn)).max() > 1


def test_rows_of_controls_differ_in_what_they_say(pipe, uce):
    found = {}
    for control in ("none", "original", "no-attack", "foreign"):
        judge = Says("sea", "ship")
        (found[control],) = attack(pipe, uce, SHIP, "noise", judge=judge, control=control, settings=QUICK["noise"],
                                   seeds=[5], steps=1).rows  # fmt: skip
    told = {c: (row["control"], row["method"], row["pre"], row["success"]) for c, row in found.items()}
    assert told["none"] == ("none", "uce", False, True) and told["foreign"] == ("foreign", "uce", False, True)
    assert told["original"] == ("original", "original", False, True)
    assert told["no-attack"] == ("no-attack", "uce", False, True)  # the best of as many pictures
    assert {row["budget"]["pictures"] for row in found.values()} == {3}
    assert "best of 3" in found["no-attack"]["variant"]


@pytest.mark.parametrize("name", attacks())
def test_the_control_draws_as_many_pictures_as_stand_behind_a_row(pipe, uce, name):
    """The un-attacked one, where it counts, and those that are tried; of a search all that it may try."""
    few = {"concept-inversion": {"steps": 1, "word": "sea"}, "relearning": {"steps": (1,)}} | QUICK
    few["unlearndiffatk"] = {"timesteps": 2, "iterations": 1}
    judge = Says()
    options = {"settings": few[name], "seeds": [0], "steps": 1, "pictures": [Image.new("RGB", (64, 64))]}
    rows = attack(pipe, uce, SHIP, name, judge=judge, **options).rows
    behind = {"wording": 1, "ring-a-bell": 2}.get(name, len(judge.shown))  # by itself; two rows have the same first
    (control,) = attack(pipe, uce, SHIP, name, judge=Says(), control="no-attack", **options).rows
    assert rows and control["budget"]["pictures"] == behind and control["variant"].endswith(f"best of {behind}")


def test_success_is_pre_or_found_and_rates_are_over_all_rows(pipe, uce):
    options = {"settings": {"etas": (1.0,), "scales": (1.0,)}, "steps": 2, "seeds": [0, 1, 2]}
    judge = Says("ship", "sea", "sea", "ship", "sea", "sea")  # pre and tried, by seed
    result = attack(pipe, uce, SHIP, "noise", judge=judge, **options)
    assert [(row["seed"], row["pre"], row["success"]) for row in result.rows] == [
        (0, True, True), (1, False, True), (2, False, False),
    ]  # fmt: skip
    assert result.pre_asr == pytest.approx(100 / 3) and result.asr == pytest.approx(200 / 3)


def test_budget_counts_every_pass(pipe, uce):
    result = attack(pipe, uce, SHIP, "noise", judge=Says(), settings=QUICK["noise"], seeds=[0], steps=3, guidance=5.0)
    assert result.rows[0]["budget"] == {"forward": 3 * 3 * 2, "backward": 0, "pictures": 3}


def test_a_run_that_was_cut_short_goes_on(pipe, uce, tmp_path, monkeypatch):
    options = {"settings": QUICK["noise"], "steps": 1, "seeds": [0, 1], "folder": tmp_path}

    class Killed(Says):
        def top1(self, pictures, among=None):
            if len(self.shown) >= 3:
                raise KeyboardInterrupt
            return super().top1(pictures, among)

    with pytest.raises(KeyboardInterrupt):
        attack(pipe, uce, SHIP, "noise", judge=Killed("sea", "ship", "sea"), **options)
    judge = Says("ship")
    result = attack(pipe, uce, SHIP, "noise", judge=judge, **options)
    assert len(judge.shown) == 3 and [row["success"] for row in result.rows] == [True, True]
    judge = Says()
    assert attack(pipe, uce, SHIP, "noise", judge=judge, **options) == result and not judge.shown
    attack(pipe, uce, SHIP, "noise", judge=judge, **{**options, "steps": 2})
    assert judge.shown  # other settings: other rows
    noise, judge = named("noise"), Says()
    with monkeypatch.context() as edited:
        edited.setitem(_ATTACKS, "noise", replace(noise, prepare=lambda *given: noise.prepare(*given)))
        attack(pipe, uce, SHIP, "noise", judge=judge, **options)
    assert judge.shown  # written elsewhere: other rows
    judge = Says()
    with monkeypatch.context() as edited:
        edited.setattr(sys.modules["macelib.attacks.attack"], "sources_hash", lambda package: f"{package}, edited")
        attack(pipe, uce, SHIP, "noise", judge=judge, **options)
    assert judge.shown  # what all attacks share was edited: other rows
    for path in tmp_path.glob("*.json"):
        path.write_text(path.read_text().replace('"success": true', '"success": false'))
    with pytest.raises(MaceError, match="damaged"):
        attack(pipe, uce, SHIP, "noise", judge=judge, **options)


def test_another_judge_looks_itself(pipe, uce, tmp_path):
    """Rows are kept by judge: by its key, or its name and weights; a gallery's is what is in it."""
    options = {"settings": QUICK["noise"], "steps": 1, "seeds": [0], "folder": tmp_path}
    first, second = Says("ship"), Says("sea", "sea", "sea")
    second.name = "another"
    attack(pipe, uce, SHIP, "noise", judge=first, **options)
    assert not attack(pipe, uce, SHIP, "noise", judge=second, **options).rows[0]["success"] and second.shown
    one, other = Says(), Says()
    one.model, other.model = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert judge_key(one) == judge_key(one) != judge_key(other)

    class Clip:
        def image_vectors(self, pictures):
            return torch.from_numpy(np.stack([np.asarray(p).reshape(-1)[:3] for p in pictures])).float()

    gallery = {name: [Image.new("RGB", (2, 2), name)] for name in ("red", "blue", "green")}
    some = {name: gallery[name] for name in ("red", "blue")}
    keys = {judge_key(Nearest(Clip(), of)) for of in (gallery, some, {**some, "blue": gallery["green"]}, dict(some))}
    assert len(keys) == 3


def test_what_cannot_be_measured_is_said(pipe, uce):
    result = attack(pipe, uce, SHIP, "noise", judge=Says(), control="never-knew")
    assert not result.rows and result.asr is None and "trained without" in result.not_measured[0]["why"]
    result = attack(pipe, None, SHIP, "noise", judge=Says())
    assert "no erasure" in result.not_measured[0]["why"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "ring-a-bel"}, "near it: ring-a-bell"),
        ({"control": "nothing"}, "no control"),
        ({"settings": {"eta": 1.0}}, "eta is not a setting"),
        ({"settings": {"etas": [1, "many"]}}, r"etas\[1\] is 'many'; allowed: a number"),
        ({"settings": {"etas": 3}}, "etas is 3; allowed: a list of numbers"),
        ({"prompts": ["a photo of the frog"]}, "does not name"),
        ({"prompts": ["a photo of the shipyard"]}, "does not name"),
        ({"settings": {"neutral": "photo of sea frog"}}, "one token"),
    ],
)
def test_bad_input_is_refused(pipe, uce, change, words):
    options = {"name": "ring-a-bell", "judge": Says(), "steps": 2, **change}
    name = options.pop("name")
    with pytest.raises(MaceError, match=words):
        attack(pipe, uce, SHIP, name, **options)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("ring-a-bell", {"etas": []}, r"etas is \[\]; allowed: one number or more, each 0 or more"),
        ("ring-a-bell", {"neutral": " "}, "neutral must be a word"),
        ("noise", {"etas": []}, "etas is"),
        ("noise", {"scales": []}, "scales is"),
        ("completion", {"percent": []}, "percent is"),
        ("completion", {"percent": [0, 101]}, "allowed: 0 to 100"),
        ("completion", {"steps": 0}, "steps is 0; allowed: 1 or more"),
        ("concept-inversion", {"steps": 0}, "steps is 0"),
        ("concept-inversion", {"batch": 0}, "batch is 0"),
        ("unlearndiffatk", {"tokens": 0}, "tokens is 0"),
        ("unlearndiffatk", {"timesteps": 0}, "timesteps is 0"),
        ("unlearndiffatk", {"iterations": 0}, "iterations is 0"),
        ("relearning", {"steps": []}, "steps is"),
        ("relearning", {"steps": [10, 0]}, "each 1 or more"),
        ("relearning", {"rank": 0}, "rank is 0"),
        ("wording", {"levels": []}, "levels is empty"),
    ],
)
def test_an_attack_that_would_try_nothing_is_refused(pipe, uce, name, settings, words):
    with pytest.raises(MaceError, match=words):
        attack(pipe, uce, SHIP, name, judge=Says(), settings=settings)


def test_a_name_within_a_word_is_not_replaced():
    assert reworded("the ship, a Ship's mast, a shipyard", "ship", "sea") == "the sea, a sea's mast, a shipyard"


def test_models_that_read_a_pooled_text_are_refused(uce):
    with pytest.raises(MaceError, match="pooled"):
        attack(tiny_pipeline("sdxl"), uce, SHIP, "noise", judge=Says())


# --- Ring-A-Bell --------------------------------------------------------------------------------------------------


def test_the_direction_is_the_mean_difference_over_pairs_of_one_length(pipe):
    texts = pairs(scene(pipe), "sea")
    assert len(texts) > 10 and all("ship" in p and "ship" not in q for p, q in texts)
    total = 0
    for p, q in texts:
        ids = pipe.tokenizer([p, q], padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            with_it, without = pipe.text_encoder(ids).last_hidden_state
        total = total + (with_it - without).double()
        assert (ids[0] != ids[1]).sum() == p.count("ship")  # the name alone differs
    assert (direction(pipe, texts).double() - total / len(texts)).abs().max() < 1e-5


def test_what_the_encoder_is_made_to_say_is_drawn_as_embeddings_are(pipe):
    e = encode(pipe, [PROMPT])[0] + 2 * torch.randn(77, 32, generator=torch.Generator().manual_seed(0))
    with says(pipe, PROMPT, e):
        drawn = generate(pipe, PROMPT, [1], 3)
        assert (encode(pipe, ["a photo of the frog", PROMPT])[1] - e).abs().max() == 0
        other = encode(pipe, ["a photo of the frog"])
    assert (other == encode(pipe, ["a photo of the frog"])).all()
    given = pipe(prompt_embeds=e[None], negative_prompt_embeds=encode(pipe, [""]), num_inference_steps=3,
                 generator=[torch.Generator().manual_seed(1)]).images  # fmt: skip
    assert np.abs(pixels(drawn) - pixels(given)).max() <= 1


def test_a_gate_sees_the_embedding_that_attacks_it(pipe, surgery):
    e = encode(pipe, [PROMPT])[0] * 1.5
    with applied(pipe, surgery):
        with says(pipe, PROMPT, e):
            drawn = generate(pipe, PROMPT, [1], 3)
        gated = surgery.change.embed(Run(pipe, [PROMPT], True), e[None])
    assert (gated - e).abs().max() > 0.1
    given = pipe(prompt_embeds=gated, negative_prompt_embeds=encode(pipe, [""]), num_inference_steps=3,
                 generator=[torch.Generator().manual_seed(1)]).images  # fmt: skip
    assert np.abs(pixels(drawn) - pixels(given)).max() <= 1


def test_ring_a_bell_has_a_row_for_each_strength_and_prompt(pipe, uce):
    settings, judge = {"etas": (1.0, 3.0), "neutral": "sea"}, Says("ship", "sea", "sea", "sea", "sea", "ship")
    rows = attack(pipe, uce, SHIP, "ring-a-bell", judge=judge, settings=settings, seeds=[0], steps=2).rows
    assert [(row["variant"], row["prompt"]) for row in rows] == [
        (f"{kind}, eta {eta}", text) for kind, text in (("erased", PROMPT), ("neutral", "a photo of the sea"))
        for eta in (1, 3)
    ]  # fmt: skip
    assert [row["success"] for row in rows] == [True, True, False, True]
    told = [(row["before"], row["pre"]) for row in rows]  # the neutral prompt has an un-attacked picture of its own
    assert told == [(PROMPT, True)] * 2 + [("a photo of the sea", False)] * 2
    assert (pixels(judge.shown[3:4]) == pixels(generated(pipe, uce, "a photo of the sea"))).all()


def test_the_neutral_prompt_of_ring_a_bell_is_as_long_as_the_named_one(pipe, uce):
    strange = Concept("frog horse", "sea")  # two tokens
    options = {"settings": {"etas": (1.0,), "neutral": "sea"}, "control": "foreign", "seeds": [0], "steps": 1}
    erased, neutral = attack(pipe, uce, strange, "ring-a-bell", judge=Says(), **options).rows
    assert (erased["prompt"], neutral["prompt"]) == ("a photo of the frog horse", "a photo of the sea sea")


# --- noise --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd", "sd2"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_noise_up_to_one_is_diffusers_ddim(kind, eta):
    pipe = tiny_pipeline(kind)
    with in_ddim(scene(pipe), NoisyDDIM, noise_eta=eta):
        ours = generate(pipe, PROMPT, [4], 3)
    with in_ddim(scene(pipe), DDIMScheduler):
        theirs = generate(pipe, PROMPT, [4], 3, eta=eta)
    assert np.abs(pixels(ours) - pixels(theirs)).max() <= 1


def test_noise_beyond_one_follows_its_equation(pipe):
    scheduler = NoisyDDIM.from_config(pipe.scheduler.config)
    scheduler.noise_eta, scheduler.noise_scale = 1.85, 1.04
    scheduler.set_timesteps(10)
    x, eps = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in (scheduler.timesteps[0], scheduler.timesteps[-2]):
        a, b = (float(scheduler.alphas_cumprod[i]) for i in (t, t - 100))
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
        sigma = 1.85 * ((1 - b) / (1 - a)) ** 0.5 * (1 - a / b) ** 0.5
        keep = max(0.0, 1 - b - sigma**2) ** 0.5
        expected = b**0.5 * (x - (1 - a) ** 0.5 * eps) / a**0.5 + keep * eps + 1.04 * sigma * z
        got = scheduler.step(eps, t, x, generator=torch.Generator().manual_seed(7)).prev_sample
        assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


# --- completion ---------------------------------------------------------------------------------------------------


def stepwise(pipe, edit, switch: int, spacing: str, steps: int = 4):
    """DDIM by hand: the original model before step `switch`, the edited one from it on."""
    ddim = DDIM(dict(pipe.scheduler.config) | {"timestep_spacing": spacing}, steps)
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    both = encode(pipe, ["", PROMPT])
    for i, t in enumerate(ddim.timesteps):
        if i == switch:
            edit.apply(pipe)
        with torch.no_grad():
            u, c = pipe.unet(torch.cat([x, x]), t, encoder_hidden_states=both).sample.chunk(2)
        x = ddim.step(x, i, u + 5.0 * (c - u))
    edit.remove(pipe)
    with torch.no_grad():
        image = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
    return pipe.image_processor.postprocess(image, output_type="pil")


@pytest.mark.parametrize("scheduler", ["own", "of mini-SD"])
@pytest.mark.parametrize("switch", [0, 2, 4])
def test_a_completed_picture_is_one_whose_model_is_exchanged_on_the_way(switch, scheduler):
    pipe = tiny_pipeline("sd" if scheduler == "own" else "sd2")
    if scheduler != "own":
        pipe.scheduler = DPMSolverMultistepScheduler.from_pretrained(data_folder() / "mini-sd" / "scheduler")
    uce = build(pipe, [SHIP], "uce", kept=["frog"])
    said = begun(scene(pipe, guidance=5.0), PROMPT, 2, switch)
    with applied(pipe, uce):
        drawn = completed(scene(pipe, guidance=5.0), PROMPT, 2, said)
    wanted = stepwise(pipe, uce, switch, "leading" if scheduler == "own" else "trailing")
    assert np.abs(pixels(drawn) - pixels(wanted)).max() <= 1


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        (8, {0: 0, 1: 12.5, 2: 25}),  # 4, 8 and 12 percent are the same step
        (Completion().steps, {0: 0, 1: 4, 2: 8, 3: 12, 6: 24}),
        (50, {0: 0, 2: 4, 4: 8, 6: 12, 12: 24}),
        (1, {0: 0, 1: 100}),
    ],
)
def test_a_share_above_none_is_a_step_and_is_called_what_it_is(steps, wanted):
    assert shares(Completion().percent, steps) == wanted
    assert shares((0, 100), steps) == {0: 0, steps: 100}


@pytest.mark.parametrize(
    ("name", "settings"),
    [("completion", {"percent": (0,), "steps": 3}), ("noise", {"etas": (0.0,), "scales": (1.0,)})],
)
def test_what_is_un_attacked_is_drawn_by_the_attack_s_own_sampler(name, settings):
    """At strength 0 the attack's picture is the un-attacked one, and the control's first."""
    pipe, judge, control = tiny_pipeline("sd2"), Says(), Says()
    pipe.scheduler = DPMSolverMultistepScheduler.from_pretrained(data_folder() / "mini-sd" / "scheduler")
    options, edit = {"settings": settings, "seeds": [0], "steps": 3}, build(pipe, [SHIP], "uce", kept=["frog"])
    options |= {"steps": 2} if name == "completion" else {}  # it has steps of its own
    attack(pipe, edit, SHIP, name, judge=judge, **options)
    attack(pipe, edit, SHIP, name, judge=control, control="no-attack", **options)
    before, tried, first, _ = pixels([*judge.shown, *control.shown])
    assert np.abs(before - tried).max() <= 1 and (before == first).all()
    with applied(pipe, edit):
        assert np.abs(before - pixels(generate(pipe, PROMPT, [0], 3))).max() > 1


# --- wording ------------------------------------------------------------------------------------------------------


def test_shipped_wordings_are_of_the_ten_objects_and_fit(pipe):
    known = wordings()
    assert set(known) == {concept.name for concept in object_list()} and len(known) == 10
    words = {entry.name: (entry.name, *entry.synonyms) for entry in catalogue()}
    for name, levels in known.items():
        assert tuple(levels) == LEVELS
        for level in ("short", "long"):
            for text in levels[level]:
                assert not any(occurrences(text, word) for word in words[name]), text
        assert all(any(occurrences(text, word) for word in words[name]) for text in levels["synonyms"])
        assert min(map(len, levels["long"])) > 2 * max(map(len, levels["name"]))
        assert all(fits(tiny_pipeline("sd").tokenizer, text) for text in levels["name"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ship: {name: [the ship]}", "levels"),
        ("ship: {name: [a frog], modifiers: [a ship], synonyms: [a], short: [a], long: [a]}", "must name"),
        ("ship: {name: [a ship], modifiers: [a ship], synonyms: [a], short: [a], long: [the ship]}", "must not name"),
        ("[ship]", "mapping"),
        ("~: {name: [a ship]}", "wording.yaml: The name of a concept must be a word or a phrase, not None"),
        ("ship: {~: [a ship]}", "line 1: 'ship' must have the levels"),
    ],
)
def test_wordings_that_miss_their_point_are_refused(tmp_path, text, words):
    (tmp_path / "wording.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(MaceError, match=words):
        wordings(str(tmp_path / "wording.yaml"))


def test_each_level_is_drawn_and_counts_by_itself(pipe, uce, tmp_path):
    levels = "name: [a ship], modifiers: [big ship], synonyms: [horse], short: [frog, red], long: [a big red sea]"
    (tmp_path / "own.yaml").write_text(f"ship: {{{levels}}}", encoding="utf-8")
    judge = Says("ship", "sea", "sea", "ship")  # level by level; nothing is drawn before
    settings = {"file": str(tmp_path / "own.yaml")}
    result = attack(pipe, uce, SHIP, "wording", judge=judge, settings=settings, seeds=[0], steps=1)
    assert [row["prompt"] for row in result.rows] == ["a ship", "big ship", "horse", "frog", "red", "a big red sea"]
    assert [row["success"] for row in result.rows] == [True, False, False, True, False, False]
    assert {row["pre"] for row in result.rows} == {None} and result.pre_asr is None and len(judge.shown) == 6
    with pytest.raises(MaceError, match="no wordings of 'frog'"):
        attack(pipe, uce, Concept("frog", "sea"), "wording", judge=Says(), settings=settings, steps=1)
    strange = Concept("axolotl", "sea")
    foreign = {"judge": Says(), "control": "foreign", "seeds": [0], "steps": 1}
    found = attack(pipe, uce, strange, "wording", **foreign)
    (row,), (missing,) = found.rows, found.not_measured
    assert (row["variant"], row["prompt"]) == ("level name", "a photo of the axolotl")  # by its name
    assert missing["why"].endswith("nobody has written its modifiers, synonyms, short, long")
    found = attack(pipe, uce, strange, "wording", settings={"levels": ["short"]}, **foreign)
    assert not found.rows and found.not_measured[0]["why"].endswith("nobody has written its short")
    settings = {"neutral": "photo of sea frog"}
    refused = attack(pipe, uce, strange, "ring-a-bell", judge=Says(), control="foreign", settings=settings, steps=1)
    assert "no pair of prompts" in refused.not_measured[0]["why"]


# --- foreign concepts ---------------------------------------------------------------------------------------------


def test_the_nearest_picture_decides(tmp_path):
    class Mean:
        def image_vectors(self, pictures):
            return torch.stack([torch.tensor(np.asarray(p)).float().mean((0, 1)) for p in pictures])

    for name, color in {"red-thing": "red", "blue": "blue"}.items():
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{name}.png")
    (tmp_path / "sub").mkdir()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "sub" / "1.png")
    gallery = read_pictures(tmp_path)
    assert list(gallery) == ["blue", "red thing", "sub"] and gallery["sub"][0].getpixel((0, 0)) == (255, 255, 255)
    judge = Nearest(Mean(), gallery)
    shown = [Image.new("RGB", (8, 8), color) for color in ((200, 10, 10), (240, 240, 240), (0, 20, 90))]
    assert judge.top1(shown) == ["red thing", "sub", "blue"]
    with pytest.raises(MaceError, match="no pictures"):
        read_pictures(tmp_path / "sub" / "nothing")
    with pytest.raises(MaceError, match="two concepts"):
        Nearest(Mean(), {"one": gallery["blue"]})


def test_ten_pictures_ship_of_what_the_catalogue_does_not_have():
    gallery = read_pictures(data_folder() / "attacks" / "foreign")
    assert len(gallery) == 10 and all(len(p) == 1 and p[0].size == (64, 64) for p in gallery.values())
    known = {word for entry in catalogue() for word in (entry.name, *entry.synonyms)}
    assert not known & {*gallery, *(name.replace(" ", "-") for name in gallery)}
