"""Presets: every published value, the authors' objective written a second time, open fields, mixed kinds, captions."""

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from brute import relative

from macelib import Concept, EraseConfig, Erasure, MaceError, erase, job
from macelib.concepts import PAPER_KINDS, paper_list, prompts, retained, with_templates
from macelib.erasure import Part
from macelib.method import prior as priors
from macelib.method.lora.forward import at_size, per_sample
from macelib.method.lora.group import Group
from macelib.method.lora.train import Example, TrainConfig, example
from macelib.method.refine import ConceptStatistics, compress
from macelib.models.pipelines import cross_attention, kv_weights
from macelib.models.sample import posterior
from macelib.models.text import encode, tokenizers
from macelib.models.tiny import tiny_pipeline
from macelib.presets import KINDS, Run, values
from macelib.templates import PAPER_LIKE

N = 616_767  # captions of COCO 2014
SHIP, PERSON = Concept("ship", "ground"), Concept("Amy Adams", "a person", "celebrity")
NUDITY, MONET = Concept("nudity", "a person wearing clothes", "explicit"), Concept("Claude Monet", "art", "style")


@pytest.fixture(scope="module")
def sd1():
    """A random pipeline of the family SD 1.x."""
    return tiny_pipeline("sd", width=768)


@pytest.fixture(autouse=True)
def folders(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- the paper's table --------------------------------------------------------------------------------------

TABLE = [  # task, count, name, lr, steps, timesteps, λ0, λ1, λ2, λ3 / N_d
    ("objects", 1, "automobile", 1e-5, 50, "cfis", 100, 0, 0, 0),
    ("objects", 1, "bird", 1e-5, 50, "cfis", 10, 0, 0, 0),
    ("objects", 1, "ship", 1e-5, 50, "cfis", 1000, 0, 0, 0),
    ("objects", 1, "cat", 1e-5, 50, "cfis", 100, 0, 0, 0),  # not published: ours
    ("objects", None, "", 1e-5, 50, "cfis", 100, 0, 0, 0),
    ("celebrities", 1, "", 1e-4, 50, "cfis", 0, 6.17e-3, 61.7, 0.01297),
    ("celebrities", 5, "", 1e-4, 50, "cfis", 0, 1.23e-3, 12.3, 0.0811),
    ("celebrities", 10, "", 1e-4, 50, "cfis", 0, 6.17e-4, 6.17, 0.1297),
    ("celebrities", 100, "", 1e-4, 50, "cfis", 0, 6.17e-5, 0.617, 0.3243),
    ("styles", 100, "", 1e-4, 50, "cfis", 0, 6.17e-5, 0.617, 0.1297),
    ("explicit", 4, "", 1e-5, 120, "uniform", 0, 7.6e-8, 0.108, 0),
    ("objects", 3, "", 1e-5, 50, "cfis", 0, 1e-8 * N / 3, 1e-4 * N / 3, None),  # several: the celebrities' (ours)
]


@pytest.mark.parametrize(("task", "count", "name", "lr", "steps", "timesteps", "l0", "l1", "l2", "share"), TABLE)
def test_the_published_values_stand_in_the_fields(task, count, name, lr, steps, timesteps, l0, l1, l2, share):
    found = EraseConfig.preset("paper", task=task, count=count, concept=name)
    assert (found.train.lr, found.train.steps, found.train.timesteps) == (lr, steps, timesteps)
    assert found.refine.lambda0 == found.fuse.lambda0 == l0 and found.refine.weight == 1
    three_digits = {"rel": 5e-3, "abs": 0} if task != "explicit" else {"rel": 1e-2, "abs": 0}  # given with two
    assert found.refine.lambda1 == pytest.approx(l1, **three_digits)
    assert found.fuse.lambda2 == pytest.approx(l2, **three_digits)
    if share is not None:
        assert found.prior.lambda3 == pytest.approx(3000 * share, **three_digits)  # a hundred names by thirty templates


def test_the_rest_of_the_authors_run():
    found = EraseConfig.preset("paper", task="celebrities", count=10)
    t, images, prior = found.train, found.images, found.prior
    assert (t.loss, t.S, t.D, t.prompt, t.mask, t.latents) == (
        "norm", "own+tail", "unit", "template", "nearest", "mean"
    )  # fmt: skip
    assert (t.rank, t.clip, t.t1, t.t2, t.gamma) == (1, 1.0, 200, 400, 0.05)
    assert (images.count, images.steps, images.guidance, images.scheduler) == (8, 30, 7.5, "dpm++")
    assert (images.masks, images.fallback, found.templates) == ("grounding", ("full",), "paper-like")
    assert (prior.captions, prior.named, prior.repeats, prior.tokens) == ("coco", "kept", True, "all")
    assert found.title == "the paper's settings with our templates"


def test_anchors_and_kinds_of_the_paper_s_lists():
    anchors = {c.name: c.anchor for c in paper_list("objects")}
    assert (anchors["automobile"], anchors["bird"], anchors["ship"]) == ("sky", "street", "ground")
    assert [c.anchor for c in paper_list("celebrities_1")] == ["a woman"]
    assert {c.anchor for c in paper_list("celebrities_100")} == {"a person"}
    for name in ("celebrities_5", "styles_100", "explicit"):
        assert {c.kind for c in paper_list(name)} == {PAPER_KINDS[name.partition("_")[0]]}


def test_the_weight_of_kept_names_is_interpolated_in_the_logarithm():
    def w(n):
        return EraseConfig.preset("paper", task="celebrities", count=n).prior.lambda3 * N / 3000

    assert [w(n) for n in (1, 5, 10, 100)] == pytest.approx([8e3, 5e4, 8e4, 2e5])
    middle = 10**1.5  # half way from 10 to 100
    assert w(31) < 1.4e5 < w(32) and 31 < middle < 32 and w(1000) == w(100)


def test_n_d_is_that_of_the_list_at_hand(sd1):
    kept = EraseConfig.preset("paper").keeping(["Adam Driver", "Brad Pitt"])
    assert len(kept.prior.domain) == 60 and kept.prior.domain[0] == "a photo of Adam Driver"
    assert kept.for_model(sd1, [PERSON]).prior.lambda3 == pytest.approx(60 * 8e3 / N)
    asked = EraseConfig.preset("paper", task="celebrities", count=1)
    assert asked.keeping(["Adam Driver"]).for_model(sd1, [PERSON]).prior.lambda3 == pytest.approx(30 * 8e3 / N)
    given = kept.keeping(["Adam Driver"], 7.0)
    assert given.for_model(sd1, [PERSON]).prior.lambda3 == 7.0


# --- the authors' objective, written from the words of the paper's appendix and code report -----------------


def test_stages_1_and_3_are_the_authors_formulas():
    """Theirs are sums over captions with s1 twice, lamb once, and one inverse for each layer."""
    n, d, out, s1, s3, w = 5, 24, 16, 1e-4, 1e-4, 5e4
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    mix = draw(d, d)
    W, general, special = draw(out, d), draw(90, d) @ mix, draw(60, d) @ mix  # rows of 9 captions, of 6 domain prompts
    f, own = [draw(80, d) @ mix for _ in range(n)], [draw(20, d) @ mix for _ in range(n)]
    target = [rows + draw(80, d) for rows in f]
    B, D = [draw(out, 1).float() for _ in range(n)], [draw(1, 1, d).float() for _ in range(n)]
    kept = 3000
    cache = (N / 9) * general.T @ general + w * (kept / 6) * special.T @ special  # as if each stood so often

    left = sum(W @ a.T @ b for a, b in zip(target, f, strict=True)) + s1 * s1 * W @ cache
    theirs_1 = left @ torch.linalg.inv(sum(b.T @ b for b in f) + s1 * s1 * cache)
    every = [torch.cat([a, b]) for a, b in zip(f, own, strict=True)]
    left = s3 * W @ cache
    for a, b, c in zip(every, B, D, strict=True):
        left = left + (theirs_1 + b.double() @ c[0].double()) @ a.T @ a
    theirs_3 = left @ torch.linalg.inv(sum(a.T @ a for a in every) + s3 * cache)

    config = EraseConfig.preset("paper", task="celebrities", count=n)
    parts = []
    for i in range(n):
        statistics = compress(target[i].T @ f[i], f[i].T @ f[i], every[i].T @ every[i])
        parts.append(Part(Concept(f"Person {i}", "a person", "celebrity"), statistics, B[i], D[i]))
    P = general.T @ general / 9 + config.prior.lambda3 * special.T @ special / 6
    erasure = Erasure(tuple(parts), {"layer": out}, d, "base", P, config=config)
    R, fusion = erasure.refinement.R, erasure.fusion
    assert relative(W @ R, theirs_1) <= 1e-9
    B_all = torch.cat(B, 1).double()
    assert relative(W @ fusion.R_tilde + B_all @ fusion.D_star[0], theirs_3) <= 1e-9


def theirs(unet, x, t, e, mask, S):
    """The loss of the authors' training step: per layer one norm over heads, pixels and all tokens of S; summed."""
    losses = []

    def look(attn, args, kwargs):
        text = kwargs["encoder_hidden_states"]
        query, key = attn.head_to_batch_dim(attn.to_q(args[0])), attn.head_to_batch_dim(attn.to_k(text))
        A = attn.get_attention_scores(query, key)  # (heads, hw, T), diffusers' own
        side = round(A.shape[1] ** 0.5)
        M = (F.interpolate(mask[None], size=(side, side), mode="nearest") > 0.5).to(A).reshape(-1)  # (hw,)
        total = 0.0
        for head in range(len(A)):
            for i in S:
                total = total + ((A[head, :, i] * M) ** 2).sum()
        losses.append(total.sqrt())

    hooks = [m.register_forward_pre_hook(look, with_kwargs=True) for m in cross_attention(unet).values()]
    return losses, hooks


def test_stage_2_loss_and_gradient_are_the_authors():
    pipe, g = tiny_pipeline("sd"), torch.Generator().manual_seed(4)
    unet, prompt = pipe.unet.double(), "a drawing of ship"
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)  # noqa: E731
    W = {name: w.detach().clone() for name, w in kv_weights(unet).items()}
    B = {k: (0.3 * draw(1, w.shape[0], 1)).requires_grad_() for k, w in W.items()}
    D = {k: draw(1, 1, w.shape[1]).requires_grad_() for k, w in W.items()}
    x, t, e = draw(1, 4, 16, 16), torch.tensor([300]), encode(pipe, [prompt]).double()
    mask = (torch.rand(1, 64, 64, generator=g) > 0.4).double()
    made = example(pipe, Concept("ship", "sea", templates=("a drawing of {}",)), [blank()], mask[None].float(),
                   config=TrainConfig(prompt="template"))  # fmt: skip
    S = made.S(0, "own+tail")
    ids = tokenizers(pipe)[0](prompt, padding="max_length")["input_ids"]
    first_end = ids.index(tokenizers(pipe)[0].eos_token_id)
    assert S.tolist() == [first_end - 1, *range(first_end, len(ids))]  # the word, [EOS], all padding

    with per_sample(unet, "norm", "nearest") as forward:
        ours = forward(x, t, e, [mask], [S], B, D)[0]
        ours.backward()
    found = {name: (B[name].grad, D[name].grad) for name in W}
    for p in (*B.values(), *D.values()):
        p.grad = None
    changed = {f"{name}.weight": w + B[name][0] @ D[name][0] for name, w in W.items()}
    losses, hooks = theirs(unet, x, t, e, mask, S.tolist())
    torch.func.functional_call(unet, changed, (x, t), {"encoder_hidden_states": e})
    for hook in hooks:
        hook.remove()
    expected = torch.stack(losses).sum()
    expected.backward()
    assert abs(float(ours / expected) - 1) <= 1e-6
    for name in W:
        if found[name][0] is None:  # the last layer's values, which no loss reads
            assert B[name].grad is None and name == list(W)[-1]
            continue
        for mine, grad in zip(found[name], (B[name].grad, D[name].grad), strict=True):
            assert grad.abs().max() > 0 and relative(mine, grad) <= 1e-6


