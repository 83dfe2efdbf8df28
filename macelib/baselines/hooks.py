"""Changes that live outside the weights: what the denoiser reads and says is edited while a pipeline draws.

A hook overrides what it needs: `embed` (the prompts' embeddings, the prompts in sight), `negative` (those of the
unconditional branch), `context` (both, anew at each step), `eps` (the noise predictions before they are combined),
`values` (a layer's values).
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import MaceError
from ..models.entrances import cross_attention
from .changes import Change


@dataclass
class Run:
    """One denoising of a batch, as a hook sees it."""

    pipe: Any
    prompts: list[str]  # one per picture
    guided: bool  # classifier-free guidance: the batch is the unconditional half, then the conditional one
    step: int = -1  # of the denoising, from 0
    memory: dict = field(default_factory=dict)  # what the hook keeps for this denoising

    @property
    def steps(self) -> int:
        """Number of denoising steps."""
        return len(self.pipe.scheduler.timesteps)


Predict = Callable[[Tensor], Tensor]  # embeddings (n, T, d) -> ε (n, c, h, w) for the same x_t and t


class Hook(Change):
    """Base of hooks; a subclass is a frozen dataclass of tensors and plain values, so that it is saved and loaded."""

    def embed(self, run: Run, e: Tensor) -> Tensor:
        """E'(p) from E(p), both (n, T, d); `run.prompts` are the prompts."""
        return e

    def negative(self, run: Run, e: Tensor) -> Tensor:
        """The embeddings (n, T, d) of the unconditional branch."""
        return e

    def context(self, run: Run, e: Tensor) -> Tensor:
        """What step `run.step` reads: (n or 2 n, T, d), the unconditional half first where `run.guided`."""
        return e

    def eps(self, run: Run, t: int, eps_u: Tensor, eps_p: Tensor, predict: Predict) -> tuple[Tensor, Tensor]:
        """The unconditional and the conditional noise prediction, (n, c, h, w) to be combined."""
        return eps_u, eps_p

    def values(self, v: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
        """A layer's values (n, T, o) from its own; project: embeddings (..., d) -> values (..., o) of this layer."""
        return v

    def overrides(self, name: str) -> bool:
        """Whether the hook does anything at this place."""
        return getattr(type(self), name) is not getattr(Hook, name)

    def put(self, pipe) -> Callable[[], None]:
        if any(map(self.overrides, ("embed", "negative", "context", "eps"))):
            check_text(pipe)
        if self.overrides("eps"):
            noise_scale(pipe.scheduler, 0)
        current: list[Run] = []  # the denoising under way
        with ExitStack() as stack:  # what fails here leaves nothing behind
            if any(map(self.overrides, ("embed", "negative", "context", "eps"))):
                pipe.encode_prompt = _encoding(self, pipe, current)
                stack.callback(pipe.__dict__.pop, "encode_prompt", None)
            if self.overrides("context") or self.overrides("eps"):
                stack.callback(pipe.unet.register_forward_pre_hook(_stepping(self, current), with_kwargs=True).remove)
            if self.overrides("eps"):
                stack.callback(pipe.unet.register_forward_hook(_predicting(self, current), with_kwargs=True).remove)
            if self.overrides("values"):
                for attention in cross_attention(pipe.unet).values():
                    stack.callback(attention.to_v.register_forward_hook(_valuing(self)).remove)
            return stack.pop_all().close


def _encoding(hook: Hook, pipe, current: list[Run]) -> Callable:
    """The pipeline's `encode_prompt`, and the hook behind it.

    Embeddings that are given in place of prompts are taken as they are: they are what a hook would return.
    """
    inner = type(pipe).encode_prompt.__get__(pipe)
    signature = inspect.signature(inner)

    def encode_prompt(*args, **kw):
        bound = signature.bind(*args, **kw)
        bound.apply_defaults()
        given = bound.arguments
        if hook.overrides("negative") and any(_listed(given.get("negative_prompt"))):
            raise MaceError("The edit sets the negative prompt itself: draw without one, or remove the edit.")
        positive, negative, *rest = inner(*args, **kw)
        prompts = _listed(given["prompt"])
        repeated = [p for p in prompts for _ in range(len(positive) // max(1, len(prompts)))]
        guided = bool(given["do_classifier_free_guidance"])
        current[:] = [run := Run(pipe, repeated, guided)]
        if prompts and given["prompt_embeds"] is None:
            positive = hook.embed(run, wide(positive)).to(positive)
        if negative is not None and given["negative_prompt_embeds"] is None:
            negative = hook.negative(run, wide(negative)).to(negative)
        return positive, negative, *rest

    return encode_prompt


def _listed(prompt: str | Sequence[str] | None) -> list[str]:
    return [] if prompt is None else [prompt] if isinstance(prompt, str) else list(prompt)


def _stepping(hook: Hook, current: list[Run]) -> Callable:
    """Counts the steps, and gives the denoiser what the hook wants it to read."""

    def before(unet, args, kwargs):
        if not current or current[0].step + 1 >= current[0].steps:  # none under way: the last one is over
            raise MaceError("A hook is applied that follows a whole denoising: call the pipeline, not its UNet alone.")
        run = current[0]
        run.step += 1
        if hook.overrides("context"):
            e = kwargs["encoder_hidden_states"]
            kwargs = kwargs | {"encoder_hidden_states": hook.context(run, e).to(e)}
        return args, kwargs

    return before


def _predicting(hook: Hook, current: list[Run]) -> Callable:
    """Replaces the predictions of a guided step; the hook works in ε whatever the model predicts."""

    def after(unet, args, kwargs, output):
        run = current[0]
        if not run.guided:
            return output
        x, t = (args[i] if len(args) > i else kwargs[name] for i, name in enumerate(("sample", "timestep")))
        said = output[0]
        half = len(said) // 2
        root, rest = noise_scale(run.pipe.scheduler, t)

        def to_eps(out: Tensor) -> Tensor:
            return root * wide(out) + rest * wide(x[:half])

        def predict(e: Tensor) -> Tensor:
            e = e.to(kwargs["encoder_hidden_states"]).expand(half, -1, -1)  # read as the prompts' are
            return to_eps(unet.forward(x[half:], t, encoder_hidden_states=e, return_dict=False)[0])

        u, p = said.chunk(2)
        new = hook.eps(run, int(t), to_eps(u), to_eps(p), predict)
        back = torch.cat([(eps - rest * wide(x[:half])) / root for eps in new]).to(said)
        return (back,) if isinstance(output, tuple) else type(output)(back)

    return after


def _valuing(hook: Hook) -> Callable:
    def after(to_v, args, output):
        return hook.values(wide(output), lambda e: wide(to_v.forward(e.to(output)))).to(output)

    return after


def wide(x: Tensor) -> Tensor:
    """x in float32, or as it is where that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_text(pipe) -> None:
    """MaceError for a pipeline that also reads a pooled text, which no hook here edits."""
    if getattr(pipe, "text_encoder_2", None) is not None:
        raise MaceError(
            f"{type(pipe).__name__} also reads a pooled text, which this edit would leave as it is: use a Stable "
            "Diffusion 1 or 2 pipeline."
        )


def noise_scale(scheduler, t) -> tuple[float, float]:
    """(a, b) with ε = a · prediction + b · x_t at timestep t: (1, 0) for ε, (√ᾱ, √(1−ᾱ)) for v models."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return 1.0, 0.0
    if kind != "v_prediction":
        raise MaceError(f"The scheduler predicts {kind!r}: known are epsilon and v_prediction.")
    abar = float(scheduler.alphas_cumprod[int(t)])
    return abar**0.5, (1 - abar) ** 0.5
