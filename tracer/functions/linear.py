"""Products: matmul and its kin, linear, the sums of a matrix and a product, distances. Einsum is in
einsum.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...ir import dtypes
from ...ir.errors import DTypeError, OpError
from ...ir.op import REGISTRY
from ...ir.types import broadcast_shapes, normalize_axis
from ..making import record
from ..operands import tensor_operand, values
from ..recording import STATE
from ..tensor import Tensor, ready
from .elementwise import FUNCTIONS as E
from .shaping import unsqueeze

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def same_dtype(name: str, *tensors: Any) -> tuple[Any, ...]:
    """Operands' values; products don't promote, they raise, as in PyTorch."""
    trace = STATE.trace
    if trace.walked_back:
        ready(trace, *tensors)
    values = []
    for t in tensors:
        if not isinstance(t, Tensor):
            tensor_operand(t, f"{name}(): operand")
        values.append(t._value())
    dtype = values[0].type.dtype
    for v in values:
        if v.type.dtype is not dtype:
            raise DTypeError(
                f"{name}({', '.join(str(v.type) for v in values)}): operands must have one dtype; "
                f"convert with .to(dtype)"
            )
    return tuple(values)


def _product(name: str, other: str) -> None:
    op = REGISTRY["dot" if name == "vdot" else name]

    def fn(input: Tensor, *args: Tensor, **names: Tensor) -> Tensor:
        right = args[0] if len(args) == 1 and not names else names.pop(other, None)
        if right is None or names or len(args) > 1:
            raise TypeError(f"{name}() takes two tensors, (input, {other})")
        return record(STATE.trace, op, same_dtype(name, input, right), {})

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = op.doc or f"{name} of two tensors."
    FUNCTIONS[name] = fn


for _name, _other in (
    ("matmul", "other"), ("mm", "mat2"), ("bmm", "mat2"), ("mv", "vec"), ("dot", "tensor"), ("vdot", "other"),
):  # fmt: skip
    _product(_name, _other)


def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """All products of an element of one vector and one of the other, `[n, m]`."""
    trace, (x, y) = values(tensor_operand(input, "outer(): input"), tensor_operand(vec2, "outer(): vec2"))
    if x.type.dtype.kind == "b":
        return E["mul"](unsqueeze(input, 1), vec2)
    return record(trace, REGISTRY["outer"], (x, y), {})


def inner(input: Tensor, other: Tensor) -> Tensor:
    """Products summed over the last dimension of both: `[..., k]` and `[*, k]` give `[..., *]`."""
    if not input.dim() or not other.dim():
        return E["mul"](input, other)
    return tensordot(input, other, ([-1], [-1]))


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`input @ weight.T + bias`.

    Args:
        input: `[..., in_features]`.
        weight: `[out_features, in_features]`.
        bias: `[out_features]` or None.
    """
    tensors = (input, weight) if bias is None else (input, weight, bias)
    return record(STATE.trace, REGISTRY["linear"], same_dtype("linear", *tensors), {})


def _added(name: str, ranks: tuple[int, int], names: tuple[str, str]) -> None:
    """`beta * input + alpha * (x @ y)` for operands of the given ranks."""
    op = REGISTRY[name]

    def fn(input: Tensor, *args: Any, beta: Any = 1, alpha: Any = 1, **named: Any) -> Tensor:
        x, y = _two(name, names, args, named)
        v = same_dtype(name, input, x, y)
        if (v[1].type.rank, v[2].type.rank) != ranks:
            raise OpError(
                f"{name}({', '.join(str(t.type) for t in v)}): expected {ranks[0]} and {ranks[1]} "
                f"dimensions after the first"
            )
        beta, alpha = _scales(v[0].type.dtype, beta, alpha)
        attrs = {} if beta == 1 and alpha == 1 else {"beta": beta, "alpha": alpha}
        return record(STATE.trace, op, v, attrs)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"`beta * input + alpha * ({names[0]} @ {names[1]})`; with beta 0, input is not looked at."
    FUNCTIONS[name] = fn


