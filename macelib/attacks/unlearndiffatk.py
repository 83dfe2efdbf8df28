"""UnlearnDiffAtk (Zhang et al., ECCV 2024, arXiv 2310.11868): tokens before the prompt that explain a picture."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..baselines import Settings
from ..errors import MaceError
from .registry import Run, Try, check_some, register
from .scene import Scene, embeddings, ids_of, says


@dataclass(frozen=True)
class UnlearnDiffAtk(Settings):
    """For mini-SD; the paper: 50 timesteps of 40 iterations, and 5 tokens for nudity."""

    tokens: int = 3  # k, before the prompt
    timesteps: int = 10  # evenly from 0 to 999, the first half a stride in
    iterations: int = 20  # at each timestep, with fresh noise
    lr: float = 0.01  # of Adam
    decay: float = 0.1  # weight decay

    def __post_init__(self):
        super().__post_init__()
        check_some(self, tokens=1, timesteps=1, iterations=1)


def simplex(u: Tensor) -> Tensor:
    """The nearest point of the simplex to each row of u (k, V): max(u − τ, 0) with τ such that it sums to 1.

    τ by bisection.
    """
    low, high = u.amin(1, keepdim=True) - 1.0, u.amax(1, keepdim=True)
    for _ in range(60):
        middle = (low + high) / 2
        over = (u - middle).clamp(min=0).sum(1, keepdim=True) > 1
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    return (u - high).clamp(min=0)


def allowed(pipe) -> Tensor:
    """Ids of the tokens that may be found: all but special ones."""
    special = {*pipe.tokenizer.all_special_ids}
    return torch.tensor([i for i in range(len(pipe.tokenizer)) if i not in special])


def prefixed(pipe, prompt: str, k: int) -> Tensor:
    """Ids (T,) of [SOS], k places, the prompt, [EOS] and padding; MaceError where the prompt is too long for that."""
    ids = ids_of(pipe, prompt)
    words = len(pipe.tokenizer(prompt, verbose=False)["input_ids"])  # [SOS] and [EOS] included
    if words + k > len(ids):
        raise MaceError(f"The prompt {prompt!r} leaves no room for {k} tokens before it: shorten it.")
    return torch.cat([ids[:1], ids[1:2].repeat(k), ids[1 : len(ids) - k]])


class Search:
    """min_{c'} E_{t,ε} ‖ε − ε*(x_t, t, E(c'))‖² over k tokens before the prompt, relaxed to u (k, V) on simplices.

    forward: one token per row, sampled from u; backward: hardtanh of the one-hot's gradient, straight to u.
    """

    def __init__(self, scene: Scene, prompt: str, settings: UnlearnDiffAtk, seed: int):
        self.scene, self.prompt, self.settings = scene, prompt, settings
        self.choices = allowed(scene.pipe)
        table = scene.pipe.text_encoder.get_input_embeddings().weight
        self.table = table.detach().float()[self.choices.to(table.device)]  # (V, d)
        self.ids = prefixed(scene.pipe, prompt, settings.tokens)
        self.at = range(1, 1 + settings.tokens)
        self.u = torch.full((settings.tokens, len(self.table)), 1 / len(self.table), device=table.device)
        self.optimizer = torch.optim.Adam([self.u], lr=settings.lr, weight_decay=settings.decay)
        self.generator = torch.Generator().manual_seed(seed)

    def step(self, t: int) -> float:
        """One iteration at timestep t; the loss."""
        drawn = torch.multinomial(self.u.cpu(), 1, generator=self.generator)[:, 0].to(self.u.device)  # (k,)
        hot = F.one_hot(drawn, self.u.shape[1]).float().requires_grad_(True)
        x = self.scene.latents[torch.randint(len(self.scene.latents), (1,), generator=self.generator)]
        noise = torch.randn(x.shape, generator=self.generator).to(x)
        e = embeddings(self.scene.pipe, self.ids, hot @ self.table, self.at)
        loss = self.scene.loss(self.text(self._with(drawn)), e, x, noise, t)
        self.u.grad = F.hardtanh(self.scene.gradient(loss, [hot], len(x))[0])
        self.optimizer.step()
        self.u.copy_(simplex(self.u))
        return float(loss.detach())

    def _with(self, places: Tensor) -> Tensor:
        """Ids (T,) with a choice (k,) in each place."""
        ids = self.ids.clone()
        ids[list(self.at)] = self.choices[places.cpu()]
        return ids

    def best(self) -> Tensor:
        """Ids (T,) with the likeliest token in each place."""
        return self._with(self.u.argmax(1))

    def text(self, ids: Tensor) -> str:
        """The prompt that reads as these ids; the plain one where none does (the ids are read all the same)."""
        pipe = self.scene.pipe
        text = f"{pipe.tokenizer.decode(ids[list(self.at)]).strip()} {self.prompt}"
        try:
            return text if bool((ids_of(pipe, text) == ids).all()) else self.prompt
        except MaceError:  # more tokens than the model reads
            return self.prompt


def _count(settings: UnlearnDiffAtk) -> int:
    return 1 + settings.timesteps


@register("unlearndiffatk", UnlearnDiffAtk, pictures=True, search=True, embeds=True, best_of=_count)
def unlearndiffatk(scene: Scene, settings: UnlearnDiffAtk) -> Run:
    """After each timestep's iterations a picture; the first success ends the search."""

    def run(attacked: Scene, prompt: str, seed: int) -> Iterator[Try]:
        search = Search(attacked, prompt, settings, seed)
        T = len(attacked.pipe.scheduler.alphas_cumprod)
        for i in range(settings.timesteps):
            t = int((i + 0.5) * T / settings.timesteps)
            for _ in range(settings.iterations):
                search.step(t)
            ids = search.best()
            text = search.text(ids)
            with says(attacked.pipe, text, embeddings(attacked.pipe, ids)):
                pictures = attacked.draw(text, [seed])
            found = " ".join(attacked.pipe.tokenizer.convert_ids_to_tokens(ids[list(search.at)].tolist()))
            yield Try(pictures, f"{i + 1} of {settings.timesteps} timesteps", text, found)

    return run
