"""The candidates of the preset "best", each by a second route: least squares, single rows, explicit loops; all are off
unless asked for, are kept with an erasure, and are refused where they cannot be."""

import dataclasses
from importlib import import_module

import pytest
import torch
from brute import refine_reference, relative, token_rows
from test_erasure import CONCEPTS, CONFIG, PRIOR, fused, gap, make, weights
from test_fuse import problem
from test_lora import CONFIG as TRAIN
from test_lora import some_examples
from tiny_transformers import tiny_transformer

from macelib import Concept, EraseConfig, Erasure, MaceError, erase
from macelib.concepts import super_category, templates
from macelib.config import FuseConfig, ImagesConfig, PriorConfig, RefineConfig, TrainOptions
from macelib.job import prior_of
from macelib.method.fuse import changed as written
from macelib.method.fuse import fuse_sums, less_identity, null_space
from macelib.method.influence import influences, step_gram
from macelib.method.lora.forward import per_sample
from macelib.method.lora.group import Group
from macelib.method.lora.train import TrainConfig, super_directions, train
from macelib.method.prior import prior
from macelib.method.refine import gram, solve_refinement
from macelib.method.rounds import layers_gram, refine_in_rounds
from macelib.models.pipelines import kv_weights
from macelib.models.text import encode, tokenizers
from macelib.models.tiny import tiny_pipeline
from macelib.models.tokens import align
from macelib.templates import fill

pytestmark = pytest.mark.usefixtures("cache")

SHIP = Concept("ship", "sea", templates=("a photo of the {}", "{} at sunset"))


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


# --- fuse.null_space ----------------------------------------------------------------------------------------------


def test_the_null_space_is_the_weakest_directions_of_the_prior():
    rows = token_rows(60, 80, 3).double()
    P, previous = rows.T @ rows, -1
    squares = torch.linalg.svdvals(rows).square()  # largest first; the last 20 of 80 directions are empty
    for share in (1e-9, 1e-3, 0.1, 0.5):
        U = null_space(P, share)
        q = U.shape[1]
        held = squares.sum() - squares[: 80 - q].sum() if q > 20 else 0.0
        assert float((rows @ U).square().sum()) == pytest.approx(float(held), rel=1e-6, abs=1e-9 * float(squares.sum()))
        more = squares[80 - q - 1 :].sum()  # with one direction more
        assert held <= share * squares.sum() < more and q > previous
        assert relative(U.T @ U, torch.eye(q)) < 1e-12
        previous = q
    assert null_space(P, 1.0) is None and null_space(None, 1.0) is None
    with pytest.raises(MaceError, match="no direction of the prior holds so little"):
        null_space(torch.eye(5), 0.1)
    with pytest.raises(MaceError, match="needs a prior"):
        null_space(None, 0.1)


@pytest.mark.parametrize(("lambda2", "lambda0"), [(0.0, 1e-3), (0.0, 0.0), (30.0, 1.0)])
def test_the_fused_update_in_a_null_space_is_the_least_squares_in_it(lambda2, lambda0):
    W, R, e, B, D = problem()
    e_p = token_rows(500, 80, 9).double()
    U = null_space(gram(e_p), 0.05)
    q = U.shape[1]
    assert 5 < q < 75
    C = [gram(x) for x in e]
    for name, w in W.items():
        DC = torch.cat([d[name].double() @ c for d, c in zip(D, C, strict=True)])
        fusion = fuse_sums(R, DC, sum(C), gram(e_p), lambda2, lambda0, U)
        change, B_ = less_identity(fusion.R_tilde), torch.cat([b[name] for b in B], 1)
        found = written(w.double(), change, name, B_, fusion.D_star)
        w, W1 = w.double(), w.double() @ R
        rows = [x.double() @ U for x in e]  # W* = W + Z Uᵀ: Z (out, q) is sought
        targets = [
            x.double() @ (W1 + b[name].double() @ d[name].double() - w).T for x, b, d in zip(e, B, D, strict=True)
        ]
        rows += [lambda2**0.5 * e_p @ U, lambda0**0.5 * torch.eye(q, dtype=torch.float64)]
        targets += [torch.zeros(len(e_p), len(w), dtype=torch.float64), lambda0**0.5 * ((W1 - w) @ U).T]
        Z = torch.linalg.lstsq(torch.cat(rows), torch.cat(targets), driver="gels").solution.T
        assert relative(found, w + Z @ U.T) < 1e-8
        others = torch.eye(80, dtype=torch.float64) - U @ U.T
        assert float(((found - w) @ others).abs().max()) < 1e-10 < float((found - w).abs().max())


def test_in_all_directions_it_is_eq_7_as_it_was():
    _, R, e, _, D = problem()
    C, P = sum(gram(x) for x in e), gram(token_rows(500, 80, 9))
    DC = torch.stack([D[0][name].double() @ C for name in D[0]])
    one, two = (fuse_sums(R, DC, C, P, 3.0, 1.0, U) for U in (None, torch.linalg.eigh(P).eigenvectors))
    assert relative(two.R_tilde, one.R_tilde) < 1e-9 and relative(two.D_star, one.D_star) < 1e-9
    assert one.condition == pytest.approx(two.condition, rel=0.1)


# --- refine.rounds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_rounds_are_rows_of_eq_2_found_one_by_one(strength):
    """Every e' by least squares on stacked layers, the map of each round by least squares on all rows so far."""
    n, d, gamma, lambda1, lambda0 = 60, 24, 0.2, 3.0, 0.5
    e_f = token_rows(n, d, 0).double()
    e_g = e_f + 0.3 * token_rows(n, d, 5).double()
    e_p = token_rows(200, d, 7).double()
    g = torch.Generator().manual_seed(1)
    W = [torch.randn(out, d, generator=g, dtype=torch.float64) / d**0.5 for out in (16, 20)]
    H = sum(w.T @ w for w in W)
    target = (1 - strength) * e_f + strength * e_g
    kept = (1 - strength) * e_f.T @ e_f if strength < 1 else 0.0
    sums = target.T @ e_f, e_f.T @ e_f
    rows, targets = [e_f], [target]
    absolute, previous = gamma * float(H.trace()) / d, None
    for rounds in range(3):
        new = [refine_reference(w, torch.cat(rows), torch.cat(targets), e_p, lambda1, lambda0) for w in W]
        found = refine_in_rounds(*sums, e_p.T @ e_p, lambda1, lambda0, rounds, H, gamma, kept)
        assert max(relative(w @ found.R, n) for w, n in zip(W, new, strict=True)) < 1e-8
        assert previous is None or relative(found.R, previous) > 1e-3
        previous = found.R
        left = torch.cat([*new, absolute**0.5 * torch.eye(d, dtype=torch.float64)])
        right = torch.cat([torch.cat(W) @ e_f.T, torch.zeros(d, n, dtype=torch.float64)])
        back = torch.linalg.lstsq(left, right, driver="gels").solution.T  # (n, d): brings each row back nearest
        rows, targets = [*rows, back], [*targets, (1 - strength) * back + strength * e_g]


def test_without_rounds_it_is_the_plain_solve_bit_for_bit():
    X, G, P = (gram(token_rows(90, 24, i)) for i in range(3))
    plain, found = solve_refinement(X, G, P, 2.0, 0.5), refine_in_rounds(X, G, P, 2.0, 0.5, 0, None, 1e-3)
    assert torch.equal(plain.R, found.R) and plain.condition == found.condition
    with pytest.raises(MaceError, match="erase again"):
        refine_in_rounds(X, G, P, 2.0, 0.5, 1, None, 1e-3)


def changed(**sections):
    return EraseConfig.from_dict(
        {
            **CONFIG.to_dict(),
            **{k: {**CONFIG.to_dict()[k], **v} if isinstance(v, dict) else v for k, v in sections.items()},
        }
    )


def test_rounds_of_an_erasure_are_kept_scaled_and_taken_back(pipe, tmp_path):
    H, config = layers_gram(pipe.unet), changed(refine={"rounds": 2, "gamma": 0.1})
    assert relative(H, sum(w.double().T @ w.double() for w in weights(pipe).values())) < 1e-12
    with_rounds = dataclasses.replace(make(pipe), config=config, H=H)
    assert relative(with_rounds.refinement.R, make(pipe).refinement.R) > 1e-3
    loaded = Erasure.load(with_rounds.save(tmp_path / "rounds.safetensors"))
    assert torch.equal(loaded.H, H) and gap(fused(loaded, pipe), fused(with_rounds, pipe)) == 0
    assert relative(with_rounds.scaled(0.0).refinement.R, torch.eye(len(H))) < 1e-5  # drawn as before
    alone = dataclasses.replace(make(pipe, CONCEPTS[:1]), config=config, H=H)
    assert gap(fused(with_rounds.only("ship"), pipe), fused(alone, pipe)) < 1e-6
    assert gap(fused(with_rounds.with_config(CONFIG), pipe), fused(make(pipe), pipe)) == 0
    with pytest.raises(MaceError, match="erase again"):
        make(pipe).with_config(config)