def _two(name: str, names: tuple[str, str], args: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
    """The two operands after the first, by position or by name."""
    given = {**dict(zip(names, args)), **named}
    if len(args) > 2 or set(given) != set(names) or len(args) + len(named) != 2:
        raise TypeError(f"{name}() takes (input, {names[0]}, {names[1]}, *, beta=1, alpha=1)")
    return [given[n] for n in names]


def _scales(dtype: Any, beta: Any, alpha: Any) -> tuple[Any, Any]:
    """The scales as numbers of the operands' type: integers are scaled by integers, as in PyTorch."""
    if not (isinstance(beta, (int, float)) and isinstance(alpha, (int, float))):
        raise DTypeError(f"beta and alpha must be numbers, got {beta!r:.40} and {alpha!r:.40}")
    return (beta, alpha) if dtype.kind == "f" else (int(beta), int(alpha))


_added("addmm", (2, 2), ("mat1", "mat2"))
_added("addmv", (2, 1), ("mat", "vec"))
_added("baddbmm", (3, 3), ("batch1", "batch2"))


def _scaled_sum(input: Any, product: Tensor, beta: Any, alpha: Any) -> Tensor:
    """`beta * input + alpha * product`, in the product's shape."""
    if alpha != 1:
        product = E["mul"](product, alpha)
    if beta == 0:
        return product
    return E["add"](input if beta == 1 else E["mul"](input, beta), product)


def addbmm(input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    """`beta * input + alpha * ` the sum over the batch of `batch1 @ batch2`: `[b, n, k]` and `[b, k, m]`."""
    c, *pair = same_dtype("addbmm", input, batch1, batch2)
    beta, alpha = _scales(c.type.dtype, beta, alpha)
    product = record(STATE.trace, REGISTRY["einsum"], tuple(pair), {"spec": "bnk,bkm->nm"})
    return _scaled_sum(_fitting("addbmm", input, product), product, beta, alpha)


def addr(input: Tensor, vec1: Tensor, vec2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    """`beta * input + alpha * outer(vec1, vec2)`."""
    product = outer(vec1, vec2)
    if product.dtype is dtypes.bool_:
        product = product if alpha else E["logical_and"](product, product.new_zeros(()))
        return E["logical_or"](_fitting("addr", input, product), product) if beta else product
    return _scaled_sum(_fitting("addr", input, product), product, beta, alpha)


def _fitting(name: str, input: Tensor, product: Tensor) -> Tensor:
    if broadcast_shapes(tuple(input.shape), tuple(product.shape)) != tuple(product.shape):
        raise OpError(
            f"{name}(): {input._value().type} does not broadcast to the product {product._value().type}"
        )
    return input


def tensordot(a: Tensor, b: Tensor, dims: Any = 2) -> Tensor:
    """Products summed over `dims`: a number n (the last n of `a` with the first n of `b`), or a pair of
    lists."""
    x, y = same_dtype("tensordot", a, b)
    if isinstance(dims, Tensor):
        dims = dims.tolist()
    if isinstance(dims, int):
        if not 0 <= dims <= min(a.dim(), b.dim()):
            raise OpError(f"tensordot(): dims={dims} for operands {x.type} and {y.type}")
        left, right = list(range(a.dim() - dims, a.dim())), list(range(dims))
    else:
        left, right = ([d] if isinstance(d, int) else list(d) for d in dims)
    if len(left) != len(right):
        raise OpError(
            f"tensordot(): as many dimensions of each operand must be summed, got {left} and {right}"
        )
    letters = iter("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    one = [next(letters) for _ in range(a.dim())]
    two = [next(letters) for _ in range(b.dim())]
    for i, j in zip(left, right):
        two[normalize_axis(j, b.dim())] = one[normalize_axis(i, a.dim())]
    out = [c for c in one if c not in two] + [c for c in two if c not in one]
    spec = f"{''.join(one)},{''.join(two)}->{''.join(out)}"
    return record(STATE.trace, REGISTRY["einsum"], (x, y), {"spec": spec})


def kron(input: Tensor, other: Tensor) -> Tensor:
    """The Kronecker product: `other` scaled by each element of `input`, side by side."""
    trace, pair = values(tensor_operand(input, "kron(): input"), tensor_operand(other, "kron(): other"))
    return record(trace, REGISTRY["kron"], tuple(pair), {})


def cross(input: Tensor, other: Tensor, dim: int | None = None) -> Tensor:
    """The cross product of vectors of 3 along `dim` (by default the first dimension of size 3)."""
    trace, pair = values(tensor_operand(input, "cross(): input"), tensor_operand(other, "cross(): other"))
    if dim is None:
        shape = broadcast_shapes(tuple(input.shape), tuple(other.shape))
        if 3 not in shape:
            raise OpError(f"cross(): no dimension of size 3 in {pair[0].type} and {pair[1].type}")
        dim = shape.index(3)
    return record(trace, REGISTRY["cross"], tuple(pair), {"dim": normalize_axis(dim, input.dim())})


def _order(p: Any) -> float:
    return float(p)


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor:
    """The p-norms of all differences between a row of `x1` `[..., P, M]` and one of `x2` `[..., R, M]`."""
    return record(STATE.trace, REGISTRY["cdist"], same_dtype("cdist", x1, x2), {"p": _order(p)})


def pdist(input: Tensor, p: float = 2.0) -> Tensor:
    """The p-norms of the differences of every two rows of a matrix, in the order of the upper triangle."""
    return record(STATE.trace, REGISTRY["pdist"], same_dtype("pdist", input), {"p": _order(p)})


def dist(input: Tensor, other: Tensor, p: float = 2) -> Tensor:
    """The p-norm of `input - other`."""
    gap = E["sub"](input, other)
    attrs = {"p": _order(p), "axes": tuple(range(gap.dim())), "keepdim": False}
    return record(STATE.trace, REGISTRY["norm"], (gap._value(),), attrs)


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """The cosine of the angles between vectors along `dim`; the inputs broadcast."""
    trace, (x, y) = values(x1, x2)
    if x.type.dtype.kind != "f":
        raise DTypeError(f"cosine_similarity(): expected floating-point tensors, got {x.type} and {y.type}")
    return record(trace, REGISTRY["cosine_similarity"], (x, y), {"dim": dim, "eps": eps})


def chain_matmul(*matrices: Tensor) -> Tensor:
    """The product of a chain of matrices, in the order that takes the fewest multiplications."""
    given: Sequence[Tensor] = (
        matrices[0] if len(matrices) == 1 and not isinstance(matrices[0], Tensor) else matrices
    )
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(given) + 1]
    spec = ",".join(letters[k : k + 2] for k in range(len(given))) + f"->{letters[0]}{letters[-1]}"
    return record(STATE.trace, REGISTRY["einsum"], same_dtype("chain_matmul", *given), {"spec": spec})


for _fn in (
    outer, inner, linear, addbmm, addr, tensordot, kron, cross, cdist, pdist, dist, cosine_similarity,
    chain_matmul,
):  # fmt: skip
    FUNCTIONS[_fn.__name__] = _fn
FUNCTIONS["ger"] = outer
