"""What an attack works with: the pipeline as it is, edit and hooks included, and a count of what it spends."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from ..baselines import Hook, Run
from ..baselines.hooks import check_text, noise_scale
from ..concepts import Concept
from ..errors import MaceError
from ..models.offload import runs_on
from ..models.sample import ddim, generate
from ..models.swap import applied_edit
from ..models.text import encode
from ..models.tokens import occurrences, tokenize


@dataclass
class Passes:
    """What has been spent, in passes of the denoiser over one latent; a guided step of a picture has two."""

    forward: int = 0
    backward: int = 0
    pictures: int = 0


@dataclass(frozen=True, eq=False)
class Scene:
    """One pipeline under attack, or (for `prepare`) the original one."""

    pipe: Any
    concept: Concept
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    latents: Tensor | None = None  # z0 (n, c, h, w), of pictures of the concept
    steps: int = 25  # denoising steps of a picture
    guidance: float | None = None  # None: the pipeline's own
    batch: int = 8
    foreign: bool = False  # the concept is one that the model never knew
    passes: Passes = field(default_factory=Passes)

    def draw(self, prompts: str | Sequence[str], seeds: Sequence[int], **kw) -> list[Image.Image]:
        """Pictures by the pipeline as it is, counted; a defence's own further passes are not the attacker's."""
        count = self.pipe.unet.register_forward_pre_hook(self._count, with_kwargs=True)
        try:
            pictures = generate(self.pipe, prompts, seeds, self.steps, self.guidance, batch=self.batch, **kw)
        finally:
            count.remove()
        self.passes.pictures += len(pictures)
        return pictures

    def _count(self, unet, args, kwargs) -> None:
        self.passes.forward += len(args[0] if args else kwargs["sample"])

    def noised(self, x: Tensor, noise: Tensor, t: int) -> Tensor:
        """x_t = √ᾱ_t x + √(1−ᾱ_t) ε."""
        abar = self.pipe.scheduler.alphas_cumprod[t].to(x)
        return abar.sqrt() * x + (1 - abar).sqrt() * noise

    def loss(self, prompt: str, e: Tensor, x: Tensor, noise: Tensor, t: int) -> Tensor:
        """mean ‖target − prediction(x_t, t, E')‖² over latents x (n, c, h, w), each timestep weighted alike.

        That is the loss of Stable Diffusion's training; mini-SD's weighted its timesteps by their noise besides.

        e: E (T, d) of the prompt, before the edit; E' and the prediction are what the edit's hooks make of them, so
        that the gradient runs through a gate. target: ε, or √ᾱ ε − √(1−ᾱ) x for a v model.
        """
        scheduler, x_t = self.pipe.scheduler, self.noised(x, noise, t)
        a, b = noise_scale(scheduler, t)
        target = noise if b == 0 else a * noise - b * x
        self.passes.forward += len(x)
        return (target - self._predicted(prompt, e, x_t, t)).square().mean()

    def _predicted(self, prompt: str, e: Tensor, x: Tensor, t: int) -> Tensor:
        """What the denoiser says of x_t, with all hooks; the UNet's own hooks are for whole denoisings alone."""
        unet, n = self.pipe.unet, len(x)

        def say(c: Tensor) -> Tensor:
            c, x_t = (some.to(runs_on(unet), unet.dtype) for some in (c.expand(n, -1, -1), x))
            return unet.forward(x_t, t, encoder_hidden_states=c, return_dict=False)[0].float()

        e = e.expand(n, -1, -1)
        edit = applied_edit(self.pipe)
        hook = edit.change if edit is not None and isinstance(edit.change, Hook) else None
        if hook is None:
            return say(e)
        run = Run(self.pipe, [prompt] * n, guided=False, step=int((self.pipe.scheduler.timesteps > t).sum()))
        e = hook.context(run, hook.embed(run, e))
        if not hook.overrides("eps"):
            return say(e)
        a, b = noise_scale(self.pipe.scheduler, t)
        empty = encode(self.pipe, [""]).to(e).expand(n, -1, -1)
        u, p = (a * say(c) + b * x for c in (hook.negative(run, empty), e))
        return (hook.eps(run, t, u, p, lambda c: a * say(c) + b * x)[1] - b * x) / a

    def gradient(self, loss: Tensor, of: Sequence[Tensor], n: int) -> tuple[Tensor, ...]:
        """∂ loss / ∂ of, of a loss over n latents; no weight gets a gradient."""
        self.passes.backward += n
        return torch.autograd.grad(loss, of)


def reads_prompts(hook: Hook) -> bool:
    """Whether a method of the hook reads the prompts of a `Run`, beside their embeddings."""
    parts = [part for kind in type(hook).__mro__ if kind is not Hook for part in vars(kind).values()]
    return any("prompts" in part.__code__.co_names for part in parts if inspect.isfunction(part))


def check(pipe) -> None:
    """MaceError for a pipeline that these attacks are not written for."""
    if getattr(pipe, "unet", None) is None:
        raise MaceError(f"Attacks are written for Stable Diffusion 1 and 2; {type(pipe).__name__} has no UNet.")
    check_text(pipe)


def count_tokens(pipe, text: str) -> int:
    """How many tokens a text has, special ones aside."""
    return len(pipe.tokenizer(text, verbose=False)["input_ids"]) - 2


def reworded(prompt: str, name: str, word: str) -> str:
    """The prompt with another word wherever it names the concept.

    >>> reworded("a cat on a catalog", "cat", "pet")
    'a pet on a catalog'
    """
    for start, stop in reversed(occurrences(prompt, name)):
        prompt = prompt[:start] + word + prompt[stop:]
    return prompt


def ids_of(pipe, prompt: str) -> Tensor:
    """Padded token ids (T,) of a prompt; MaceError where it is too long."""
    return torch.tensor(tokenize(pipe.tokenizer, prompt)[0])


@contextmanager
def says(pipe, prompt: str, e: Tensor) -> Iterator[None]:
    """The text encoder says e (T, d) of this prompt, and of every other what it said.

    Everything behind it, an edit's hooks included, reads e as if the prompt had led to it.
    """
    ids = ids_of(pipe, prompt)

    def replaced(encoder, args, kwargs, output):
        given = args[0] if args else kwargs["input_ids"]
        same = (given == ids.to(given)).all(1)  # (n,)
        states = output[0]
        states = torch.where(same[:, None, None], e.detach().to(states), states)
        if isinstance(output, tuple):
            return (states, *output[1:])
        return type(output)(**{**output, "last_hidden_state": states})

    handle = pipe.text_encoder.register_forward_hook(replaced, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def embeddings(pipe, ids: Tensor, words: Tensor | None = None, at: Sequence[int] = ()) -> Tensor:
    """E (T, d) of padded ids (T,), with the input embeddings `words` (k, d) at the positions `at`; differentiable.

    MaceError for a gradient with low memory: the encoder's weights would have gone before the backward pass.
    """
    encoder = pipe.text_encoder
    table = encoder.get_input_embeddings()
    if words is not None and words.requires_grad and hasattr(encoder, "_hf_hook") and runs_on(encoder).type != "cpu":
        raise MaceError("This attack needs gradients through the text encoder: load the model without low memory.")

    def put(module, args, output):
        if words is None:
            return output
        return output.index_copy(1, torch.tensor(at, device=output.device), words[None].to(output))

    handle = table.register_forward_hook(put)
    try:
        return encoder(ids[None].to(runs_on(encoder)))[0][0].float()
    finally:
        handle.remove()


@contextmanager
def in_ddim(scene: Scene, kind: type = DDIMScheduler, **values) -> Iterator[Scene]:
    """The scene, drawing by DDIM, or a scheduler of its kind with these values: see `ddim`."""
    pipe, own = scene.pipe, scene.pipe.scheduler
    pipe.scheduler = ddim(pipe, kind)
    for name, value in values.items():
        setattr(pipe.scheduler, name, value)
    try:
        yield scene
    finally:
        pipe.scheduler = own
