"""FID, KID and CMMD beside their formulas, on features of mini-CLIP; without torchvision."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from tiny_data import tiny_clip
from torch import nn

from macelib import MaceError
from macelib.evaluate import ClipClassifier, ClipFeatures, distances
from macelib.evaluate.distances import cmmd, cmmds, frechet, vectors

pytest.importorskip("torchmetrics", reason="the extra evaluate (torchmetrics) is not installed")


@pytest.fixture(scope="module")
def sets():
    """Features of two sets of pictures by mini-CLIP's stand-in."""
    rng, features = np.random.default_rng(0), ClipFeatures(ClipClassifier(*tiny_clip()))
    sides = [rng.integers(0, high, (n, 24, 24, 3), np.uint8) for n, high in ((60, 255), (50, 120))]
    return [vectors([Image.fromarray(a) for a in side], features).double().numpy() for side in sides]


def test_fid_is_frechet_s_distance_of_two_normals(sets):
    (m, n), (A, B) = ([f(s) for s in sets] for f in (lambda s: s.mean(0), lambda s: np.cov(s.T)))
    root = scipy.linalg.sqrtm(A @ B).real
    expected = ((m - n) ** 2).sum() + np.trace(A + B - 2 * root)
    found = distances(*map(torch.tensor, sets))
    assert found["FID"] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert distances(torch.tensor(sets[0]), torch.tensor(sets[0]))["FID"] == pytest.approx(0, abs=1e-5)


def test_kid_is_the_unbiased_mmd_of_a_cubic_kernel(sets):
    x, y = sets[0][:50], sets[1]  # one subset holds all of both
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3  # noqa: E731
    n, xx, yy = len(x), kernel(x, x), kernel(y, y)
    expected = ((xx.sum() - np.trace(xx)) + (yy.sum() - np.trace(yy))) / (n * (n - 1)) - 2 * kernel(x, y).mean()
    found = distances(torch.tensor(x), torch.tensor(y))
    assert found["KID"] == pytest.approx(expected, rel=1e-6) and found["KID deviation"] == pytest.approx(0, abs=1e-9)


def test_cmmd_pair_by_pair(sets):
    x, y = sets

    def mean(a, b):
        return np.mean([np.exp(-((p - q) ** 2).sum() / 200) for p in a for q in b])

    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert cmmd(torch.tensor(x), torch.tensor(y)) == pytest.approx(expected, rel=1e-6)
    assert cmmd(torch.tensor(x), torch.tensor(x)) == pytest.approx(0, abs=1e-9)


def test_frechet_s_distance_without_torchmetrics(sets):
    x, y = map(torch.tensor, sets)
    assert frechet(x, y) == pytest.approx(distances(x, y)["FID"], rel=1e-3, abs=1e-6)
    few = x[:7], y[:9]  # fewer than features: the covariance is singular
    (m, n), (A, B) = ([f(s.numpy()) for s in few] for f in (lambda s: s.mean(0), lambda s: np.cov(s.T)))
    values = scipy.linalg.eigvals(A @ B)
    expected = ((m - n) ** 2).sum() + np.trace(A + B) - 2 * np.sqrt(values.real.clip(0)).sum()
    assert frechet(*few) == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_weights_count_rows_as_if_they_stood_there_so_often(sets):
    x, y = (torch.tensor(s[:40]) for s in sets)
    rng = np.random.default_rng(2)
    taken = [rng.integers(40, size=40) for _ in range(3)]
    weights = torch.tensor(np.array([np.bincount(some, minlength=40) / 40 for some in taken]))
    found = cmmds(x, y, weights)
    for t, some in enumerate(taken):
        assert float(found[t]) == pytest.approx(cmmd(x[some], y[some]), rel=1e-6)
        assert frechet(x, y, weights[t]) == pytest.approx(frechet(x[some], y[some]), rel=1e-6)


def test_a_module_of_one_s_own_sees_pictures_of_several_sizes_as_bytes():
    class Means(nn.Module):
        def forward(self, pictures):
            assert pictures.dtype == torch.uint8 and pictures.shape[1] == 3
            return pictures.float().mean((2, 3))

    sizes = [(8, 8), (8, 8), (9, 5), (8, 8)]
    pictures = [Image.new("RGB", size, (i, 2 * i, 3)) for i, size in enumerate(sizes)]
    assert vectors(pictures, Means()).tolist() == [[i, 2 * i, 3] for i in range(4)]


def test_what_is_missing_is_said(monkeypatch):
    x = torch.eye(4)
    with pytest.raises(MaceError, match="95 MB"):
        vectors([Image.new("RGB", (8, 8))], "inception")
    with pytest.raises(MaceError, match="at least two on each side"):
        distances(x[:1], x)
    with pytest.raises(MaceError, match="4 and 3 numbers"):
        distances(x, x[:, :3])
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(MaceError, match=r"macelib\[evaluate\]"):
        distances(x, x)


@pytest.mark.slow
def test_torchvision_and_torch_fidelity_are_not_needed():
    """Where they are installed, Python is told that they are not."""
    code = (
        "import sys; sys.modules.update(torchvision=None, torch_fidelity=None)\n"
        "import macelib, torch\nfrom macelib.evaluate.distances import distances\n"
        "print(distances(torch.eye(8), torch.eye(8) + 1)['FID'] > 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr
