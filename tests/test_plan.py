"""What is said before a run: counted memory and work beside the profiler's, and beside what a run did."""

import json
from dataclasses import replace

import pytest
import torch
from tiny_transformers import tiny_transformer
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from macelib import EraseConfig, erase
from macelib.concepts import Concept
from macelib.config import ImagesConfig, PriorConfig, TrainOptions
from macelib.errors import MaceError
from macelib.method.lora.forward import per_sample
from macelib.method.prior import GENERAL
from macelib.models.denoise import denoise
from macelib.models.entrances import kv_weights, text_weights
from macelib.models.offload import offload, runs_on
from macelib.models.pipelines import load_pipeline
from macelib.models.sample import image_size
from macelib.models.text import added_conditions, encode
from macelib.models.tiny import tiny_pipeline
from macelib.plan import plan
from macelib.plan.clock import latent_shape
from macelib.plan.memory import passes
from macelib.presets.values import N as COCO

pytestmark = pytest.mark.usefixtures("cache")

CONFIG = EraseConfig(
    images=ImagesConfig(count=2, steps=3, masks="attention"), train=TrainOptions(steps=2, concepts_per_pass=2)
)
CONCEPTS = ["ship=sea", "frog=grass"]


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


def allocated(call) -> int:
    """Most bytes that are allocated at once during a call, as PyTorch's profiler records them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        call()
    events = [e for e in run.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.fixture(scope="module")
def counts(pipe):
    return passes(pipe, (64, 64))


@pytest.mark.slow
def test_operations_are_those_of_pytorch_s_counter(pipe, counts):
    x, e = torch.zeros(1, 4, 16, 16), torch.zeros(1, 77, 32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        pipe.unet(x, 1, e)
    assert counts.denoise.flop == counter.get_total_flops()
    assert counts.train.flop > 2 * counts.denoise.flop


@pytest.mark.parametrize("batch", [2, 8])  # of one, kernels of convolutions take more than the layers
def test_memory_of_drawing_is_what_the_profiler_sees(pipe, counts, batch):
    x, e, z = torch.zeros(batch, 4, 16, 16), torch.zeros(batch, 77, 32), torch.zeros(batch, 4, 16, 16)
    with torch.no_grad():
        assert allocated(lambda: pipe.unet(x, 1, e)) == pytest.approx(batch * counts.denoise.bytes, rel=0.05)
        assert allocated(lambda: pipe.vae.decode(z)) == pytest.approx(batch * counts.decode.bytes, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_of_training_is_what_the_profiler_sees(pipe, checkpointing):
    W = kv_weights(pipe.unet)
    B = {k: torch.zeros(4, len(w), 1, requires_grad=True) for k, w in W.items()}
    D = {k: torch.ones(4, 1, 32, requires_grad=True) for k in W}
    M, S = [torch.ones(1, 64, 64)] * 4, [torch.arange(77)] * 4
    inputs = torch.randn(4, 4, 16, 16), torch.tensor([1, 2, 3, 4]), torch.randn(4, 77, 32)
    with per_sample(pipe.unet, checkpointing=checkpointing) as forward:
        seen = allocated(lambda: forward(*inputs, M, S, B, D).sum().backward())
    assert seen == pytest.approx(4 * passes(pipe, (64, 64), checkpointing).train.bytes, rel=0.05)


def test_a_plan_of_something_else_is_refused_in_a_sentence(pipe):
    for arguments, said in (
        ({"config": "x"}, "config is 'x'"),
        ({"folder": 5}, "folder is 5"),
        ({"prior": 1}, "prior is 1"),
    ):
        with pytest.raises(MaceError, match=said):
            plan(pipe, CONCEPTS, **arguments)


@pytest.mark.slow
@pytest.mark.parametrize(("masks", "looks"), [("attention", 4 * 4), ("drawing", 0)])  # 4 noise levels of each picture
def test_the_plan_counts_what_the_run_does(pipe, tmp_path, masks, looks):
    calls, chosen = [], replace(CONFIG, images=replace(CONFIG.images, masks=masks))
    hook = pipe.unet.register_forward_hook(lambda _, args, out: calls.append(len(args[0])))
    found = plan(pipe, CONCEPTS, chosen, tmp_path)
    assert (found.concepts, found.pictures, found.kept, found.steps) == (2, 4, 0, 4)
    assert found.captions == len(GENERAL) and found.peak == max(found.memory.values())
    calls.clear()
    run = erase(pipe, CONCEPTS, chosen, folder=tmp_path / "run", progress=False)
    hook.remove()
    drawn_and_looked = 2 * 3 * 4 + looks  # guided: 2 samples x 3 steps x 4 pictures
    assert found.calls == drawn_and_looked == sum(calls)  # training leaves the forward pass before the hook
    size = run.save(tmp_path / "run" / "e.safetensors").stat().st_size
    assert found.disk["erasure"] == pytest.approx(size, rel=0.3)
    again = plan(pipe, CONCEPTS, chosen, tmp_path / "run")
    assert (again.pictures, again.kept, again.captions) == (0, 4, 0)
    assert "4 more are there" in str(again) and again.seconds["captions"] == again.seconds["drawing"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["sd3", *(pytest.param(k, marks=pytest.mark.slow) for k in ("pixart", "sana", "flux"))]
)
def test_transformers_are_planned_by_their_own_passes(kind):
    pipe, calls = tiny_transformer(kind), []
    config = replace(CONFIG, images=ImagesConfig(count=1, steps=2, masks="full"), train=TrainOptions(steps=1))
    counts = passes(pipe, image_size(pipe))
    assert counts.train.flop > 2 * counts.denoise.flop and counts.train.bytes > counts.denoise.bytes
    latents = torch.zeros(2, *latent_shape(pipe, image_size(pipe)))
    with torch.no_grad():
        e = encode(pipe, ["a ship"] * 2)
        added, t = added_conditions(pipe, ["a ship"] * 2, image_size(pipe)), torch.tensor(200.0)
        seen = allocated(lambda: denoise(pipe.transformer, latents, t, e, added))
    assert seen == pytest.approx(2 * counts.denoise.bytes, rel=0.35)  # masked attention is not fused everywhere
    hook = pipe.transformer.register_forward_hook(lambda _, args, kw, out: calls.append(len(out[0])), with_kwargs=True)
    found = plan(pipe, CONCEPTS[:1], config)
    calls.clear()
    erase(pipe, CONCEPTS[:1], config, progress=False)
    hook.remove()
    assert found.calls == sum(calls) == (2 if kind == "flux" else 4) and found.total > 0


@pytest.mark.slow
def test_what_is_missing_is_said_and_refused(pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    paper = replace(EraseConfig.preset("paper"), images=ImagesConfig(count=1, steps=2))
    several = ["ship=sea", "frog=grass", "dog=cat"]
    found = plan(pipe, several, paper)
    said = str(found)
    assert found.captions > COCO and "captions_train2014.json" in said and "--captions builtin" in said
    assert "grounding needs" in said and found.seconds["captions"] > 60
    with pytest.raises(MaceError, match=r"captions_train2014\.json"):
        erase(pipe, several, paper, progress=False)
    assert plan(pipe, several, replace(CONFIG, prior=PriorConfig(use=False))).captions == 0


@pytest.mark.slow
@pytest.mark.parametrize("call", [plan, erase])
def test_more_steps_than_the_scheduler_has_are_refused_in_the_plan_too(pipe, call):
    config = replace(CONFIG, images=replace(CONFIG.images, steps=5000), prior=PriorConfig(use=False))
    with pytest.raises(MaceError, match="steps is 5000; allowed: 1 to 999"):
        call(pipe, CONCEPTS, config)
    joint = tiny_transformer("flux")
    with pytest.raises(MaceError, match="leave the setting written at kv"):
        call(joint, CONCEPTS, replace(CONFIG, written="v", prior=PriorConfig(use=False)))
    if call is plan:
        assert plan(pipe, CONCEPTS, replace(config, stages="1")).pictures == 0


def test_words_of_a_plan(pipe):
    found = plan(pipe, [Concept("ship", "sea")], CONFIG)
    tight = replace(found, free=10, space=10, seconds={"drawing": 7300.0}, memory={"training": 8_100_000_000})
    said = str(tight)
    assert "8.1 GB at most (LoRAs)" in said and "2 h 2 min" in said
    assert "The memory may not do: --low-memory" in said and "The disk may not do" in said
    assert "may not do" not in str(found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_low_memory_gives_the_same_erasure_with_one_part_at_a_time(kind):
    config = EraseConfig(images=ImagesConfig(count=1, steps=1, masks="full"), train=TrainOptions(steps=2)).low_memory()
    assert config.training("object").gradient_checkpointing and config.training("object").concepts_per_pass == 1
    plain = tiny_pipeline(kind)
    whole = erase(plain, CONCEPTS[:1], config, progress=False)
    pipe, place, ran = offload(tiny_pipeline(kind), "cpu:0"), {}, []  # "cpu:0" stands for the card, "cpu" is away
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    for name, part in parts.items():
        part.to = lambda device, name=name: place.__setitem__(name, str(device))
        part.register_forward_hook(lambda *_, name=name: ran.append((name, [n for n in parts if place[n] == "cpu:0"])))
    assert pipe.vae.use_slicing and runs_on(pipe.unet) == torch.device("cpu:0")
    spared = erase(pipe, CONCEPTS[:1], config, progress=False)
    assert {name for name, _ in ran} == set(parts) - {"vae"} and all(there == [name] for name, there in ran)
    assert place["vae"] == "cpu"  # it was there to decode and encode, and has gone
    new = dict(spared.weights(text_weights(pipe.unet)))
    for name, w in whole.weights(text_weights(plain.unet)):
        assert torch.allclose(w, new[name], rtol=0, atol=1e-6)
    before = draw(pipe)
    assert (before == draw(plain)).all()
    spared.apply(pipe)
    assert not (before == draw(pipe)).all()
    spared.remove(pipe)
    assert (before == draw(pipe)).all()


def draw(pipe):
    """A picture, as numbers, by the pipeline's own call."""
    g = torch.Generator().manual_seed(0)
    return pipe("a photo of the ship", num_inference_steps=1, output_type="np", generator=g).images


