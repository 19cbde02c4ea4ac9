"""`grad`, `vjp`, `jvp` and `linearize`: derivatives of functions. Each call records the function into a level
(tracer/level.py), adds the derivative there, and emits both into the trace outside."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from ...ir.errors import GradError
from ...ir.forward import push_forward
from ...ir.grad import backward as walk_back
from ...ir.graph import Node
from ..autograd import callbacks_of
from ..callers import user_location
from ..hooks import active
from ..level import Kept, Level
from ..library import ArgumentError, ArgumentTypeError
from ..recording import STATE, LazyTrace
from ..tensor import Tensor, ready
from ..tree import map_tensors
from ..values import TracedValue

Numbers = tuple[int, ...]


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of nested containers, in order."""
    found: list[Tensor] = []
    map_tensors(tree, lambda t: found.append(t))
    return found


def refilled(tree: Any, tensors: Sequence[Any]) -> Any:
    """The same containers with other leaves, in the order of `tensors_of`."""
    rest = iter(tensors)
    return map_tensors(tree, lambda t: next(rest))


def begin(*trees: Any, derives: bool = True) -> None:
    """Called before a level of ordinary code: a loop over transformed functions has no `backward()` that
    would end its programs, so each derivative begins one."""
    trace = STATE.trace
    if isinstance(trace, LazyTrace):
        if trace.overlong or (derives and (trace.transformed or trace.walked_back)):
            trace.flush()
        elif trace.walked_back:
            ready(trace, *tensors_of(trees))
        trace.transformed = trace.transformed or derives


def argument_numbers(name: str, argnums: Any, count: int) -> Numbers:
    """`argnums` as positions >= 0 among `count` positional arguments.

    Raises ArgumentTypeError and ArgumentError.
    """
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int) for n in numbers):
        raise ArgumentTypeError(f"{name}(): argnums must be an int or a tuple of ints, got {argnums!r}")
    for n in numbers:
        if not -count <= n < count:
            raise ArgumentError(
                f"{name}(): argnums={argnums!r} at {user_location()}: the function is called with {count} "
                f"positional arguments; give a position below {count}"
            )
    out = tuple(n % count for n in numbers)
    if len(set(out)) != len(out):
        raise ArgumentError(f"{name}(): argnums={argnums!r} names an argument twice")
    return out


def differentiated(level: Level, name: str, tree: Any, what: str) -> tuple[Any, list[TracedValue]]:
    """Stand-ins that gradients flow to for the tensors of `tree`, and their values."""
    values: list[TracedValue] = []

    def stand_in(t: Tensor) -> Tensor:
        if t.dtype.kind != "f":
            raise GradError(
                f"{name}() at {user_location()}: {what} has a tensor of type {t._value().type}; "
                f"derivatives are "
                f"with respect to floating-point tensors: convert it with .float(), or leave it out"
            )
        fresh = level.stand_in(t, True)
        values.append(fresh._storage.value)
        return fresh

    made = map_tensors(tree, stand_in)
    if not values:
        raise ArgumentTypeError(
            f"{name}() at {user_location()}: {what} is {type(tree).__name__} {tree!r:.60} without a tensor "
            f"in "
            f"it; pass tensors"
        )
    return made, values


def with_aux(name: str, made: Any, has_aux: bool) -> tuple[Any, Any]:
    """What a function gave, as (output, aux)."""
    if not has_aux:
        return made, None
    if not (isinstance(made, tuple) and len(made) == 2):
        raise ArgumentTypeError(
            f"{name}(): with has_aux=True the function must return a pair (output, aux), got "
            f"{type(made).__name__}"
        )
    return made


def output_tensors(name: str, tree: Any) -> list[Tensor]:
    """The tensors that a function gave, which must give nothing else."""
    found: list[Tensor] = []

    def visit(x: Any) -> None:
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, (tuple, list)):
            for y in x:
                visit(y)
        elif isinstance(x, dict):
            for y in x.values():
                visit(y)
        else:
            raise ArgumentTypeError(
                f"{name}() at {user_location()}: the function must return tensors, in tuples, lists or "
                f"dicts, "
                f"got {type(x).__name__}: {x!r:.60}; pass what else it returns through has_aux=True"
            )

    visit(tree)
    if not found:
        raise ArgumentTypeError(f"{name}() at {user_location()}: the function returned no tensor")
    return found


