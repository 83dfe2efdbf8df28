"""Distances between two sets of pictures: FID and KID by torchmetrics, CMMD. All look at vectors of features.

`frechet` and `cmmds` count pictures with weights, as a bootstrap takes them.

FID: Heusel et al. 2017; KID: Bińkowski et al. 2018; CMMD: Jayasumana et al. 2024. With another feature module than
theirs the numbers are comparable among themselves alone.
"""

import warnings
from collections.abc import Iterable
from itertools import groupby, islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import MaceError, need
from .judge import BATCH

SIGMA, SCALE = 10.0, 1000.0  # of CMMD: width of its Gaussian kernel, and what the result is multiplied by
SUBSET, SUBSETS = 1000, 100  # of KID: pictures of a subset at most, and how many subsets
ROWS = 1024  # of a kernel's matrix at once
INCEPTION = (
    "FID and KID in their usual form read Inception v3 as torch-fidelity packs it: install torch-fidelity, whose first "
    "use downloads the weights (pt_inception-2015-12-05-6726825d.pth, 95 MB), and give features="
    'torchmetrics.image.fid.NoTrainInceptionV3("inception-v3-compat", ["2048"]). Without it: a CLIP, or a module of '
    "your own from pictures (n, 3, h, w), uint8, to vectors (n, w)."
)


class ClipFeatures(nn.Module):
    """CLIP's image vectors as a feature module: pictures (n, 3, h, w), uint8, to unit vectors (n, w)."""

    def __init__(self, clip):
        super().__init__()
        self.clip, self.name = clip, clip.name
        self.num_features = int(clip.model.config.projection_dim)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.clip.image_vectors([Image.fromarray(p.permute(1, 2, 0).cpu().numpy()) for p in pictures])


class _Given(nn.Module):
    """Features that are computed already."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors


@torch.no_grad()
def vectors(pictures: Iterable[Image.Image], features) -> Tensor:
    """Features (n, w) of pictures of one or several sizes, float32 on the CPU.

    features: a module (see `ClipFeatures`). MaceError for the name "inception": what that needs.
    """
    if features == "inception":
        raise MaceError(INCEPTION)
    rows, left = [], iter(pictures)
    while some := list(islice(left, BATCH)):
        for _, same in groupby(some, key=lambda picture: picture.size):
            pixels = torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in same]))
            found = features(pixels.permute(0, 3, 1, 2))  # of (m, 3, h, w)
            rows.append((found[0] if isinstance(found, (tuple, list)) else found).float().cpu().flatten(1))
    return torch.cat(rows)


def distances(real: Tensor, made: Tensor, seed: int = 0) -> dict[str, float]:
    """FID, KID (mean and deviation over subsets) and CMMD of two sets of features (n, w) and (m, w).

    CMMD is defined on CLIP's unit vectors, which `ClipFeatures` gives. MaceError: fewer than two vectors on a side,
    widths that differ, torchmetrics not installed.
    """
    if min(len(real), len(made)) < 2:
        raise MaceError(f"There are {len(real)} and {len(made)} pictures: a distance needs at least two on each side.")
    if real.shape[1] != made.shape[1]:
        raise MaceError(f"Features of {real.shape[1]} and {made.shape[1]} numbers: use one feature module for both.")
    need("torchmetrics", "evaluate")
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    given, size = _Given(real.shape[1]), min(SUBSET, len(real), len(made))
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # KID's note on the memory of its features
        torch.manual_seed(seed)  # of KID's subsets
        fid = FrechetInceptionDistance(feature=given).set_dtype(torch.float64)
        kid = KernelInceptionDistance(feature=given, subsets=SUBSETS, subset_size=size)
        for part, is_real in ((real, True), (made, False)):
            fid.update(part.double(), real=is_real)
            kid.update(part.double(), real=is_real)
        mean, deviation = kid.compute()
        found = {"FID": float(fid.compute()), "KID": float(mean), "KID deviation": float(deviation)}
    return found | {"CMMD": cmmd(real, made)}


def cmmd(x: Tensor, y: Tensor) -> float:
    """CMMD of unit vectors (n, w) and (m, w): 1000 times the squared MMD with the kernel exp(−‖a − b‖² / 2σ²), σ = 10.

    The estimate is the one of least variance: the mean over all pairs, each vector with itself included.
    """
    x, y = x.double(), y.double()
    return SCALE * (_kernel(x, x) + _kernel(y, y) - 2 * _kernel(x, y))


def cmmds(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """CMMD of unit vectors (n, w) and (n, w), row i of both counted weights[t, i] times: (times,) of (times, n).

    Each row of the weights adds up to 1.
    """
    z, signed = torch.cat([x, y]).double(), torch.cat([weights, -weights], 1).double().T  # (2n, w), (2n, times)
    parts = zip(z.split(ROWS), signed.split(ROWS), strict=True)
    return SCALE * sum((own * (_gaussian(some, z) @ signed)).sum(0) for some, own in parts)


def frechet(x: Tensor, y: Tensor, weights: Tensor | None = None) -> float:
    """Fréchet distance ‖μ − ν‖² + tr(Σ + Σ' − 2 (Σ Σ')^½) of normals fitted to features (n, w) and (m, w).

    weights: (n,) with n = m, how much row i of both counts; they add up to 1. It is FID where the features are
    Inception's.
    """
    sums, means, roots = 0.0, [], []
    for rows in (x.double(), y.double()):
        n = len(rows)
        shares = torch.full((n,), 1 / n, dtype=torch.float64) if weights is None else weights.double()
        rows, shares = rows[shares > 0], shares[shares > 0]  # what a bootstrap sample leaves out costs nothing
        means.append(shares @ rows)
        centred = (rows - means[-1]) * (shares * n / (n - 1)).sqrt()[:, None]
        sums += float(centred.square().sum())
        roots.append(torch.linalg.qr(centred).R)  # Σ = Rᵀ R
    cross = torch.linalg.matrix_norm(roots[0] @ roots[1].T, "nuc")  # tr (Σ Σ')^½
    return float((means[0] - means[1]).square().sum() + sums - 2 * cross)


def _kernel(a: Tensor, b: Tensor) -> float:
    """Mean of the kernel over all pairs."""
    return sum(float(_gaussian(part, b).sum()) for part in a.split(ROWS)) / (len(a) * len(b))


def _gaussian(a: Tensor, b: Tensor) -> Tensor:
    """exp(−‖a − b‖² / 2σ²) of every pair (n, m)."""
    return torch.exp(-torch.cdist(a, b).square() / (2 * SIGMA**2))