# --- prior.influence ----------------------------------------------------------------------------------------------

CAPTIONS = [
    ("a photo of the sea", ("sea",)),
    ("a photo of the boat", ()),
    "a red dog",
    "two cats",
    "a ship",
    "a harbour",
]


def test_captions_that_an_erasure_hardly_moves_are_left_out(pipe):
    config = changed(prior={"influence": 1.0}).filled("mini", [SHIP])
    A = step_gram(pipe, [SHIP], config)
    texts = ["a photo of the sea", "a photo of the boat", "a red dog", "two cats", "a harbour"]
    rows, anchored = [], []
    for template in templates(SHIP):  # stage 1 without a prior, layer by layer
        pair = align(tokenizers(pipe)[0], template, "ship", "sea")
        rows.append(encode(pipe, [fill(template, "ship")])[0][pair.source])
        anchored.append(encode(pipe, [fill(template, "sea")])[0][pair.target])
    sizes = torch.zeros(len(texts), dtype=torch.float64)
    for w in weights(pipe).values():
        step = refine_reference(w, torch.cat(rows), torch.cat(anchored), lambda0=0.5) - w.double()
        for i, text in enumerate(texts):
            sizes[i] += (step @ encode(pipe, [text])[0].double().T).square().sum()
    sizes = sizes.sqrt()
    assert relative(influences(pipe, texts, A), sizes) < 1e-4
    for least in (0.9, 1.0, 1.05):
        stay = [text for text, size in zip(texts, sizes, strict=True) if size >= least * sizes.mean()]
        found = prior(pipe, CAPTIONS, exclude=[SHIP], influence=(A, least))
        assert found.count == len(stay) and relative(found.P, prior(pipe, stay).P) < 1e-9
    assert 0 < len([size for size in sizes if size >= sizes.mean()]) < len(texts)
    none = prior(pipe, CAPTIONS, exclude=[SHIP], influence=(None, 0.0))
    assert torch.equal(none.P, prior(pipe, CAPTIONS, exclude=[SHIP]).P) and none.count == 5
    twice = prior(pipe, [*texts, texts[1]], influence=(A, 1e-9), repeats=True)
    assert twice.count == 6 and relative(twice.P, prior(pipe, [*texts, texts[1]], repeats=True).P) < 1e-9


def test_the_job_filters_its_prior(pipe, tmp_path):
    (tmp_path / "captions.txt").write_text("\n".join(c if isinstance(c, str) else c[0] for c in CAPTIONS))
    values = {"prior": {"captions": str(tmp_path / "captions.txt"), "beside": 0.0}}
    every = prior_of(pipe, [SHIP], EraseConfig.from_dict(values))
    values["prior"]["influence"] = 1.0
    some = prior_of(pipe, [SHIP], EraseConfig.from_dict(values))
    assert 0 < some.count < every.count and some.key != every.key


# --- train.down ---------------------------------------------------------------------------------------------------


def test_the_super_category_is_the_catalogue_s_or_the_anchor():
    assert super_category(Concept("leopard", "the sea")) == "an animal"
    assert super_category(Concept("Amy Adams", "a person", "celebrity")) == "a person"
    assert super_category(Concept("quux", "something else")) == "something else"


