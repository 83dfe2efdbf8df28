"""Another forward pass in a module's place for a while, and one of use: drawing that computes nothing twice."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from .entrances import cross_attention, kv_names, part_of, text_encoders
from .offload import runs_on
from .threads import workers

ROWS = 8  # of a batch that a thread takes at least


@contextmanager
def with_forward(module: nn.Module, make: Callable[[Callable], Callable]) -> Iterator[None]:
    """While it lasts, the module's forward pass is make(its own)."""
    before = vars(module).get("forward")
    module.forward = make(module.forward)
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


@contextmanager
def sparing(pipe) -> Iterator[None]:
    """While it lasts, a denoising computes nothing twice; pictures are the same but for rounding.

    A pipeline encodes a text, and the empty one, for every picture: here every row of token ids is encoded once a call.
    On a CPU, a UNet reads keys and values of a text once and not at every step, and its batch is taken apart between
    threads, `ROWS` at least. It stays whole where something looks into the layers: hooks, other attention processors.
    """
    with ExitStack() as stack:
        for encoder in text_encoders(pipe):
            stack.enter_context(with_forward(encoder, _distinct))
        if part_of(pipe) == "unet" and runs_on(pipe.unet).type == "cpu":
            most = 2 * torch.get_num_threads()  # two texts, or their parts
            for name in kv_names(pipe.unet):
                layer = pipe.unet.get_submodule(name)
                stack.enter_context(with_forward(layer, partial(_remembered, most=most)))
            if most > 2 and not _watched(pipe.unet):
                stack.enter_context(with_forward(pipe.unet, _side_by_side))
        yield


def _watched(unet: nn.Module) -> bool:
    """Whether something sees what is inside a pass: the order of the rows may matter to it."""
    inside = [module for module in unet.modules() if module is not unet]
    stock = all(type(layer.processor).__module__.startswith("diffusers.") for layer in cross_attention(unet).values())
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in inside)
    return hooked or not stock or "forward" in vars(unet)


def _remembered(forward: Callable, most: int) -> Callable:
    """`forward` of one tensor, computed once for each of the last that it was given, `most` at most."""
    held: dict[int, tuple[Tensor, Tensor]] = {}

    def called(x: Tensor, *args, **kwargs):
        known = held.get(id(x))
        if args or kwargs or torch.is_grad_enabled():
            return forward(x, *args, **kwargs)
        if known is None or known[0] is not x:
            if len(held) >= most:
                held.clear()
            known = held[id(x)] = (x, forward(x))
        return known[1]

    return called


def _side_by_side(forward: Callable) -> Callable:
    """A denoiser's `forward`, each part of the batch in a thread of its own."""
    parts_of: dict[
        int, tuple[Tensor, tuple[Tensor, ...]]
    ] = {}  # a text is the same tensor at every step, and so a part

    def cut(value, n: int, count: int) -> list:
        """What each part is given of an argument: its rows of a tensor of n rows, all of anything else."""
        if isinstance(value, Mapping):
            cuts = {name: cut(inner, n, count) for name, inner in value.items()}
            return [{name: some[i] for name, some in cuts.items()} for i in range(count)]
        if not isinstance(value, Tensor) or not value.ndim or len(value) != n:
            return [value] * count
        known = parts_of.get(id(value))
        if known is None or known[0] is not value or len(known[1]) != count:
            if len(parts_of) >= 8:  # latents come and go
                parts_of.clear()
            known = parts_of[id(value)] = (value, value.tensor_split(count))
        return list(known[1])

    def called(*args, **kwargs):
        n, threads = len(args[0] if args else kwargs["sample"]), torch.get_num_threads()
        count = min(threads, n // ROWS)
        if count < 2 or torch.is_grad_enabled():
            return forward(*args, **kwargs)
        given = [*zip(*(cut(value, n, count) for value in args), strict=True)] or [()] * count
        named = cut(kwargs, n, count)
        cast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

        def part(i: int):
            with torch.no_grad(), torch.autocast("cpu", cast[1], cast[0], cache_enabled=False):
                return forward(*given[i], **named[i])

        return _joined([*workers(count, threads // count).map(part, range(count))])

    return called


def _joined(outputs: list):
    """The outputs of the parts of a batch as one."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(outputs)
    if isinstance(first, Mapping):
        return type(first)(**{name: _joined([output[name] for output in outputs]) for name in first})
    return type(first)(map(_joined, map(list, zip(*outputs, strict=True))))


def _distinct(forward: Callable) -> Callable:
    """`forward` of rows (n, ...) of which none is like another; its output is spread over all rows."""

    def called(*args, **kwargs):
        rows = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if not rows or any(value.is_floating_point() or len(value) != len(rows[0]) for value in rows):
            return forward(*args, **kwargs)
        alike = torch.cat([value.flatten(1) for value in rows], 1)
        _, which = alike.unique(dim=0, return_inverse=True)  # (n,)
        first = torch.stack([(which == i).nonzero()[0, 0] for i in range(int(which.max()) + 1)])

        def pick(value):
            return value[first] if isinstance(value, Tensor) else value

        output = forward(*map(pick, args), **{name: pick(value) for name, value in kwargs.items()})
        return _spread(output, which)

    return called


def _spread(output, which: Tensor):
    """Every tensor of an output with its rows at `which` (n,)."""
    if isinstance(output, Tensor):
        return output[which]
    if isinstance(output, Mapping):
        return type(output)(**{name: _spread(value, which) for name, value in output.items()})
    return type(output)(_spread(value, which) for value in output) if isinstance(output, tuple) else output