def zeros_like(trace: Any, v: TracedValue) -> TracedValue:
    """Zeros of a value's type."""
    zero = trace.literal(0, v.type.dtype)
    return trace.expand(zero, shape=v.type.shape) if v.type.shape else zero


def gradients(
    level: Level, outputs: Sequence[TracedValue], seeds: Sequence[TracedValue], wrt: Sequence[TracedValue]
) -> list[TracedValue | None]:
    """Records the gradients of the outputs times seeds into the level; None: zero."""
    given: dict[Any, Any] = {}
    with level.at(level.loc, "backward"):
        for v, s in zip(outputs, seeds):
            if v.type.dtype.kind == "f" and v.requires_grad:
                given[v] = level.add(given[v], s) if v in given else s
        if not given:
            return [None] * len(wrt)

        def stop(v: Any) -> bool:
            return v.trace is not level or v.leaf is not None or not v.requires_grad

        calls = callbacks_of(level, True, ()).arguments() if active() else {}
        found: dict[Any, Any] = walk_back(level, given, wrt, stop=stop, **calls)
    return [found.get(v) for v in wrt]


class Linear:
    """The part of a level's program that depends on values which are given later, possibly often.

    What else it reads is computed now, and kept.
    """

    def __init__(
        self, level: Level, given: Sequence[TracedValue], outputs: Sequence[TracedValue | None]
    ) -> None:
        self.given = given
        self.outputs = outputs
        depends: set[Any] = set(given)
        part: list[Node] = []
        for node in level.nodes:
            if any(v in depends for v in node.operands):
                depends.update(node.results)
                part.append(node)
        wanted: set[Any] = {v for v in outputs if v is not None}
        self.nodes: list[Node] = []
        for node in reversed(part):
            if any(r in wanted for r in node.results):
                self.nodes.append(node)
                wanted.update(node.operands)
        self.nodes.reverse()
        read = [v for v in wanted if v not in depends]
        order: list[Any] = [v for n in self.nodes for v in n.operands if v in wanted and v not in depends]
        order += [v for v in outputs if v is not None and v not in depends]
        assert set(order) == set(read)
        unique = list(dict.fromkeys(order))
        self.kept = {v: Kept(level.parent, low) for v, low in zip(unique, level.lower(unique))}

    def __call__(self, values: Sequence[TracedValue]) -> list[TracedValue]:
        """The outputs (zeros for None), recorded into the current trace."""
        trace = STATE.trace
        env: dict[Any, Any] = {v: kept.value for v, kept in self.kept.items()}
        env.update(zip(self.given, values))
        for node in self.nodes:
            with trace.at(node.loc, node.phase):
                made = trace.emit(node.op, tuple([env[v] for v in node.operands]), node.attrs, node.regions)
            env.update(zip(node.results, made if isinstance(made, tuple) else (made,)))
        return [None if v is None else env[v] for v in self.outputs]  # type: ignore[misc]


def fresh_tensor(value: TracedValue) -> Tensor:
    """A value of the current trace as a tensor."""
    trace = STATE.trace
    if value.storage is not None or value.trace is not trace:
        value = trace.alias(value)
    return Tensor(value)


