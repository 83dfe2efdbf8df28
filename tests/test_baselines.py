"""The one interface of all methods: registered, built, applied and removed, saved, loaded, exported, refused."""

from dataclasses import asdict, dataclass, replace

import numpy as np
import pytest
import torch
from brute import DDIM, relative
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from safetensors.torch import load_file

from macelib import Concept, EraseConfig, Erasure, MaceError
from macelib.baselines import Change, Edit, Hook, Request, Settings, TextMap, build, method, methods, register
from macelib.baselines.changes import parameters
from macelib.baselines.columns import expand, joined, last_position, preserved, token_mean, tokens
from macelib.baselines.esd import ESD, esd_target, train, trained
from macelib.baselines.registry import _METHODS, source
from macelib.config import ImagesConfig, TrainOptions
from macelib.evaluate import characters
from macelib.files import data_folder, read_tensors, save_tensors
from macelib.method.refine import gram
from macelib.models.pipelines import kv_weights, model_hash
from macelib.models.sample import generate
from macelib.models.swap import applied, untouched
from macelib.models.text import encode
from macelib.models.tiny import tiny_pipeline

CONCEPTS = [Concept("ship", "sea"), Concept("frog", "grass")]
KEPT = ["dog", "cat", "horse"]
SHORT = {
    "esd-x": {"steps": 3, "lr": 1e-3, "denoising": 4},
    "esd-u": {"steps": 3, "lr": 1e-3, "denoising": 4},
    "semantic-surgery": {"beta": 0.0},
    "adavd": {"a": 3.0, "b": 0.0},
    "safree": {"filter": False},
}
TRAINING_FREE = [n for n in methods() if not n.startswith(("mace", "esd"))]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


@pytest.fixture(scope="module")
def edits(pipe):
    names = [name for name in methods() if not name.startswith("mace")]
    return {name: build(pipe, CONCEPTS, name, SHORT.get(name), kept=KEPT) for name in names}


def everything(pipe):
    """All weights, and what else an edit may touch."""
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules()]
    return [p.detach().clone() for p in pipe.unet.parameters()], hooks, "encode_prompt" in vars(pipe)


def same(a, b):
    return all(map(torch.equal, a[0], b[0])) and a[1:] == b[1:]


def draw(pipe, prompt="a photo of the ship"):
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "latent"}
    return pipe(prompt, generator=generator, **options).images


# --- the registry -------------------------------------------------------------------------------------------------


def test_the_methods_that_there_are():
    closed = {"uce", "speed", "oce", "rece", "dp"}
    hooks = {"negative-prompt", "sld", "safree", "semantic-surgery", "adavd"}
    ablations = {"mace-stage-1", "mace-added-up", "mace-without-cfis", "mace-without-prior", "mace-values-only"}
    assert {"original", "esd-x", "esd-u"} | closed | hooks | ablations | {"mace", "mace-best"} <= set(methods())


def test_unknown_names_and_settings_are_said(pipe):
    for wrong, text in [
        (lambda: method("uec"), "no method 'uec'; near it: uce"),
        (lambda: method("zzzzz"), "there are .*uce"),
        (lambda: build(pipe, CONCEPTS, "uce", {"lamda": 1}), "lamda is not a setting; choose from tokens"),
        (lambda: build(pipe, CONCEPTS, "uce", {"tokens": "some"}), "tokens is 'some'; allowed: last, all"),
        (lambda: build(pipe, CONCEPTS, "uce", {"lambda_": -1}), "lambda_ is -1.0; allowed: 0 or more"),
        (lambda: build(pipe, CONCEPTS, "uce", ESD()), "settings of 'uce' must be UCE, not ESD"),
        (
            lambda: build(pipe, CONCEPTS, "uce", task="celebrities"),
            "kind of settings for uce 'celebrities'; near it: cel",
        ),
        (lambda: build(pipe, CONCEPTS, "speed", {"rho": 0}), "rho is 0.0; allowed: more than 0"),
        (lambda: build(pipe, CONCEPTS, "esd-x", {"denoising": 0}), "denoising is 0; allowed: more than 0"),
        (lambda: build(pipe, CONCEPTS, "esd-u", {"batch": 0}), "batch is 0; allowed: more than 0"),
        (lambda: build(pipe, CONCEPTS, "uce", {"lambda_": 0, "beta": 0}), "singular .*: raise lambda_"),
        (
            lambda: type("Quiet", (Hook,), {"__module__": "other"}),
            "There is a change 'Quiet' already, of test_baselines",
        ),
        (lambda: build(pipe, CONCEPTS, "uce", kept=["dog", "ship"]), "ship: to be erased and to be kept"),
        (lambda: build(pipe, [], "uce"), "list of concepts is empty"),
        (lambda: build(pipe, CONCEPTS, "speed", kept=["the frog prince"]), "Nothing is left to preserve"),
        (lambda: register("uce", ESD)(lambda request, settings: None), "a method 'uce' already"),
        (lambda: register("other", int), "must be a frozen dataclass"),
    ]:
        with pytest.raises(MaceError, match=text):
            wrong()


