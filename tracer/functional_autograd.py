"""`tracegrad.autograd.functional`: PyTorch's older names for derivatives of functions, on top of
tracer/func."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..ir.errors import GradError
from .arguments import check_names
from .func import hessian as _hessian
from .func import jacfwd, jacrev
from .func import jvp as _jvp
from .func import vjp as _vjp
from .library import ArgumentError
from .tensor import Tensor

__all__ = ["hessian", "hvp", "jacobian", "jvp", "vhp", "vjp"]


def _tuple(x: Any) -> tuple[Any, ...]:
    return tuple(x) if isinstance(x, (tuple, list)) else (x,)


def _like(x: Any, tree: Any) -> Any:
    """A tuple as the single tensor it came from was given."""
    return tree if isinstance(x, (tuple, list)) else tree[0]


def _released(tree: Any, create_graph: bool) -> Any:
    if create_graph:
        return tree
    if isinstance(tree, Tensor):
        return tree.detach()
    return tuple(_released(t, False) for t in tree)


def _scalar(name: str, out: Any) -> Any:
    if not isinstance(out, Tensor) or out.numel() != 1:
        raise GradError(f"{name}(): the function must return one tensor of one element")
    return out.reshape(())


def _vector(name: str, v: Any, like: tuple[Any, ...], what: str) -> tuple[Any, ...]:
    if v is None:
        if len(like) == 1 and like[0].numel() == 1:
            one = like[0].detach().clone()
            return (one.fill_(1.0),)
        raise ArgumentError(f"{name}(): v can be None only where the {what} is one tensor of one element")
    given = _tuple(v)
    for a, b in zip(given, like):
        if tuple(a.shape) != tuple(b.shape):
            raise ArgumentError(f"{name}(): v has shape {list(a.shape)}, the {what} {list(b.shape)}")
    if len(given) != len(like):
        raise ArgumentError(f"{name}(): v has {len(given)} tensors, the {what} {len(like)}")
    return given


def jacobian(
    func: Callable[..., Any],
    inputs: Any,
    create_graph: bool = False,
    strict: bool = False,
    vectorize: bool = False,
    strategy: str = "reverse-mode",
) -> Any:
    """The Jacobian of `func` at `inputs`: a tensor `[*output, *input]`, a tuple of them for several inputs or
    outputs, a tuple of tuples for both (outputs outside)."""
    if strategy not in ("reverse-mode", "forward-mode"):
        raise ArgumentError(f"jacobian(): strategy must be reverse-mode or forward-mode, got {strategy!r}")
    given = _tuple(inputs)
    transform = jacrev if strategy == "reverse-mode" else jacfwd
    made = transform(func, argnums=tuple(range(len(given))))(*given)
    if isinstance(made[0], tuple):
        return _released(tuple(_like(inputs, row) for row in made), create_graph)
    return _released(_like(inputs, made), create_graph)


def hessian(
    func: Callable[..., Any],
    inputs: Any,
    create_graph: bool = False,
    strict: bool = False,
    vectorize: bool = False,
    outer_jacobian_strategy: str = "reverse-mode",
) -> Any:
    """The second derivatives of a function of one value: `[*input, *input]`, a tuple of tuples for several
    inputs."""
    given = _tuple(inputs)
    made = _hessian(lambda *xs: _scalar("hessian", func(*xs)), argnums=tuple(range(len(given))))(*given)
    return _released(_like(inputs, tuple(_like(inputs, row) for row in made)), create_graph)


def vjp(
    func: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False
) -> Any:
    """(outputs, v times the Jacobian)."""
    out, back = _vjp(func, *_tuple(inputs))
    given = _vector("vjp", v, _tuple(out), "output")
    return _released(out, create_graph), _released(_like(inputs, back(_like(out, given))), create_graph)


def jvp(
    func: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False
) -> Any:
    """(outputs, the Jacobian times v)."""
    given = _tuple(inputs)
    out, moved = _jvp(func, given, _vector("jvp", v, given, "input"), strict=strict)
    return _released(out, create_graph), _released(moved, create_graph)


def _gradient(name: str, func: Callable[..., Any], count: int) -> Callable[..., Any]:
    """(gradients, value) of a function of one value."""

    def both(*xs: Any) -> Any:
        value, back = _vjp(lambda *ys: _scalar(name, func(*ys)), *xs)
        return back(value.new_ones(())), value

    return both


def hvp(
    func: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False
) -> Any:
    """(value, the Hessian times v), forward over reverse."""
    given = _tuple(inputs)
    moves = _vector("hvp", v, given, "input")
    _, moved, value = _jvp(_gradient("hvp", func, len(given)), given, moves, has_aux=True)
    return _released(value, create_graph), _released(_like(inputs, moved), create_graph)


def vhp(
    func: Callable[..., Any], inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False
) -> Any:
    """(value, v times the Hessian): the same, as the Hessian is symmetric."""
    return hvp(func, inputs, v, create_graph, strict)


check_names(globals(), ["jacobian", "hessian", "vjp", "jvp", "hvp", "vhp"])