def grad_and_value(
    func: Callable[..., Any], argnums: int | Numbers = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """A function that gives `(gradient, value)` of a function whose value is one number.

    Args:
        func: takes tensors, in any containers; returns a tensor of one element without dimensions, or with
            `has_aux` a pair of that and anything else.
        argnums: which positional arguments the gradient is with respect to. For a tuple it is a tuple.
        has_aux: the value is then `(value, aux)`.

    Raises:
        GradError: an argument is not of floating point, or the value has dimensions.
    """
    return _grad_and_value("grad_and_value", func, argnums, has_aux)


def _grad_and_value(name: str, func: Any, argnums: Any, has_aux: bool) -> Callable[..., Any]:
    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        numbers = argument_numbers(name, argnums, len(args))
        begin(args, kwargs)
        with Level(name, grad=True) as level:
            given = list(args)
            wrt: list[TracedValue] = []
            for n in numbers:
                given[n], values = differentiated(level, name, args[n], f"argument {n}")
                wrt += values
            output, aux = with_aux(name, func(*given, **kwargs), has_aux)
            _check_scalar(name, output)
            value = output._value()
            one = level.literal(1.0, value.type.dtype)
            found = gradients(level, [value], [one], wrt)
            grads = [zeros_like(level, v) if g is None else g for v, g in zip(wrt, found)]
            take = level.taking((output, aux))
        made = [level.tensor(v) for v in level.lower(grads)]
        value_out, aux_out = take()
        level.finish()
        trees = refilled(tuple(args[n] for n in numbers), made)
        result = trees if isinstance(argnums, tuple) else trees[0]
        return result, (value_out, aux_out) if has_aux else value_out

    return wrapper


def _check_scalar(name: str, output: Any) -> None:
    where = f"{name}() at {user_location()}"
    if not isinstance(output, Tensor):
        raise ArgumentTypeError(
            f"{where}: the function must return a tensor, got {type(output).__name__}; with has_aux=True it "
            f"may return (value, aux)"
        )
    if output.dim():
        raise GradError(
            f"{where}: the function returned a tensor of type {output._value().type}, a gradient is of one "
            f"number; reduce it with .sum() or .mean(), or use vjp or jacrev"
        )
    if output.dtype.kind != "f":
        raise GradError(f"{where}: the function returned {output._value().type}, which has no gradient")


def grad(func: Callable[..., Any], argnums: int | Numbers = 0, has_aux: bool = False) -> Callable[..., Any]:
    """A function that gives the gradient of `func`, with respect to the positional arguments `argnums`; with
    `has_aux`, `(gradient, aux)`. See `grad_and_value`."""
    both = _grad_and_value("grad", func, argnums, has_aux)

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        gradient, value = both(*args, **kwargs)
        return (gradient, value[1]) if has_aux else gradient

    return wrapper


def vjp(func: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """The outputs of `func(*primals)`, and the function that takes vectors back through its Jacobian.

    Returns:
        `(outputs, vjp_fn)`, or `(outputs, vjp_fn, aux)`. `vjp_fn(cotangents)` takes what the outputs are, and
        gives a tuple with one entry per primal. It can be called any number of times.
    """
    begin(primals)
    with Level("vjp", grad=True) as level:
        stand_ins, wrt = differentiated(level, "vjp", primals, "the primals")
        output, aux = with_aux("vjp", func(*stand_ins), has_aux)
        tensors = output_tensors("vjp", output)
        values = [t._value() for t in tensors]
        cotangents = [level.input(v.type, True) for v in values]
        linear_in = gradients(level, values, cotangents, wrt)
        take = level.taking((output, aux))
    linear = Linear(level, cotangents, linear_in)
    output_out, aux_out = take()
    level.finish()
    types = [v.type for v in values]
    zeros = [v.type for v in wrt]

    def vjp_fn(cotangents: Any, retain_graph: bool = True, create_graph: bool | None = None) -> Any:
        """Gradients of <outputs, cotangents> with respect to the primals."""
        given = _like("vjp", "cotangents", cotangents, types)
        trace = STATE.trace
        made = [_zeros_of(trace, t) if v is None else v for v, t in zip(linear(given), zeros)]
        return refilled(primals, [fresh_tensor(v) for v in made])

    return (output_out, vjp_fn, aux_out) if has_aux else (output_out, vjp_fn)


def _zeros_of(trace: Any, t: Any) -> TracedValue:
    zero = trace.literal(0.0, t.dtype)
    return trace.expand(zero, shape=t.shape) if t.shape else zero


def _like(name: str, what: str, tree: Any, types: Sequence[Any]) -> list[TracedValue]:
    """The values of tensors that must be of given types, up to the element type."""
    found = tensors_of(tree)
    trace: Any = STATE.trace
    if len(found) != len(types):
        raise ArgumentError(
            f"{name}() at {user_location()}: expected {what} with {len(types)} tensors, in the containers of "
            f"what they belong to, got {len(found)}"
        )
    out = []
    for k, (t, want) in enumerate(zip(found, types)):
        v = t._value()
        if v.type.shape != want.shape:
            raise ArgumentError(
                f"{name}() at {user_location()}: tensor {k} of the {what} has type {v.type}, expected {want}"
            )
        out.append(trace.cast_to(v, want.dtype))
    return out


def _primals(name: str, primals: Any) -> None:
    if not isinstance(primals, tuple) or not primals:
        raise ArgumentTypeError(
            f"{name}(): the primals must be a tuple with one entry per argument, got {type(primals).__name__}"
        )


def jvp(
    func: Callable[..., Any], primals: Any, tangents: Any, *, strict: bool = False, has_aux: bool = False
) -> Any:
    """The outputs of `func(*primals)`, and how they change along `tangents` (forward mode).

    Args:
        primals: a tuple of arguments, tensors in any containers.
        tangents: the same containers with tensors of the same shapes.
        strict: an output that does not depend on the primals is an error instead of a zero tangent.

    Returns:
        `(outputs, tangents of the outputs)`, with `has_aux` also aux.
    """
    _primals("jvp", primals)
    begin(primals, tangents)
    with Level("jvp") as level:
        stand_ins, starts = _moving(level, "jvp", primals)
        moves = _like("jvp", "tangents", tangents, [v.type for v in starts])
        output, aux = with_aux("jvp", func(*stand_ins), has_aux)
        values = [t._value() for t in output_tensors("jvp", output)]
        given: dict[Any, Any] = dict(zip(starts, moves))
        found: list[Any] = push_forward(level, level.nodes, values, given)
        if strict and None in found:
            raise GradError(
                f"jvp() at {user_location()}: output {found.index(None)} of the function does not depend on "
                f"the primals, which strict=True does not allow"
            )
        take = level.taking((output, aux))
        moved = [zeros_like(level, v) if t is None else t for v, t in zip(values, found)]
    tangents_out = refilled(output, [level.tensor(v) for v in level.lower(moved)])
    output_out, aux_out = take()
    level.finish()
    return (output_out, tangents_out, aux_out) if has_aux else (output_out, tangents_out)


def linearize(func: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
    """`(func(*primals), jvp_fn)`: `jvp_fn(*tangents)` gives the tangents of the outputs, without running the
    function again."""
    output, jvp_fn, _ = linearized("linearize", func, primals, False)
    return output, jvp_fn


def linearized(name: str, func: Any, primals: tuple[Any, ...], has_aux: bool) -> tuple[Any, Any, Any]:
    """(outputs, jvp_fn, aux)."""
    begin(primals)
    with Level(name) as level:
        stand_ins, starts = _moving(level, name, primals)
        output, aux = with_aux(name, func(*stand_ins), has_aux)
        values = [t._value() for t in output_tensors(name, output)]
        moves = [level.input(v.type, True) for v in starts]
        given: dict[Any, Any] = dict(zip(starts, moves))
        found: Any = push_forward(level, level.nodes, values, given)
        take = level.taking((output, aux))
    linear = Linear(level, moves, found)
    output_out, aux_out = take()
    level.finish()
    types, zeros = [v.type for v in starts], [v.type for v in values]

    def jvp_fn(*tangents: Any) -> Any:
        """The tangents of the outputs."""
        made = linear(_like(name, "tangents", tangents, types))
        trace = STATE.trace
        filled = [_zeros_of(trace, t) if v is None else v for v, t in zip(made, zeros)]
        return refilled(output, [fresh_tensor(v) for v in filled])

    return output_out, jvp_fn, aux_out


def _moving(level: Level, name: str, primals: Any) -> tuple[Any, list[TracedValue]]:
    """Stand-ins for primals that have tangents."""
    values: list[TracedValue] = []

    def stand_in(t: Tensor) -> Tensor:
        if t.dtype.kind != "f":
            raise GradError(
                f"{name}() at {user_location()}: a primal has type {t._value().type}; tangents are of "
                f"floating-point tensors: convert it with .float(), or leave it out"
            )
        fresh = level.stand_in(t)
        values.append(fresh._storage.value)
        return fresh

    made = map_tensors(primals, stand_in)
    if not values:
        raise ArgumentTypeError(f"{name}() at {user_location()}: the primals hold no tensor")
    return made, values
