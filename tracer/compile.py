"""`tracegrad.compile` and `tracegrad.trace`: Python functions as native programs.

A compiled function is traced once per signature of its arguments. Tensors it touches that are not arguments
are state, read and written in place at each call; hyper-parameters of optimisers are read at each call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ..ir.collector import collector_paused
from ..ir.errors import TraceError, TracegradError
from ..ir.graph import Graph
from ..runtime.executable import Lowered
from .callers import warn
from .compile_trace import Consumed, Output, trace_function
from .direct import MISSED, Direct
from .functions.shaping import cat
from .placed_program import PlacedSpecialization
from .recording import STATE, LazyTrace
from .specialization import Specialization, current_contents, fill
from .tensor import EPOCH, Tensor
from .tree import flatten, map_tensors, numbers_as_tensors
from .values import TracedValue

_MAX_SPECIALIZATIONS = 64
_OWN = frozenset(("fn", "name", "keep_grads", "specializations", "_direct", "_floats"))
_NOTHING = np.zeros(1, np.uint8)
_MANY = 8  # programs for the same arguments; then the user should know


def _sharing(tensors: list[Tensor]) -> tuple[int, ...]:
    """Which arguments are the same tensor, or see the same memory, as an earlier one; empty if none."""
    first: dict[int, int] = {}
    seen = [first.setdefault(id(t._storage), i) for i, t in enumerate(tensors)]
    if len(first) == len(tensors):
        return ()
    same: dict[int, int] = {}
    return (*seen, *(same.setdefault(id(t), i) for i, t in enumerate(tensors)))


def _extent(t: Tensor) -> np.ndarray:
    """Which elements of its storage a tensor sees: a view of a byte for each, at no address that is used."""
    shape, strides, offset = t._layout()
    nothing = np.lib.stride_tricks.as_strided(_NOTHING, (1 << 40,), (1,))
    return np.lib.stride_tricks.as_strided(nothing[offset:], shape, strides)


def _no_overlap(name: str, tensors: list[Tensor], written: set[int]) -> None:
    for i in written:
        for k, t in enumerate(tensors):
            if t is tensors[i] or t._storage is not tensors[i]._storage:
                continue
            if np.shares_memory(_extent(t), _extent(tensors[i])):
                raise TraceError(
                    f"{name!r} writes in place to tensor argument {i}, of type {tensors[i]._value().type}, "
                    f"and tensor argument {k} sees the same memory; pass one of them, and take the other as "
                    f"a view of it inside"
                )


def _shown(tensors: list[Tensor]) -> str:
    shown = ", ".join([str(t._value().type) for t in tensors[:4]]) or "no tensors"
    return shown + (", ..." if len(tensors) > 4 else "")


class CompiledFunction:
    """A function that `compile` wrapped. Call it like the function."""

    def __init__(self, fn: Callable[..., Any], name: str | None, keep_grads: bool) -> None:
        functools.update_wrapper(self, fn, updated=("__dict__",) if hasattr(fn, "__code__") else ())
        self.fn = fn
        self.name = name or getattr(fn, "__name__", type(fn).__name__)
        self.keep_grads = keep_grads
        self.specializations: dict[Any, list[Specialization]] = {}
        self._direct: Direct | None = None
        self._floats: dict[Any, Any] | None = {}  # by what else was passed, floats; None: never scalars

    def _scalars(self, args: Any, kwargs: Any) -> Any:
        """The arguments with floats as runtime scalars, if they were seen to change; else None. A function
        whose Python needs their values is traced for each of them."""
        found: list[Tensor] = []
        new = numbers_as_tensors((args, kwargs), found)
        if not found or self._floats is None:
            return None
        given = tuple([n._array().tobytes() for n in found])
        first = self._floats.setdefault(flatten(new, []), given)
        return new if first != given else None

    def _find(self, args: Any, kwargs: Any) -> tuple[Specialization, list[Tensor]]:
        lazy = STATE.lazy
        if lazy.record:
            lazy.flush()
        tensors: list[Tensor] = []
        if args or kwargs:
            shape = (flatten(args, tensors), flatten(kwargs, tensors) if kwargs else None)
            values = [t._value() for t in tensors]
            key: Any = (lazy.grad_enabled, shape, tuple([(v.type, v.requires_grad) for v in values]))
        else:
            key = lazy.grad_enabled
        shared = _sharing(tensors) if len(tensors) > 1 else ()
        if shared:
            key = (key, shared)
        found = self.specializations.get(key)
        if found is not None:
            for spec in found:
                if spec.valid(tensors):
                    if shared and spec.written_args:
                        _no_overlap(self.name, tensors, spec.written_args)
                    return spec, tensors
        else:
            if self._floats is not None and (new := self._scalars(args, kwargs)) is not None:
                try:
                    return self._find(*new)
                except (TracegradError, TypeError, ValueError, AttributeError):
                    self._floats = None  # Python needs the values, or has an error of its own to show
            found = self.specializations[key] = []
        if len(found) >= _MAX_SPECIALIZATIONS:
            raise TraceError(
                f"{self.name!r} was compiled {len(found)} times for the same arguments because what it "
                f"reads from Python keeps changing (last: {found[-1].why}); pass what changes as an "
                f"argument: floats and tensors among those don't make new programs"
            )
        if len(found) == _MANY:
            warn(
                f"{self.name!r} is compiled for the {len(found) + 1}th time for the same arguments, because "
                f"of what it reads from Python (last: {found[-1].why}); pass what changes as an argument: "
                f"floats and tensors among those don't make new programs"
            )
        if not found and len(self.specializations) == 4 * _MANY:
            warn(
                f"{self.name!r} is compiled for {len(self.specializations)} different kinds of arguments "
                f"(last: {_shown(tensors)}), and once more for each new one; pad to a few lengths, or pass "
                f"Python numbers that differ from call to call as floats or tensors"
            )
        epoch = EPOCH[0]
        with collector_paused():
            traced = trace_function(self.fn, args, kwargs, self.name, self.keep_grads, lazy.grad_enabled)
        made = Specialization if traced.device is None else PlacedSpecialization
        spec = made(traced, epoch, lazy.grad_enabled)
        if shared and spec.written_args:
            _no_overlap(self.name, tensors, spec.written_args)
        found.append(spec)
        return spec, tensors

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        trace = STATE.trace
        direct = self._direct
        if direct is not None and trace.__class__ is LazyTrace and not kwargs:
            out = direct(trace, args)  # type: ignore[arg-type]
            if out is not MISSED:
                return out
        if trace is not STATE.lazy:  # inside another compiled function: part of its trace
            return self.fn(*args, **kwargs)
        spec, tensors = self._find(args, kwargs)
        if not kwargs:
            self._direct = spec.direct(args)
        return spec.call(tensors)

    def repeat(self, n: int, *args: Any, **kwargs: Any) -> Any:
        """Runs n calls natively, without Python between them; outputs come stacked along a new first
        dimension.

        Hyper-parameters are read once, at the start. Arguments are the same for every run.
        """
        if n < 1:
            raise TraceError(f"repeat(n) runs the function n >= 1 times, got n={n}")
        parts = []
        while n:
            spec, tensors = self._find(args, kwargs)
            k = n if spec.stable() else 1  # e.g. .grad is None only before the first call
            parts.append(self._run_repeated(spec, tensors, k))
            n -= k
        leaves: list[list[Tensor]] = [[] for _ in parts]
        for part, found in zip(parts, leaves):
            flatten(part, found)
        # Tensors of the state that the function returns are the same in all parts; they are not stacked.
        joined = iter([row[0] if all(t is row[0] for t in row) else cat(row) for row in zip(*leaves)])
        return map_tensors(parts[-1], lambda t: next(joined))

    def _run_repeated(self, spec: Specialization, tensors: list[Tensor], n: int) -> Any:
        buffers, last = spec.call_repeated(tensors, n)
        made = [Tensor(TracedValue(b.type, None, 0, None, b)) for b in buffers]
        for owner, grad in spec.traced.grads:
            t = tensors[owner] if isinstance(owner, int) else owner
            new = made[grad.index][last[grad.index]].clone() if isinstance(grad, Output) else grad
            t._grad = new
        for a in spec.traced.assigned:
            a.set(fill(a.new, [m[row].clone() for m, row in zip(made, last)]))
        return fill(spec.traced.result, made)

    def lower(self, *args: Any, backend: str = "llvm", **kwargs: Any) -> Lowered:
        """The stages of this function for these arguments, without running it."""
        if backend not in ("llvm", "cuda"):
            raise TraceError(f"no backend {backend!r}; there are 'llvm' and 'cuda'")
        lowered = self._find(args, kwargs)[0].lowered
        return lowered if backend == "llvm" else lowered.cuda

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __getattr__(self, name: str) -> Any:
        return getattr(
            self.__dict__["fn"], name
        )  # a compiled module still has parameters(), state_dict(), ...

    def __setattr__(self, name: str, value: Any) -> None:
        fn = self.__dict__.get("fn")
        if name in _OWN or not hasattr(fn, "_parameters"):
            object.__setattr__(self, name, value)
        else:
            setattr(fn, name, value)  # an attribute of the module

    def __repr__(self) -> str:
        n = sum(len(s) for s in self.specializations.values())
        return f"<compiled {self.name}, {n} specialization{'s' * (n != 1)}>"


def compile(
    fn: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    keep_grads: bool = False,
    fullgraph: bool = True,
    dynamic: bool | None = None,
    backend: Any = None,
    mode: str | None = None,
    options: dict[str, Any] | None = None,
    disable: bool = False,
) -> Any:
    """Compiles a function (a decorator, with or without arguments).

    Args:
        fn: any function of tensors, nested containers of them and hashable Python values. It may read and
            write tensors that are not arguments, call `backward()` and `optimizer.step()`.
        name: the program's name in dumps; the function's by default.
        keep_grads: also keep `.grad` of parameters that the function itself updates and whose gradients it
            resets before use (otherwise those gradients exist only inside the native code).
        fullgraph, dynamic, backend, mode, options: PyTorch's, taken and not looked at: a function is always
            one program, one for each signature.
        disable: give the function as it is.
    """
    if fn is None:
        return functools.partial(compile, name=name, keep_grads=keep_grads, disable=disable)
    if disable:
        return fn
    from_module = getattr(fn, "forward", None)
    if not callable(fn):
        raise TraceError(f"compile() takes a function or a module, got {type(fn).__name__}")
    return CompiledFunction(fn, name or (type(fn).__name__ if from_module is not None else None), keep_grads)


def trace(fn: Callable[..., Any]) -> Callable[..., Graph]:
    """`trace(fn)(*args)` gives the graph of one call, as traced; nothing runs."""

    @functools.wraps(fn)
    def traced(*args: Any, **kwargs: Any) -> Graph:
        name = getattr(fn, "__name__", type(fn).__name__)
        return trace_function(fn, args, kwargs, name, True, STATE.lazy.grad_enabled).graph

    return traced


__all__ = ["CompiledFunction", "Consumed", "Specialization", "compile", "current_contents", "trace"]