def blank():
    from PIL import Image

    return Image.new("RGB", (64, 64), "red")


# --- single settings of stage 2 -----------------------------------------------------------------------------


def some(pipe, m=1, **extra):
    e = torch.arange(m, dtype=torch.float32)[:, None, None].expand(m, 77, 32).clone()
    return Example("ship", torch.zeros(1, 4, 16, 16), torch.ones(1, 1, 64, 64), e,
                   [torch.tensor([5])] * m, free=m > 1, **extra)  # fmt: skip


@pytest.mark.parametrize(("start", "rank", "std"), [("unit", 1, 1.0), ("unit", 4, 0.25), ("scaled", 1, 32**-0.5)])
def test_starts_of_D(start, rank, std):
    pipe = tiny_pipeline("sd")
    group = Group(pipe, [some(pipe)], TrainConfig(D=start, rank=rank), torch.full((1000,), 1e-3, dtype=torch.float64))
    B, D = group.views()
    assert all(not b.any() for b in B.values())
    assert float(torch.cat([d.detach().flatten() for d in D.values()]).std()) == pytest.approx(std, rel=0.12)


def test_a_step_is_adamw_of_the_clipped_gradient():
    """AdamW (0.9, 0.999, weight decay 0.01) at a constant rate, on gradients of norms around 1, written out."""
    pipe, g, lr = tiny_pipeline("sd"), torch.Generator().manual_seed(2), 0.1
    group = Group(pipe, [some(pipe)], TrainConfig(lr=lr, D="unit"), torch.full((1000,), 1e-3, dtype=torch.float64))
    p = group.flat.detach()[0].double()
    m = v = torch.zeros_like(p)
    for k, size in enumerate((30.0, 0.2, 3.0, 0.9), 1):
        slope = torch.randn(p.shape, generator=g).double()
        slope *= size / slope.norm()
        group.train_step(lambda *_, added, slope=slope: (group.flat * slope.float()).sum(1))
        clipped = slope / max(1.0, size)
        m, v = 0.9 * m + 0.1 * clipped, 0.999 * v + 0.001 * clipped**2
        p = (1 - lr * 0.01) * p - lr * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
    assert torch.allclose(group.flat.detach()[0].double(), p, rtol=0, atol=1e-4) and p.std() > 0.1


