"""The artefact: against brute force, applied and removed, re-fused, saved, exported, refused."""

import dataclasses

import pytest
import torch
from brute import fuse_reference, refine_reference, relative
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from macelib.bench import Shapes, random_erasure
from macelib.concepts import Concept, align, anchored, prompts, templates
from macelib.config import EraseConfig, FuseConfig, RefineConfig
from macelib.erasure import Erasure, Part
from macelib.errors import MaceError
from macelib.method.refine import compress, concept_sums
from macelib.models.pipelines import kv_weights, model_hash
from macelib.models.swap import untouched
from macelib.models.text import encode, tokenizers
from macelib.models.tiny import tiny_pipeline

CONCEPTS = [Concept("ship", "sea"), Concept("frog", "grass"), Concept("noto", "art", kind="style")]
PRIOR = ["a photo of a house", "a red car in the city", "two dogs"]
CONFIG = EraseConfig(refine=RefineConfig(lambda0=0.5, lambda1=2.0), fuse=FuseConfig(lambda0=0.3, lambda2=1.5))


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


def make(pipe, concepts=CONCEPTS, config=CONFIG, rank=1):
    """An erasure with LoRAs drawn from each concept's name."""
    layers = {name: w.shape[0] for name, w in kv_weights(pipe.unet).items()}
    parts = []
    for concept in concepts:
        g = torch.Generator().manual_seed(sum(map(ord, concept.name)))
        statistics = compress(*concept_sums(pipe, concept)).to("cpu", torch.float32)
        B = torch.randn(sum(layers.values()), rank, generator=g) * 0.1
        D = torch.randn(len(layers), rank, len(statistics.Q), generator=g) * 0.1
        parts.append(Part(concept, statistics, B, D))
    e = encode(pipe, PRIOR).flatten(0, 1).double()
    return Erasure(tuple(parts), layers, e.shape[1], model_hash(pipe), e.T @ e / len(PRIOR), "prior", config)


def weights(pipe):
    return {name: w.detach().clone() for name, w in kv_weights(pipe.unet).items()}


def fused(erasure, pipe):
    with untouched(pipe):
        return dict(erasure.weights(weights(pipe)))


def gap(a, b):
    assert a.keys() == b.keys()
    return max(relative(a[name], b[name]) for name in a)


def test_apply_equals_least_squares_on_the_tokens(pipe):
    """Stages 1 and 3 per layer by QR on raw tokens (Eq. 1 and 7); factors are float32, hence 1e-4.

    λ1 and λ2 count for each of the three concepts.
    """
    erasure, e_f, e_g, e = make(pipe), [], [], []
    for concept in CONCEPTS:
        rows, anchors = encode(pipe, prompts(concept)), encode(pipe, anchored(concept))
        for i, template in enumerate(templates(concept)):
            pair = align(tokenizers(pipe)[0], template, concept.name, concept.anchor)
            e_f.append(rows[i, pair.source])
            e_g.append(anchors[i, pair.target])
        e.append(rows.flatten(0, 1))
    e_p = encode(pipe, PRIOR).flatten(0, 1).double() / len(PRIOR) ** 0.5
    W, new = weights(pipe), fused(erasure, pipe)
    for name in list(W)[:3]:
        W1 = refine_reference(W[name], torch.cat(e_f), torch.cat(e_g), e_p, 3 * 2.0, 3 * 0.5)
        B, D = zip(*(lora(p, erasure.layers, name) for p in erasure.parts), strict=True)
        assert relative(new[name], fuse_reference(W[name], W1, B, D, e, e_p, 3 * 1.5, 3 * 0.3)) < 1e-4


def lora(part, layers, name):
    """B (out, r) and D (r, d) of one layer."""
    i = list(layers).index(name)
    return part.B.split(list(layers.values()))[i], part.D[i]


def stages(which, **fuse):
    return dataclasses.replace(CONFIG, stages=which, fuse=dataclasses.replace(CONFIG.fuse, **fuse))


