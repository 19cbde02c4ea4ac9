"""Errors for arguments that a public function can't take: of a wrong number, name, type or value.

Functions check what they must to compute the right thing. What only fails somewhere inside (a list where a
tensor is wanted has no `.shape`) is explained here, afterwards, so that calls that succeed pay nothing but a
`try`: `explain` compares the arguments with the signature and says which one does not fit. Public
functions and classes are wrapped where they become public (`checked`, `check_names`).

An error from the user's own code (a loss function under `vmap`, a module in a `Sequential`, a sampler) is
left as it is.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType, TracebackType
from typing import Any

import numpy as np

from ..ir.dtypes import DType
from ..ir.errors import IndexOutOfRange, OpError, TracegradError
from ..ir.types import Type
from .callers import is_ours, user_location
from .library import ArgumentError, ArgumentTypeError, MissingKey
from .operands import PYTHON_TYPES
from .tensor import Tensor

#: Errors that Python, NumPy and our own code raise where an argument is not what was expected.
FOREIGN = (
    TypeError, ValueError, AttributeError, LookupError, ArithmeticError, AssertionError, MemoryError,
    TracegradError,
)  # fmt: skip
_PACKAGE = __name__.partition(".")[0] + "."
_NUMPY = os.path.dirname(np.__file__) + os.sep
_LIBRARY = os.path.dirname(os.__file__) + os.sep
_PACKAGES = os.path.join(_LIBRARY, "site-packages") + os.sep



def _is_int(x: Any) -> bool:
    return isinstance(x, (int, np.integer)) or (isinstance(x, Tensor) and x.dtype.kind in "iu")


def _is_ints(x: Any) -> bool:
    return _is_int(x) or (isinstance(x, Sequence) and not isinstance(x, str) and all(map(_is_int, x)))


def _is_number(x: Any) -> bool:
    return isinstance(x, (int, float, np.number)) or (isinstance(x, Tensor) and x.numel() == 1)


def _is_tensor_or_number(x: Any) -> bool:
    return isinstance(x, (Tensor, int, float, np.number, np.bool_))


def _is_tensors(x: Any) -> bool:
    return isinstance(x, (list, tuple)) and len(x) > 0 and all(isinstance(t, Tensor) for t in x)


#: What the parameters of these names take: words for it, and the test.
_A_TENSOR = ("a tensor", lambda x: isinstance(x, Tensor))
_TENSORS = ("a sequence of tensors", _is_tensors)
_INT = ("an integer", _is_int)
_INTS = ("an integer or a sequence of them", _is_ints)
_NUMBER = ("a number", _is_number)
_OPERAND = ("a tensor or a number", _is_tensor_or_number)
_DTYPE = ("a dtype such as tracegrad.float32", lambda x: isinstance(x, DType))
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        """input mat1 mat2 vec1 vec2 mask index target weight bias query key value tensor1 tensor2 batch1
        batch2 running_mean running_var src source anchor positive negative x1 x2 hx indices""".split(),
        _A_TENSOR,
    ),
    **dict.fromkeys("self other min max exponent".split(), _OPERAND),
    **dict.fromkeys("tensors".split(), _TENSORS),
    **dict.fromkeys(
        """dim0 dim1 start_dim end_dim n steps k num_samples groups num_classes in_features out_features
        in_channels out_channels hidden_size input_size num_layers num_heads embed_dim num_embeddings
        embedding_dim num_groups num_features d_model nhead diagonal offset num_parameters batch_size
        num_workers""".split(),
        _INT,
    ),
    **dict.fromkeys(
        """dim dims size sizes order counts axes shape shifts kernel_size stride padding dilation output_size
        normalized_shape repeats pad""".split(),
        _INTS,
    ),
    **dict.fromkeys(
        """p eps alpha beta lr momentum step_size_ negative_slope lambd delta margin fill_value sigma
        label_smoothing threshold dropout weight_decay max_norm lower upper gain a b mean std""".split(),
        _NUMBER,
    ),
    "dtype": _DTYPE,
}


def described(x: Any) -> str:
    """An argument in an error: a tensor's type, an array's dtype and shape, anything else's `repr`."""
    if isinstance(x, Tensor):
        return str(x._storage.value.type if x._view is None else str(Type(x.dtype, x.shape)))
    if isinstance(x, np.ndarray):
        return f"ndarray of {x.dtype}{list(x.shape)}"
    if isinstance(x, (list, tuple)):
        inside = ", ".join(map(described, x[:4])) + (", ..." if len(x) > 4 else "")
        if isinstance(x, list):
            return f"[{inside}]"
        return f"({inside},)" if len(x) == 1 else f"({inside})"
    if isinstance(x, (type, FunctionType)):
        return x.__qualname__
    if isinstance(x, (str, bytes, int, float, bool, complex, DType, slice, range, np.generic, type(None))):
        text = repr(x)
        return text if len(text) <= 60 else text[:57] + "..."
    return type(x).__name__  # its repr may be long, or need the values of tensors