def test_a_step_draws_one_of_the_templates():
    pipe = tiny_pipeline("sd")
    config = TrainConfig(prompt="template")
    group = Group(pipe, [some(pipe, 30)], config, torch.full((1000,), 1e-3, dtype=torch.float64))
    seen = {float(group.draw()[1][2][0, 0, 0]) for _ in range(200)}
    assert len(seen) > 25 and seen <= set(range(30))
    made = example(pipe, Concept("ship", "sea"), [blank()], torch.ones(1, 1, 64, 64), config=config)
    assert made.free and torch.equal(made.embeddings, encode(pipe, prompts(Concept("ship", "sea"))))
    with pytest.raises(MaceError, match="as many masks, embeddings and positions"):
        dataclasses.replace(made, free=False)


def test_latents_are_the_mean_or_a_sample():
    pipe = tiny_pipeline("sd")
    mean, spread = posterior(pipe, [blank()])
    assert spread.min() > 0
    fixed = example(pipe, SHIP, [blank()], torch.ones(1, 1, 64, 64))
    drawn = example(pipe, SHIP, [blank()], torch.ones(1, 1, 64, 64), config=TrainConfig(latents="sample"))
    assert fixed.spread is None and torch.equal(drawn.spread, spread) and torch.equal(fixed.latents, mean)
    at_start = torch.zeros(1000, dtype=torch.float64)
    at_start[0] = 1  # almost no noise: what is drawn is the latents
    wide = dataclasses.replace(drawn, spread=torch.full_like(spread, 2.0))
    group = Group(pipe, [wide], TrainConfig(latents="sample"), at_start)
    x = torch.cat([group.draw()[1][0] for _ in range(20)]) - mean
    assert float(x.std()) == pytest.approx(2.0, rel=0.05)


