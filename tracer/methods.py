"""Binds functions to `Tensor`: methods, operators, in-place variants. Importing this module completes the
class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from ..ir.errors import DTypeError, GradError, OpError
from ..ir.op import REGISTRY
from . import autograd, conversions, random
from .arguments import FOREIGN, check_class, checked, explain, named_as
from .callers import user_location
from .conversions import adopt
from .creation import as_tensor, from_data, legacy
from .environment import strided
from .functions import (
    activation,
    cumulative,
    diagonals,
    einsum,
    elementwise,
    indexing,
    joining,
    linear,
    placing,
    queries,
    reductions,
    shaping,
    sorting,
    statistics,
)
from .making import binary
from .recording import STATE
from .tensor import Tensor

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **elementwise.FUNCTIONS,
    **reductions.FUNCTIONS,
    **shaping.FUNCTIONS,
    **linear.FUNCTIONS,
    **indexing.FUNCTIONS,
    **queries.FUNCTIONS,
    **cumulative.FUNCTIONS,
    **sorting.FUNCTIONS,
    **statistics.FUNCTIONS,
    **joining.FUNCTIONS,
    **diagonals.FUNCTIONS,
    **placing.FUNCTIONS,
    **einsum.FUNCTIONS,
    **activation.FUNCTIONS,
}
_NOT_METHODS = set(
    """cat concat stack where linear is_tensor promote_types can_cast rsub celu selu threshold tril_indices
    triu_indices vander einsum atleast_1d atleast_2d atleast_3d hstack vstack dstack column_stack block_diag
    broadcast_tensors broadcast_shapes meshgrid cartesian_prod combinations row_stack tensordot cdist pdist
    cosine_similarity chain_matmul numel is_floating_point""".split()
)
_NOT_METHODS |= set("searchsorted bucketize var_mean std_mean trapezoid trapz cumulative_trapezoid".split())
_NO_INPLACE = set(
    """where rsub clone isnan isinf isfinite isposinf isneginf maximum minimum fmax fmin logaddexp logaddexp2
    signbit positive frexp""".split()
)
_INPLACE = [n for n in elementwise.FUNCTIONS if n not in _NO_INPLACE]
_INPLACE += ["cumsum", "cumprod", "nan_to_num"]
_INPLACE += """logit tril triu masked_fill scatter scatter_add index_put addmm addmv baddbmm addbmm addr put
index_add index_copy index_fill scatter_reduce index_reduce masked_scatter""".split()


def _numpy_names(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`axis` and `keepdims` as other names of `dim` and `keepdim`, which PyTorch takes for NumPy's sake."""
    code = getattr(fn, "__code__", None)
    if code is None or "dim" not in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        return fn

    def function(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            if "axis" in kwargs:
                kwargs["dim"] = kwargs.pop("axis")
            if "keepdims" in kwargs:
                kwargs["keepdim"] = kwargs.pop("keepdims")
        return fn(*args, **kwargs)

    return named_as(function, fn)


FUNCTIONS.update({_name: _numpy_names(_fn) for _name, _fn in FUNCTIONS.items()})


def inplace(self: Tensor, result: Tensor) -> Tensor:
    """Writes an out-of-place result into `self`: same shape, cast to its dtype where that loses no
    category.
    """
    new: Any = result._value()
    old = self._value().type
    if new.type.shape != old.shape:
        raise OpError(
            f"the result of an in-place op has type {new.type}, which does not fit the tensor's {old}"
        )
    if new.type.dtype is not old.dtype:
        if "biuf".index(new.type.dtype.kind) > max("biuf".index(old.dtype.kind), 0) and not (
            new.type.dtype.kind in "iu" and old.dtype.kind in "iu"
        ):
            raise DTypeError(
                f"the result of type {new.type} can't be written in place into a tensor of {old}"
            )
        new = STATE.trace.emit(REGISTRY["cast"], (new,), {"dtype": old.dtype})
    return self._put(new)


def _make_inplace(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        try:
            return inplace(self, fn(self, *args, **kwargs))
        except FOREIGN as e:
            raise explain(e, f"Tensor.{name}_", fn, (self, *args), kwargs)  # noqa: B904

    method.__name__ = method.__qualname__ = name + "_"
    method.__doc__ = f"In-place `{name}`."
    return method


for _name, _fn in FUNCTIONS.items():
    if _name not in _NOT_METHODS:
        setattr(Tensor, _name, checked(f"Tensor.{_name}", _fn))
for _name in _INPLACE:
    setattr(Tensor, _name + "_", _make_inplace(_name, FUNCTIONS[_name]))


def _iterate(self: Tensor) -> Any:
    if not self.dim():
        raise DTypeError("iteration over a 0-d tensor: it holds one number; use item()")
    return iter(self.unbind(0))


def _numpy_transposed(self: Tensor) -> Tensor:
    return self.permute(*reversed(range(self.dim())))


def _matrix_transposed(self: Tensor) -> Tensor:
    if self.dim() not in (0, 2):
        raise OpError(f"H is of matrices, this is a tensor of type {self._value().type}; of batches, mH")
    return self.transpose(-2, -1) if self.dim() else self


def _split(
    self: Tensor, split_size: Any = None, dim: int = 0, *, split_size_or_sections: Any = None
) -> tuple[Tensor, ...]:
    """Views of pieces of a given size (the last may be smaller) or of given sizes along `dim`."""
    sizes = split_size if split_size is not None else split_size_or_sections
    return FUNCTIONS["split"](self, sizes, dim)


def _apply_(self: Tensor, function: Callable[[Any], Any]) -> Tensor:
    """Writes `function` of each element, called in Python, in its place; slow, and not traced."""
    values = [function(v) for v in FUNCTIONS["reshape"](self, -1).tolist()]
    return conversions.copy_(self, as_tensor(np.asarray(values, self.dtype.numpy).reshape(self.shape)))


def _map_(self: Tensor, tensor: Tensor, function: Callable[[Any, Any], Any]) -> Tensor:
    """`apply_` of two arguments: of this tensor's elements and another's, which broadcasts."""
    other = iter(tensor.expand(self.shape).reshape(-1).tolist())
    return _apply_(self, lambda v: function(v, next(other)))


def _new(self: Tensor, *data: Any) -> Tensor:
    """PyTorch's old way to make a tensor of this one's dtype: of sizes, or of a sequence of data."""
    return legacy(self.dtype, data)


def _view_in_place(name: str) -> Callable[..., Tensor]:
    """An in-place change of shape: the same object sees its storage through one more view."""
    fn = FUNCTIONS[name]

    def method(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._storage.leaf is not None and STATE.trace.grad_enabled:
            raise GradError(f"{name}_() on a leaf tensor that requires grad; do it under no_grad()")
        try:
            adopt(self, fn(self, *args, **kwargs))
        except FOREIGN as e:
            raise explain(e, f"Tensor.{name}_", fn, (self, *args), kwargs)  # noqa: B904
        return self

    method.__name__ = method.__qualname__ = name + "_"
    method.__doc__ = f"In-place `{name}`."
    return method


for _name in "t transpose swapaxes swapdims squeeze unsqueeze".split():
    setattr(Tensor, _name + "_", _view_in_place(_name))


def _is_nonzero(self: Tensor) -> bool:
    """Whether the one element is not zero."""
    if self.numel() != 1:
        raise OpError(f"is_nonzero(): expected one element, got a tensor of type {self._value().type}")
    return bool(self.item())


FUNCTIONS["is_nonzero"] = _is_nonzero


def _output_nr(self: Tensor) -> int:
    return self._value().index


def _dim_order(self: Tensor, ambiguity_check: Any = False) -> tuple[int, ...]:
    """Dimensions from the outermost to the innermost in memory."""
    strides = self.stride()
    return tuple(sorted(range(self.dim()), key=lambda d: -strides[d]))


def _reversed(self: Tensor) -> Tensor:
    return FUNCTIONS["flip"](self, 0) if self.dim() else self


def _no_deletion(self: Tensor, index: Any) -> None:
    raise DTypeError(f"elements of {self._value().type} can't be deleted; index those to keep")


def _itself(self: Tensor, *_: Any, **__: Any) -> Tensor:
    return self


_METHODS: dict[str, Any] = {
    **conversions.METHODS, **random.METHODS,
    "where": lambda self, condition, other: FUNCTIONS["where"](condition, self, other),
    "zero_": lambda self: conversions.fill_(self, 0), "unfold": shaping.unfold,
    "fill_diagonal_": diagonals.fill_diagonal_, "is_nonzero": _is_nonzero,
    "T": property(_numpy_transposed), "mT": property(lambda self: self.transpose(-2, -1)),
    "mH": property(lambda self: self.transpose(-2, -1)), "adjoint": lambda self: self.transpose(-2, -1),
    "H": property(_matrix_transposed), "dim_order": _dim_order,
    "is_same_size": lambda self, other: self.shape == other.shape,
    "split": _split, "apply_": _apply_, "map_": _map_, "new": _new, "output_nr": property(_output_nr),
    "view_as": lambda self, other: self.view(other.shape),
    "reshape_as": lambda self, other: self.reshape(other.shape),
    "resize_as_": lambda self, other: conversions.resize_(self, tuple(other.shape)),
    "__getitem__": indexing.getitem, "__setitem__": indexing.setitem, "__delitem__": _no_deletion,
    "__iter__": _iterate, "__reversed__": _reversed,
    # What has a meaning for complex, sparse, quantised or device tensors, and none here.
    **dict.fromkeys("conj resolve_conj resolve_neg share_memory_ to_dense".split(), _itself),
    **dict.fromkeys("is_conj is_neg is_shared is_inference is_coalesced".split(), lambda _: False),
    "layout": property(lambda self: strided),
    "real": property(_itself),
    **{f"is_{kind}": property(lambda self: False) for kind in
       "sparse sparse_csr quantized meta mps xpu xla nested mkldnn vulkan ipu mtia".split()},
}  # fmt: skip


for _name, _method in _METHODS.items():
    plain = isinstance(_method, property) or _name in ("__iter__", "__reversed__")
    setattr(Tensor, _name, _method if plain else checked(f"Tensor.{_name}", cast(Any, _method)))
Tensor._from_data = staticmethod(checked("Tensor", from_data))


def _backward(
    self: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """Adds the gradients of this tensor (times `gradient`) to `.grad` of the leaves it depends on."""
    if gradient is None and retain_graph is None and not create_graph and inputs is None:
        if autograd.backward_again(self):
            return
    autograd.backward([self], [gradient], retain_graph, create_graph, inputs)


_backward.__name__, _backward.__qualname__ = "backward", "Tensor.backward"
Tensor.backward = _backward
check_class(Tensor, "backward", "register_hook", "requires_grad_", "retain_grad", "size", "stride", "tolist")

_PLAIN = (str, bytes, list, tuple, dict, set, type(None))


#: Operators that are one op on floats, and its name.
_ONE_OP = {n: n for n in ("add", "sub", "mul", "eq", "ne", "lt", "le", "gt", "ge")} | {"truediv": "div"}


def _operator(sign: str, fn: Callable[..., Any], *, reflected: bool = False) -> Callable[..., Any]:
    def op(self: Tensor, other: Any) -> Any:
        if not isinstance(other, (Tensor, int, float)):
            if not hasattr(other, "dtype"):
                if isinstance(other, _PLAIN) and sign not in ("eq", "ne"):
                    raise DTypeError(
                        f"{sign} at {user_location()}: expected a tensor or a number, got "
                        f"{type(other).__name__}: {other!r:.60}, beside a tensor of type "
                        f"{self._value().type}; tracegrad.tensor() makes a tensor of it"
                    )
                return NotImplemented
            if isinstance(other, np.ndarray):
                other = as_tensor(other)
        try:
            return fn(other, self) if reflected else fn(self, other)
        except FOREIGN as e:
            raise explain(e, sign, fn, (other, self) if reflected else (self, other), {})  # noqa: B904

    if sign not in _ONE_OP:
        return op
    one = REGISTRY[_ONE_OP[sign]]

    def quick(self: Tensor, other: Any) -> Any:
        try:
            out = binary(one, self, other)
        except FOREIGN as e:
            raise explain(e, sign, fn, (self, other), {})  # noqa: B904
        return op(self, other) if out is None else out

    def quick_reflected(self: Tensor, other: Any) -> Any:
        out = binary(one, other, self)  # (a number and a tensor always fit)
        return op(self, other) if out is None else out

    return quick_reflected if reflected else quick


def _writing(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: inplace(self, fn(self, other))


_F = FUNCTIONS
_OPERATORS = {
    "add": _F["add"],
    "sub": _F["sub"],
    "mul": _F["mul"],
    "truediv": _F["div"],
    "floordiv": _F["floor_divide"],
    "mod": _F["remainder"],
    "pow": _F["pow"],
    "matmul": _F["matmul"],
    "and": _F["bitwise_and"],
    "or": _F["bitwise_or"],
    "xor": _F["bitwise_xor"],
    "lshift": _F["bitwise_left_shift"],
    "rshift": _F["bitwise_right_shift"],
}
for _name, _fn in _OPERATORS.items():
    setattr(Tensor, f"__{_name}__", _operator(_name, _fn))
    setattr(Tensor, f"__r{_name}__", _operator(_name, _fn, reflected=True))
    setattr(Tensor, f"__i{_name}__", _operator(f"i{_name}", _writing(_fn)))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Tensor, f"__{_name}__", _operator(_name, _F[_name]))
Tensor.__neg__ = _F["neg"]
Tensor.__pos__ = lambda self: self  # type: ignore[attr-defined]
Tensor.__abs__ = _F["abs"]
Tensor.__invert__ = _F["bitwise_not"]
Tensor.__hash__ = object.__hash__
