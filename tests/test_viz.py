"""Figures: what was given is what is shown, and they are light."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from macelib import MaceError
from macelib.show import viz

RED = Image.new("RGB", (64, 64), (255, 0, 0))
BLUE = torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand(3, 64, 64)


def decoded(fig) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(fig._repr_png_())).convert("RGB"))


def share(image: np.ndarray, color) -> float:
    return (np.abs(image.astype(int) - color) < 12).all(-1).mean()


def test_grid_shows_pictures_and_gaps():
    fig = viz.grid([[RED, BLUE, RED], [RED, None]], ["original", "erased"], ["a photo of the ship", "b", "c"], "title")
    image = decoded(fig)
    assert share(image, (255, 0, 0)) > 1.5 * share(image, (0, 0, 255)) > 0.05  # three red, one blue
    texts = [ax.get_ylabel() for ax in fig.axes] + [ax.get_title() for ax in fig.axes]
    assert "original" in texts and "a photo of the\nship" in texts


def test_nothing_to_show():
    with pytest.raises(MaceError, match="no picture"):
        viz.grid([[]])
    with pytest.raises(MaceError, match=r"shape \(2, 2, 2, 2\)"):
        viz.grid([[np.zeros((2, 2, 2, 2))]])


def test_pixels_of_all_layouts():
    expected = np.zeros((64, 64, 3))
    expected[..., 2] = 1
    for layout in (BLUE, BLUE.permute(1, 2, 0), (BLUE * 255).to(torch.uint8)):
        assert np.array_equal(viz.pixels(layout), expected)
    assert viz.pixels(np.full((4, 5), 0.5)).shape == (4, 5, 3)


def test_attention_is_bright_where_the_map_is():
    heat = torch.zeros(16, 16)
    heat[:8] = 0.02
    fig = viz.attention([[RED, RED]], [[heat, heat / 2]], ["ship"], ["before", "after"])
    first, second = (ax.images[1] for ax in fig.axes[:2])
    assert first.norm is second.norm and first.norm.vmax == pytest.approx(0.02)  # one scale
    assert decoded(fig).mean() > 0


def test_attention_by_row_has_a_scale_for_each():
    heat = torch.zeros(4, 4)
    heat[0, 0] = 0.5
    fig = viz.attention([[RED], [RED]], [[heat], [heat / 100]], ["own", "padding"], by_row=True)
    assert [ax.images[1].norm.vmax for ax in fig.axes[:2]] == pytest.approx([0.5, 0.005])


def test_mask_dims_the_outside():
    mask = torch.zeros(1, 64, 64)
    mask[:, :, 32:] = 1
    fig = viz.masks([RED] * 3, [mask] * 3, ["a", "b", "c"], columns=2)
    shown = fig.axes[0].images[0].get_array()
    assert shown[0, 60, 0] == pytest.approx(1) and shown[0, 3, 0] == pytest.approx(0.3)
    assert sum(bool(ax.images) for ax in fig.axes) == 3


def test_bars_and_whiskers():
    frame = pd.DataFrame({
        "erased": ["ship"] * 4, "model": ["original"] * 2 + ["erased"] * 2, "metric": ["Acc_e", "H_o"] * 2,
        "value": [98.0, 3.0, 0.0, 93.0], "low": [95, 2, 0, 90], "high": [100, 4, 1, 95],
    })  # fmt: skip
    ax = viz.bars(frame).axes[0]
    assert sorted(patch.get_height() for patch in ax.patches) == [0, 3, 93, 98]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["Acc_e\n(low is good)", "H_o\n(high is good)"]
    ends = {round(float(point[1])) for lines in ax.collections for line in lines.get_segments() for point in line}
    assert ends == {0, 1, 2, 4, 90, 95, 100}


def test_curves():
    x = [1, 2, 4]
    lines = {"cfis": (x, [1, 2, 3]), "uniform": (x, [1, 1, 1], [0, 0, 0], [2, 2, 2])}
    ax = viz.curves(lines, "step", "loss", log_x=True, marks={"t1": 2}).axes[0]
    assert ax.get_xscale() == "log" and [line.get_label() for line in ax.lines[:2]] == ["cfis", "uniform"]
    assert np.array_equal(ax.lines[0].get_ydata(), [1, 2, 3]) and len(ax.collections) == 1
    left, right = viz.curves(lines, falling=True).axes[0].get_xlim()
    assert left > right


@pytest.mark.slow
def test_png_keeps_under_the_limit():
    noise = np.random.default_rng(0).random((3, 6, 64, 64, 3))
    fig = viz.grid(noise)
    full = viz.png(fig, 10**9)
    light = viz.png(fig, 60_000)
    assert len(full) > 60_000 >= len(light) > 5_000


@pytest.mark.slow
def test_shades_do_not_fall_into_bands():
    """A palette has few shades for each of many ramps: they are mixed by dots, so that their means over places hold."""
    y, x = np.mgrid[0:64, 0:64] / 63
    picture = np.stack([x, y, (1 - x) * y], -1) + np.random.default_rng(0).normal(0, 0.03, (64, 64, 3))
    heat = torch.tensor(np.exp(-8 * (x - y) ** 2))
    fig = viz.attention([[picture] * 6] * 2, [[heat * (1 - i / 8) for i in range(6)]] * 2)
    _, data = (viz.png(fig, 10**9) for _ in range(2))  # the layout has settled at the second
    full = Image.open(io.BytesIO(data)).convert("RGB")
    light = Image.open(io.BytesIO(viz.png(fig, len(data) - 1))).convert("RGB")
    assert len(light.getcolors()) <= 256 and light.size == full.size

    def means(image):  # of 8 x 8 pixels
        shown = np.asarray(image, dtype=float)[: image.height // 8 * 8, : image.width // 8 * 8]
        return shown.reshape(len(shown) // 8, 8, -1, 8, 3).mean((1, 3))

    mixed, stepped = (np.abs(means(some) - means(full)).mean() for some in (light, full.quantize(256).convert("RGB")))
    assert mixed < 0.85 * stepped
