"""One LoRA on the original model: its rank, size and error, its keys, and what diffusers draws with it."""

import re
from types import SimpleNamespace

import pytest
import torch
from brute import relative
from safetensors.torch import load_file
from test_erasure import CONCEPTS, draw, make, weights
from typer.testing import CliRunner

from macelib import cli
from macelib.erasure.standalone import module_names, needed, standalone, truncated
from macelib.errors import MaceError
from macelib.models.pipelines import load_pipeline
from macelib.models.swap import untouched
from macelib.models.tiny import tiny_pipeline

FILE = "lora_standalone.safetensors"


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


@pytest.fixture(scope="module")
def erasure(pipe):
    return make(pipe, rank=2)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (24, 24)])
def test_no_factors_of_a_rank_come_nearer(shape):
    """Against torch's singular value decomposition: error of any rank, and the smallest rank of any error."""
    delta = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).double()
    delta *= torch.logspace(0, -6, shape[1]).double()
    S = torch.linalg.svdvals(delta)
    for rank in (1, 5, 23, 30):
        left, right, error = truncated(delta, rank)
        expected = float(S[rank:].norm() / S.norm())
        assert left.shape == (shape[0], rank) and right.shape == (rank, shape[1])
        assert error == pytest.approx(expected, rel=1e-3, abs=1e-7)  # squares: half the digits
        gap = float((delta - left.double() @ right.double()).norm() / delta.norm())
        assert gap == pytest.approx(expected, rel=1e-3, abs=1e-6)  # factors are float32
    for bound in (0.3, 0.01, 1e-5):
        rank = needed(delta, bound)
        assert float(S[rank:].norm() / S.norm()) <= bound < float(S[rank - 1 :].norm() / S.norm())


def test_the_default_is_the_smallest_rank_with_a_hundredth_in_the_worst_layer(pipe, erasure):
    W, found = weights(pipe), standalone(erasure, weights(pipe))
    new = dict(erasure.weights(W))
    for name, w in W.items():
        delta = new[name].double() - w.double()
        gap = (delta - found.B[name].double() @ found.A[name].double()).norm() / delta.norm()
        assert float(gap) == pytest.approx(found.errors[name], abs=1e-4) and found.errors[name] <= 0.01
        assert relative(found.weights(W)[name], w + (found.B[name] @ found.A[name])) < 1e-5
    assert not found.whole and standalone(erasure, W, "full").whole
    assert {b.shape[1] for b in standalone(erasure, W, 3).B.values()} == {3}
    (rank,) = {b.shape[1] for b in found.B.values()}
    assert standalone(erasure, W, rank - 1).worst[1] > 0.01
    nothing = standalone(erasure.scaled(0.0), W, "full")
    assert max(float((b @ nothing.A[name]).abs().max()) for name, b in nothing.B.items()) < 1e-6


def test_size_is_that_of_the_file_and_said_where_it_is_more_than_the_weights(pipe, erasure, tmp_path):
    found = standalone(erasure, weights(pipe), "full")
    whole = sum(4 * w.numel() for w in weights(pipe).values())
    assert found.size == sum(4 * t.numel() for k, t in found.kohya(module_names(found.B, pipe.unet)).items() if t.ndim)
    assert "weights themselves take less" in found.said(found.size)
    assert "weights themselves" not in found.said(found.size + 1)
    erasure.export(pipe, tmp_path / "lora", "lora", rank="full")
    text = (tmp_path / "lora" / "README.txt").read_text()
    assert ("weights themselves take less" in text) == (found.size >= whole)
    assert "ComfyUI" in text and "in the worst layer" in text and "256 levels" not in text


@pytest.mark.parametrize("kind", ["sd", "sd2"])  # SDXL: test_pooled
def test_at_full_rank_the_original_draws_what_apply_draws(kind, tmp_path):
    pipe = tiny_pipeline(kind)
    erasure, original = make(pipe, CONCEPTS[:1]), draw(pipe)
    with untouched(pipe):
        erasure.apply(pipe)
        wanted = draw(pipe)
    erasure.export(pipe, tmp_path / kind, "lora", rank="full")
    fresh = tiny_pipeline(kind)
    fresh.load_lora_weights(tmp_path / kind, weight_name=FILE)
    assert (draw(fresh) - wanted).abs().max() < 1 / 255 < (wanted - original).abs().max()


