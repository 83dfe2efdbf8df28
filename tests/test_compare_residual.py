"""The residual score: a concept's own tokens are replaced behind every kind of edit, as by hand."""

from dataclasses import dataclass

import pytest
import torch

from macelib import Concept, MaceError
from macelib.baselines import build
from macelib.baselines.hooks import Hook, Run
from macelib.compare.residual import why_not, words_around
from macelib.models.swap import applied
from macelib.models.text import encode
from macelib.models.tiny import tiny_pipeline

PROMPT, NAME = "a photo of the ship by the sea", "ship"
CONCEPT = Concept(NAME, "sea")
SETTINGS = {"semantic-surgery": {"beta": 0.0}, "safree": {"filter": False}}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline("sd")


def by_hand(pipe, e):
    """The embeddings with [EOS] in the place of the name's tokens, found by the tokenizer's own ids."""
    ids = pipe.tokenizer(PROMPT, padding="max_length")["input_ids"]
    (own,) = pipe.tokenizer(NAME, add_special_tokens=False)["input_ids"]
    e = e.clone()
    e[0, ids.index(own)] = e[0, ids.index(pipe.tokenizer.eos_token_id)]
    return e


def latents(pipe, guidance=7.5, seeds=(0,), **text):
    """What is denoised; a random model's pictures hardly show what it reads."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"num_inference_steps": 2, "guidance_scale": guidance, "output_type": "latent", "generator": generators}
    return pipe(**text, **options).images


@pytest.mark.parametrize("method", ["original", "uce", "oce", "semantic-surgery", "safree", "adavd"])
def test_the_same_by_hand(pipe, method):
    """Hooks see the whole prompt first; values and weights read what was replaced."""
    edit = build(pipe, [CONCEPT], method, SETTINGS.get(method), kept=["horse"])
    e = encode(pipe, [PROMPT])
    if hasattr(edit.change, "embed"):
        e = edit.change.embed(Run(pipe, [PROMPT], guided=True), e)
    with applied(pipe, edit):
        with words_around(pipe, {PROMPT: NAME}):
            found = latents(pipe, prompt=[PROMPT])
        whole = latents(pipe, prompt=[PROMPT])  # the whole prompt, afterwards
        for here, state in ((found, by_hand(pipe, e)), (whole, e)):
            assert (here - latents(pipe, prompt_embeds=state)).abs().max() < 1e-4
    assert (found - whole).abs().max() > 1e-2
    assert "encode_prompt" not in vars(pipe)


@dataclass(frozen=True, eq=False)
class Drift(Hook):
    """Every step reads another text, as SAFREE's do."""

    def context(self, run, e):
        return e + run.step


def test_what_a_hook_returns_at_each_step_is_replaced_too(pipe):
    undo, read = Drift().put(pipe), []
    try:
        with words_around(pipe, {PROMPT: NAME}):
            hook = pipe.unet.register_forward_pre_hook(
                lambda unet, args, kwargs: read.append(kwargs["encoder_hidden_states"]), with_kwargs=True
            )
            latents(pipe, prompt=[PROMPT])
            hook.remove()
    finally:
        undo()
    whole = encode(pipe, ["", PROMPT])
    for step, e in enumerate(read):
        assert torch.equal(e[:1], whole[:1] + step) and torch.equal(e[1:], by_hand(pipe, whole[1:]) + step)
    assert len(read) == 2


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_rows_of_a_batch_find_their_own_prompts(pipe, guidance):
    prompts, names = [PROMPT, "a big frog", PROMPT], {PROMPT: "ship", "a big frog": "frog"}
    with words_around(pipe, names):
        together = latents(pipe, guidance, (0, 1, 2), prompt=prompts)
        alone = [latents(pipe, guidance, (s,), prompt=[p]) for s, p in enumerate(prompts)]
    assert (together - torch.cat(alone)).abs().max() < 1e-4
    assert (together - latents(pipe, guidance, (0, 1, 2), prompt=prompts)).abs().amax((1, 2, 3)).min() > 1e-3


def test_what_cannot_be_replaced_is_said(pipe):
    with pytest.raises(MaceError, match="does not name 'frog'"), words_around(pipe, {PROMPT: "frog"}):
        pass
    other = tiny_pipeline("sdxl")
    assert why_not(pipe) is None and "no pooled text" in why_not(other)
    with pytest.raises(MaceError, match="no residual score for StableDiffusionXLPipeline"), words_around(other, {}):
        pass
