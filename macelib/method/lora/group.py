"""Concepts that train in one forward pass: parameters, optimiser, random state, checkpoint. One row per concept."""

import hashlib
import logging
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...errors import MaceError
from ...files import hash_tensors, hash_text, read_tensors, save_tensors
from ...models.denoise import Levels
from ...models.entrances import denoiser, kv_weights
from ...models.offload import runs_on
from ...models.pipelines import AUTOCAST
from .forward import PerSample

log = logging.getLogger(__name__)
BINS, FOLLOW = 20, 0.9  # of the timesteps, for "adaptive"; share of draws that follow the loss (the rest: uniform)
OWN_RIDGE = 0.3  # of the own tokens' mean square: keeps D from answering to what two prompts happen to differ in
WARMUP, DECAY, DIVERGED = 5, 0.8, 10.0  # steps of the first mean loss, memory of the recent one, their largest ratio


def generator(seed: int, name: str) -> torch.Generator:
    """The random numbers of one concept, whatever it is trained with; on the CPU, so the same for every device."""
    digest = hashlib.sha256(f"{seed}|{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def own_directions(example, rank: int) -> Tensor:
    """D (rank, d) that answers the concept's own tokens, and as little as can be anything else in its prompts.

    The first row answers 1 to the mean m of the own tokens: m S⁻¹ / (m S⁻¹ mᵀ), S the second moment of all tokens of a
    prompt with a ridge. Further rows do so for the directions in which the own tokens differ, one deviation from the
    mean each; rows that are left over are zero.
    """
    e = example.embeddings.double().cpu()  # (n, T, d)
    own = torch.cat([e[i, positions] for i, positions in enumerate(example.positions)])  # (m, d)
    mean = own.mean(0)
    _, deviations, V = torch.linalg.svd((own - mean) / len(own) ** 0.5, full_matrices=False)
    count = min(rank - 1, int((deviations > 1e-6 * mean.norm()).sum()))
    u = torch.cat([mean[None], deviations[:count, None] * V[:count]])  # (1 + count, d)
    S = torch.einsum("ntd,nte->de", e, e) / len(e)
    S.diagonal().add_(OWN_RIDGE * mean.square().mean())
    rows = torch.linalg.solve(S, u.T).T
    rows = rows / (rows * u).sum(1, keepdim=True)
    return torch.cat([rows, rows.new_zeros(rank - len(rows), rows.shape[1])]).float()


class Group:
    """N concepts in training; `config` is a TrainConfig, `density` (T,) the probability of each timestep."""

    def __init__(self, pipe, examples: list, config, density: Tensor):
        if len(shapes := {tuple(e.latents.shape[1:]) for e in examples}) > 1:
            raise MaceError(f"Images of one pass must have one size; these latents have {sorted(shapes)}.")
        self.examples, self.config, self.density, self.step = examples, config, density, 0
        self.levels = Levels(pipe, tuple(examples[0].latents.shape[-2:]), config.shift)
        self.weights = kv_weights(denoiser(pipe))
        self.device, self.dtype = runs_on(denoiser(pipe)), denoiser(pipe).dtype
        self.generators = [generator(config.seed, e.name) for e in examples]
        own = config.D == "own"  # then B alone is trained
        D = torch.stack(
            [self._own(e) if own else self._random(g) for e, g in zip(examples, self.generators, strict=True)]
        )
        B = torch.zeros(len(examples), config.rank * sum(w.shape[0] for w in self.weights.values()))
        self.flat = torch.nn.Parameter((B if own else torch.cat([B, D], 1)).to(self.device))  # (N, all that is trained)
        self.fixed = (D if own else D[:, :0]).to(self.device)
        self.off = self._off()
        self.stopped = torch.zeros(len(examples), dtype=torch.bool)  # concepts whose LoRA stays as it is
        self.optimizer = torch.optim.AdamW([self.flat], lr=config.lr)
        N = len(examples)
        self.bins = torch.zeros(N, BINS)  # running mean loss by timestep; 0: not drawn yet
        self.first, self.recent = torch.zeros(N), torch.zeros(N)  # mean loss of the first steps, and of late

    def _random(self, g: torch.Generator) -> Tensor:
        """D of all layers, N(0, 1/d) ("scaled") or N(0, 1/r²) ("unit"): one row."""
        r, unit = self.config.rank, self.config.D == "unit"
        return torch.cat([torch.randn(r * d, generator=g) * (1 / r if unit else d**-0.5) for _, d in self._shapes()])

    def _shapes(self) -> list[tuple[int, int]]:
        """(out, d) of every layer."""
        return [tuple(w.shape) for w in self.weights.values()]

    def _own(self, example) -> Tensor:
        """D along the concept's own tokens, the same in all layers: one row."""
        return own_directions(example, self.config.rank).flatten().repeat(len(self.weights))

    def _off(self) -> Tensor | None:
        """Orthonormal rows that each concept's D stays orthogonal to, (N, s, d), shorter ones padded with zeros."""
        if self.config.down == "free":
            return None
        if missing := [e.name for e in self.examples if e.off is None]:
            raise MaceError(f"down is orthogonal, and {missing[0]!r} has no directions of its super-category.")
        return pad_sequence([e.off for e in self.examples], batch_first=True).to(self.device)

    @property
    def done(self) -> bool:
        """Whether no step is left: all are taken, or every concept has stopped."""
        return self.step >= self.config.steps or bool(self.stopped.all())

    def views(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """B (N, out, r) and D (N, r, d) by layer, in the graph of `flat`.

        B is what is trained, over r: AdamW moves every number as far, and r rows would change W by r times as much.
        """
        r, shapes = self.config.rank, self._shapes()
        rows = torch.cat([self.flat, self.fixed], 1).split(
            [r * n for column in zip(*shapes, strict=True) for n in column], 1
        )
        B = {name: row.unflatten(1, (-1, r)) / r for name, row in zip(self.weights, rows[: len(shapes)], strict=True)}
        D = {name: row.unflatten(1, (r, -1)) for name, row in zip(self.weights, rows[len(shapes) :], strict=True)}
        if self.off is not None:
            D = {name: d - (d @ self.off.transpose(1, 2)) @ self.off for name, d in D.items()}
        return B, D

    def train_step(self, forward: PerSample) -> tuple[Tensor, Tensor]:
        """One AdamW step of every concept that has not stopped; returns losses and timesteps (N,), both on the CPU."""
        t, inputs = self.draw()
        autocast = AUTOCAST.get(self.config.autocast)
        with torch.autocast(self.device.type, dtype=autocast, enabled=autocast is not None):
            start = self._start(forward, inputs)  # first: a block that is recomputed reads the LoRA of the last pass
            losses = forward(*inputs[:-1], *self.views(), added=inputs[-1])  # (N,)
        if start is not None:
            share = self.config.until ** (2 if self.config.loss == "squared" else 1)
            self.stopped |= (losses.detach() < share * start).cpu()
        self.flat.grad = None
        losses.sum().backward()
        losses = losses.detach().float().cpu()
        self._check(losses, torch.isfinite(self.flat.grad).all(1).cpu())
        if self.config.clip:
            norm = self.flat.grad.norm(dim=1, keepdim=True)  # (N, 1)
            self.flat.grad *= (self.config.clip / (norm + 1e-6)).clamp(max=1)
        before = self.flat.detach().clone() if self.stopped.any() else None
        self.optimizer.step()
        if before is not None:
            self.flat.data[self.stopped] = before[self.stopped]
        self.step += 1
        self._remember(losses, t)
        return losses, t

    @torch.no_grad()
    def _start(self, forward: PerSample, inputs: tuple) -> Tensor | None:
        """The losses at this step's draw without the LoRAs, (N,); None where no concept stops by them."""
        if not self.config.until:
            return None
        B, D = self.views()
        return forward(*inputs[:-1], {name: torch.zeros_like(b) for name, b in B.items()}, D, added=inputs[-1])

    def draw(self) -> tuple[Tensor, tuple]:
        """Timesteps (N,) and the arguments of the forward pass: x_t (see `Levels`), t, e, M, S, added."""
        timesteps, noisy, chosen = [], [], []
        for i, (example, g) in enumerate(zip(self.examples, self.generators, strict=True)):
            t = int(torch.multinomial(self._density(i), 1, generator=g))
            k = int(torch.randint(len(example.latents), (1,), generator=g))
            j = int(torch.randint(len(example.embeddings), (1,), generator=g)) if example.free else k
            x = example.latents[k].float().cpu()  # (c, h, w)
            if example.spread is not None:
                x = x + example.spread[k].float().cpu() * torch.randn(x.shape, generator=g)
            noise = torch.randn(x.shape, generator=g)
            noisy.append(self.levels.noised(x, noise, t))
            timesteps.append(t)
            chosen.append((k, j))
        pairs = list(zip(self.examples, chosen, strict=True))
        x, t = torch.stack(noisy).to(self.device, self.dtype), torch.tensor(timesteps)
        e = torch.stack([ex.embeddings[j] for ex, (_, j) in pairs]).to(self.device, self.dtype)  # (N, T, d)
        M = [ex.masks[k].float().to(self.device) for ex, (k, _) in pairs]  # (1, H, W) each
        S = [ex.S(j, self.config.S).to(self.device) for ex, (_, j) in pairs]
        added = None
        if pairs[0][0].added is not None:
            keys = pairs[0][0].added
            added = {a: torch.stack([ex.added[a][j] for ex, (_, j) in pairs]).to(self.device, self.dtype) for a in keys}
        return t, (x, self.levels.timesteps[t].to(self.device), e, M, S, added)

    def _density(self, i: int) -> Tensor:
        """Probability of each timestep (T,) for concept i."""
        if self.config.timesteps != "adaptive":
            return self.density
        seen = self.bins[i] > 0
        level = torch.where(seen, self.bins[i], self.bins[i][seen].mean() if seen.any() else torch.tensor(1.0))
        share = FOLLOW * level / level.sum() + (1 - FOLLOW) / BINS  # (BINS,)
        T = len(self.density)
        return share.double()[torch.arange(T) * BINS // T]

    def _remember(self, losses: Tensor, t: Tensor) -> None:
        rows, columns = torch.arange(len(t)), t * BINS // len(self.density)
        old = self.bins[rows, columns]
        self.bins[rows, columns] = torch.where(old > 0, DECAY * old + (1 - DECAY) * losses, losses)
        if self.step <= WARMUP:
            self.first += losses / WARMUP
            self.recent = self.first * WARMUP / self.step
        else:
            self.recent = DECAY * self.recent + (1 - DECAY) * losses

    def _check(self, losses: Tensor, finite: Tensor) -> None:
        """MaceError where a concept's loss or gradient is not a number, or its loss has grown out of bounds."""
        cure = f"lower lr (now {self.config.lr:g})"
        for example, loss, ok in zip(self.examples, losses, finite, strict=True):
            if not (ok and torch.isfinite(loss)):
                raise MaceError(
                    f"The training of {example.name!r} became NaN or infinite at step {self.step + 1}: {cure}, "
                    f"or use another precision (autocast is {self.config.autocast}, the model is {self.dtype})."
                )
        for example, first, recent in zip(self.examples, self.first, self.recent, strict=True):
            if self.step > WARMUP and recent > DIVERGED * first:
                raise MaceError(
                    f"The training of {example.name!r} diverged by step {self.step}: its loss went from {first:.3g} to "
                    f"{recent:.3g}; {cure}."
                )

    # --- checkpoint -----------------------------------------------------------------------------------------------

    @cached_property
    def key(self) -> str:
        """What the result depends on besides the state: settings, data and W'."""
        parts = [f"{f}={v}" for f, v in sorted(vars(self.config).items()) if f != "concepts_per_pass"]
        for e in self.examples:
            tensors = {"latents": e.latents, "masks": e.masks, "embeddings": e.embeddings, **(e.added or {})}
            tensors |= {name: t for name, t in (("spread", e.spread), ("off", e.off)) if t is not None}
            S = [e.S(j, self.config.S).tolist() for j in range(len(e.embeddings))]
            parts += [e.name, hash_tensors(tensors), S]
        return hash_text(hash_tensors(self.weights), *parts)

    def save(self, path: Path) -> None:
        """Write the state, atomically."""
        adam = self.optimizer.state[self.flat]
        tensors = {
            "flat": self.flat.detach(),
            "exp_avg": adam["exp_avg"],
            "exp_avg_sq": adam["exp_avg_sq"],
            "generators": torch.stack([g.get_state() for g in self.generators]),
            **{name: getattr(self, name) for name in ("bins", "first", "recent")},
            "stopped": self.stopped.float(),
        }
        save_tensors(path, tensors, {"key": self.key, "step": self.step, "names": [e.name for e in self.examples]})

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Go on from a saved state; one that is damaged or of other settings is reported and not used."""
        if not path.exists():
            return
        try:
            about, tensors, checked = read_tensors(path)
        except MaceError as error:
            log.warning("%s Training starts anew.", error)
            return
        if not checked or about.get("key") != self.key:
            log.warning("The checkpoint %s is of other settings, data or weights: training starts anew.", path)
            return
        self.step = about["step"]
        self.flat.copy_(tensors["flat"])
        moments = {name: tensors[name].to(self.device) for name in ("exp_avg", "exp_avg_sq")}
        self.optimizer.state[self.flat] = {"step": torch.tensor(float(self.step)), **moments}
        for g, state in zip(self.generators, tensors["generators"], strict=True):
            g.set_state(state.clone())  # aligned
        self.bins, self.first, self.recent = (tensors[name] for name in ("bins", "first", "recent"))
        self.stopped = tensors["stopped"].bool()