def test_directions_of_a_super_category_by_power_iteration(pipe):
    concept, total = Concept("quux", "the frog"), 0.0
    letters = len(tokenizers(pipe)[0]("frog")["input_ids"]) - 2
    for template in templates(concept, alone=True):
        prompt = fill(template, "the frog")
        at = len(tokenizers(pipe)[0](prompt[: prompt.index("frog")])["input_ids"]) - 1  # [BOS] is read, [EOS] is not
        for row in encode(pipe, [prompt])[0][at : at + letters].double():
            total = total + torch.outer(row, row)
    V, left = super_directions(pipe, concept), total
    assert V.shape == (letters, pipe.unet.config.cross_attention_dim)
    for v in V.double():
        found = torch.ones(len(left), dtype=torch.float64)
        for _ in range(3000):
            found = left @ found
            found = found / found.norm()
        assert abs(float(found @ v)) == pytest.approx(1, abs=1e-4)
        left = left - (found @ left @ found) * torch.outer(found, found)


@pytest.mark.parametrize("D", ["scaled", "own"])
def test_d_stays_orthogonal_and_its_gradient_is_projected(pipe, D):
    config = dataclasses.replace(TRAIN, down="orthogonal", D=D, steps=4, concepts_per_pass=2)
    examples = [dataclasses.replace(e, off=rows(i + 1)) for i, e in enumerate(some_examples(pipe, 2))]
    together = train(pipe, examples, config).finish()
    plain = train(pipe, some_examples(pipe, 2), dataclasses.replace(config, down="free")).finish()
    for i, example in enumerate(examples):
        B, found = together.select(i)
        for name, d in found.items():
            assert (
                float((d @ example.off.T).abs().max())
                < 1e-5
                < float((plain.select(i)[1][name] @ example.off.T).abs().max())
            )
        assert max(float(b.abs().max()) for b in B.values()) > 1e-3
        alone = train(pipe, [example], config).finish().select(0)
        assert max(float((alone[0][k] - B[k]).abs().max()) for k in B) < 1e-5
    with pytest.raises(MaceError, match="no directions of its super-category"):
        train(pipe, some_examples(pipe, 1), config)


def rows(s):
    return torch.linalg.qr(torch.randn(32, s, generator=torch.Generator().manual_seed(s))).Q.T.contiguous()


# --- train.until --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["squared", "norm"])
def test_a_concept_stops_where_little_of_its_attention_is_left(pipe, loss, tmp_path):
    """Against the same training step by step, its attention measured with the LoRA written into the weights or not."""
    config = dataclasses.replace(TRAIN, steps=30, lr=3e-2, timesteps="uniform", loss=loss, concepts_per_pass=2)
    examples, shares = some_examples(pipe, 2), []
    group = Group(pipe, examples, config, torch.full((1000,), 1e-3, dtype=torch.float64))
    states = [g.get_state() for g in group.generators]
    W = kv_weights(pipe.unet)
    before = {name: w.detach().clone() for name, w in W.items()}
    taken = []
    with per_sample(pipe.unet, loss) as forward:
        for _ in range(config.steps):
            B, D = ({k: v.detach().clone() for k, v in some.items()} for some in group.views())
            taken.append((B, D))
            states = [g.get_state() for g in group.generators]
            _, inputs = group.draw()
            share, zero = [], {k: torch.zeros_like(v) for k, v in B.items()}
            for i in range(2):
                ends = []
                for scale in (1.0, 0.0):
                    with torch.no_grad():
                        for name, w in W.items():
                            w.copy_(before[name] + scale * B[name][i] @ D[name][i])
                        ends.append(float(forward(*inputs[:-1], zero, D, added=inputs[-1])[i]))
                share.append((ends[0] / ends[1]) ** (0.5 if loss == "squared" else 1.0))
            with torch.no_grad():
                for name, w in W.items():
                    w.copy_(before[name])
            shares.append(share)
            for g, state in zip(group.generators, states, strict=True):
                g.set_state(state)
            group.train_step(forward)
    until = 0.5 * (min(s[0] for s in shares) + 1)  # so that both stop on the way, not before it
    stop = [next((k for k, s in enumerate(shares) if s[i] < until), None) for i in range(2)]
    assert stop[0] and 0 < stop[0] < config.steps
    run = train(pipe, examples, dataclasses.replace(config, until=until), tmp_path / "kept.safetensors", every=7)
    records = list(run)
    for i in range(2):
        wanted = taken[stop[i]] if stop[i] is not None else None
        for found, k in zip(run.loras.select(i), (0, 1), strict=True):
            if wanted is not None:
                assert max(float((found[n] - wanted[k][n][i]).abs().max()) for n in found) < 1e-5
    last = max(config.steps if s is None else s + 1 for s in stop)
    assert len(records) == last
    again = train(pipe, examples, dataclasses.replace(config, until=until), tmp_path / "kept.safetensors")
    assert not list(again)  # nothing is left to do
    assert all(torch.equal(again.loras.B[n], run.loras.B[n]) for n in run.loras.B)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_concept_that_never_stops_is_trained_as_before(pipe, checkpointing):
    """With checkpoints, too, where blocks are recomputed after the pass without LoRAs."""
    config = dataclasses.replace(TRAIN, steps=3, gradient_checkpointing=checkpointing)
    plain, watched = (
        train(pipe, some_examples(pipe, 1), dataclasses.replace(config, until=until)).finish() for until in (0.0, 1e-6)
    )
    for one, other in zip(plain.select(0), watched.select(0), strict=True):
        assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


# --- written ------------------------------------------------------------------------------------------------------


def test_values_alone_are_written_and_exported(pipe, tmp_path):
    from safetensors.torch import load_file

    whole, values, W = make(pipe), make(pipe, config=changed(written="v")), weights(pipe)
    wanted = fused(whole, pipe)
    new = fused(values, pipe)
    assert set(new) == {name for name in W if name.endswith("to_v")} and gap(new, {n: wanted[n] for n in new}) == 0
    values.apply(pipe)
    now = weights(pipe)
    values.remove(pipe)
    assert all(torch.equal(now[n], new.get(n, W[n])) for n in W) and gap(weights(pipe), W) == 0
    values.export(pipe, tmp_path / "weights", "weights")
    values.export(pipe, tmp_path / "lora", "lora", rank="full")
    keys = {n.removesuffix(".weight") for n in load_file(tmp_path / "weights" / "unet.safetensors")}
    assert keys == set(new) == {n.removesuffix(".weight") for n in load_file(tmp_path / "lora" / "base.safetensors")}
    for file in ("lora", "lora_standalone"):
        assert not [n for n in load_file(tmp_path / "lora" / f"{file}.safetensors") if "to_k" in n]
    loaded = Erasure.load(values.save(tmp_path / "values.safetensors"))
    assert loaded.config.written == "v" and gap(fused(loaded, pipe), new) == 0


# --- settings -----------------------------------------------------------------------------------------------------


def test_each_is_off_unless_asked_for_and_refused_where_it_cannot_be(pipe):
    plain = EraseConfig().filled("mini", [SHIP])
    off = {"written": "kv", "prior": {"influence": 0}, "refine": {"rounds": 0}, "fuse": {"null_space": 1}}
    off["train"] = {"down": "free", "until": 0}
    for section, values in off.items():
        own = getattr(plain, section)
        assert own == values if isinstance(values, str) else all(getattr(own, k) == v for k, v in values.items())
    assert (
        EraseConfig(fuse=FuseConfig(null_space=0.1)).filled("mini", [SHIP]).title.endswith("values of fuse.null_space")
    )
    for make_wrong, said in [
        (lambda: EraseConfig(fuse=FuseConfig(null_space=1.5)), r"fuse.null_space is 1.5; allowed: 0 to 1"),
        (lambda: EraseConfig(refine=RefineConfig(rounds=-1)), "refine.rounds is -1; allowed: 0 or more"),
        (lambda: EraseConfig(prior=PriorConfig(influence=-1.0)), "prior.influence is -1.0; allowed: 0 or more"),
        (lambda: EraseConfig.from_dict({"train": {"down": "off"}}), "train.down is 'off'; allowed: free, orthogonal"),
        (lambda: EraseConfig.from_dict({"written": "k"}), "written is 'k'; allowed: kv, v"),
        (lambda: TrainConfig(until=1.0), "until is 1.0; allowed: 0 or more, and less than 1"),
        (lambda: changed(train={"until": 1}), "train.until is 1.0; allowed: 0 or more, and less than 1"),
        (lambda: TrainConfig(down="off"), "down is 'off'; allowed: free, orthogonal"),
    ]:
        with pytest.raises(MaceError, match=said):
            make_wrong()