@pytest.mark.parametrize("name", methods())
def test_settings_of_every_method(name):
    """Published settings and every trial of the grid are valid settings of the method's own class."""
    m = method(name)
    published = [m.settings_for(task) for task in ("object", "celebrity", "style", "unsafe", *m.published)]
    assert all(type(s) is m.settings or issubclass(m.settings, type(s)) or isinstance(s, m.settings) for s in published)
    start, points = m.settings_for("celebrity"), m.trials("celebrity")
    trials = [replace(start, **point) for point in points]  # refuses a field that there is not, and a value
    assert len(trials) == len({repr(s) for s in trials}) and bool(trials) == bool(m.grid)
    assert not trials or trials[0] == start


def test_third_party_method_in_twenty_lines(pipe, tmp_path):
    @dataclass(frozen=True)
    class Forget(Settings):
        strength: float = 1.0  # 1: the names' directions go

    @register("forget", Forget, grid={"strength": (0.5, 1.0)})
    def forget(request: Request, settings: Forget) -> TextMap:
        C = tokens(request.pipe, [c.name for c in request.concepts], "last")
        U = torch.linalg.qr(C).Q
        return TextMap(torch.eye(len(C), dtype=C.dtype) - settings.strength * U @ U.T)

    @register("quiet", Settings)
    def quiet(request: Request, settings: Settings) -> Hook:
        return Quiet(encode(request.pipe, [""])[0])

    try:
        for name in ("forget", "quiet"):
            before, edit = everything(pipe), build(pipe, CONCEPTS, name)
            with applied(pipe, Edit.load(edit.save(tmp_path / f"{name}.safetensors"))):
                changed = draw(pipe)
            assert same(everything(pipe), before) and not torch.equal(changed, draw(pipe))
        assert torch.equal(changed, draw(pipe, ""))  # quiet: every prompt is the empty one
        assert method("forget").trials() == [{"strength": 1.0}, {"strength": 0.5}]  # the published one first
    finally:
        _METHODS.pop("forget"), _METHODS.pop("quiet")


@dataclass(frozen=True, eq=False)
class Quiet(Hook):
    e: torch.Tensor

    def embed(self, run, e):
        return self.e.to(e).expand_as(e)


# --- the artefact -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in methods() if not n.startswith("mace")])
def test_applied_and_removed_bit_for_bit_saved_and_loaded(pipe, edits, tmp_path, name):
    edit, before, original, base = edits[name], everything(pipe), draw(pipe), model_hash(pipe)
    path = edit.save(tmp_path / "edit.safetensors")
    edit.apply(pipe)
    changed = draw(pipe)
    assert torch.equal(changed, original) == (name == "original")
    assert model_hash(pipe) == base
    edit.remove(pipe)
    assert same(everything(pipe), before) and torch.equal(draw(pipe), original)
    edit.remove(pipe)  # nothing to do
    again = Edit.load(path)
    assert (again.key, again.method, again.concepts) == (edit.key, name, CONCEPTS)
    assert again.settings == {k: list(v) if isinstance(v, tuple) else v for k, v in edit.settings.items()}
    with applied(pipe, again):
        assert torch.equal(draw(pipe), changed)
    assert same(everything(pipe), before)