def _shown(signature: inspect.Signature, method: bool) -> str:
    """A signature without annotations."""
    given = list(signature.parameters.values())
    if method and given and given[0].name in ("self", "input"):
        given = given[1:]
    plain = [p.replace(annotation=inspect.Parameter.empty) for p in given]
    return str(inspect.Signature(plain)).replace("tracegrad.", "")


def _of_the_user(trace: TracebackType | None) -> bool:
    """Whether an error comes from code that is neither ours nor NumPy's nor Python's."""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        neutral = is_ours(file) or file.startswith(("<frozen", "<string", _NUMPY))
        if not neutral and (not file.startswith(_LIBRARY) or file.startswith(_PACKAGES)):
            return True
        trace = trace.tb_next
    return False


def _unfit(name: str, value: Any, parameter: inspect.Parameter) -> str | None:
    """What the argument should have been, if it is clearly something else."""
    annotation = parameter.annotation if isinstance(parameter.annotation, str) else ""
    if value is None and (parameter.default is None or "None" in annotation):
        return None
    known = _KINDS.get(name)
    if known is _A_TENSOR and isinstance(parameter.default, (bool, int)):
        return None  # `bias` of a layer is a flag
    if known is None or (known is _A_TENSOR and annotation not in ("", "Any", "Tensor", "Tensor | None")):
        if annotation in ("Tensor", "Tensor | None"):
            known = _A_TENSOR
        elif annotation in ("int", "int | None"):
            known = _INT
        elif annotation in ("float", "float | None"):
            known = _NUMBER
        else:
            return None
    words, fits = known
    return None if fits(value) else words


