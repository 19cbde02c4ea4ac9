"""The op record and the registry. An op is defined in exactly one place: a record in `ir/ops/`, made here.

From the record are derived the interpreter, constant folding, both code generators, Tensor methods, the docs
table and the parametrised tests.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from .dataclass import dataclass, field
from .types import Type

REGISTRY: dict[str, Op] = {}


@dataclass(frozen=True)
class Sample:
    """One instance for generated tests.

    Attributes:
        types: operand types; a test may run it in other float dtypes by replacing f32.
        attrs: attributes.
        domain: open interval that float operands are drawn from, one for all or one per operand.
        make: optional `make(rng, types) -> list[np.ndarray]` where a uniform draw is not enough (indices,
            masks).
        smooth: False where a finite difference at a random point is meaningless.
        regions: for control flow, `regions(types) -> tuple[Graph, ...]`, made for the operand types.
    """

    types: tuple[Type, ...]
    attrs: dict[str, Any] = field(default_factory=dict)
    domain: Any = (-2.0, 2.0)
    make: Callable[..., Any] | None = None
    smooth: bool = True
    regions: Callable[[tuple[Type, ...]], tuple[Any, ...]] | None = None

    def regions_for(self, types: tuple[Type, ...]) -> tuple[Any, ...]:
        """The regions of this instance with operands of `types`."""
        return () if self.regions is None else self.regions(types)


@dataclass(frozen=True)
class Piece:
    """Where an element of a movement op's result comes from: operand `operand` at `index`, where `where`
    holds (None: always). Pieces are tried in order; if none holds, the element is the op's `value` attribute
    (or 0)."""

    operand: int
    index: tuple[Any, ...]
    where: Any = None


def attributes_of(infer: Callable[..., Any]) -> dict[str, Any]:
    """Keyword-only parameters and their defaults (inspect.Parameter.empty: required).

    Read off the code object, ten times as fast as a signature: every import does it for every op.
    """
    given = getattr(infer, "attributes", None)
    if given is not None:
        return given
    code = infer.__code__
    names = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    defaults = infer.__kwdefaults__ or {}
    return {n: defaults.get(n, inspect.Parameter.empty) for n in names}


@dataclass(eq=False)
class Op:
    """One op. Exactly one of `scalar`, `decompose`, `kernel` says what it means.

    Attributes:
        name: the name in the text and on the builder.
        infer: `infer(*operand_types, **attrs) -> Type | tuple[Type, ...]`; raises OpError on bad operands,
            with a message that says what was expected (the caller adds op name, all types and location). Its
            keyword parameters are the op's attributes and their defaults.
        scalar: elementwise meaning `scalar(s, *elements, **attrs) -> element` over a scalar builder
            (ir/scalar.py). Operands broadcast; all have the dtype `infer` accepts.
        decompose: `decompose(b, *values, **attrs) -> Value | tuple[Value, ...]`: the same in simpler ops.
        kernel: for structured ops the scheduler knows, the class it schedules them as: `movement`, `reduce`,
            `contract`, `gather`, `scatter`, `scan`, `sort`, `window`, `source`, `random`, `control`.
        numpy: for kernel ops, the interpreter's meaning `numpy(*arrays, **attrs) -> array | tuple`.
        pull: for movement and gather ops, `pull(index, in_types, out_type, read, **attrs) -> list[Piece]`:
            where the result's element at `index` (a tuple of i64 expressions, ir/expr.py) comes from.
            `read(k, index)` is the element of operand k, for indices that are data.
        combine: for reductions and scans, the primitive that combines two elements (`add`, `maximum`, ...).
        grad: symbolic VJP `grad(b, n, *grads_of_results) -> tuple`, one entry per operand: a Value, None (no
            gradient) or a thunk called only if that gradient is needed. `n` is a GradNode (ir/grad.py).
            Entries may be unreduced over broadcast dimensions; the driver un-broadcasts and casts. None:
            differentiate the decomposition.
        samples: instances for generated tests.
        grad_name: PyTorch's `grad_fn` name, or a function of the node that gives it; default derived from
            `name`.
        differentiable: False for ops whose results never carry gradients (comparisons, argmax).
        unview: for view ops, `unview(b, base, new, **attrs) -> Value`: base with the viewed part replaced by
            `new`.
        jvp: forward mode, `jvp(b, n, *tangents) -> tangents of the results`, None being zero. Rarely needed:
            derived from `grad` or the decomposition (ir/forward.py).
        reads: `reads(node) -> (operands, results)` that the gradient rule reads, by number; found by running
            the rule symbolically where it is not given.
        batch: `batch(b, n) -> batched results`, with `n` a BatchNode (ir/batch.py), for ops whose way to run
            on a batch does not follow from their kind.
    """

    name: str
    infer: Callable[..., Any]
    scalar: Callable[..., Any] | None = None
    decompose: Callable[..., Any] | None = None
    kernel: str | None = None
    numpy: Callable[..., Any] | None = None
    pull: Callable[..., list[Piece]] | None = None
    combine: str = ""
    grad: Callable[..., tuple[Any, ...]] | None = None
    samples: Callable[[], Iterable[Sample]] = tuple
    grad_name: str | Callable[[Any], str] = ""
    differentiable: bool = True
    unview: Callable[..., Any] | None = None
    jvp: Callable[..., Any] | None = None
    batch: Callable[..., Any] | None = None
    reads: Callable[[Any], tuple[tuple[int, ...], tuple[int, ...]]] | None = None
    doc: str = ""
    #: attribute names and defaults, derived from `infer`'s keyword-only parameters (inspect.Parameter.empty:
    #: required)
    attr_defaults: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        meanings = [m for m in (self.scalar, self.decompose, self.kernel) if m is not None]
        if len(meanings) != 1:
            raise ValueError(f"op {self.name} must have exactly one of scalar, decompose, kernel")
        if not self.grad_name:
            self.grad_name = "".join(p.capitalize() for p in self.name.split("_")) + "Backward0"
        self.attr_defaults = attributes_of(self.infer)

    def infer_types(
        self, types: tuple[Type, ...], attrs: dict[str, Any], regions: tuple[Any, ...] = ()
    ) -> tuple[Type, ...]:
        """Result types, always as a tuple. An op with regions takes them as the parameter `regions`."""
        if "regions" in self.attr_defaults:
            attrs = {**attrs, "regions": regions}
        out = self.infer(*types, **attrs)
        return out if isinstance(out, tuple) else (out,)

    def grad_fn_name(self, node: Any) -> str:
        """PyTorch's `grad_fn` name for the result of `node`."""
        return self.grad_name if isinstance(self.grad_name, str) else self.grad_name(node)

    @property
    def usage(self) -> str:
        """The op's call as text, `sum(x, *, axes, keepdim=False)`, for messages."""
        described_by = getattr(
            self.infer, "described_by", None
        )  # a lambda whose first parameter is the builder
        params = list(inspect.signature(described_by or self.infer).parameters.values())
        params = params[1:] if described_by is not None else params
        return f"{self.name}{inspect.Signature([p.replace(annotation=p.empty) for p in params])}"

    def __repr__(self) -> str:
        return f"<op {self.name}>"


def register(op: Op) -> Op:
    """Adds a record to the registry; a second op of that name is an error."""
    if op.name in REGISTRY:
        raise ValueError(f"op {op.name} is defined twice")
    REGISTRY[op.name] = op
    return op


def lookup(name: str) -> Op:
    return REGISTRY[name]