def test_one_replaces_the_other_and_untouched_puts_back_what_was_there(pipe, edits):
    before = everything(pipe)
    for name in ("esd-u", "sld", "uce", "adavd"):
        edits[name].apply(pipe)
        if name == "uce":
            with applied(pipe, edits["uce"]):
                assert torch.equal(draw(pipe), alone(edits["uce"]))
    drawn, state = draw(pipe), everything(pipe)
    assert torch.equal(drawn, alone(edits["adavd"]))
    with untouched(pipe):
        assert same(everything(pipe), before)
        edits["oce"].apply(pipe)
    assert same(everything(pipe), state) and torch.equal(draw(pipe), drawn)
    edits["adavd"].remove(pipe)
    assert same(everything(pipe), before)
    with pytest.raises(ZeroDivisionError), applied(pipe, edits["esd-u"]):
        1 / 0  # noqa: B018
    assert same(everything(pipe), before)


def alone(edit):
    fresh = tiny_pipeline("sd")
    edit.apply(fresh)
    return draw(fresh)


@pytest.mark.slow
def test_an_erasure_and_an_edit_replace_each_other(pipe, edits):
    before, erasure = everything(pipe), small_erasure(pipe, "mace-without-prior")
    erasure.apply(pipe)
    drawn = draw(pipe)
    edits["sld"].apply(pipe)
    assert torch.equal(draw(pipe), alone(edits["sld"]))
    edits["esd-u"].apply(pipe)
    erasure.apply(pipe)
    assert torch.equal(draw(pipe), drawn)
    erasure.remove(pipe)
    assert same(everything(pipe), before)


@pytest.mark.parametrize("name", [name for name in TRAINING_FREE if name != "original"])
def test_published_settings_where_no_names_are_told(pipe, name):
    """There are more general captions than directions."""
    edit = build(pipe, CONCEPTS[:1], name)
    assert edit.settings == asdict(method(name).settings())
    with applied(pipe, edit):
        assert bool(draw(pipe).isfinite().all())
    assert name != "dp" or ("No names to keep are told" in edit.notes[0] and edit.report["distance"] > 0.1)


def test_speed_of_unsafe_content_preserves_the_empty_prompt(pipe):
    """All tokens but [SOS], as of the targets; the names to keep are then none of it, which is said."""
    empty, told = (build(pipe, CONCEPTS[:1], "speed", task="unsafe", kept=kept) for kept in ((), KEPT))
    assert empty.report["preserved"] == 76 and not empty.notes and "not the names to keep" in told.notes[0]
    assert empty.key == told.key != build(pipe, CONCEPTS[:1], "speed", {"keep": "names"}, task="unsafe", kept=KEPT).key


MODULE = """
from dataclasses import dataclass
from macelib.baselines import Hook, Settings, register

@dataclass(frozen=True, eq=False)
class Zero(Hook):
    def embed(self, run, e):
        return e * {factor}

@register("zero", Settings)
def zero(request, settings):
    return Zero()
"""


def test_keys_follow_the_code_of_one_s_own_hook(pipe, tmp_path):
    """Edited and imported anew, in the same file; of a method of ours, the source of its module counts."""
    found, place = [], tmp_path / "mine.py"
    try:
        for factor in (1, 0, 0):
            place.write_text(MODULE.format(factor=factor))
            exec(compile(place.read_text(), place, "exec"), {"__name__": "mine"})
            found.append((method("zero").code, build(pipe, CONCEPTS, "zero").key))
    finally:
        _METHODS.pop("zero", None)
    assert found[0][0] != found[1][0] == found[2][0] and found[0][1] != found[1][1] == found[2][1]
    assert "def uce_map" in method("uce").code and method("esd-u").code == method("esd-x").code
    assert source(Quiet).count("def embed") == source(type("Own", (Quiet,), {})).count("def embed") > 1
    assert source(print) == source(int) == ""


