"""The benchmark's two ways agree, and its report says what was measured."""

import re
import subprocess
import sys
import time

import psutil
import pytest
import torch
from tiny_data import tiny_data

from macelib.bench import (
    Shapes,
    Spent,
    at_size,
    baselines,
    closed_forms,
    drawing,
    layouts,
    operations,
    peak,
    per_layer,
    random_concept,
    random_erasure,
    run,
    seconds,
    streamed,
    whole,
)
from macelib.bench.baselines import text_layers
from macelib.errors import MaceError
from macelib.models.entrances import parameters
from macelib.models.pipelines import load_pipeline, model_hash
from macelib.models.threads import OTHERS, WAITING
from macelib.models.tiny import tiny_pipeline, tiny_tokenizer

SHAPES = Shapes(out=(8, 8, 16), width=24, tokens=7, prompts=5)


def results(dtype, products):
    P, data = torch.eye(24, dtype=torch.float64), [random_concept(SHAPES, i) for i in range(19)]
    ours, theirs = ([w.to(dtype) for w in SHAPES.weights()] for _ in range(2))
    streamed(ours, data, P, 0.5, products)
    per_layer(theirs, lambda: data, P, 0.5)
    assert (ours[0] - SHAPES.weights()[0]).abs().max() > 1e-2
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))


def test_streamed_equals_per_layer_equations():
    assert results(torch.float64, torch.float64) < 1e-9
    assert results(torch.float32, torch.float64) < 1e-5
    assert results(torch.float32, torch.float32) < 1e-5


@pytest.mark.slow
def test_report_has_times_memory_ratio_and_toggle():
    lines = run(3, "both", 2, True, shapes=SHAPES)
    text = "\n".join(lines)
    for part in ("fp64, 3 concepts", "mixed, 3 concepts", "per layer, 2 concepts", "ratio:"):
        assert part in text
    off, on = re.findall(r"([\d.]+) s \(solves ([\d.]+), weights ([\d.]+)\)", lines[-1])
    for whole_, *parts in (off, on):
        assert float(whole_) == pytest.approx(sum(map(float, parts)), abs=0.011)
    lines = run(2, "fp64", 0, False, shapes=SHAPES)
    assert len(lines) == 2 and "GFLOP/s: float64" in lines[0] and "% of the products" in lines[1]
    assert re.search(r"\n  sums \d+% of the time, at \d+%, own .* weights .* of that rate$", lines[1])


def test_unknown_products_are_refused():
    with pytest.raises(MaceError, match="fp16"):
        run(1, "fp16", 0, False, shapes=SHAPES)


def test_random_erasure_refuses_nothing_and_toggles():
    erasure = random_erasure(SHAPES, 3)
    W = {f"layer {i}": w for i, w in enumerate(SHAPES.weights())}
    on, off = (dict(e.weights(W)) for e in (erasure, erasure.without("concept 0")))
    assert any(not torch.equal(on[n], off[n]) for n in W)


def timed(monkeypatch, taken: list[float]):
    """What is timed is noted, unrounded: on a fast machine two decimals of it hold one digit."""
    noted = lambda *args: taken.append(seconds(*args)) or taken[-1]  # noqa: E731
    monkeypatch.setattr(sys.modules["macelib.bench.drawing"], "seconds", noted)


def test_drawing_is_timed_alone_and_beside_a_process_that_is_gone_afterwards(monkeypatch):
    children, told, taken = len(psutil.Process().children()), [], []
    timed(monkeypatch, taken)
    said = drawing(tiny_pipeline("sd"), 1, 1, lambda *event: told.append(event[3]))
    assert told == ["alone", "beside a busy process"] and len(psutil.Process().children()) == children
    alone, beside = taken
    assert f": {alone:.2f} s; " in said and f" {beside:.2f} s, {beside / alone:.1f} times" in said


@pytest.mark.slow
def test_pytorch_s_own_waiting_is_measured_in_a_process_without_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("MACELIB_DATA", str(tiny_data(tmp_path)))
    monkeypatch.setenv("GOMP_SPINCOUNT", "10000")
    ran, run_process, taken = [], subprocess.run, []

    def noted(*args, **kwargs):
        done = run_process(*args, **kwargs)
        ran.append(kwargs["env"])
        taken.append(float(done.stdout))
        return done

    monkeypatch.setattr(subprocess, "run", noted)
    timed(monkeypatch, taken)
    said = drawing(load_pipeline("mini-sd"), 1, 1, model="mini-sd")
    alone, _, spinning = taken
    assert f": {alone:.2f} s ({alone / spinning:.2f} times the {spinning:.2f} s" in said
    monkeypatch.setattr(subprocess, "run", run_process)
    assert len(ran) == 1 and not {*WAITING, *OTHERS} & ran[0].keys()
    with pytest.raises(MaceError, match=r"in another process failed: .*nowhere"):
        drawing(tiny_pipeline("sd"), 1, 1, model="nowhere")