def test_masks_at_a_layer_s_size():
    M = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 0]])[None]
    assert at_size(M, (2, 2)).tolist() == [0.25, 0, 0, 0.75]
    assert at_size(M, (2, 2), "nearest").tolist() == [1, 0, 0, 1]  # the upper left pixel of each
    assert at_size(0.5 * M, (2, 2), "nearest").tolist() == [0, 0, 0, 0]  # above 0.5


# --- what fills open fields ---------------------------------------------------------------------------------


def test_the_model_s_family_fills_what_is_open(sd1):
    people = [Concept(f"Person {i}", "a person", "celebrity") for i in range(5)]
    open_ = EraseConfig(seed=3)
    assert open_.refine.lambda1 is open_.train.lr is open_.prior.lambda3 is None
    found, asked = open_.for_model(sd1, people), EraseConfig.preset("paper", task="celebrities", count=5)
    assert found.preset_name == "paper" and found.rows == {} and found.marks == () and found.seed == 3
    for section in ("refine", "fuse", "train", "images"):
        assert getattr(found, section) == getattr(asked, section)
    assert len(found.prior.domain) == len(set(found.prior.domain)) == 3000
    assert found.prior.domain[0] == f"a photo of {retained('celebrities')[0]}"
    assert found.for_model(sd1, people) is found
    single = open_.for_model(sd1, [SHIP])
    assert single.refine.lambda0 == 1000 and single.prior.domain == ()
    own = dataclasses.replace(open_, train=dataclasses.replace(open_.train, lr=1.0)).for_model(sd1, [SHIP])
    assert own.train.lr == 1.0 and own.title.endswith("with our templates; own values of train.lr")