def test_what_a_method_shares_with_others_is_part_of_its_code():
    for name, texts in {
        "oce": ("def oce(", "def target_columns(", "def tokens(", "class OutputMap"),
        "rece": ("def uce_map(", "def adversarial_map(", "class TextMap"),
        "sld": ("def joined_state(", "def noise_scale("),
    }.items():
        assert all(text in method(name).code for text in texts)
    assert "def safety_step(" not in method("uce").code
    surgery = Change.kinds["Surgery"]  # reads texts while it draws
    assert "def joined(" in source(surgery, "macelib.baselines") and "def joined(" not in source(surgery)


def test_keys_tell_edits_apart(pipe, edits):
    assert len({e.key for e in edits.values()}) == len(edits)
    again = build(pipe, CONCEPTS, "uce", kept=KEPT)
    assert again.key == edits["uce"].key != build(pipe, CONCEPTS, "uce", {"lambda_": 1.0}, kept=KEPT).key


@pytest.mark.parametrize("name", ["uce", "oce", "speed", "esd-u"])
def test_exports_draw_what_the_applied_edit_draws(pipe, edits, tmp_path, name):
    edit, before = edits[name], everything(pipe)
    with applied(pipe, edit):
        wanted = draw(pipe)
    edit.export(pipe, tmp_path / "pipeline")
    edit.export(pipe, tmp_path / "weights", "weights")
    assert same(everything(pipe), before)
    whole = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    whole.set_progress_bar_config(disable=True)
    assert relative(draw(whole), wanted) < 1e-5
    fresh = tiny_pipeline("sd")
    loaded = fresh.unet.load_state_dict(load_file(tmp_path / "weights" / "unet.safetensors"), strict=False)
    assert not loaded.unexpected_keys and relative(draw(fresh), wanted) < 1e-5
    assert "unet.safetensors" in (tmp_path / "weights" / "README.txt").read_text(encoding="utf-8")
    for wrong, text in [
        (lambda: edit.export(pipe, tmp_path / "weights", "weights"), "not empty"),
        (lambda: edit.export(pipe, tmp_path / "lora", "lora"), "is no LoRA"),
        (lambda: edits["sld"].export(pipe, tmp_path / "sld"), "sld does not live in weights"),
    ]:
        with pytest.raises(MaceError, match=text):
            wrong()


def test_other_bases_and_bad_files_are_refused(pipe, edits, tmp_path):
    other, path = tiny_pipeline("sd", seed=1), edits["uce"].save(tmp_path / "a.safetensors")
    with pytest.raises(MaceError, match="another base model"):
        edits["uce"].apply(other)
    edits["uce"].apply(other, force=True).remove(other)
    with pytest.raises(MaceError, match="own model"):
        edits["uce"].apply(tiny_pipeline("sdxl"), force=True)
    data = path.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-5])
    (tmp_path / "flipped.safetensors").write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    erasure = small_erasure(pipe, "mace-without-prior").save(tmp_path / "erasure.safetensors")
    about, tensors, _ = read_tensors(path)
    save_tensors(tmp_path / "unknown.safetensors", tensors, {**about, "change": "TextPam"})
    for file, text in [
        ("cut.safetensors", "cut short"),
        ("flipped.safetensors", "checksum"),
        ("absent.safetensors", "missing"),
        (erasure.name, "is not an edit"),
        ("unknown.safetensors", "'TextPam' of method 'uce', which is not known here"),
    ]:
        with pytest.raises(MaceError, match=text):
            Edit.load(tmp_path / file)


def test_a_text_map_far_from_the_identity_is_said(pipe):
    edit = build(pipe, CONCEPTS, "rece", {"gamma": 0.0, "lambda_": 1e-9, "beta": 0.0})
    assert edit.report["distance"] > 5 and "may draw noise" in edit.notes[-1]


