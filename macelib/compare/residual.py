"""The residual score: what a model still draws of a concept when it reads the words around it alone.

The concept's own tokens are replaced by the embedding of [EOS] (METHOD, residual information) at the denoiser's door,
behind whatever an edit does to the prompt: its hooks see the whole prompt first.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ..errors import MaceError
from ..models.entrances import part_of
from ..models.text import spans, tails


def why_not(pipe) -> str | None:
    """Why a pipeline cannot be measured so; None where it can."""
    if part_of(pipe) != "unet" or getattr(pipe, "text_encoder_2", None) is not None:
        return "tokens are replaced for models with a UNet that reads one text encoder and no pooled text"
    return None


@contextmanager
def words_around(pipe, names: Mapping[str, str]) -> Iterator[None]:
    """While it lasts, the denoiser reads the embedding of [EOS] in the place of a name's own tokens.

    names: by prompt the name whose tokens go. MaceError: a prompt that does not hold its name or is too long, a
    pipeline of another kind (`why_not`).
    """
    if why := why_not(pipe):
        raise MaceError(f"There is no residual score for {type(pipe).__name__}: {why}.")
    places = {prompt: (spans(pipe, prompt, name), tails(pipe, prompt)[0]) for prompt, name in names.items()}
    if empty := [prompt for prompt, (own, _) in places.items() if not own]:
        raise MaceError(f"The prompt {empty[0]!r} does not name {names[empty[0]]!r}.")
    before, inner, current = pipe.__dict__.get("encode_prompt"), pipe.encode_prompt, []

    def encode_prompt(*args, **kw):
        prompts = args[0] if args else kw["prompt"]
        current[:] = [prompts] if isinstance(prompts, str) else prompts
        return inner(*args, **kw)

    def replace(unet, args, kwargs):
        e = kwargs["encoder_hidden_states"].clone()  # (n or 2 n, T, d), the conditional half last
        for row, prompt in enumerate(current, len(e) - len(current)):
            own, eos = places[prompt]
            e[row, own] = e[row, eos].clone()
        return args, kwargs | {"encoder_hidden_states": e}

    pipe.encode_prompt = encode_prompt
    hook = pipe.unet.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        if before is None:
            del pipe.encode_prompt
        else:
            pipe.encode_prompt = before
