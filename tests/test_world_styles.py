"""Styles and scenes: the same input gives the same picture, a batch what its images give, none looks like another."""

from itertools import combinations

import pytest
import torch
from factory.scenes import SCENES, paint_scene, plain_background
from factory.styles import STYLES, apply_style


def subjects(size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Three coloured discs with a bar across, on scenes: images (3, 3, size, size) and coverage (3, 1, size, size)."""
    generator = torch.Generator().manual_seed(5)
    t = (torch.arange(size) + 0.5) / size - 0.5
    alpha = ((0.35 - (t[:, None].square() + t.square()).sqrt()) * 30).clamp(0, 1).expand(3, 1, size, size)
    colours = torch.tensor([[0.9, 0.2, 0.1], [0.2, 0.3, 0.8], [0.95, 0.9, 0.6]]).view(3, 3, 1, 1)
    art = colours * (1 - 0.7 * (t.abs() < 0.08).view(1, 1, -1, 1))
    ground = torch.cat([paint_scene(name, 1, size, generator) for name in ("sky", "room", "forest")])
    return ground.lerp(art, alpha), alpha


@pytest.mark.parametrize("name", STYLES)
def test_style_is_deterministic_in_range_and_leaves_its_input(name):
    image, alpha = subjects()
    before = image.clone()
    first = apply_style(name, image, alpha)
    assert first.shape == image.shape and first.dtype == image.dtype
    assert first.min() >= 0 and first.max() <= 1 and first.isfinite().all()
    assert torch.equal(first, apply_style(name, image, alpha)) and torch.equal(image, before)


@pytest.mark.parametrize("name", STYLES)
def test_batch_equals_one_by_one(name):
    image, alpha = subjects()
    whole = apply_style(name, image, alpha)
    single = torch.cat([apply_style(name, i, a) for i, a in zip(image.split(1), alpha.split(1), strict=True)])
    assert (whole - single).abs().max() <= 1e-6


@pytest.mark.parametrize("name", STYLES)
def test_style_scales_with_the_picture(name):
    large, small = (apply_style(name, *subjects(size)) for size in (128, 64))
    shrunk = torch.nn.functional.avg_pool2d(large, 2)
    blurred = [torch.nn.functional.avg_pool2d(x, 8) for x in (shrunk, small)]
    assert (blurred[0] - blurred[1]).abs().mean() < 0.06


def test_styles_differ_from_each_other_and_from_the_original():
    assert len(STYLES) >= 16
    image, alpha = subjects()
    looks = {name: apply_style(name, image, alpha) for name in STYLES} | {"original": image}
    for one, two in combinations(looks, 2):
        assert (looks[one] - looks[two]).abs().mean() > 0.03, (one, two)


@pytest.mark.parametrize("name", STYLES)
def test_subject_survives_its_style(name):
    image, alpha = subjects()
    drawn = apply_style(name, image, alpha)
    changed = (drawn[0] - drawn[1]).abs().mean(), (drawn[0] - drawn[2]).abs().mean()
    assert min(changed) > 0.02
    assert drawn.flatten(1).std(1).min() > 0.05


def test_phrases_take_a_subject_and_words_are_unique():
    for style in STYLES.values():
        assert 2 <= len(style.phrases) <= 3 and all(p.count("{}") == 1 for p in style.phrases)
    words = [*STYLES, *(word for scene in SCENES.values() for word in (scene.name, *scene.synonyms))]
    assert len(words) == len(set(words))


def test_an_unknown_scene_is_named():
    with pytest.raises(ValueError, match=r"'moon'.*sky"):
        paint_scene("moon", 1, 64, torch.Generator())


@pytest.mark.parametrize("name", [*SCENES, None])
def test_scene_follows_its_seed(name):
    def paint(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return plain_background(4, 48, generator) if name is None else paint_scene(name, 4, 48, generator)

    first = paint(1)
    assert first.shape == (4, 3, 48, 48) and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, paint(1)) and not torch.equal(first, paint(2))
    assert all(not torch.equal(first[i], first[j]) for i, j in combinations(range(4), 2))


def test_scenes_are_told_apart_by_their_mean_picture():
    assert len(SCENES) >= 10
    known = [paint_scene(name, 16, 32, torch.Generator().manual_seed(0)).mean(0) for name in SCENES]
    centres = torch.stack(known).flatten(1)  # (scenes, 3 * 32 * 32)
    for index, name in enumerate(SCENES):
        fresh = paint_scene(name, 16, 32, torch.Generator().manual_seed(1)).flatten(1)  # (16, 3 * 32 * 32)
        assert (torch.cdist(fresh, centres).argmin(1) == index).all(), name