class Stub:
    """A classifier that says by the picture's mean colour alone."""

    name, concepts = "stub", ["ship", "frog", "dog"]

    def check(self, names):
        assert set(names) <= set(self.concepts)

    def top1(self, pictures, among):
        return [self.concepts[int(np.asarray(p).mean() * 100) % 3] for p in pictures]


@pytest.mark.slow
def test_measured_by_the_code_that_measures_mace(pipe, edits, tmp_path):
    """In one folder: edits that share the original's weights keep pictures of their own."""
    chosen = [edits["sld"], edits["semantic-surgery"], edits["uce"]]
    options = {
        "classifier": Stub(),
        "seeds": [0, 1, 2],
        "templates": ["a photo of the {}"],
        "steps": 2,
        "guidance": 5.0,
    }
    together = characters(pipe, chosen, ["dog"], folder=tmp_path, **options)
    folders = sorted(p.name.partition("-")[0] for p in tmp_path.iterdir() if p.is_dir())
    assert folders == ["erased"] * 3 + ["original"]
    for edit, name in zip(chosen, ["ship + frog (1)", "ship + frog (2)", "ship + frog (3)"], strict=True):
        if edit is chosen[0]:
            single = characters(pipe, edit, ["dog"], **options)
            assert single.value("H_c") == together.value("H_c", name)
        with applied(pipe, edit):
            pictures = generate(pipe, "a photo of the ship", [0, 1, 2], steps=2, guidance=5.0)
        rows = together.images.query("erased == @name and model == 'erased' and word == 'ship' and role != 'shown'")
        assert list(rows.found) == Stub().top1(pictures, None)


# --- text maps as the methods make them ---------------------------------------------------------------------------


def test_uce_in_the_pipeline_is_its_normal_equations(pipe, edits):
    """W' (C Cᵀ + P0 P0ᵀ + λ I) = W (A Cᵀ + P0 P0ᵀ + λ I) for every layer, columns from the text encoder by hand."""

    def last(text):
        ids = pipe.tokenizer(text, padding="max_length")["input_ids"]
        return encode(pipe, [text])[0, ids.index(pipe.tokenizer.eos_token_id, 1) - 1].double()

    C, P0 = torch.stack([last("ship"), last("frog")], 1), torch.stack([last(k) for k in KEPT], 1)
    A = torch.stack([last(""), last("")], 1)
    same_part = P0 @ P0.T + 0.5 * torch.eye(len(C), dtype=C.dtype)
    before = {n: w.detach().double() for n, w in kv_weights(pipe.unet).items()}
    with applied(pipe, edits["uce"]):
        for name, w in kv_weights(pipe.unet).items():
            left, right = w.double() @ (C @ C.T + same_part), before[name] @ (A @ C.T + same_part)
            assert relative(left, right) < 1e-5 and relative(w, before[name]) > 1e-2


@pytest.mark.parametrize(("name", "parts"), [("uce", "kv"), ("rece", "kv"), ("dp", "kv"), ("speed", "v"), ("oce", "v")])
def test_what_each_closed_form_edits(pipe, edits, name, parts):
    before = {n: w.detach().clone() for n, w in parameters(pipe.unet).items()}
    with applied(pipe, edits[name]):
        changed = {n for n, w in parameters(pipe.unet).items() if not torch.equal(w, before[n])}
    expected = {f"{n}.weight" for n in kv_weights(pipe.unet) if n[-1] in parts}
    assert changed == expected