@pytest.mark.slow
def test_stages_are_left_out_or_added_up(pipe):
    """Against sums written out per layer: W R, W + Σ B D, W R + Σ B D; "all" is Eq. 7."""
    erasure, W = make(pipe), weights(pipe)
    R = erasure.refinement.R.float()
    for which, base in (("1", R), ("2", torch.eye(len(R))), ("1+2", R)):
        new = fused(make(pipe, config=stages(which)), pipe)
        for name, w in W.items():
            loras = [lora(p, erasure.layers, name) for p in erasure.parts] if which != "1" else []
            assert relative(new[name], w @ base + sum(B @ D for B, D in loras)) < 1e-5, which
    assert gap(fused(make(pipe, config=stages("1+2")), pipe), fused(make(pipe, config=stages("all")), pipe)) > 1e-3
    naive = make(pipe, config=stages("all", method="naive"))
    assert gap(fused(make(pipe, config=stages("1+2")), pipe), fused(naive, pipe)) == 0
    assert gap(fused(erasure.with_config(stages("1")), pipe), fused(make(pipe, config=stages("1")), pipe)) == 0
    back = erasure.with_config(stages("1")).with_config(CONFIG)
    assert gap(fused(back, pipe), fused(erasure, pipe)) == 0


def test_stages_whose_loras_are_not_there_are_refused(pipe, tmp_path):
    first, alone = make(pipe, CONCEPTS[:1], stages("1"), rank=0), make(pipe, CONCEPTS[1:2], stages("2"))
    whole = make(pipe, CONCEPTS[2:])
    for erasure, which in ((first, "all"), (first, "2"), (alone, "1"), (alone, "all"), (whole, "2")):
        with pytest.raises(MaceError, match=f"stages is '{which.replace('+', '.')}'.*erase them again"):
            erasure.with_config(stages(which))
    with pytest.raises(MaceError, match=r"config is {}: give an EraseConfig"):
        whole.with_config({})
    for pair in ((whole, first), (whole, alone), (alone, whole)):
        with pytest.raises(MaceError, match="erase them again"):
            _ = pair[0] + pair[1]
    with pytest.raises(MaceError, match="stage 1 alone and has no LoRA"):
        first.export(pipe, tmp_path / "lora", "lora")
    loaded = Erasure.load(first.save(tmp_path / "first.safetensors"))
    assert gap(fused(loaded, pipe), fused(first, pipe)) == 0


def test_prior_and_ridge_count_for_each_concept(pipe):
    erasure = make(pipe)
    assert erasure.ridge(0.5) == 3 * 0.5 and erasure.prior_weight(2.0) == 3 * 2.0
    heavy = erasure.of([dataclasses.replace(p, weight=130.0) for p in erasure.parts])
    assert heavy.ridge(0.5) == 3 * 130 * 0.5 and heavy.prior_weight(2.0) == 3 * 2.0
    assert erasure.only("ship").ridge(0.5) == 0.5 == erasure.of([]).ridge(0.5)


def test_remove_is_bit_identical_and_hash_survives(pipe):
    erasure, before, base = make(pipe), weights(pipe), model_hash(pipe)
    erasure.apply(pipe)
    assert gap(before, weights(pipe)) > 1e-3
    assert model_hash(pipe) == base
    erasure.only("ship").apply(pipe)  # over the first, from the originals
    assert gap(weights(pipe), fused_from(erasure.only("ship"), before)) == 0
    erasure.remove(pipe)
    assert all(torch.equal(w, before[name]) for name, w in weights(pipe).items())
    erasure.remove(pipe)  # nothing to do


def fused_from(erasure, W):
    return dict(erasure.weights(W))


@pytest.mark.parametrize("method", ["closed", "naive"])
def test_algebra_equals_erasing_those_from_the_start(pipe, method):
    config = dataclasses.replace(CONFIG, fuse=dataclasses.replace(CONFIG.fuse, method=method))
    everything = make(pipe, config=config)
    _ = everything.fusion  # running sums are followed from here on
    two = fused(make(pipe, CONCEPTS[:2], config), pipe)
    assert gap(fused(everything.without("noto"), pipe), two) < 1e-5
    assert gap(fused(everything.only(["ship", "frog"]), pipe), two) < 1e-5
    assert gap(fused(make(pipe, CONCEPTS[:1], config) + make(pipe, CONCEPTS[1:2], config), pipe), two) < 1e-5
    again = everything.without("frog") + everything.only("frog")
    assert gap(fused(again, pipe), fused(everything, pipe)) < 1e-5
    assert everything.concepts == CONCEPTS and again.concepts[-1].name == "frog"
    assert gap(fused(everything.without("noto"), pipe), fused(everything, pipe)) > 1e-3