TODAY = {"lambda0": 1.0, "lambda1": 50.0, "fuse0": 2.0, "lambda2": 50.0, "count": 8}
PICTURES = {"object": (8, "drawing"), "style": (25, "full"), "celebrity": (25, "attention")}  # steps, masks


@pytest.mark.parametrize(
    ("kind", "lr", "D", "weight", "lambda3"),
    [("object", 3e-3, "scaled", 1, 1), ("style", 1e-3, "scaled", 1, 1), ("celebrity", 5e-2, "own", 130, 250)],
)
def test_the_values_of_mini_sd_are_what_they_were(kind, lr, D, weight, lambda3):
    mini = tiny_pipeline("sd", width=384, channels=8)
    found = EraseConfig().keeping(["cat"]).for_model(mini, [Concept("ship", "sea", kind)])
    r, f, i = found.refine, found.fuse, found.images
    values = {"lambda0": r.lambda0, "lambda1": r.lambda1, "fuse0": f.lambda0, "lambda2": f.lambda2}
    assert values | {"count": i.count} == TODAY and i.guidance is None and i.scheduler == "own"
    assert (found.of(kind).images.steps, found.mask_source(kind)) == PICTURES[kind]
    assert (found.weight(kind), found.prior.lambda3) == (weight, lambda3) and found.marks == ()
    assert found.training(kind) == TrainConfig(lr=lr, D=D, steps=50)
    assert (found.prior.named, found.prior.repeats, found.prior.tokens) == ("left out", False, "own")
    alone = EraseConfig().for_model(mini, [Concept("ship", "sea", kind)])
    assert alone.weight(kind) == 1 and alone.prior.domain == () and alone.prior.lambda3 == 1


def test_keeping_a_name_changes_nothing_else():
    mini = tiny_pipeline("sd", width=384, channels=8)
    before, after = (c.for_model(mini, [SHIP]) for c in (EraseConfig(), EraseConfig().keeping(["castle"])))
    assert dataclasses.replace(after, prior=before.prior) == before
    assert after.prior.lambda3 == before.prior.lambda3 == 1.0 and after.weight("object") == before.weight("object")


@pytest.mark.parametrize(
    ("kind", "width", "name", "said"),
    [("sd2", 1024, "paper", "not the paper's model"), ("sdxl", 1024, "paper", "not the paper's model"),
     ("sd", 32, "mini", "a model of no known family")],
)  # fmt: skip
def test_what_is_not_the_paper_s_model_is_said(kind, width, name, said):
    found = EraseConfig().for_model(tiny_pipeline(kind, width=width), [SHIP])
    assert found.preset_name == name and said in found.title


