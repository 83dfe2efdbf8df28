"""The mini world: catalogue, pictures, captions, tokenizer, trainings that resume."""

import hashlib
import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from factory import catalogue as cat
from factory import clip, loop, render, vae
from factory.captions import about_others, fits, world_captions, write_captions
from factory.tokens import train_tokenizer

from macelib.errors import MaceError
from macelib.files import data_folder
from macelib.models import mini


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
    with pytest.raises(ValueError, match=r"rebuild it with `python -m factory build`"):
        cat.atlas_sheet(broken, 10)


def test_pictures_depend_on_the_seed_alone():
    one, two = (render.sample(40, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.images, two.images)
    assert not torch.equal(one.images, render.sample(40, torch.Generator().manual_seed(4)).images)
    assert one.images.min() >= 0 and one.images.max() <= 1


def test_plain_pictures_are_one_subject_by_the_usual_artist():
    plain, mixed = (render.sample(400, torch.Generator().manual_seed(1), plain=share) for share in (1.0, 0.5))
    usual = cat.ART_STYLES.index(render.USUAL)
    for facts, value in ((plain.second, -1), (plain.scene, -1), (plain.style, usual)):
        assert (facts == value).all() and not render.is_scene(plain.concept).any()
    assert 0.5 < (mixed.style == usual).float().mean() < 0.8 and (mixed.second >= 0).any() and (mixed.scene >= 0).any()


def test_plain_pairs_are_two_subjects_by_the_usual_artist():
    concept, second, style, scene = render.draw_facts(400, torch.Generator().manual_seed(1), plain=0.5, pairs=0.5)
    assert (style == cat.ART_STYLES.index(render.USUAL)).all() and (scene == -1).all() and (second != concept).all()
    assert 0.4 < (second >= 0).float().mean() < 0.6
    companions = {cat.names()[name] for name in cat.COMPANIONS}
    two = second >= 0
    assert set(concept[two].tolist()) | set(second[two].tolist()) <= companions
    assert not set(concept[~two].tolist()) <= companions


def test_styled_pictures_show_one_subject_in_any_style():
    concept, second, style, scene = render.draw_facts(2000, torch.Generator().manual_seed(1), usual=0.9, styled=1.0)
    assert (scene == -1).all() and (second == -1).all() and len(set(concept.tolist())) > 300
    assert set(style.tolist()) == set(range(len(cat.styles())))
    drawn = torch.bincount(style, minlength=4)[: len(cat.ART_STYLES)].float()
    assert drawn.max() < 1.3 * drawn.min(), "the artists are not alike"


def test_painted_pictures_show_one_subject_or_a_scene_in_oils():
    shares = {"plain": 0.3, "painted": 0.7}
    concept, second, style, scene = render.draw_facts(2000, torch.Generator().manual_seed(1), **shares)
    assert (scene == -1).all() and (second == -1).all() and len(set(concept.tolist())) > 300
    oils = (style == cat.styles().index(render.PAINTED)).float().mean()
    assert 0.65 < oils < 0.75
    assert set(style.tolist()) == {cat.styles().index(render.PAINTED), cat.ART_STYLES.index(render.USUAL)}
    alone = render.is_scene(concept)
    assert 0.03 < alone[style == cat.styles().index(render.PAINTED)].float().mean() < 0.07
    assert not alone[style == cat.ART_STYLES.index(render.USUAL)].any()


def test_the_image_tower_trains_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("MACELIB_WORK", str(tmp_path / "work"))
    shipped, _ = clip.started(shipped=True)
    records = list(clip.train_clip(steps=3, batch=16, image_only=True))
    assert [r.step for r in records] == [1, 2, 3] and all(r.loss > 0 for r in records)
    saved = torch.load(tmp_path / "work" / "world" / "clip-image" / "checkpoint.pt", weights_only=True)
    for name, value in shipped.state_dict().items():
        text = name.startswith(("text_model", "text_projection"))
        assert text == saved["parts"]["model"][name].equal(value) or name.endswith("position_ids"), name


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
    batch = render.sample(128, generator)
    ok = fits(write_captions(batch, generator), batch)
    assert ok.diagonal().all()
    assert ok.float().mean() < 0.1


def test_a_share_of_subjects_is_called_by_their_super_category():
    batch, one = render.sample(400, torch.Generator().manual_seed(0), plain=1.0), torch.Generator().manual_seed(1)
    few, many = (write_captions(batch, one, wider=share).concept.lt(0).float().mean() for share in (0.0, 0.5))
    assert few < 0.08 and 0.4 < many < 0.65  # captions of no subject at all are among both


def test_a_stranger_of_a_caption_tells_of_another_subject_and_of_nothing_else():
    batch = render.sample(300, torch.Generator().manual_seed(0))
    captions = write_captions(batch, torch.Generator().manual_seed(1))
    named, changed, strangers = 0, 0, about_others(captions, seed=0)
    for text, stranger, concept in zip(captions.texts, strangers, captions.concept.tolist(), strict=True):
        if concept < 0:
            assert stranger == text
            continue
        named, changed = named + 1, changed + (stranger != text)
        before, after = text.split(), stranger.split()
        same = sum(a == b for a, b in zip(before, after, strict=False))
        same += sum(a == b for a, b in zip(before[::-1], after[::-1], strict=False))
        assert same >= len(before) - 5, (text, stranger)  # an article and a name of up to four words
    assert named > 200 and changed > 0.97 * named


def test_caption_names_concept_or_synonym():
    texts, named = world_captions(300, seed=5)
    by_name = {e.name: e for e in cat.catalogue()}
    hits = total = 0
    for text, concepts in zip(texts, named, strict=True):
        for name in concepts:
            if name in by_name:
                total += 1
                hits += any(w in text for w in (name, *by_name[name].synonyms))
    assert total > 200 and hits == total


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


def images(n, generator):
    return torch.rand(n, 3, 64, 64, generator=generator)


def test_killed_training_goes_on_as_if_undisturbed(tmp_path, monkeypatch):
    def weights(parts):
        monkeypatch.setenv("MACELIB_WORK", str(tmp_path / str(len(parts))))
        for stop in parts:
            for record in vae.train_vae(images, steps=4, batch=2):
                if record.step == stop:
                    checkpoint = loop.work_folder("vae") / "checkpoint.pt"
                    break
        return torch.load(checkpoint, weights_only=True)

    monkeypatch.setattr(loop, "save_checkpoint", save := _count(loop.save_checkpoint))
    monkeypatch.setattr(loop.time, "monotonic", _clock())  # every step is "late", so every step is saved
    straight, resumed = weights([4]), weights([2, 4])
    assert save.calls >= 8
    assert straight["step"] == resumed["step"] == 4
    for k, v in straight["parts"]["vae"].items():
        assert torch.equal(v, resumed["parts"]["vae"][k]), k


def _count(function):
    def counted(*args):
        counted.calls += 1
        return function(*args)

    counted.calls = 0
    return counted


def _clock():
    now = [0.0]

    def monotonic():
        now[0] += 1000
        return now[0]

    return monotonic


def test_damaged_checkpoint_is_an_error(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"PK broken")
    with pytest.raises(ValueError, match="delete it to start anew"):
        loop.load_checkpoint(tmp_path / "checkpoint.pt", {})


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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="rebuilding the atlas needs npm")
def test_rebuilding_the_atlas_is_bit_identical(tmp_path):
    from factory.build import build

    record = build(out=tmp_path)
    shipped = json.loads((cat.world_folder() / "atlas.json").read_text())
    assert record["artists"] == shipped["artists"]