def test_running_sums_equal_fresh_sums(pipe):
    everything = make(pipe)
    _ = everything.fusion
    fewer = everything.scaled({"frog": 0.25}).without("ship")
    assert "_sums" in fewer.__dict__
    fresh = dataclasses.replace(fewer)
    assert relative(fewer.refinement.R, fresh.refinement.R) < 1e-9
    assert relative(fewer.fusion.R_tilde, fresh.fusion.R_tilde) < 1e-9


def test_scaled_runs_from_the_original_to_erased(pipe):
    one = make(pipe, CONCEPTS[:1])
    W, full = weights(pipe), fused(one, pipe)
    assert gap(fused(one.scaled(1.0), pipe), full) == 0
    assert gap(fused(one.scaled({"ship": 0.0}), pipe), W) < 1e-5
    half = gap(fused(one.scaled({"ship": 0.5}), pipe), W)
    assert 0.2 * gap(full, W) < half < 0.8 * gap(full, W)
    assert one.scaled({"ship": 0.5}).strengths == {"ship": 0.5} and one.strengths == {"ship": 1.0}


def test_an_empty_erasure_needs_no_ridge(pipe, tmp_path):
    refine = RefineConfig(lambda0=0.0, lambda1=0.0)  # as of several objects in the paper's settings, without a prior
    none = make(pipe).with_config(dataclasses.replace(CONFIG, refine=refine)).only([])
    assert torch.equal(none.refinement.R, torch.eye(none.width, dtype=torch.float64))
    assert Erasure.load(none.save(tmp_path / "none.safetensors")).concepts == []


def test_empty_erasure_changes_nothing(pipe):
    none = make(pipe).without("ship", "frog", "noto")
    assert none.concepts == [] and gap(fused(none, pipe), weights(pipe)) == 0
    assert (none + make(pipe)).strengths == make(pipe).strengths


def test_save_and_load_are_equal(pipe, tmp_path):
    erasure = make(pipe, rank=2).scaled({"frog": 0.75})
    path = erasure.save(tmp_path / "a.safetensors")
    again = Erasure.load(path)
    assert [list(tmp_path.iterdir())] == [[path]]
    assert again.concepts == erasure.concepts and again.strengths == erasure.strengths
    assert again.config == erasure.config and again.base == erasure.base and again.layers == erasure.layers
    assert torch.equal(again.P, erasure.P) and gap(fused(again, pipe), fused(erasure, pipe)) == 0
    empty = erasure.only([]).save(tmp_path / "b.safetensors")
    assert Erasure.load(empty).concepts == []


def test_size_at_sd14_shapes(tmp_path):
    for count in (1, 6):
        path = random_erasure(Shapes(), count).save(tmp_path / f"{count}.safetensors")
        assert path.stat().st_size <= 0.5e6 * count + 3e6


