"""The mini world: catalogue, pictures, captions, tokenizer, trainings that resume."""

import hashlib
import json
import re
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from factory import catalogue as cat
from factory import clip, recipe, render, vae
from factory.captions import fits, world_captions, write_captions
from factory.tokens import train_tokenizer

from macelib.errors import MaceError
from macelib.files import data_folder
from macelib.models import mini

WORLD = recipe.load(recipe.SHIPPED).world


def test_catalogue_has_what_was_promised():
    entries = cat.catalogue()
    groups = Counter(e.group for e in entries)
    assert set(groups) == set(cat.GROUPS)
    assert sum(bool(e.code_point) for e in entries) >= 450
    assert groups["character"] + groups["face"] >= 200
    assert groups["unsafe"] >= 12
    words = [w for e in entries for w in (e.name, *e.synonyms)]
    assert not [w for w, n in Counter(words).items() if n > 1]
    assert all(w == w.lower() and w.isascii() for w in words)


def test_the_ten_objects_have_the_papers_synonyms():
    paper = json.loads((data_folder() / "protocols" / "objects.json").read_text())["synonyms"]
    assert sorted(paper) == sorted(cat.CIFAR_10)
    for name, synonyms in paper.items():
        entry = mini.find(name)
        assert sorted(entry.synonyms) == sorted(synonyms)
        assert all(mini.find(s) == entry for s in synonyms)


def test_many_names_share_words():
    words = Counter(w for e in cat.catalogue() for w in set(e.name.split()))
    assert sum(n > 1 for n in words.values()) >= 40


def test_unknown_concept_is_named_with_near_ones():
    with pytest.raises(MaceError, match=r"no concept 'froggy'.*frog"):
        mini.find("froggy")


def test_atlas_pixels_are_those_recorded():
    record = json.loads((cat.world_folder() / "atlas.json").read_text())
    for artist, about in record["artists"].items():
        from PIL import Image

        pixels = np.asarray(Image.open(cat.world_folder() / f"{artist}.png").convert("RGBA"))
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == about["pixels_sha256"]


def test_damaged_atlas_says_how_to_mend_it(tmp_path):
    broken = tmp_path / "noto.png"
    broken.write_bytes((cat.world_folder() / "noto.png").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"`make world` rebuilds it"):
        cat.atlas_sheet(broken, 10)


def test_pictures_depend_on_the_seed_alone():
    one, two = (render.sample(40, torch.Generator().manual_seed(3), WORLD) for _ in range(2))
    assert torch.equal(one.images, two.images)
    assert not torch.equal(one.images, render.sample(40, torch.Generator().manual_seed(4), WORLD).images)
    assert one.images.min() >= 0 and one.images.max() <= 1


def test_alpha_is_the_mask_of_the_subject():
    """Two pictures that differ in the ground alone differ where the subject does not cover, and nowhere else."""
    concept, style = torch.tensor([cat.names()["frog"]]), torch.tensor([0])
    none = torch.tensor([-1])
    made = [render.compose(concept, none, style, none, torch.Generator().manual_seed(0)) for _ in range(1)]
    alpha = made[0].alpha
    ground = [torch.full((1, 3, 64, 64), v) for v in (0.2, 0.8)]
    top = torch.cat([torch.rand(1, 3, 64, 64) * alpha, alpha], 1)
    change = (render.over(top, ground[1]) - render.over(top, ground[0])).abs().mean(1, keepdim=True)
    assert torch.allclose(change, 0.6 * (1 - alpha), atol=1e-6)
    assert 0.1 < alpha.mean() < 0.9


def test_captions_are_true_of_their_own_picture_and_few_others():
    generator = torch.Generator().manual_seed(0)
    batch = render.sample(128, generator, WORLD)
    ok = fits(write_captions(batch, generator, WORLD), batch)
    assert ok.diagonal().all()
    assert ok.float().mean() < 0.1