def test_a_rate_is_of_what_was_counted():
    """A product of two matrices of size n takes 2 n³ operations; the sums of one concept outweigh what is left."""
    assert peak(torch.float32, 64) > 1e6
    one, two, three = (sum(operations(SHAPES, n).values()) for n in (1, 2, 3))
    assert three - two == two - one > 3 * SHAPES.prompts * (SHAPES.tokens - SHAPES.own) * SHAPES.width**2


def test_the_profile_says_where_the_rest_goes():
    """The parts' own clocks make up the whole, and a part's rate is its operations over its seconds."""
    spent, data = Spent(), [random_concept(SHAPES, i) for i in range(3)]
    start = time.perf_counter()
    streamed(SHAPES.weights(), data, torch.eye(24, dtype=torch.float64), 0.5, torch.float64, spent)
    whole = time.perf_counter() - start
    needed = operations(SHAPES, 3)
    assert spent.seconds.keys() == needed.keys() and 0 < sum(spent.seconds.values()) <= whole
    said = Spent({"sums": 3.0, "solves": 1.0}).profile({"sums": 6e9, "solves": 1e8}, 4e9)
    assert said == "sums 75% of the time, at 50%, solves 25% of the time, at 2%"


@pytest.mark.slow
def test_every_step_of_an_erasure_is_timed_and_the_model_left_alone():
    pipe = tiny_pipeline("sd")
    before, told = model_hash(pipe), []
    lines = whole(pipe, 1, 1, 2, ("dog", "tree"), progress=lambda *event: told.append(event[3]))
    assert [line.partition(":")[0] for line in lines] == [
        "text", "statistics (X, G, C)", "training pictures", "masks from attention", "stage 2", "one of 2 concepts off",
    ]  # fmt: skip
    assert told[-1] == "re-fusion" and len(told) == 8
    assert "2 in one pass" in lines[4] and "the same result" in lines[4] and model_hash(pipe) == before


@pytest.mark.slow
def test_a_layout_is_filled_with_random_weights_and_timed(monkeypatch):
    unet = {
        "sample_size": 8, "cross_attention_dim": 32, "attention_head_dim": 2, "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    monkeypatch.setitem(layouts.LAYOUTS, "small", {"unet": unet, "text": [(32, 2, 2)]})
    monkeypatch.setattr(layouts, "VAE", layouts.VAE | {"block_out_channels": (32, 32, 32, 32)})
    first, second = (layouts.random_pipeline("small", tiny_tokenizer()) for _ in range(2))
    for a, b in zip(first.unet.parameters(), second.unet.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first.unet.config.cross_attention_dim == 32 and first.vae.config.sample_size == 64
    lines = at_size("small", "cpu")
    assert lines[0] == "small, random weights, on cpu:" and len(lines) == 7
    # in random networks gradients are as small as AdamW's eps, which magnifies fp32's rounding
    same = r"the same result|results [\d.]+e-0[4-9] apart"
    assert re.search(rf"^stage 2: \d+ ms a concept and step, 2 in one pass; .* ({same})$", lines[5]), lines


def test_a_layout_of_two_encoders_and_one_that_there_is_not_are_refused():
    for layout in ("SDXL", "SD v3"):
        with pytest.raises(MaceError, match=f"no layout '{layout}' to fill with random weights; choose from SD v1.4"):
            layouts.random_pipeline(layout, tiny_tokenizer())


def test_other_methods_closed_forms_are_timed_without_the_text_encoder(monkeypatch):
    """All layers of a real model that read the text, and no other weights; settings for many people."""
    unet = {
        "sample_size": 8, "cross_attention_dim": 32, "block_out_channels": (32, 64), "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2,
    }  # fmt: skip
    monkeypatch.setitem(layouts.LAYOUTS, "small", {"unet": unet, "text": [(32, 2, 2)]})
    weights = parameters(text_layers("small").unet)
    outs = [len(w) for name, w in weights.items() if name.endswith("attn2.to_v.weight") and not w.is_meta]
    assert sorted(outs) == [32] * 5 + [64] * 6 and sum(not w.is_meta for w in weights.values()) == 2 * len(outs)
    told, asked, building = [], [], baselines.build
    monkeypatch.setattr(baselines, "build", lambda *args, **kw: asked.append(kw["task"]) or building(*args, **kw))
    lines = closed_forms(3, "small", progress=lambda *args: told.append(args))
    assert asked == ["celebrity"] * 5
    assert [line.split(",")[0] for line in lines] == [args[3] for args in told] == ["uce", "rece", "speed", "oce", "dp"]
    for line in lines:
        own, text = map(
            float, re.search(r"3 concepts, d = 32, 11 layers: ([\d.]+) s, and ([\d.]+) s to read", line).groups()
        )
        assert own >= 0 and text >= 0, line
