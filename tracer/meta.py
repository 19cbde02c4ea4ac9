"""Small things a tensor shows of itself: its size, its device, its place in the backward graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import index
from typing import TYPE_CHECKING, Any

from ..ir.errors import DTypeError, GradError, TraceError
from ..ir.op import Op
from ..runtime.cuda_driver import why_not
from .hooks import HookHandle, own_hooks
from .values import TracedValue, history

if TYPE_CHECKING:
    from .tensor import Tensor


class Size(tuple):
    """A shape: a tuple of ints that prints and counts as PyTorch's."""

    __slots__ = ()

    def __new__(cls, iterable: Any = ()) -> Size:
        try:
            return tuple.__new__(cls, [n if n.__class__ is int else index(n) for n in iterable])
        except TypeError:
            raise DTypeError(f"Size() takes a sequence of integers, got {iterable!r:.60}") from None

    def numel(self) -> int:
        n = 1
        for d in self:
            n *= d
        return n

    def __add__(self, other: Any) -> Size:
        return Size(tuple.__add__(self, tuple(other)))

    def __radd__(self, other: Any) -> Size:
        return Size((*other, *self)) if isinstance(other, tuple) else NotImplemented

    def __mul__(self, n: Any) -> Size:
        return Size(tuple.__mul__(self, n))

    __rmul__ = __mul__

    def __getitem__(self, i: Any) -> Any:
        got = tuple.__getitem__(self, i)
        return Size(got) if isinstance(i, slice) else got

    def __repr__(self) -> str:
        return f"tracegrad.Size({list(self)})"


class device:
    """Where a tensor lives: `device("cpu")`, `device("cuda")` or `device("cuda:0")`."""

    __slots__ = ("index", "type")

    def __init__(self, type: Any = "cpu", index: int | None = None) -> None:
        if isinstance(type, device):
            type, index = type.type, type.index
        if not isinstance(type, (str, int)):
            raise DTypeError(f"a device is named by a string such as 'cpu', not {type!r:.60}")
        name, colon, number = str(type).partition(":")
        if name not in ("cpu", "cuda") or (colon and not number.isdecimal()):
            raise TraceError(f"unknown device {type!r}; there are 'cpu' and 'cuda'")
        self.type = name
        self.index = int(number) if number else index

    def __eq__(self, other: object) -> bool:
        return isinstance(other, device) and (self.type, self.index) == (other.type, other.index)

    def __hash__(self) -> int:
        return hash((self.type, self.index))

    def __enter__(self) -> device:
        """Tensors made in the `with` block are on this device unless they say otherwise."""
        if self.type != "cpu" and why_not() is not None:
            raise TraceError(unavailable(self))
        _ENTERED.append(DEFAULT[0])
        DEFAULT[0] = self
        return self

    def __exit__(self, *exc: Any) -> None:
        DEFAULT[0] = _ENTERED.pop()

    def __reduce__(self) -> tuple[Any, ...]:
        return (device, (self.type, self.index))

    def __repr__(self) -> str:
        return f"device(type='{self.type}'" + (f", index={self.index})" if self.index is not None else ")")

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"


CPU = device("cpu")
#: where tensors are made that don't say it: of the innermost `with device(...)` block, else None, the CPU
DEFAULT: list[device | None] = [None]
_ENTERED: list[device | None] = []


def unavailable(where: Any) -> str:
    """Why no tensor can be on a device that is not there."""
    return f"device {where!r} is not available here: {why_not()}; tensors live on 'cpu'"
View = tuple[tuple[Op, dict[str, Any]], ...]


class GradFn:
    """What `tensor.grad_fn` shows: a node of the recorded graph under PyTorch's name."""

    __slots__ = ("_value",)

    def __init__(self, value: TracedValue) -> None:
        self._value = value

    def name(self) -> str:
        """PyTorch's name of the backward function, such as `MulBackward0`."""
        if self._value.leaf is not None or self._value.node is None:
            return "AccumulateGrad"
        name: Any = self._value.node.op.grad_name
        return str(name(self._value.node) if callable(name) else name)

    @property
    def next_functions(self) -> tuple[tuple[GradFn | None, int], ...]:
        """The functions of this node's operands (None where no gradient flows), with their output numbers;
        nothing once backward has freed them."""
        if self._value.leaf is not None or self._value.node is None or self._value.freed is True:
            return ()
        operands: list[Any] = [history(v) for v in self._value.node.operands]  # type: ignore[arg-type]
        return tuple(
            (GradFn(v), v.index if v.node is not None else 0) if v.requires_grad else (None, 0)
            for v in operands
        )

    def register_hook(self, hook: Callable[..., Any]) -> HookHandle | _AfterAdding:
        """Calls `hook(grad_inputs, grad_outputs)` when this node's gradients were computed; what it returns
        replaces `grad_inputs`, which go on to the next functions. Of AccumulateGrad: after it has added
        `grad_outputs` to `.grad`."""
        leaf = self.variable
        if leaf is not None:
            return _AfterAdding(leaf, hook)
        return HookHandle(own_hooks(self._first).after, hook)

    def register_prehook(self, hook: Callable[..., Any]) -> HookHandle:
        """Calls `hook(grad_outputs)` before this node's gradients are computed; what it returns replaces
        them."""
        leaf = self.variable
        if leaf is not None:

            def one(g: Any) -> Any:
                made = hook((g,))
                return made[0] if isinstance(made, (tuple, list)) else made

            return leaf.register_hook(one)
        return HookHandle(own_hooks(self._first).before, hook)

    @property
    def _first(self) -> Any:
        node = self._value.node
        if node is None:
            raise GradError("the tensor of this AccumulateGrad is gone, so no hook of it can run any more")
        return node.results[0] if node.results else self._value

    def __getattr__(self, name: str) -> Any:
        """What a custom Function's `forward` left on `ctx`."""
        node = object.__getattribute__(self, "_value").node
        call = node.attrs.get("call") if node is not None else None
        if call is None or name.startswith("__"):
            raise AttributeError(f"{self.name()} has no attribute {name!r}")
        return getattr(call.ctx, name)

    @property
    def variable(self) -> Tensor | None:
        """The leaf that an AccumulateGrad adds to."""
        return self._value.leaf() if self._value.leaf is not None else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GradFn) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)

    def __repr__(self) -> str:
        return f"<{self.name()}>"


class _AfterAdding:
    """A hook of an AccumulateGrad, which sees the gradient that was added."""

    def __init__(self, leaf: Tensor, hook: Callable[..., Any]) -> None:
        came: list[Any] = []
        self._coming = leaf.register_hook(lambda g: came.append(g))
        self._after = leaf.register_post_accumulate_grad_hook(
            lambda t: hook((), (came.pop() if came else t.grad,)) and None
        )

    def remove(self) -> None:
        """Takes the hook off."""
        self._coming.remove()
        self._after.remove()


class Operators:
    """What tracer/methods.py binds to Tensor, for type checkers."""

    __slots__ = ()

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def __setitem__(self, index: Any, value: Any) -> None: ...
        def __iter__(self) -> Iterator[Tensor]: ...
        def __neg__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __eq__(self, other: Any) -> Tensor: ...
        def __ne__(self, other: Any) -> Tensor: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __floordiv__(self, other: Any) -> Tensor: ...
        def __rfloordiv__(self, other: Any) -> Tensor: ...
        def __mod__(self, other: Any) -> Tensor: ...
        def __rmod__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __rpow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __and__(self, other: Any) -> Tensor: ...
        def __or__(self, other: Any) -> Tensor: ...
        def __xor__(self, other: Any) -> Tensor: ...
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...
