"""Which layers of a model, and what comes out of them on a forward pass."""

from __future__ import annotations

import contextlib
import fnmatch
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hnd.instead import instead

Grid = tuple[int, int]


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every submodule by its dotted name, the model itself apart; names are the same when compiled."""
    named = model.named_modules(remove_duplicate=False)  # a shared module answers to all of its names
    layers = {name.replace("_orig_mod.", "").removesuffix("_orig_mod").rstrip("."): module for name, module in named}
    return {name: module for name, module in layers.items() if name}


def as_patterns(layers: str | Sequence[str]) -> tuple[str, ...]:
    """One or several dotted names or globs, as several.

    Raises:
        TypeError: If one is no text: a module, most likely.
        ValueError: If there is none.
    """
    one = isinstance(layers, str | nn.Module) or not isinstance(layers, Iterable)  # a Sequential is iterable
    patterns: tuple[Any, ...] = (layers,) if one else tuple(layers)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"layers are dotted names or globs, such as 'backbone.layer4', and a {type(pattern).__name__} is none; "
                "give the name that model.named_modules() has for it"
            )
    if not patterns:
        raise ValueError("layers is empty; name at least one, or give None for the last spatial one")
    return patterns


def resolve_layers(model: nn.Module, layers: str | Sequence[str]) -> tuple[str, ...]:
    """The names of the layers that match, in the order of the model.

    Args:
        model: Any module.
        layers: Dotted names or globs (``backbone.layer4.*.conv1``), one or several.

    Raises:
        TypeError: If one of them is no text.
        ValueError: If there is none, or one of them matches nothing, with the nearest names.
    """
    known = named_layers(model)
    chosen: set[str] = set()
    for pattern in as_patterns(layers):
        found = [pattern] if pattern in known else fnmatch.filter(known, pattern)
        if not found:
            outermost_first = sorted(known, key=lambda name: name.count("."))
            raise ValueError(f"no layer matches {pattern!r}; {instead(pattern, outermost_first)}")
        chosen.update(found)
    return tuple(name for name in known if name in chosen)


@contextlib.contextmanager
def record(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    """While open, gathers the outputs of the layers at every forward pass; ``clear()`` it between passes.

    Of an output that is a tuple or list the first tensor is kept.

    Args:
        model: The module.
        layers: Names, as :func:`resolve_layers` gives them.

    Raises:
        ValueError: If one of them is not there any more.
    """
    outputs: dict[str, list[Any]] = {}
    known = named_layers(model)
    for name in layers:
        if name not in known:
            raise ValueError(f"layer {name!r} is not there any more; the model has changed since layers were chosen")

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = _first_tensor(output)
            # a copy: the next layer may work in place, as nn.ReLU(inplace=True) does
            outputs.setdefault(name, []).append(output if tensor is None else tensor.detach().clone())

        return hook

    handles = [known[name].register_forward_hook(keep(name)) for name in layers]
    try:
        with _eager(model):
            yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def switched_off(model: nn.Module, layer: str, units: Sequence[int]) -> Iterator[None]:
    """While open, some units of a layer give 0 everywhere, whatever they see.

    Of an output that is a tuple or list the first tensor is changed, which is the one that is dissected.

    Args:
        model: The module.
        layer: The layer's dotted name.
        units: Channels of ``[B, U, h, w]``, or of tokens ``[B, T, U]``.

    Raises:
        ValueError: If the layer is not there, does not run, or gives neither.
    """
    known, ran = named_layers(model), False
    if layer not in known:
        raise ValueError(f"the model has no layer {layer!r}, of which units are to be switched off")

    def silence(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        nonlocal ran
        ran, maps = True, _first_tensor(output)
        if maps is None or maps.ndim not in (3, 4):
            got = type(output).__name__ if maps is None else f"shape {list(maps.shape)}"
            raise ValueError(f"layer {layer!r} gives {got}; units are switched off in maps or tokens only")
        off = torch.tensor(units, dtype=torch.int64, device=maps.device)
        silenced = maps.index_fill(1 if maps.ndim == 4 else 2, off, 0.0)
        return silenced if output is maps else _with_first(output, silenced)

    handle = known[layer].register_forward_hook(silence)
    try:
        with _eager(model):
            yield
    finally:
        handle.remove()
    if not ran:
        raise ValueError(
            f"layer {layer!r} did not run while units of it were switched off: what runs does not reach it"
        )


def _eager(model: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Compiled code does not call hooks: run it as written while they are in place.

    Raises:
        ValueError: If a part of the model is compiled and this torch cannot do that.
    """
    if hasattr(torch.compiler, "set_stance"):  # since torch 2.6
        return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]
    for name, module in model.named_modules():
        if _is_compiled(module):  # a hook would be silent, or be compiled into the training
            raise ValueError(
                f"{name.replace('_orig_mod.', '') or type(module).__name__!r} is compiled, and torch "
                f"{torch.__version__} cannot run it as written for the time of a dissection; that takes torch >= 2.6. "
                "With this one, do not compile what is dissected"
            )
    return contextlib.nullcontext()


def _is_compiled(module: nn.Module) -> bool:
    """Whether by ``torch.compile(module)``, by ``module.compile()``, or in its ``forward`` alone, as Lightning does."""
    wrapped = "_orig_mod" in module._modules
    in_place = getattr(module, "_compiled_call_impl", None) is not None
    return wrapped or in_place or hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")