def test_below_full_rank_the_difference_is_measured_on_a_picture(pipe, erasure, tmp_path):
    """Against diffusers: the applied erasure's picture beside that of the original model with the file loaded."""
    prompt = "a photo of the frog"
    erasure.export(pipe, tmp_path / "lora", "lora", rank=2, prompt=prompt, steps=2)
    said = re.search(r"differs by ([\d.]+) at most", (tmp_path / "lora" / "README.txt").read_text())
    fresh, pictures = tiny_pipeline("sd"), []
    fresh.load_lora_weights(tmp_path / "lora", weight_name=FILE)
    with untouched(pipe):
        erasure.apply(pipe)
        for one in (pipe, fresh):
            options = {"generator": torch.Generator().manual_seed(0), "output_type": "np", "num_inference_steps": 2}
            pictures.append(torch.from_numpy(one(prompt, **options).images))
    assert float(said[1]) == pytest.approx(255 * float((pictures[0] - pictures[1]).abs().max()), abs=1.01)
    assert float(said[1]) > 1


def names_of(blocks):
    """Module names of an SDXL UNet by (block, attentions, transformers)."""
    return [
        f"{block}.attentions.{i}.transformer_blocks.{j}.attn2.{part}"
        for block, attentions, transformers in blocks
        for i in range(attentions)
        for j in range(transformers)
        for part in ("to_k", "to_v")
    ]


def test_keys_of_sdxl_are_those_of_its_original_modules():
    """The published layout: 4, 5 with two transformers, the others with ten; and as diffusers maps them back."""
    from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers as back

    layout = [("down_blocks.1", 2, 2), ("down_blocks.2", 2, 10), ("mid_block", 1, 10)]
    names = [*names_of([*layout, ("up_blocks.0", 3, 10), ("up_blocks.1", 3, 2)]), "add_embedding.linear_1"]

    unet = SimpleNamespace(config=SimpleNamespace(addition_embed_type="text_time", layers_per_block=2))

    found = module_names(names, unet)
    places = [(f"input_blocks_{i}_1", 2) for i in (4, 5)] + [(f"input_blocks_{i}_1", 10) for i in (7, 8)]
    places += [("middle_block_1", 10), *((f"output_blocks_{i}_1", 10 if i < 3 else 2) for i in range(6))]
    expected = {
        f"lora_unet_{at}_transformer_blocks_{j}_attn2_to_{x}" for at, n in places for j in range(n) for x in "kv"
    }
    assert set(found.values()) == {*expected, "lora_unet_label_emb_0_0"} and len(set(found.values())) == len(names)
    for name in names[:-1]:
        (mapped,) = back({found[name] + ".lora_up.weight": 0}, unet.config)
        for theirs, ours in (("input_", "down_"), ("middle_", "mid_"), ("output_", "up_")):
            mapped = mapped.replace(theirs + "block", ours + "block")
        assert mapped == f"lora_unet_{name.replace('.', '_')}.lora_up.weight"


def test_keys_of_sd_are_those_of_diffusers_modules(pipe, erasure):
    found = module_names(erasure.layers, pipe.unet)
    assert found["mid_block.attentions.0.transformer_blocks.0.attn2.to_k"] == (
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    )
    assert all(key == "lora_unet_" + name.replace(".", "_") for name, key in found.items())


@pytest.mark.parametrize("rank", [0, -1, "most", 1.5, True])
def test_a_wrong_rank_is_refused(pipe, erasure, rank, tmp_path):
    with pytest.raises(MaceError, match='allowed: 1 or more, "full", or none'):
        erasure.export(pipe, tmp_path / "lora", "lora", rank=rank)
    with pytest.raises(MaceError, match="goes with the format lora, not with weights"):
        erasure.export(pipe, tmp_path / "lora", "weights", rank=4)


def test_mace_export_says_rank_size_error_and_difference(tmp_path):
    tiny_pipeline("sd").save_pretrained(tmp_path / "model")
    path = make(load_pipeline(tmp_path / "model", device="cpu"), CONCEPTS[:1]).save(tmp_path / "e.safetensors")
    where = ["--model", str(tmp_path / "model"), "--device", "cpu", "--format", "lora"]
    said = CliRunner().invoke(
        cli.app, ["export", str(path), *where, "--rank", "4", "--steps", "1", "--out", str(tmp_path / "out")]
    )
    assert said.exit_code == 0 and "rank 4, 0.0" in said.output and "of 256 levels" in said.output.lower()
    ranks = {t.shape[0] for k, t in load_file(tmp_path / "out" / FILE).items() if k.endswith("lora_down.weight")}
    assert ranks == {4}
    refused = CliRunner().invoke(cli.app, ["export", str(path), *where, "--rank", "x", "--out", str(tmp_path / "two")])
    assert refused.exit_code != 0