def test_a_preset_by_name_on_a_model_that_it_is_not_made_for():
    mini = tiny_pipeline("sd", width=384, channels=8)
    assert EraseConfig.preset("paper").for_model(mini, [SHIP]).title.endswith("; not made for mini-SD")


def test_untested_is_said():
    assert EraseConfig.preset("untested").title.startswith("untested: ")
    found = values("untested", "object", Run())
    assert found["images"]["masks"] == "attention" and found["train"] == values("paper", "object", Run())["train"]


def test_concepts_of_mixed_kinds_bring_their_own(sd1):
    mixed = EraseConfig().for_model(sd1, [SHIP, PERSON, NUDITY, MONET])
    of = {kind: mixed.of(kind) for kind in KINDS}
    assert [of[k].refine.lambda0 for k in KINDS] == [1000 / 4, 0, 0, 0]
    assert [of[k].fuse.lambda2 for k in KINDS] == pytest.approx([0, 1e-4 * N / 4, 1e-4 * N / 4, 7e-7 * N / 4])
    assert [(of[k].train.lr, of[k].train.steps) for k in KINDS] == [(1e-5, 50), (1e-4, 50), (1e-4, 50), (1e-5, 120)]
    assert len(mixed.prior.domain) == 6000  # celebrities and styles to keep
    again = EraseConfig.from_dict(json.loads(json.dumps(mixed.to_dict())))
    assert again == mixed and again.of("explicit") == of["explicit"]

    eye = torch.eye(4, dtype=torch.float64)
    statistics = ConceptStatistics(eye, 0.5 * eye, eye, eye, 0.0)
    parts = [Part(c, statistics, torch.zeros(2, 0), torch.zeros(1, 0, 4)) for c in (SHIP, PERSON, NUDITY)]
    erasure = Erasure(tuple(parts), {"layer": 2}, 4, "base", eye, config=mixed)
    total = sum(of[c.kind].refine.lambda1 for c in (SHIP, PERSON, NUDITY))
    assert erasure.prior_weight("refine.lambda1") == pytest.approx(total, rel=1e-15)
    assert erasure.ridge("refine.lambda0") == 250
    expected = (3 * 0.5 + total + 250) / (3 + total + 250)
    assert torch.allclose(erasure.refinement.R, expected * eye, rtol=1e-12)


def test_a_run_of_mixed_kinds(tmp_path):
    pipe = tiny_pipeline("sd")
    few = {"images": {"count": 1, "steps": 1, "masks": "full"}, "train": {"steps": 2}, "prior": {"use": False}}
    concepts = [
        dataclasses.replace(c, templates=("a photo of {}", "{} at sunset")) for c in (SHIP, PERSON, NUDITY, MONET)
    ]
    erasure = erase(pipe, concepts, EraseConfig.from_dict(few), folder=tmp_path / "run")
    assert [c.kind for c in erasure.concepts] == ["object", "celebrity", "explicit", "style"]
    assert all(p.B.abs().max() > 0 for p in erasure.parts)
    again = Erasure.load(erasure.save(tmp_path / "e.safetensors"))
    assert again.config == erasure.config and again.config.training("celebrity").D == "own"


# --- captions, templates, detector --------------------------------------------------------------------------

FEW = {"images": {"count": 1, "steps": 1, "masks": "full"}, "train": {"steps": 1}, "templates": "ours"}


@pytest.mark.slow
def test_missing_captions_are_refused_with_the_way_on(sd1, tmp_path):
    people = [dataclasses.replace(PERSON, templates=("{}",))]
    config = EraseConfig.from_dict({**FEW, "prior": {"domain": ["a photo of Adam Driver"]}})
    with pytest.raises(MaceError) as error:
        erase(sd1, people, config)
    for part in ("captions_train2014.json", "cocodataset.org", "616,767", "15 hours", "--captions builtin"):
        assert part in str(error.value)
    builtin = dataclasses.replace(config, prior=dataclasses.replace(config.prior, captions="builtin"))
    found = erase(sd1, people, builtin, folder=tmp_path / "run").config
    assert found.preset_name == "paper" and "captions: builtin, so other numbers than the paper's" in found.title