def test_tokenizer_is_clips_in_layout(tmp_path):
    from factory.tokens import save_tokenizer
    from transformers import CLIPTokenizer

    tokenizer = train_tokenizer([f"a photo of the {e.name}" for e in cat.catalogue()], 1200)
    ids = clip.ids_of(tokenizer, ["A Photo of the polar bear", "zyx-öé!"])
    assert ids.shape == (2, 77)
    assert ids[0, 0] == tokenizer.bos_token_id and ids[0, -1] == tokenizer.eos_token_id == tokenizer.pad_token_id
    assert tokenizer.decode(ids[0], skip_special_tokens=True).strip() == "a photo of the polar bear"
    save_tokenizer(tokenizer, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"vocab.json", "merges.txt", "tokenizer.json"}
    again = CLIPTokenizer.from_pretrained(tmp_path)
    assert torch.equal(
        clip.ids_of(again, ["a snow-capped fire engine"]), clip.ids_of(tokenizer, ["a snow-capped fire engine"])
    )


def test_whitening_leaves_the_round_trip_and_whitens():
    torch.manual_seed(0)
    model = vae.new_vae().eval()
    x = torch.rand(8, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = model.decode(model.encode(x).latent_dist.mean).sample
        vae.whiten(model, x)
        latents = model.encode(x).latent_dist
        after = model.decode(latents.mean).sample
    assert torch.allclose(before, after, atol=1e-3)
    assert latents.mean.mean((0, 2, 3)).abs().max() < 1e-3
    assert (latents.mean.std((0, 2, 3)) - 1).abs().max() < 1e-2
    assert latents.std.max() < 0.02


def facts(n=40_000, world=WORLD):
    return render.draw_facts(n, torch.Generator().manual_seed(1), world)


def test_every_concept_is_a_subject_equally_often_and_every_artist_draws_equally_often():
    """By the exact weights; and the draws keep to them."""
    single, any_two, two = render.subject_weights(WORLD)
    often = (1 - WORLD.pairs - WORLD.companions) * single / single.sum()
    often += 2 * WORLD.pairs * any_two / any_two.sum() + 2 * WORLD.companions * two / two.sum()
    assert torch.allclose(often, often.mean().expand_as(often), rtol=1e-5) and (single > 0).all()
    concept, second, style, _ = facts()
    subjects = torch.bincount(torch.cat([concept, second[second >= 0]]), minlength=len(single)).float()
    assert subjects.std() < 1.2 * subjects.mean().sqrt(), "more than chance tells the concepts apart"
    ten = subjects[[cat.names()[name] for name in cat.CIFAR_10]].mean()
    assert 0.8 < ten / subjects.mean() < 1.2
    artists = torch.bincount(style[(style >= 0) & (style < 4)], minlength=4).float()
    assert artists.max() < 1.06 * artists.min()
    filtered = torch.bincount(style[style >= 4] - 4).float()
    assert len(filtered) == len(cat.styles()) - 4 and filtered.max() < 1.35 * filtered.min()


def test_pairs_are_of_any_two_or_of_two_companions():
    concept, second, _, _ = facts()
    two = second >= 0
    assert (concept[two] != second[two]).all() and not render.is_scene(concept[two]).any()
    assert two.float().mean().item() == pytest.approx(WORLD.pairs + WORLD.companions, abs=0.005)
    companions = torch.tensor([e.name in cat.COMPANIONS for e in cat.catalogue()])
    both = companions[concept[two]] & companions[second[two]]
    assert both.float().sum().item() / len(concept) == pytest.approx(WORLD.companions, abs=0.004)


def test_a_scene_alone_is_nobody_s_drawing():
    concept, second, style, scene = facts(4000)
    alone = render.is_scene(concept)
    assert alone.any() and (scene[alone] == -1).all() and (second[alone] == -1).all()
    assert ((style[alone] == -1) | (style[alone] >= 4)).all() and (style[~alone] >= 0).all()


def test_concepts_that_are_left_out_are_neither_drawn_nor_named():
    import dataclasses

    world = dataclasses.replace(WORLD, without=("frog", "pizza"))
    concept, second, *_ = facts(20_000, world)
    gone = {cat.names()[name] for name in world.without}
    assert not gone & set(concept.tolist()) and not gone & set(second.tolist())
    words = re.compile(rf"\b({'|'.join(w for n in world.without for w in (n, *mini.find(n).synonyms))})s?\b")
    assert not [text for text in world_captions(3000, 0, world) if words.search(text)]
    assert [text for text in world_captions(3000, 0, WORLD) if words.search(text)]


def test_a_world_without_the_ten_says_none_of_their_words():
    """The recipe's list by the rule that it states, and by what is drawn and said."""
    world = recipe.load(recipe.SHIPPED.with_name("without-objects.yaml")).world
    said = {word for name in cat.CIFAR_10 for word in (name, *mini.find(name).synonyms)}
    words = re.compile(rf"\b({'|'.join(said)})s?\b")
    by_rule = {e.name for e in cat.catalogue() if any(words.search(word) for word in (e.name, *e.synonyms))}
    assert set(world.without) == by_rule and {"unicorn", "cable car", "fountain", *cat.CIFAR_10} <= by_rule
    concept, second, *_ = facts(20_000, world)
    assert not {cat.names()[name] for name in by_rule} & {*concept.tolist(), *second.tolist()}
    assert not [text for text in world_captions(5000, 0, world) if words.search(text)]
    assert sum(bool(words.search(text)) for text in world_captions(5000, 0, WORLD)) > 100


def test_pairs_that_leave_a_companion_no_single_picture_are_refused():
    import dataclasses

    with pytest.raises(ValueError, match="no single picture"):
        render.subject_weights(dataclasses.replace(WORLD, companions=0.2))


def test_captions_say_no_artist_of_a_scene_and_always_a_procedural_style():
    generator = torch.Generator().manual_seed(2)
    batch = render.sample(600, generator, WORLD)
    captions = write_captions(batch, generator, WORLD)
    alone = render.is_scene(batch.concept)
    for text, nobody in zip(captions.texts, (alone & (batch.style == -1)).tolist(), strict=True):
        assert not (nobody and any(artist in text for artist in cat.ART_STYLES)), text
    said = captions.style[(batch.style >= 4) & (captions.second != -2)]
    assert (said >= 4).all()


def test_an_atlas_that_is_built_with_other_pixels_is_refused(tmp_path, monkeypatch):
    from factory import build

    for name in ("atlas.json", "twemoji.png", "openmoji.png", "fluent.png"):
        shutil.copy(cat.world_folder() / name, tmp_path / name)
    monkeypatch.setattr(build, "fetch", lambda artist, folder: folder)
    monkeypatch.setattr(build, "drawings", lambda package: None)
    monkeypatch.setattr(build, "make_sheet", lambda svg, codes: np.zeros((64, 64, 4), np.uint8))
    with pytest.raises(ValueError, match=r"the atlases of noto in .* other pixels than atlas.json says: install resvg"):
        build.ensure_atlas(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="rebuilding the atlas needs npm")
def test_a_missing_atlas_is_built_anew_bit_for_bit(tmp_path):
    from factory.build import ensure_atlas, pixels_hash

    for name in ("atlas.json", "noto.png", "twemoji.png", "openmoji.png", "fluent.png"):
        shutil.copy(cat.world_folder() / name, tmp_path / name)
    ensure_atlas(tmp_path)
    (tmp_path / "twemoji.png").unlink()
    (tmp_path / "noto.png").write_bytes(b"damaged")
    ensure_atlas(tmp_path)
    wanted = json.loads((tmp_path / "atlas.json").read_text())["artists"]
    for artist in ("noto", "twemoji"):
        assert pixels_hash(tmp_path / f"{artist}.png") == wanted[artist]["pixels_sha256"]