def test_speed_shared_and_per_layer(pipe):
    """Without IPF and DPA every layer has the same map: W + W D per layer equals W R."""
    options = {"ipf": False, "aug": 0, "parts": "kv", "theta": 1e-6}
    shared = build(pipe, CONCEPTS, "speed", options, kept=KEPT)
    assert isinstance(shared.change, TextMap)
    per_layer = build(pipe, CONCEPTS, "speed", {"aug": 1, "ipf": False, "parts": "kv", "theta": 1e9}, kept=KEPT)
    everything_free = build(pipe, CONCEPTS, "speed", {**options, "theta": 1e9}, kept=KEPT)
    W = {f"{n}.weight": w.detach() for n, w in kv_weights(pipe.unet).items()}
    for (a, x), (b, y) in zip(everything_free.change.weights(W), per_layer.change.weights(W), strict=True):
        assert a == b and relative(x, y) < 1e-4  # nothing is kept: IPF and DPA have no say
    D = shared.change.R - torch.eye(len(shared.change.R), dtype=torch.float64)
    K, P0 = encode(pipe, [""])[0, :1].double().T, tokens(pipe, KEPT, "last")
    assert (D @ P0).abs().max() < 1e-6 * (D @ tokens(pipe, ["ship"], "last")).abs().max()
    assert (D @ K).abs().max() < 1e-8 and shared.report["null_space"] < len(D)


def test_columns(pipe):
    e = encode(pipe, ["ship", "", "red ship"])
    assert [last_position(pipe, t) for t in ("ship", "", "red ship")] == [1, 0, 2]
    last = tokens(pipe, ["ship", "", "red ship"], "last")
    assert torch.equal(last, torch.stack([e[0, 1], e[1, 0], e[2, 2]], 1).double())
    assert torch.equal(tokens(pipe, ["ship", ""], "all"), torch.cat([e[0], e[1]]).T.double())
    assert tokens(pipe, [], "last").shape == (32, 0) == tokens(pipe, [], "all").shape
    assert expand("ship", "object")[1:3] == ["image of ship", "photo of ship"]
    text, cut = joined(pipe, ["ship"] * 60)
    assert len(pipe.tokenizer(text)["input_ids"]) <= 77 and text.count("ship") + len(cut) == 60
    request = Request(pipe, tuple(CONCEPTS), ("dog", "tree frog", "frogman"))
    assert preserved(request) == ["dog", "frogman"] and "1 of 3 preserved texts" in request.notes[0]


def test_mean_over_the_captions_tokens(pipe):
    request = Request(pipe, (Concept("boat", "sea"),))
    from macelib.method.prior import GENERAL

    free = [c for c in GENERAL if "boat" not in c]
    rows = torch.cat([e[: len(pipe.tokenizer(c)["input_ids"])] for e, c in zip(encode(pipe, free), free, strict=True)])
    assert len(free) < len(GENERAL) and relative(token_mean(request), gram(rows) / len(rows)) < 1e-9


# --- ESD ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "scheduler"), [("sd", "own"), ("sd2", "own"), ("sd2", "of mini-SD")])
def test_esd_trains_by_its_loss(kind, scheduler):
    """Loss and gradient of the first step by hand: x_t by DDIM from the same noise, ε by the model's own prediction."""
    pipe = tiny_pipeline(kind)
    if scheduler != "own":
        pipe.scheduler = DPMSolverMultistepScheduler.from_pretrained(data_folder() / "mini-sd" / "scheduler")
    settings = ESD(steps=1, lr=1e-3, denoising=4, eta=2.0)
    request, student = Request(pipe, (CONCEPTS[0],), seed=4), tiny_pipeline(kind).unet
    before = {n: p.detach().clone() for n, p in parameters(student).items()}
    (record,) = train(request, settings, student)

    g, unet = torch.Generator().manual_seed(4), tiny_pipeline(kind).unet
    torch.randint(1, (), generator=g)
    stop = int(torch.randint(4, (), generator=g))
    spacing = "leading" if scheduler == "own" else "trailing"
    ddim = DDIM(dict(pipe.scheduler.config) | {"timestep_spacing": spacing}, 4)
    x = torch.randn(1, 4, 16, 16, generator=g)
    e_0, e_c = encode(pipe, [""]), encode(pipe, ["ship"])

    def predict(model, x, t, e):
        return ddim.eps(x, t, model(x, t, encoder_hidden_states=e).sample)

    with torch.no_grad():
        for i, t in enumerate(ddim.timesteps[:stop]):
            u, c = (unet(x, t, encoder_hidden_states=e).sample for e in (e_0, e_c))
            x = ddim.step(x, i, u + 3 * (c - u))
        t = ddim.timesteps[stop]
        target = predict(pipe.unet, x, t, e_0) - 2 * (predict(pipe.unet, x, t, e_c) - predict(pipe.unet, x, t, e_0))
    loss = (predict(unet, x, t, e_c) - target).square().mean()
    assert stop and record.timestep == t and record.concept == "ship"
    assert abs(record.loss - float(loss.detach())) < 1e-4 * record.loss
    loss.backward()
    for name, p in parameters(student).items():
        step = p.detach() - before[name]
        if ".attn2." not in name:
            assert not step.any()
            continue
        grad = unet.get_parameter(name).grad
        clear = grad.abs() > 0.05 * grad.abs().max()  # Adam's first step: lr g / (|g| + 1e-8)
        assert torch.allclose(step[clear], (-1e-3 * grad / (grad.abs() + 1e-8))[clear], atol=5e-5)