def test_one_object_needs_no_captions(sd1):
    assert not job._needs_prior([SHIP], EraseConfig().for_model(sd1, [SHIP]))
    frog = Concept("frog", "grass")
    assert job._needs_prior([SHIP, frog], EraseConfig().for_model(sd1, [SHIP, frog]))


def test_coco_s_captions_are_found_and_repeats_and_named_ones_count(tmp_path, sd1):
    pipe, cache = tiny_pipeline("sd"), tmp_path / "cache" / "coco"
    cache.mkdir(parents=True)
    for name, texts in zip(priors.COCO, (["a ship", "a red dog"], ["a ship", "a cat"]), strict=True):
        (cache / name).write_text(json.dumps({"annotations": [{"caption": text} for text in texts]}))
    captions = priors.captions_for(pipe, "coco")
    assert captions == ["a ship", "a red dog", "a ship", "a cat"]
    found = priors.prior(pipe, captions, exclude=[SHIP], named="kept", repeats=True)
    rows = encode(pipe, captions).double().flatten(0, 1)
    assert found.count == 4 and relative(found.P, rows.T @ rows / 4) <= 1e-6
    without = priors.prior(pipe, captions, exclude=[SHIP], repeats=True)
    rows = encode(pipe, ["a red dog", "a cat"]).double().flatten(0, 1)
    assert without.count == 2 and relative(without.P, rows.T @ rows / 2) <= 1e-6


def test_templates_are_ours_paper_like_or_a_file(tmp_path):
    assert with_templates(SHIP, "ours") is SHIP
    like = with_templates(SHIP, "paper-like").templates
    assert len(like) == 30 and not any(" the {}" in f" {t}" or " a {}" in f" {t}" for t in like)
    for kind in KINDS:
        assert len(set(PAPER_LIKE[kind])) == 30 and all(t.count("{}") == 1 for t in PAPER_LIKE[kind])
    assert len(with_templates(Concept("poster", "paper"), "paper-like").templates) == 29  # not the one that names it
    (tmp_path / "mine.txt").write_text("a {} here\n\n{} there\n")
    assert with_templates(SHIP, str(tmp_path / "mine.txt")).templates == ("a {} here", "{} there")
    own = Concept("ship", "sea", templates=("{}",))
    assert with_templates(own, "paper-like") is own
    for text, said in (("no place", "has no"), (None, "cannot be read")):
        if text is not None:
            (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(MaceError, match=said):
            with_templates(SHIP, str(tmp_path / ("bad.txt" if text else "absent.txt")))


def test_a_detector_that_is_missing_is_said_or_refused(monkeypatch, caplog, sd1):
    def missing():
        raise MaceError("no detector")

    monkeypatch.setattr(job, "check_grounding", missing)
    found = job._filled(sd1, [SHIP], EraseConfig(), False)
    assert found.images.masks == "attention" and "masks from attention" in found.title and "no detector" in caplog.text
    with pytest.raises(MaceError, match="no detector"):
        job._filled(sd1, [SHIP], EraseConfig.preset("paper"), False)


def test_bad_input():
    for call, said in (
        (lambda: EraseConfig.preset("papers"), "choose from paper, mini, untested"),
        (lambda: EraseConfig.preset("paper", task="cats"), "no task 'cats'; choose from objects, styles"),
        (lambda: EraseConfig.preset("paper", task="objects", count=0), "count is 0"),
        (lambda: EraseConfig.from_dict({"preset_name": "papers"}), "preset_name is 'papers'"),
    ):
        with pytest.raises(MaceError, match=said):
            call()


def test_settings_of_earlier_files_are_read():
    old = {"train": {"squared": False, "include_eos": True, "D": "random", "lr": None}}
    found = EraseConfig.from_dict(old).train
    assert (found.loss, found.S, found.D, found.lr) == ("norm", "own+tail", "scaled", None)
    found = EraseConfig.from_dict({"train": {"squared": None, "include_eos": None, "D": None}}).train
    assert (found.loss, found.S, found.D) == (None, None, None)
