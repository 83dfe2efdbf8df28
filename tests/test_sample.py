"""Pictures from seeds: the same whatever the batch; training images that are kept, resumed and redone."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from brute import DDIM, relative
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler
from PIL import Image

from macelib.attacks.noise import NoisyDDIM
from macelib.concepts import Concept
from macelib.errors import MaceError
from macelib.files import data_folder
from macelib.method import images
from macelib.method.images import Asked, draw_together, read_images, read_manifest, read_maps, training_images
from macelib.models import forwards
from macelib.models.entrances import kv_names
from macelib.models.sample import check_drawing, ddim, encode_images, generate, image_size
from macelib.models.tiny import KINDS, tiny_pipeline

SHIP = Concept("ship", "sea")


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


def pixels(images):
    return np.stack([np.asarray(image).astype(int) for image in images])


def schedulers():
    """mini-SD's own, and that of SD v1.4."""
    sd = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    return [
        DPMSolverMultistepScheduler.from_pretrained(data_folder() / "mini-sd" / "scheduler"),
        PNDMScheduler(**sd, skip_prk_steps=True, set_alpha_to_one=False),
    ]


@pytest.mark.parametrize("own", schedulers(), ids=lambda own: type(own).__name__)
@pytest.mark.parametrize(("kind", "steps"), [(DDIMScheduler, 8), (DDIMScheduler, 50), (NoisyDDIM, 25)])
def test_ddim_of_any_pipeline_is_its_equation(own, kind, steps):
    """Latents far beyond ±1, and a denoiser that is told the timestep."""
    found = ddim(SimpleNamespace(scheduler=own), kind)
    assert type(found) is kind and found.config.prediction_type == own.config.prediction_type
    found.set_timesteps(steps)
    config = dict(own.config) | {"timestep_spacing": "leading" if type(own) is PNDMScheduler else "trailing"}
    wanted = DDIM(config, steps)
    assert found.timesteps.tolist() == wanted.timesteps
    x = y = 2 * torch.randn(1, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    for i, t in enumerate(found.timesteps):
        x = found.step(torch.sin(2 * x + 0.01 * t), t, x).prev_sample
        y = wanted.step(y, i, torch.sin(2 * y + 0.01 * t))
        assert relative(x, y) < 1e-3
    assert y.abs().max() > 1.5


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_depends_on_its_seed_and_not_on_the_batch(kind):
    pipe, told = tiny_pipeline(kind), []
    prompts = ["a photo of the ship", "a photo of the frog", "a dog"]
    together = generate(pipe, prompts, [3, 4, 5], steps=2, batch=2, callback=lambda *a: told.append(a))
    alone = [generate(pipe, p, [s], steps=2)[0] for p, s in zip(prompts, [3, 4, 5], strict=True)]
    assert np.abs(pixels(together) - pixels(alone)).max() <= 1  # of 255: rounding
    assert told == [(2, 3), (3, 3)] and together[0].size == (64, 64)
    other = generate(pipe, prompts[0], [4], steps=2)
    assert np.abs(pixels(other) - pixels(alone[:1])).max() > 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_encodes_each_text_once(kind):
    pipe, rows = tiny_pipeline(kind), []
    encoder = pipe.text_encoder
    own, hook = encoder.forward, encoder.register_forward_hook(lambda m, args, out: rows.append(len(out[0])))
    encoder.forward = lambda ids, *args, **kwargs: rows.append(-len(ids)) or own(ids, *args, **kwargs)
    kept = encoder.forward
    drawn = generate(pipe, ["a ship", "a ship", "a frog", "a ship"], [1, 1, 2, 3], steps=2, batch=4)
    empty = [] if kind == "sdxl" else [-1, 4]  # SDXL has zeros in its place
    assert encoder.forward is kept and rows == [-2, 4, *empty]  # how many are read, how many are handed on
    hook.remove()
    assert np.array_equal(pixels(drawn[:1]), pixels(drawn[1:2])) and not np.array_equal(
        *map(pixels, (drawn[:1], drawn[3:]))
    )


@pytest.fixture
def threads():
    """PyTorch's number of threads is afterwards what it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_taken_apart_and_its_text_read_once(kind, monkeypatch, threads):
    pipe, seen = tiny_pipeline(kind), {}
    layers = {"text": pipe.unet.get_submodule(kv_names(pipe.unet)[0]), "passes": pipe.unet.conv_in}
    for name, layer in layers.items():
        own = layer.forward
        layer.forward = lambda x, name=name, own=own: seen[name].append(len(x)) or own(x)

    def drawn(threads):
        seen.update(text=[], passes=[])
        torch.set_num_threads(threads)
        return pixels(generate(pipe, ["a ship", "a frog", "a dog"], [1, 2, 3], steps=3, batch=3))

    monkeypatch.setattr(forwards, "ROWS", 1)
    whole = drawn(1)
    assert seen["text"] == [6] and set(seen["passes"]) == {6}
    steps = len(seen["passes"])
    assert np.abs(whole - drawn(2)).max() <= 1  # of 255: rounding
    assert seen == {"text": [3, 3], "passes": [3] * 2 * steps}
    hook = pipe.unet.mid_block.register_forward_hook(lambda *_: None)  # it sees whole batches
    assert np.abs(whole - drawn(2)).max() <= 1 and seen == {"text": [6], "passes": [6] * steps}
    hook.remove()
    with pytest.raises(ZeroDivisionError):
        generate(pipe, "a ship", [1], steps=1, callback=lambda *_: 1 / 0)
    assert "forward" not in vars(pipe.unet) and "forward" not in vars(pipe.text_encoder)


def test_generate_refuses(pipe):
    with pytest.raises(MaceError, match="2 prompts and 1 seeds"):
        generate(pipe, ["a", "b"], [1])
    with pytest.raises(MaceError, match="shorten it"):
        generate(pipe, "ship " * 100, [1])
    with pytest.raises(MaceError, match="multiple of 4"):
        generate(pipe, "ship", [1], size=62)
    assert image_size(pipe, (32, 48)) == (32, 48) and image_size(pipe, 32) == (32, 32)
    assert generate(pipe, "ship", [1], steps=1, size=(32, 48))[0].size == (48, 32)


@pytest.mark.parametrize("make", [DDIMScheduler, PNDMScheduler])
@pytest.mark.parametrize(
    ("spacing", "offset", "most"), [("leading", 1, 999), ("leading", 0, 1000), ("trailing", 1, 1000)]
)
def test_as_many_steps_as_the_scheduler_has_timesteps(make, spacing, offset, most):
    scheduler = make(timestep_spacing=spacing, steps_offset=offset)
    check_drawing(SimpleNamespace(scheduler=scheduler), [0], most)
    scheduler.set_timesteps(most)
    assert scheduler.timesteps.max() == 999
    for steps in (most + 1, "5", 0):
        with pytest.raises(MaceError, match=f"steps is {steps!r}; allowed: 1 to {most}, the timesteps"):
            check_drawing(SimpleNamespace(scheduler=scheduler), [0], steps)


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_the_scaled_mean_of_the_vae(kind):
    pipe = tiny_pipeline(kind)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        expected = pipe.vae.encode(x).latent_dist.mean * pipe.vae.config.scaling_factor
    assert torch.allclose(encode_images(pipe, [image] * 3, batch=2), expected.repeat(3, 1, 1, 1), atol=1e-5)


def test_training_images_in_another_precision_are_others(pipe, tmp_path):
    for autocast in (None, "bf16"):
        training_images(pipe, SHIP, 1, tmp_path, steps=2, autocast=autocast)
        assert [entry["autocast"] for entry in read_manifest(tmp_path)] == [autocast]
    exact = generate(pipe, read_manifest(tmp_path)[0]["prompt"], [0], steps=2)[0]
    assert read_images(tmp_path)[0][0].tobytes() != exact.tobytes()


def test_training_images_have_a_manifest_and_resume(pipe, tmp_path, monkeypatch):
    drawn = []
    original = type(pipe).__call__
    monkeypatch.setattr(type(pipe), "__call__", lambda self, p, **kw: drawn.append(len(p)) or original(self, p, **kw))

    class Killed(Exception):
        pass

    def kill(done, total):
        raise Killed

    with pytest.raises(Killed):
        training_images(pipe, SHIP, 4, tmp_path, seed=7, steps=2, batch=2, callback=kill)
    assert len(read_manifest(tmp_path)) == 2
    training_images(pipe, SHIP, 4, tmp_path, seed=7, steps=2, batch=2)
    assert drawn == [2, 2]
    images, entries = read_images(tmp_path)
    assert [e["seed"] for e in entries] == [7, 8, 9, 10] and entries[0]["prompt"] == "a photo of the ship"
    assert {"model", "steps", "guidance", "size", "scheduler"} <= set(entries[0])
    whole = json.loads((tmp_path / "manifest.json").read_text())
    assert {"model_name", "precision", "scheduler", "versions"} <= set(whole["made"])
    expected = generate(pipe, "a photo of the ship", [7, 8, 9, 10], steps=2)
    assert np.abs(pixels(images) - pixels(expected)).max() <= 1
    drawn.clear()
    training_images(pipe, SHIP, 4, tmp_path, seed=7, steps=2)
    assert drawn == []
    assert {p.name for p in tmp_path.iterdir()} == {".lock", "manifest.json", *(e["file"] for e in entries)}


def test_images_of_other_settings_or_damaged_ones_are_redone(pipe, tmp_path, caplog):
    training_images(pipe, SHIP, 2, tmp_path, steps=1)
    first = read_images(tmp_path)[0]
    training_images(pipe, SHIP, 2, tmp_path, steps=2)
    assert "drawn again" in caplog.text and [e["steps"] for e in read_manifest(tmp_path)] == [2, 2]
    second = read_images(tmp_path)[0]
    assert np.abs(pixels(first) - pixels(second)).max() > 1
    path = tmp_path / "0001.png"
    path.write_bytes(path.read_bytes()[:40])
    training_images(pipe, SHIP, 2, tmp_path, steps=2)
    # redrawn alone, not in a batch of two: the sums round otherwise, by one level of a pixel at most
    assert np.abs(pixels(read_images(tmp_path)[0]) - pixels(second)).max() <= 1
    (tmp_path / "manifest.json").write_text(json.dumps({"images": "?"})[:9])
    training_images(pipe, SHIP, 2, tmp_path, steps=2)
    assert len(read_manifest(tmp_path)) == 2
    with pytest.raises(MaceError, match=r"no manifest.json"):
        read_images(tmp_path / "nosuch")


def test_a_batch_holds_pictures_of_several_concepts(pipe, tmp_path, monkeypatch, caplog):
    drawn, original = [], type(pipe).__call__
    monkeypatch.setattr(type(pipe), "__call__", lambda self, p, **kw: drawn.append(p) or original(self, p, **kw))
    asked = [Asked(Concept(name, "sea"), tmp_path / name, seed=i) for i, name in enumerate(("ship", "frog", "dog"))]
    told, options = [], {"steps": 2, "batch": 4, "maps": True}

    def kill(done, total):
        told.append((done, total))
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_together(pipe, asked, 3, callback=kill, **options)
    draw_together(pipe, asked, 3, callback=kill, **options)
    assert [len(prompts) for prompts in drawn] == [4, 4, 1] and len(set(drawn[0])) == 2  # the last batch alone is small
    assert told == [(4, 9), (8, 9), (9, 9)]
    for i, one in enumerate(asked):
        images, entries = read_images(one.folder)
        assert [e["seed"] for e in entries] == [i, i + 1, i + 2] and {e["prompt"] for e in entries} == {one.text}
        alone = generate(pipe, one.text, [i, i + 1, i + 2], steps=2)
        assert np.abs(pixels(images) - pixels(alone)).max() <= 1
        assert [heat.shape for heat in read_maps(one.folder)] == [(16, 16)] * 3
    file = tmp_path / "frog" / "0001.map.safetensors"
    file.write_bytes((tmp_path / "frog" / "0000.map.safetensors").read_bytes())
    with pytest.raises(MaceError, match="missing or was changed: draw the pictures again"):
        read_maps(tmp_path / "frog")
    drawn.clear()
    draw_together(pipe, asked, 3, **options)
    assert drawn == [["a photo of the frog"]] and "drawn again" in caplog.text
    training_images(pipe, SHIP, 1, tmp_path / "plain", steps=1)
    with pytest.raises(MaceError, match="draw the pictures again, with maps"):
        read_maps(tmp_path / "plain")


def test_a_picture_drawn_otherwise_is_not_vouched_for(pipe, tmp_path, monkeypatch):
    """Settings A, then B cut short after a file was replaced, then A again: nothing of B is taken for A's."""
    ship, options = Concept("ship", "sea"), {"folder": tmp_path, "batch": 1}
    training_images(pipe, ship, 2, steps=1, **options)
    first = (tmp_path / "0000.png").read_bytes()

    write = images.write_json

    def stop(path, values):
        if values["images"]:
            raise KeyboardInterrupt
        write(path, values)

    monkeypatch.setattr(images, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        training_images(pipe, ship, 2, steps=2, **options)
    monkeypatch.undo()
    assert (tmp_path / "0000.png").read_bytes() != first
    training_images(pipe, ship, 2, steps=1, **options)
    assert (tmp_path / "0000.png").read_bytes() == first
