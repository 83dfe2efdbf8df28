"""Slow, independent references for stages 1 and 3, and the tokenizers that the tests share."""

import gzip
import importlib.metadata

import pytest
import torch
from transformers import CLIPTokenizer

from macelib.method.fuse import changed, fuse_sums, less_identity

START, END = "<|startoftext|>", "<|endoftext|>"


def refine_reference(W, e_f, e_g, e_p=None, lambda1=0.0, lambda0=0.0):
    """Eq. 1 for one layer by least squares on its rows (QR; no Gram matrix): min over W' (out, d)."""
    W, e_f, e_g = W.double(), e_f.double(), e_g.double()
    rows, targets = [e_f], [e_g @ W.T]
    if lambda1:
        rows, targets = [*rows, lambda1**0.5 * e_p.double()], [*targets, lambda1**0.5 * e_p.double() @ W.T]
    return _least_squares(rows, targets, W, lambda0)


def fuse_reference(W, W1, B, D, e, e_p=None, lambda2=0.0, lambda0=0.0):
    """Eq. 7 for one layer by least squares on its rows: W1 = W' (out, d); B, D, e: one per concept, e (n, d)."""
    W, W1 = W.double(), W1.double()
    rows = [e_i.double() for e_i in e]
    targets = [r @ (W1 + b.double() @ d.double()).T for r, b, d in zip(rows, B, D, strict=True)]
    if lambda2:
        rows, targets = [*rows, lambda2**0.5 * e_p.double()], [*targets, lambda2**0.5 * e_p.double() @ W.T]
    return _least_squares(rows, targets, W1, lambda0)


def fused(R, D, C, P=None, lambda2=0.0, lambda0=1.0):
    """`fuse_sums` of LoRAs, by concept D: layer -> (r, d), and their statistics C (d, d); D*: (L, Σr, d)."""
    DC = [torch.cat([d[name].double() @ c for d, c in zip(D, C, strict=True)]) for name in D[0]]
    return fuse_sums(R, torch.stack(DC), sum(C), P, lambda2, lambda0)


def weight_of(W, fusion, B, name, dtype=torch.float64):
    """W* of one layer (out, d), computed in `dtype`; B: by concept, layer -> (out, r), in the order of the layers."""
    rows, change = fusion.D_star[list(B[0]).index(name)], less_identity(fusion.R_tilde).to(dtype)
    return changed(W, change, name, torch.cat([b[name] for b in B], 1), rows)


def _least_squares(rows, targets, towards, ridge):
    if ridge:
        rows = [*rows, ridge**0.5 * torch.eye(towards.shape[1], dtype=torch.float64)]
        targets = [*targets, ridge**0.5 * towards.T]
    return torch.linalg.lstsq(torch.cat(rows), torch.cat(targets), driver="gels").solution.T


class DDIM:
    """DDIM of latents by its equation, in float64, for a scheduler's config; its timesteps are n."""

    def __init__(self, config, n):
        T, root = config["num_train_timesteps"], (config["beta_start"] ** 0.5, config["beta_end"] ** 0.5)
        self.abar = (1 - torch.linspace(*root, T, dtype=torch.float64) ** 2).cumprod(0)
        self.v = config["prediction_type"] == "v_prediction"
        self.last = self.abar[0] if config.get("set_alpha_to_one") is False else torch.ones((), dtype=torch.float64)
        if config["timestep_spacing"] == "leading":
            self.timesteps = [i * (T // n) + config["steps_offset"] for i in reversed(range(n))]
        else:
            self.timesteps = [round(T - i * T / n) - 1 for i in range(n)]

    def eps(self, x, t, said):
        """ε of x_t, from what the denoiser says of it."""
        a = self.abar[t]
        return a.sqrt() * said.double() + (1 - a).sqrt() * x.double() if self.v else said.double()

    def step(self, x, i, said):
        """From the i-th timestep to the next one."""
        a, b = (self.abar[t] for t in (self.timesteps[i], self.timesteps[min(i + 1, len(self.timesteps) - 1)]))
        b = b if i + 1 < len(self.timesteps) else self.last
        eps = self.eps(x, self.timesteps[i], said)
        return (b.sqrt() * (x.double() - (1 - a).sqrt() * eps) / a.sqrt() + (1 - b).sqrt() * eps).to(x.dtype)


def relative(a, b):
    """Largest absolute difference over the largest absolute value."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def token_rows(n, d, seed=0, spread=0.3):
    """(n, d) float32 rows shaped like text embeddings: one loud constant token, a common mean, a decaying rest."""
    g = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, d + 1).float() ** -spread
    rows = torch.randn(n, d, generator=g) * scale + 0.5 * torch.randn(1, d, generator=g)
    rows[::77] = 3 * torch.randn(1, d, generator=torch.Generator().manual_seed(99))
    return rows


def real_tokenizer():
    """The vocabulary of CLIP (SD v1.4's tokenizer) out of the package clip-anytorch, which is not imported."""
    try:
        files = importlib.metadata.distribution("clip-anytorch").files
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("clip-anytorch is not installed")
    path = next(f for f in files if f.name == "bpe_simple_vocab_16e6.txt.gz").locate()
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    return _clip_tokenizer([tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]], 77)


def letter_tokenizer(length=77, pad=END):
    """A CLIP tokenizer without merges: every letter is a token, so every word is a phrase of several tokens."""
    return _clip_tokenizer([], length, pad)


def _clip_tokenizer(merges, length, pad=END):
    first = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [*map(chr, first), *(chr(256 + i) for i in range(256 - len(first)))]  # the byte alphabet, in CLIP's order
    tokens = [*letters, *(c + "</w>" for c in letters), *("".join(m) for m in merges), START, END]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*tokens, pad]))}
    special = {"unk_token": END, "bos_token": START, "eos_token": END, "pad_token": pad}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length, **special)