def test_bad_files_are_refused(pipe, tmp_path):
    path = make(pipe).save(tmp_path / "a.safetensors")
    data = path.read_bytes()
    for size in (0, 5, 1000, len(data) - 10):
        (tmp_path / "cut.safetensors").write_bytes(data[:size])
        with pytest.raises(MaceError, match="cut short"):
            Erasure.load(tmp_path / "cut.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(MaceError, match="not an erasure"):
        Erasure.load(tmp_path / "foreign.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    save_file({k: t for k, t in tensors.items() if k != "0.B"}, tmp_path / "part.safetensors", metadata=metadata)
    with pytest.raises(MaceError, match=r"damaged"):
        Erasure.load(tmp_path / "part.safetensors")
    with pytest.raises(MaceError, match="missing"):
        Erasure.load(tmp_path / "absent.safetensors")


def test_other_base_is_refused_unless_forced(pipe):
    erasure, other = make(pipe), tiny_pipeline("sd", seed=1)
    before = weights(other)
    with pytest.raises(MaceError, match="another base model"):
        erasure.apply(other)
    assert gap(weights(other), before) == 0
    erasure.apply(other, force=True)
    assert gap(weights(other), before) > 1e-3
    erasure.remove(other)
    with pytest.raises(MaceError, match="other shapes"):
        erasure.apply(tiny_pipeline("sdxl"), force=True)


def test_an_erasure_of_the_model_that_was_shipped_before_is_refused_by_name_and_by_what_differs(pipe):
    """As many layers for the same width of text, but others: the sentence tells them apart."""
    erasure = make(pipe)
    wider = {name: 2 * out for name, out in erasure.layers.items()}
    earlier = dataclasses.replace(erasure, layers=wider, base="earlier", versions={"model": "mini-sd"})
    outs, layers = sorted(erasure.layers.values()), len(erasure.layers)
    said = rf"another base model \(called mini-sd when it was made\): it has {layers} layers of {2 * outs[0]} to .*"
    for force in (False, True):
        with pytest.raises(
            MaceError, match=said + rf"other shapes \({layers} layers of {outs[0]} to {outs[-1]} for text"
        ):
            earlier.apply(pipe, force=force)


def test_mistakes_are_said(pipe):
    erasure = make(pipe)
    for wrong, text in [
        (lambda: erasure.without("boat"), "boat is not in this erasure; it holds ship, frog, noto"),
        (lambda: erasure.scaled({"ship": -1}), "strength of 'ship' is -1"),
        (lambda: erasure.scaled("0.5"), "strength of 'ship' is '0.5'; allowed: 0"),
        (lambda: erasure.scaled(None), "strength of 'ship' is None"),
        (lambda: erasure.without(CONCEPTS[0]), r"Concept\(.* is no name: give names .*; it holds ship, frog, noto"),
        (lambda: erasure.only(["ship"], 5), "5 is no name"),
        (lambda: erasure.apply("x"), "'x' is no pipeline: give one as macelib.load_pipeline"),
        (lambda: erasure.remove("x"), "'x' is no pipeline"),
        (lambda: Erasure.load(5), "The erasure is 5: give the path of a file"),
        (lambda: erasure + erasure, "Both erasures hold frog, noto, ship"),
        (lambda: erasure + dataclasses.replace(make(pipe, CONCEPTS[:1]), base="x"), "different models"),
        (lambda: erasure.export(pipe, "nowhere", "ckpt"), "no export format 'ckpt'"),
    ]:
        with pytest.raises(MaceError, match=text):
            wrong()


def draw(pipe):
    """Pictures through diffusers alone: (1, h, w, 3)."""
    pipe.set_progress_bar_config(disable=True)
    g = torch.Generator().manual_seed(0)
    out = pipe("a photo of the ship", num_inference_steps=2, generator=g, output_type="np", height=64, width=64)
    return torch.from_numpy(out.images)


def test_exports_draw_what_the_applied_erasure_draws(pipe, tmp_path):
    """Pipeline, weights and both LoRA files through stock diffusers: the same picture, the pipeline left as it was."""
    erasure, before, original = make(pipe, rank=2), weights(pipe), draw(pipe)
    erasure.apply(pipe)
    wanted = draw(pipe)
    assert (wanted - original).abs().max() > 1e-3
    erasure.export(pipe, tmp_path / "pipeline")  # while applied
    erasure.remove(pipe)
    erasure.export(pipe, tmp_path / "weights", "weights")
    erasure.export(pipe, tmp_path / "lora", "lora", rank="full")
    assert gap(weights(pipe), before) == 0

    assert (draw(DiffusionPipeline.from_pretrained(tmp_path / "pipeline")) - wanted).abs().max() < 1e-5

    fresh = tiny_pipeline("sd")
    loaded = fresh.unet.load_state_dict(load_file(tmp_path / "weights" / "unet.safetensors"), strict=False)
    assert not loaded.unexpected_keys
    assert (draw(fresh) - wanted).abs().max() < 1e-5

    fresh = tiny_pipeline("sd")
    fresh.unet.load_state_dict(load_file(tmp_path / "lora" / "base.safetensors"), strict=False)
    fresh.load_lora_weights(tmp_path / "lora", weight_name="lora.safetensors")
    assert (draw(fresh) - wanted).abs().max() < 1e-4

    fresh = tiny_pipeline("sd")
    fresh.load_lora_weights(tmp_path / "lora", weight_name="lora_standalone.safetensors")
    assert (draw(fresh) - wanted).abs().max() < 1e-3
    keys = load_file(tmp_path / "lora" / "lora_standalone.safetensors").keys()
    assert all(k.startswith("lora_unet_") and "_attn2_to_" in k for k in keys)
    assert {k.rpartition("to_")[2].partition(".")[2] for k in keys} == {"lora_up.weight", "lora_down.weight", "alpha"}

    with pytest.raises(MaceError, match="not empty"):
        erasure.export(pipe, tmp_path / "lora", "lora")
    with pytest.raises(MaceError, match="nothing to export"):
        erasure.only([]).export(pipe, tmp_path / "none")