def unit_maps(name: str, outputs: Mapping[str, list[Any]], num_images: int, grid: Grid | None) -> Tensor:
    """A layer's output as maps of its units: ``[B, U, h, w]``.

    Convolutional maps are taken as they are. Token sequences ``[B, T, U]`` are laid out on ``grid``, leading
    tokens beyond its cells (class, registers) dropped.

    Args:
        name: The layer.
        outputs: What :func:`record` gathered in one forward pass.
        num_images: ``B``.
        grid: ``(h, w)`` of token sequences.

    Raises:
        ValueError: If the layer did not run, ran more than once, or its output is not of these shapes.
    """
    passes = outputs.get(name, [])
    if not passes:
        raise ValueError(
            f"layer {name!r} never fired its hook: the forward pass does not reach it, or reaches it in code that "
            "calls no hooks (a TorchScript module, or, with torch < 2.6, a compiled function)"
        )
    if len(passes) > 1:
        raise ValueError(
            f"layer {name!r} runs {len(passes)} times in one forward pass, so it has no single output; name the "
            "block that holds it, or a layer that runs once"
        )
    output = passes[0]
    if not isinstance(output, Tensor) or output.ndim not in (3, 4) or output.shape[0] != num_images:
        got = f"shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"layer {name!r} gives {got}; a dissection needs maps [{num_images}, units, h, w], or tokens "
            f"[{num_images}, tokens, units] and grid="
        )
    if output.ndim == 4:
        return output
    if grid is None:
        raise ValueError(f"layer {name!r} gives tokens {list(output.shape)}; {_grid_hint(output.shape[1])}")
    cells = grid[0] * grid[1]
    if output.shape[1] < cells:
        raise ValueError(f"layer {name!r} gives {output.shape[1]} tokens, fewer than the {cells} cells of grid={grid}")
    return output[:, output.shape[1] - cells :].transpose(1, 2).reshape(num_images, -1, *grid)


def trace(model: nn.Module, run: Callable[[], Any]) -> list[tuple[str, tuple[int, ...]]]:
    """The layers that a forward pass reaches and the shapes of their outputs, in the order in which they finish.

    Args:
        model: The module.
        run: Runs one forward pass.
    """
    finished: list[tuple[str, tuple[int, ...]]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = _first_tensor(output)
            if tensor is not None:
                finished.append((name, tuple(tensor.shape)))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in named_layers(model).items()]
    try:
        with _eager(model):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return finished


def last_spatial(model: nn.Module, finished: list[tuple[str, tuple[int, ...]]], grid: Grid | None) -> str:
    """The last layer with a spatial output, in order of execution.

    A block finishes after the layers inside it, so of a residual network this is the last block; of a plain
    ``nn.Sequential`` its last member is named. Attention maps, of every token to every token, are not spatial.

    Args:
        model: The module.
        finished: Its :func:`trace`.
        grid: ``(h, w)`` of token sequences, which count only if it is given.

    Raises:
        ValueError: If no output is spatial.
    """
    sequences = {shape[1] for _, shape in finished if len(shape) == 3}

    def spatial(shape: tuple[int, ...]) -> bool:
        if len(shape) == 3:
            return grid is not None and shape[1] >= grid[0] * grid[1]
        attention = shape[2:] in {(tokens, tokens) for tokens in sequences}
        return len(shape) == 4 and shape[2] * shape[3] > 1 and not attention

    order = [name for name, _ in finished]
    reached = [(name, shape) for name, shape in finished if spatial(shape) and order.count(name) == 1]
    if not reached:
        raise ValueError(
            "no layer of this model gives maps [B, units, h, w] in its forward pass; name layers= and, for token "
            "sequences [B, tokens, units], grid="
        )
    known = named_layers(model)
    name, shape = reached[-1]
    while isinstance(block := known[name], nn.Sequential) and (f"{name}.{len(block) - 1}", shape) in reached:
        name = f"{name}.{len(block) - 1}"
    return name


def remark(name: str, finished: list[tuple[str, tuple[int, ...]]], grid: Grid | None) -> str:
    """What a user should know of a layer that was chosen for them.

    Args:
        name: The layer.
        finished: The :func:`trace` that it was chosen from.
        grid: ``(h, w)`` of token sequences.
    """
    order = [other for other, _ in finished]
    shape = finished[order.index(name)][1]
    units, cells = (shape[1], shape[2:]) if len(shape) == 4 else (shape[2], grid)
    said = f"dissecting {name!r}, the last spatial layer that the forward pass reaches ({units} units, maps {cells})"
    tokens = [other for other, s in finished[order.index(name) + 1 :] if len(s) == 3 and s[1] > 1]
    if tokens and grid is None:
        said += f"; after it come token sequences such as {tokens[-1]!r}: to dissect those give layers= and grid="
    return said


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, tuple | list) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def _with_first(output: Any, tensor: Tensor) -> Any:
    """A tuple or list with another first element."""
    if hasattr(output, "_replace"):
        return output._replace(**{output._fields[0]: tensor})
    return type(output)([tensor, *output[1:]])


def _grid_hint(tokens: int) -> str:
    for extra in (0, 1, 2, 4, 5):
        side = math.isqrt(max(tokens - extra, 0))
        if side > 1 and side * side == tokens - extra:
            return f"say how they lie in the image, for instance grid=({side}, {side})"
    return "say how they lie in the image with grid=(rows, columns)"