def explain(
    error: BaseException, name: str, fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> BaseException:
    """What to raise for `error`, which a call `fn(*args, **kwargs)` of the public function `name` raised:
    itself if it is ours, or the user's own; otherwise an error that names the argument that does not fit.
    """
    trace = error.__traceback__.tb_next if error.__traceback__ is not None else None
    if _of_the_user(trace):
        return error
    loc = user_location()
    method = getattr(fn, "__name__", "") == "__init__" or "." in name
    if method and args and not name.startswith("Tensor."):
        _, dot, rest = name.partition(".")
        name = type(args[0]).__name__ + dot + rest
    own = args[1:] if method and not name.startswith("Tensor.") else args
    given = ", ".join([*map(described, own), *(f"{k}={described(v)}" for k, v in kwargs.items())])
    where = f"{name}()" + (f" at {loc}" if loc is not None else "")
    if isinstance(error, TracegradError):
        return _placed(error, name, given, str(loc))
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return _caused(ArgumentTypeError(f"{where}: can't take ({given})"), error)
    takes = f"it takes {_shown(signature, bool(method))}"
    other_names = {"axis": "dim", "keepdims": "keepdim"}
    named = {other_names.get(k, k): v for k, v in kwargs.items() if k != "out"}
    try:
        bound = signature.bind(*args, **named)
    except TypeError as e:
        return _caused(ArgumentTypeError(f"{where}: {e}; {takes}, got ({given})"), None)
    for key, value in bound.arguments.items():
        parameter = signature.parameters[key]
        if key == "self" and not name.startswith("Tensor."):
            continue
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL and len(value) == 1:
            value = value[0] if isinstance(value[0], (list, tuple)) else value
        words = _unfit(key, value, parameter)
        if words is not None:
            text = f"{where}: {key} must be {words}, not {type(value).__name__} {described(value)}; {takes}"
            return _caused(ArgumentTypeError(text), None)
    kind: type[TracegradError] = ArgumentTypeError
    if isinstance(error, MemoryError):
        return _caused(OpError(f"{where}: not enough memory for the result; got ({given})"), None)
    if isinstance(error, IndexError):
        kind = IndexOutOfRange
    elif isinstance(error, KeyError):
        kind = MissingKey
    elif isinstance(error, (ValueError, ArithmeticError)):
        kind = ArgumentError
    return _caused(kind(f"{where}: can't take ({given}); {takes}"), error)


def _placed(error: TracegradError, name: str, given: str, loc: str) -> BaseException:
    """One of our errors, which says in which call it is, if it does not yet."""
    if not hasattr(error, "placed") and len(error.args) == 1 and not isinstance(error, KeyError):
        text = str(error.args[0])
        short = name.rpartition(".")[2]
        call = f"{name}({given}) at {loc}"
        if loc in text:
            pass
        elif text.startswith(f"{short}(): "):
            error.args = (call + text[len(short) + 2 :],)
        elif text.startswith(f"{short}("):
            error.args = (f"{text.partition(': ')[0]} at {loc}: {text.partition(': ')[2]}",)
        else:
            error.args = (f"{call}: {text}",)
    error.placed = True  # type: ignore[attr-defined]
    return error


def _caused(made: BaseException, cause: BaseException | None) -> BaseException:
    """`made`, which shows `cause` where nothing else says what was wrong."""
    made.__cause__ = cause
    made.__suppress_context__ = True
    return made


def again(error: Exception, name: str, fn: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """After `error`: what the call gives with a Python type for a dtype understood as in PyTorch; else
    raises what `explain` makes of it."""
    dtype = kwargs.get("dtype")
    if isinstance(dtype, type) and dtype in PYTHON_TYPES:
        return checked(name, fn)(*args, **{**kwargs, "dtype": PYTHON_TYPES[dtype]})
    raise explain(error, name, fn, args, kwargs)


def named_as(function: Any, fn: Any) -> Any:
    """`function` with what is known of `fn`: functools.update_wrapper takes three times as long, and every
    import would call it a thousand times."""
    if type(fn) is not FunctionType:
        return functools.update_wrapper(function, fn)
    function.__name__, function.__qualname__ = fn.__name__, fn.__qualname__
    function.__module__, function.__doc__ = fn.__module__, fn.__doc__
    function.__annotations__ = fn.__annotations__
    function.__dict__.update(fn.__dict__)
    function.__wrapped__ = fn
    return function


def checked(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn`, whose errors for bad arguments are explained."""

    def function(*args: Any, **kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        except FOREIGN as e:
            return again(e, name, fn, args, kwargs)

    return named_as(function, fn)


def check_class(cls: type, *methods: str) -> None:
    """Explains errors of the methods that the class itself defines."""
    for method in methods:
        fn = cls.__dict__.get(method)
        if isinstance(fn, FunctionType) and not hasattr(fn, "__checked__"):
            wrapped: Any = checked(cls.__name__ if method == "__init__" else f"{cls.__name__}.{method}", fn)
            wrapped.__checked__ = True
            setattr(cls, method, wrapped)


def check_names(namespace: dict[str, Any], names: Iterable[str], *methods: str) -> None:
    """Explains errors of public functions, of constructors, and of the `methods` of classes."""
    for name in names:
        found = namespace[name]
        if isinstance(found, type):
            if not issubclass(found, (Exception, tuple)):
                for cls in found.__mro__:
                    if cls.__module__.startswith(_PACKAGE) and not issubclass(Tensor, cls):
                        check_class(cls, "__init__", *methods)
        elif callable(found) and not hasattr(found, "__checked__"):
            wrapped: Any = checked(name, found)
            wrapped.__checked__ = True
            namespace[name] = wrapped