def test_an_erasure_with_all_of_them_is_made_kept_and_re_fused(pipe, tmp_path):
    (tmp_path / "captions.txt").write_text("\n".join([*PRIOR, "a harbour", "a red boat"]))
    config = EraseConfig(
        written="v",
        companions=(),
        prior=PriorConfig(captions=str(tmp_path / "captions.txt"), influence=0.5),
        refine=RefineConfig(rounds=1, gamma=0.1),
        images=ImagesConfig(count=1, steps=1, masks="full"),
        train=TrainOptions(steps=2, lr=1e-2, down="orthogonal", until=0.1),
        fuse=FuseConfig(null_space=0.5),
    )
    made = erase(pipe, [SHIP, Concept("frog", "grass", templates=SHIP.templates)], config)
    off = super_directions(pipe, SHIP)
    assert float((made.parts[0].D @ off.T).abs().max()) < 1e-4 and made.H is not None
    loaded = Erasure.load(made.save(tmp_path / "all.safetensors"))
    assert loaded.config == made.config and gap(fused(loaded, pipe), fused(made, pipe)) < 1e-5
    left = made.only("ship")
    assert left.fusion.R_tilde.shape == made.H.shape and gap(fused(left, pipe), fused(made, pipe)) > 1e-4
    none = dataclasses.replace(config, prior=PriorConfig(use=False))
    with pytest.raises(MaceError, match="needs a prior"):
        erase(pipe, [SHIP], none)
    with pytest.raises(MaceError, match="one matrix"):
        erase(tiny_transformer("sd3"), [SHIP], dataclasses.replace(config, fuse=FuseConfig()))


CHOSEN = {"object": {"fuse": {"null_space": 0.1}}, "celebrity": {"train": {"until": 0.3}, "refine": {"rounds": 1}}}
AMY = Concept("Amy Adams", "a person", "celebrity")


def test_best_is_refused_while_nothing_is_chosen():
    for ask in (
        lambda: EraseConfig.preset("best"),
        lambda: EraseConfig.preset("best", task="objects"),
        lambda: EraseConfig(preset_name="best"),
        lambda: EraseConfig.from_dict({"preset_name": "best"}),
    ):
        with pytest.raises(MaceError, match=r"Nothing has been chosen for the preset 'best' yet.*mace study tuning"):
            ask()


@pytest.mark.parametrize("base", ["mini", "paper", "untested"])
def test_best_is_the_family_s_own_preset_with_what_was_chosen(monkeypatch, base):
    monkeypatch.setattr(import_module("macelib.presets.values"), "BEST", CHOSEN)
    best = EraseConfig.preset("best")
    found, own = best.filled("best", [SHIP], base=base), EraseConfig().filled(base, [SHIP])
    assert found.fuse == dataclasses.replace(own.fuse, null_space=0.1) and found.title.startswith("the best of")
    for section in ("train", "refine", "images", "templates", "companions", "written"):
        assert getattr(found, section) == getattr(own, section)
    people = best.filled("best", [AMY], base=base)
    assert (people.train.until, people.refine.rounds, people.fuse.null_space) == (0.3, 1, 1.0)
    style = best.filled("best", [CONCEPTS[2]], base=base)
    assert style.fuse.null_space == 0.1  # as objects
    mixed = best.filled("best", [AMY, SHIP, AMY], base=base)  # one for all: that of most
    assert (mixed.refine.rounds, mixed.fuse.null_space) == (1, 1.0)
    assert mixed.training("object").until == 0 and mixed.training("celebrity").until == 0.3
    loaded = EraseConfig.from_dict(mixed.to_dict())
    assert loaded == mixed
    monkeypatch.setattr(import_module("macelib.presets.values"), "BEST", {})
    assert EraseConfig.from_dict(mixed.to_dict()) == mixed  # what was filled stays readable


def test_best_by_task_leaves_open_what_it_does_not_change(monkeypatch):
    monkeypatch.setattr(import_module("macelib.presets.values"), "BEST", CHOSEN)
    asked = EraseConfig.preset("best", task="celebrities")
    assert asked.defaults == "celebrity" and asked.train.until == 0.3 and asked.train.lr is None
    mine = asked.for_model(tiny_pipeline("sd", width=768), [AMY])
    assert mine.train.lr == 1e-4 and mine.marks[0] == "not made for SD 1.x"
    assert EraseConfig.preset("best", train=TrainOptions(until=0.0)).filled("best", [AMY]).train.until == 0