def test_esd_target_and_variants(pipe):
    c, e_0 = torch.tensor([3.0]), torch.tensor([1.0])
    assert esd_target(c, e_0, 1.0) == torch.tensor([-1.0]) and esd_target(c, c, 5.0) == c
    names = set(parameters(pipe.unet))
    x, u, strict = (set(trained(pipe.unet, v)) for v in ("x", "u", "strict"))
    assert x | u == names and not x & u and strict == {f"{n}.weight" for n in kv_weights(pipe.unet)} < x


def test_esd_learns_and_tells(pipe):
    seen = []
    settings = {"steps": 5, "lr": 1e-3, "denoising": 2, "variant": "strict"}
    edit = build(pipe, CONCEPTS, "esd-x", settings, seed=1, progress=lambda *a: seen.append(a))
    assert [a[:3] for a in seen] == [("train", i, 5) for i in range(1, 6)]
    assert {a[3].partition(":")[0] for a in seen} == {"ship", "frog"} and "shared by 2 concepts" in edit.notes[0]
    assert set(edit.change.delta) == {f"{n}.weight" for n in kv_weights(pipe.unet)}
    again = build(pipe, CONCEPTS, "esd-x", settings, seed=1)
    assert again.key == edit.key


# --- MACE and its ablations ---------------------------------------------------------------------------------------


def small_erasure(pipe, name, concepts=CONCEPTS, **kw):
    config = EraseConfig(images=ImagesConfig(count=1, steps=1, masks="full"), train=TrainOptions(steps=2, lr=1e-2))
    return build(pipe, concepts, name, config, **kw)


def test_stage_1_alone_is_one_text_map(pipe):
    first = small_erasure(pipe, "mace-stage-1", CONCEPTS[:1], kept=["dog"])
    assert first.config.stages == "1" and first.config.prior.names == ("dog",)
    W = {n: w.detach().clone() for n, w in kv_weights(pipe.unet).items()}
    wanted = dict(first.weights(W))
    found = dict(TextMap(first.refinement.R).weights({f"{n}.weight": w for n, w in W.items()}))
    assert all(relative(found[f"{n}.weight"], wanted[n]) < 1e-6 < relative(wanted[n], W[n]) for n in W)


@pytest.mark.slow
def test_mace_and_its_ablations(pipe):
    before = everything(pipe)
    full = small_erasure(pipe, "mace")
    assert isinstance(full, Erasure) and full.config.train.timesteps == "cfis"
    naive, uniform, no_prior = (small_erasure(pipe, f"mace-{n}") for n in ("added-up", "without-cfis", "without-prior"))
    assert naive.config.stages == "1+2" and uniform.config.train.timesteps == "uniform" and no_prior.P is None
    values = small_erasure(pipe, "mace-values-only")
    W = {n: w.detach().clone() for n, w in kv_weights(pipe.unet).items()}
    wanted = dict(full.weights(W))
    with applied(pipe, values):
        for name, w in kv_weights(pipe.unet).items():
            assert relative(w, wanted[name] if name.endswith("v") else W[name]) < 1e-6
    assert same(everything(pipe), before)