def test_low_memory_is_loaded_by_name_and_known_to_other_processes():
    pipe = load_pipeline("mini-sd", device="cpu", low_memory=True)
    assert pipe.unet._hf_hook.execution_device == torch.device("cpu")
    assert pipe._macelib_source[1]["low_memory"] is True


@pytest.mark.slow
def test_the_plan_as_json_and_pictures_with_low_memory(tmp_path, capsys):
    from typer.testing import CliRunner

    from macelib import cli

    tiny_pipeline("sd").save_pretrained(tmp_path / "tiny")
    words = ["plan", "ship=sea", "--model", str(tmp_path / "tiny"), "--device", "cpu"]
    result = CliRunner().invoke(cli.app, [*words, "--json", "--low-memory"])
    assert result.exit_code == 0 and json.loads(result.stdout)["pictures"] == 8
    words = ["generate", "a ship", "--model", str(tmp_path / "tiny"), "--device", "cpu", "--steps", "1"]
    pictures = []
    for extra in ([], ["--low-memory"]):
        assert CliRunner().invoke(cli.app, [*words, *extra, "--out", str(tmp_path / f"o{len(extra)}")]).exit_code == 0
        pictures.append((tmp_path / f"o{len(extra)}" / "0000.png").read_bytes())
    assert pictures[0] == pictures[1]
