"""The Tensor API held against PyTorch, expression by expression: values, dtypes, shapes, and error or not.

Every case is Python source that is run twice, with `T` the package and `x`, `i`, ... its tensors.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad.ir.errors import TracegradError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peer

#: What may be raised where PyTorch raises.
OURS = (TracegradError, TypeError, ValueError, AttributeError, IndexError)
#: PyTorch's errors where there is no need for one: kernels it lacks, and writes that would race there.
KINDER = (
    "not implemented for", "Index put requires", "does not support bool input",
    "tensors used as indices must be", "refer to a single memory location", "cannot compute the inf norm", "addcdiv is no longer supported",
    "masked_fill_ only supports boolean masks", "only support floating point and complex", "identity",
)  # fmt: skip
DTYPES = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()


def names(T: Any) -> dict[str, Any]:
    """What the cases are written in."""
    return {
        "T": T,
        "math": math,
        "np": np,
        "x": T.arange(12).reshape(3, 4),
        "f": T.arange(12).reshape(3, 4) * 0.5 - 2.0,
        "c": T.arange(24).reshape(2, 3, 4).float(),
        "v": T.tensor([3.0, -1.5, 0.0, 2.5]),
        "i": T.tensor([7, -7, 3, -3]),
        "j": T.tensor([2, 2, -2, -2]),
        "b": T.tensor([True, False, True, False]),
        "s": T.tensor(2.5),
        "k": T.tensor(3),
        "e": T.zeros(0, 3),
        "e1": T.zeros(0),
        "m": T.tensor([[True, False, True, False]] * 3),
    }


def outcome(T: Any, source: str) -> Any:
    """The value of an expression, or of `r` after statements; the exception if it raises."""
    env = names(T)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if ";" in source or source.startswith("r = "):
                exec(source.replace("; ", "\n"), env)
                return plain(env["r"])
            return plain(eval(source, env))
    except Exception as e:
        return e


def plain(v: Any) -> Any:
    """A result as comparable data: tensors as (dtype name, shape, array)."""
    if isinstance(v, tg.Tensor):
        a = v.detach().float() if v.dtype is tg.bfloat16 else v.detach()
        return ("tensor", v.dtype.torch_name, tuple(v.shape), np.array(a.numpy()))
    if isinstance(v, torch.Tensor):
        a = v.detach().float() if v.dtype is torch.bfloat16 else v.detach()
        return ("tensor", str(v.dtype).removeprefix("torch."), tuple(v.shape), np.array(a.numpy()))
    if isinstance(v, np.ndarray):
        return ("array", str(v.dtype), v.shape, v)
    if isinstance(v, (tg.dtype, torch.dtype)):
        return str(v).split(".")[1]
    if isinstance(v, (tuple, list)):
        return [type(v).__name__ if type(v) in (tuple, list) else "tuple", *map(plain, v)]
    if isinstance(v, str):
        return v.replace("tracegrad.", "torch.")
    return v


def same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        if a[1:3] != b[1:3]:
            return False
        tolerance = {"float16": 2e-3, "bfloat16": 2e-2, "float64": 1e-12}.get(a[1], 3e-6)
        return np.allclose(a[3], b[3], rtol=tolerance, atol=tolerance, equal_nan=True)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(p, q) for p, q in zip(a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-6) or (a != a and b != b)
    return type(a) is type(b) and a == b


def check(source: str) -> None:
    want, got = outcome(torch, source), outcome(tg, source)
    if isinstance(want, Exception):
        if any(text in str(want) for text in KINDER):
            return
        assert isinstance(got, OURS), f"{source}: PyTorch raises {want!r}, got {got!r}"
        return
    if isinstance(got, Exception):
        raise AssertionError(f"{source}: PyTorch gives {want}, got {got!r}") from got
    assert same(want, got), f"{source}: PyTorch gives {want}, got {got}"


CREATION = """
T.tensor(1)
T.tensor(True)
T.tensor(1.5)
T.tensor([])
T.tensor([[]])
T.tensor([1, 2.5])
T.tensor([True, 2])
T.tensor([True, 2.5])
T.tensor([1, 2], dtype=T.float16)
T.tensor([1.7, -1.7], dtype=T.int32)
T.tensor([0.0, 0.5], dtype=T.bool)
T.tensor(np.arange(3, dtype=np.int16))
T.tensor(np.float64(1.5))
T.tensor(np.float32(1.5))
T.tensor(np.int32(3))
T.tensor([np.float64(1.5), 2.0])
T.tensor([T.tensor(1.0), T.tensor(2.0)])
T.tensor([T.tensor(1), 2])
T.tensor([[1, 2], [3]])
T.tensor("abc")
T.tensor(None)
T.tensor([1, None])
T.tensor(x)
T.tensor((1, 2))
T.tensor(range(3))
T.tensor([[True], [False]])
T.tensor(300, dtype=T.uint8)
T.tensor(float("nan"))
T.tensor(2**40)
T.tensor(2**70)
T.zeros(2, 3)
T.zeros([2, 3])
T.zeros((2, 3), dtype=T.int8)
T.zeros(())
T.zeros(0)
T.zeros(2, dtype=T.bool)
T.zeros(-1)
T.zeros(T.Size([2, 3]))
T.ones(2, dtype=T.bool)
T.ones(x.shape)
T.ones(*x.shape)
T.full((2,), 1)
T.full((2,), 1.5)
T.full((2,), True)
T.full((2,), 1, dtype=T.float16)
T.full((), 3)
T.full((2,), k)
T.full((2,), 2.7, dtype=T.int64)
T.arange(5)
T.arange(1, 5)
T.arange(1, 5, 2)
T.arange(5.0)
T.arange(0, 1, 0.1)
T.arange(5, 0, -2)
T.arange(0)
T.arange(3, dtype=T.float16)
T.arange(3, 1)
T.arange(1, 3, 0)
T.arange(0.5, 3.5)
T.arange(0, 5, dtype=T.uint8)
T.arange(start=1, end=4)
T.arange(k)
T.linspace(0, 1, 5)
T.linspace(-3, 7, 4)
T.linspace(0, 1, 1)
T.linspace(0, 1, 0)
T.linspace(1, 5, 5, dtype=T.int64)
T.eye(3)
T.eye(2, 3)
T.eye(2, dtype=T.int64)
T.zeros_like(x)
T.ones_like(f, dtype=T.int32)
T.full_like(x, 2.5)
T.full_like(x, 2.5, dtype=T.float32)
T.empty_like(x).shape
T.empty(2, 3).shape
T.empty((2, 3), dtype=T.int16).dtype
T.scalar_tensor(3)
T.scalar_tensor(3, dtype=T.int64)
T.as_tensor([1, 2])
T.as_tensor(x) is x
T.as_tensor(x, dtype=T.float32)
T.as_tensor(np.ones(2), dtype=T.float32)
T.from_numpy(np.ones((2, 2), np.int8))
T.from_numpy(np.arange(6).reshape(2, 3).T.copy())
T.from_numpy([1, 2])
T.asarray([1.0])
T.tensor([1], requires_grad=True)
x.new_zeros(2)
x.new_ones((2, 2))
x.new_full((2,), 7)
f.new_tensor([1, 2])
x.new_empty(2, 3).shape
x.new_zeros(2, dtype=T.float64)
T.zeros(2, device="cpu")
T.tensor([1, 2], device=T.device("cpu"))
"""

ARITHMETIC = """
i // j
i % j
T.fmod(i, j)
T.remainder(i, j)
T.div(i, j)
T.div(i, j, rounding_mode="trunc")
T.div(i, j, rounding_mode="floor")
T.div(i, 2, rounding_mode="trunc")
T.div(v, -2.0, rounding_mode="trunc")
T.div(v, -2.0, rounding_mode="floor")
T.div(v, 2, rounding_mode="x")
i / j
i // -2
i % -2
7 // i
7 % i
i // 2.0
i % 2.5
T.fmod(i, 2.5)
v // 0
v % 0
v / 0
T.fmod(v, 0.0)
i // 0
i % 0
T.fmod(i, 0)
T.div(i, 0, rounding_mode="trunc")
T.div(i, 0, rounding_mode="floor")
i / 0
i ** 2
i ** 3
i ** -1
2 ** i
2.0 ** i
2 ** T.tensor([0, 1, 2])
2 ** T.tensor([1, -1])
T.pow(2, T.tensor([1, 2, 3]))
v ** 2
v ** 0.5
v ** -1
v ** 0
i ** 0
i ** 0.5
i ** 2.0
i ** T.tensor([1, 2, 0, 1])
i ** v
v ** i
T.tensor([0, 1, -1, 2]) ** T.tensor([-1, -1, -1, -1])
b ** 2
b + b
b - b
b * b
b / b
b // b
-b
b - 1
1 - b
b + 1
b * 2.5
~b
~i
~v
b & True
i & 3
i | j
i ^ j
b ^ b
v & 1
i << 1
i >> 1
3 - i
3.5 - i
1 / i
1 / v
True + i
i + True
T.add(i, j, alpha=2)
T.add(i, j, alpha=2.5)
T.add(v, v, alpha=0.5)
T.sub(v, 1, alpha=3)
T.add(i, 1.5)
T.sub(b, b)
T.rsub(i, 3)
T.mul(2, i)
T.maximum(i, j)
T.maximum(i, v)
T.minimum(v, s)
T.maximum(v, T.tensor([math.nan, 0, 0, 0]))
T.max(i, j)
T.min(v, v * 2)
T.clamp(i, 0)
T.clamp(i, 0, 2)
T.clamp(i, 0.5, 2.5)
T.clamp(i, max=1)
T.clamp(v, 1, 0)
T.clamp(v, min=T.tensor([0.0, 0, 1, 1]))
T.clamp(v, T.tensor(0.0), T.tensor(1.0))
T.clamp(v)
T.clamp(T.tensor([math.nan, 1.0]), 0, 0.5)
T.clamp(b, 0, 1)
T.clip(v, -1, 1)
v.clamp_min(0)
v.clamp_max(0.5)
i.clamp_min(0.5)
T.where(b, i, j)
T.where(b, i, v)
T.where(b, i, 1.5)
T.where(b, 1, 2)
T.where(b, 1.0, 2)
T.where(b, v, 0)
T.where(m, f, v)
T.where(i, i, j)
T.where(b)
T.where(b, s, k)
v.where(b, T.zeros(4))
v.where(b, 0.0)
T.abs(i)
abs(v)
T.abs(b)
T.neg(v)
-i
+v
T.sign(i)
T.sign(b)
T.square(i)
T.sqrt(i)
T.sqrt(b)
T.exp(b)
T.sigmoid(i)
T.rsqrt(T.tensor([4]))
T.reciprocal(i)
T.floor(i)
T.floor(v)
T.ceil(v)
T.trunc(v)
T.round(v)
T.round(T.tensor([0.5, 1.5, 2.5, -0.5]))
T.round(T.tensor([1.234, 5.678]), decimals=1)
T.round(T.tensor([1234.0, 5678.0]), decimals=-2)
T.round(i)
T.frac(v)
T.frac(i)
T.floor(b)
T.relu(i)
T.relu(v)
T.isnan(i)
T.isnan(v / 0)
T.isinf(v / 0)
T.isinf(i)
T.isfinite(v / 0)
T.logical_not(i)
T.logical_and(i, v)
T.logical_or(b, i)
T.logical_xor(b, T.zeros(4))
T.bitwise_not(v)
T.atan2(v, s)
T.atan2(i, j)
T.hypot(v, v)
T.hypot(i, j)
T.logaddexp(v, v)
T.log(i)
T.log2(v)
T.log1p(v)
T.expm1(v)
T.lerp(v, v * 2, 0.5)
T.lerp(v, v * 2, T.tensor(0.25))
T.addcmul(v, v, v, value=2)
T.addcdiv(v, v, T.ones(4), value=0.5)
T.addcmul(i, i, j)
T.addcdiv(i, i, j)
i == j
i == 2.0
v != v
v < s
v <= 0
i >= v
i == "a"
i == None
v == None
b == 1
b < True
3 < i
i > 2.5
T.eq(i, 7)
v @ v
f @ v
f @ f
f.t() @ f
c @ f.t()
i @ i
x @ i
x @ v
s @ s
T.mm(f, f.T)
T.mv(f, v)
T.dot(v, v)
T.dot(v, f)
T.bmm(c, c.mT)
T.outer(v, v)
T.addmm(T.zeros(3, 3), f, f.T, beta=0.5, alpha=2)
T.addmm(T.zeros(3), f, f.T)
v + "a"
v + None
v + [1, 2, 3, 4]
v + (1,)
np.float64(2.0) * v
v * np.float64(2.0)
v * np.float32(2.0)
i * np.int64(2)
np.int64(2) * i
v + f
f + T.zeros(3)
T.zeros(2, 3) + T.zeros(4)
e + 1
e + T.zeros(1, 3)
e1 * 2
T.result_type(i, v)
T.result_type(i, 1.5)
T.result_type(k, s)
T.promote_types(T.int8, T.uint8)
T.can_cast(T.float32, T.int64)
k + v
k * i.int()
i.int() + T.tensor(1.5, dtype=T.float64)
v + T.tensor(1.5, dtype=T.float64)
T.tensor(1, dtype=T.uint8) + T.tensor(-1, dtype=T.int8)
T.tensor([200], dtype=T.uint8) + 100
T.tensor([100], dtype=T.int8) * 2
T.tensor([100], dtype=T.int8) + 200
T.tensor([100], dtype=T.uint8) - 101
-T.tensor([1], dtype=T.uint8)
T.tensor([1], dtype=T.uint8) > -1
T.tensor([1.0], dtype=T.float16) + 70000.0
T.tensor([1, 2], dtype=T.int32) / 2
T.tensor([2**31 - 1], dtype=T.int32) + 1
T.tensor([-5], dtype=T.int8) // 2
T.tensor([250], dtype=T.uint8) // 7
T.tensor([250], dtype=T.uint8) % 7
T.tensor([3.7, -3.7, 1e10, 0.0]).to(T.int64)
T.tensor([3.7, -3.7]).int()
T.tensor([300]).to(T.uint8)
T.tensor([-1]).to(T.uint8)
T.tensor([0.0, math.nan, 0.1]).bool()
T.tensor([1e6]).half()
"""

INPLACE = """
r = v; r += 1
r = i; r += 1
r = i; r += 1.5
r = i; r *= 2.0
r = i; r /= 2
r = i; r //= 2
r = i; r **= 2
r = i; r -= v
r = b; r += 1
r = b; r &= T.tensor([True, True, False, False])
r = b; r |= 1
r = v; r += i
r = v; r += T.ones(4, dtype=T.float64)
r = v; r += f
r = v.clone(); r[:] += 1
r = v.add_(1)
r = v.add_(v, alpha=2)
r = v.mul_(b)
r = i.mul_(True)
r = i.add_(T.tensor(1.5))
r = v.div_(0)
r = v.sub_(s)
r = v.pow_(2)
r = i.pow_(2)
r = v.sqrt_()
r = i.sqrt_()
r = v.exp_()
r = v.clamp_(0, 1)
r = i.clamp_(0.5, 1.5)
r = v.clamp_min_(0)
r = v.neg_()
r = v.abs_()
r = v.zero_()
r = v.fill_(3)
r = i.fill_(2.7)
r = v.fill_(k)
r = v.fill_(f)
r = v.copy_(i)
r = i.copy_(v)
r = f.copy_(v)
r = v.copy_(f)
r = v.copy_(s)
r = v.masked_fill_(b, 9)
r = v.masked_fill_(b, s)
r = i.masked_fill_(b, 1.5)
r = v.masked_fill_(m, 9.0)
r = f.masked_fill_(b, 9.0)
r = v.masked_fill(m, 9.0)
r = i.masked_fill(b, 1.5)
r = i.masked_fill(b, s)
r = v.eq_(0)
r = v.gt_(0)
r = i.bitwise_not_()
r = v.logical_not_()
r = i.logical_and_(j)
r = v.floor_()
r = v.relu_()
r = v.round_()
r = v.remainder_(2)
r = v.fmod_(2)
r = i.remainder_(3)
r = v.lerp_(v * 2, 0.5)
r = v.addcmul_(v, v, value=2)
r = v.addcdiv_(v, T.ones(4))
r = v.atan2_(s)
r = v.scatter_(0, T.tensor([0, 2]), T.tensor([7.0, 8.0]))
r = v.scatter_(0, T.tensor([0, 2]), 5.0)
r = v.scatter_add_(0, T.tensor([0, 0]), T.tensor([7.0, 8.0]))
r = v.index_put_((T.tensor([0, 2]),), T.tensor([7.0, 8.0]))
r = v.index_put_((T.tensor([0, 0]),), T.tensor([7.0, 8.0]), accumulate=True)
r = v.index_put_((b,), T.tensor(8.0))
r = v.expand(2, 4).add_(1)
w = v; w.add_(v); r = v
w = v[1:]; w += v[:-1]; r = v
v[1:] = v[:-1]; r = v
v[:2], v[2:] = v[2:], v[:2]; r = v
f.t().add_(T.arange(3.0)); r = f
f.diagonal().zero_(); r = f
f.view(-1)[::5] = 0; r = f
f[0].mul_(2); f[:, 1].add_(f[:, 0]); r = f
w = f[1:][:, ::2]; w[0] = 9; w.add_(1); r = (f, w)
w = f.view(2, 6).t()[1:3]; f += 1; w *= 2; r = (f, w)
w = f.unsqueeze(0).permute(2, 0, 1); w[1] = -1; r = f
w = f.T.flatten(); w.add_(1); r = f
w = f.T.reshape(-1); w.add_(1); r = f
w = f[:, :2].reshape(-1); w.add_(1); r = f
w = f[:2].reshape(-1); w.add_(1); r = f
w = f.T.contiguous(); w.add_(1); r = f
w = f.T.contiguous().view(-1); r = w
w = f.contiguous(); w.add_(1); r = f
w = f.flatten(); w.add_(1); r = f
w = f[:, 1:3].flatten(); w.add_(1); r = f
w = f.to(T.float32); w.add_(1); r = f
w = f.float(); w.add_(1); r = f
w = f.double(); w.add_(1); r = f
w = f.detach(); w.add_(1); r = f
w = f.data; w.add_(1); r = f
w = f.squeeze(); w.add_(1); r = f
w = f.chunk(2, 1)[1]; w.zero_(); r = f
w = f.split([1, 3], 1)[0]; w.zero_(); r = f
w = f.unbind(1)[2]; w.zero_(); r = f
w = f.narrow(1, 1, 2); w.zero_(); r = f
w = f.swapaxes(0, 1); w[0] = 0; r = f
w = f.movedim(0, 1); w[0] = 0; r = f
w = f.unflatten(1, (2, 2)); w[:, 0] = 0; r = f
w = f.select(1, 2); w[:] = 5; r = f
w = f.view_as(T.zeros(4, 3)); w[0] = 5; r = f
w = f.mT; w[0] = 5; r = f
w = f[None, ..., None]; w += 1; r = f
w = f[T.tensor([0, 1])]; w += 1; r = f
w = f[m]; w += 1; r = f
f[m] += 1; r = f
f[T.tensor([0, 0])] += 1; r = f
f[T.tensor([0, 1]), 1:3] += 1; r = f
f[0] += f[1]; r = f
f[...] = 3; r = f
f[()] = 3; r = f
s[()] = 3; r = s
s[...] = 3; r = s
s[0] = 3; r = s
s[None] = 3; r = s
f.T[0, 1] = 100; r = f
f += f.T[:3, :3].sum(); r = f
x[0] = 1.7; r = x
x[0] = v; r = x
x[m] = 2.5; r = x
x[0] = True; r = x
b[0] = 5; r = b
b[:] = v; r = b
v.data = T.zeros(4); r = v
"""

INDEXES = """
0
-1
5
-4
:
1:
:-1
::2
1::3
5:
-100:100
2:1
::-1
None
...
..., None
None, :, None
..., 0
0, ...
0, 1
0, 1, 2
1, None, 2
None, 0
True
False
True, 0
None, True
slice(k, None)
k
T.tensor(1)
T.tensor([0, 2])
T.tensor([0, 2]), 1
1, T.tensor([0, 2])
T.tensor([0, 2]), T.tensor([1, 3])
T.tensor([[0], [2]]), T.tensor([1, 3])
T.tensor([0, 1, 2]), T.tensor([1, 3])
:, T.tensor([0, 2])
T.tensor([0, 2]), :
T.tensor([0, 2]), 1:3
1:, T.tensor([0, 2])
T.tensor([-1, 0])
T.tensor([], dtype=T.int64)
:, T.tensor([], dtype=T.int64)
[0, 2]
[0, 2], [1, 3]
(0, 1)
[0]
[]
[True, False, True]
np.array([0, 2])
np.int64(1)
np.array([True, False, True])
T.tensor([0, 2], dtype=T.int32)
T.tensor([0, 2], dtype=T.int8)
T.tensor([1, 0, 1], dtype=T.uint8)
T.tensor([True, False, True])
T.tensor([True, False, True]), 1
T.tensor([True, False, True]), T.tensor([0, 1])
T.tensor([True, False, True]), T.tensor([0])
:, T.tensor([True, False, True, False])
T.tensor([True, False])
T.tensor([False, False, False])
T.tensor(True)
T.tensor(False)
m
m, None
None, m
~m
m[:, :3]
None, T.tensor([0, 1])
T.tensor([0, 1]), None
T.tensor([0, 1]), None, T.tensor([1, 2])
T.tensor([0, 1]), ..., T.tensor([1, 2])
..., T.tensor([1, 2])
0, T.tensor([1, 2])
T.tensor(0), T.tensor([1, 2])
T.tensor([0.5])
0.5
"a"
T.tensor([5])
T.tensor([-4])
slice(0, 2), [1]
1:2, None, [0, 1]
"""

INDEXES_3D = """
T.tensor([0, 1]), :, T.tensor([1, 2])
:, T.tensor([0, 1]), T.tensor([1, 2])
T.tensor([0, 1]), T.tensor([1, 2])
T.tensor([[0], [1]]), :, T.tensor([1, 2])
0, :, T.tensor([1, 2])
T.tensor([1, 0]), :, 1
:, 0, T.tensor([1, 2])
T.tensor([0, 1]), None, :, T.tensor([1, 2])
None, T.tensor([0, 1]), :, T.tensor([1, 2])
T.tensor([True, False]), :, T.tensor([1, 2])
:, T.tensor([[True] * 4, [False] * 4, [True] * 4])
T.tensor([[True, False, True], [False, False, True]])
T.tensor([[True, False, True], [False, False, True]]), 1
T.tensor([[True, False, True], [False, False, True]]), T.tensor([1, 2, 3])
..., T.tensor([0]), 1:3
1, 1:, ::2
::2, [0, 2], ::3
[1], 0, [2, 3]
[1], 0:1, [2, 3]
:, [[0, 1], [1, 2]], :
:, :, [[0, 1], [1, 2]]
"""

VALUES = ["9.0", "T.tensor(9.0)", "T.tensor([9.0])", "k", "region * 2 + 1", "region[..., :1]", "T.zeros(7)"]

VIEWS = """
x.view(4, 3)
x.view(-1)
x.view(2, -1, 3)
x.view(5, 3)
x.view(-1, -1)
x.view((6, 2))
x.view(T.Size([6, 2]))
x.t().view(-1)
x.t().reshape(-1)
x[:, :2].view(-1)
x[:, :2].view(3, 2, 1)
x[::2].view(8)
e.view(3, 0)
e.view(-1)
e.view(-1, 3)
e.reshape(0, -1)
s.view(1)
s.view(())
s.view(-1)
s.view(1, 1)
s.reshape(())
x.reshape(2, 6)
x.reshape([2, 6])
x.reshape(-1)
T.reshape(x, (2, 6))
T.reshape(x, (-1,))
x.flatten()
c.flatten(1)
c.flatten(0, 1)
c.flatten(-2)
c.flatten(1, 0)
s.flatten()
T.flatten(c, 1)
c.unflatten(2, (2, 2))
c.unflatten(-1, (2, -1))
c.unflatten(2, (3, -1))
c.permute(2, 0, 1)
c.permute((2, 0, 1))
c.permute(-1, 0, 1)
c.permute(0, 0, 1)
c.permute(0, 1)
T.permute(c, (1, 0, 2))
c.transpose(0, 2)
c.transpose(-1, 0)
c.transpose(0, 3)
s.transpose(0, 0)
s.transpose(0, -1)
T.transpose(c, 0, 1)
x.t()
v.t()
s.t()
c.t()
x.T
v.T
c.mT
v.mT
c.mH
x.H
c.swapaxes(0, 1)
c.swapdims(0, 1)
c.movedim(0, 2)
c.movedim((0, 1), (1, 0))
c.moveaxis(0, -1)
c.movedim(-1, 0)
x.expand(2, 3, 4)
x.expand(2, -1, -1)
v.expand(3, 4)
v.expand(3, -1)
v.expand(-1, 4)
v.expand(3, 5)
s.expand(2, 2)
x[:, :1].expand(3, 5)
x[:, :1].expand(-1, 5)
x.expand(4)
x.expand_as(T.zeros(2, 3, 4))
T.broadcast_to(v, (2, 4))
x.narrow(0, 1, 2)
x.narrow(1, -2, 2)
x.narrow(0, 2, 2)
x.narrow(0, 3, 0)
T.narrow(x, 1, 0, 2)
x.split(2)
x.split(2, 1)
x.split([1, 2])
x.split([1, 1])
x.split([1, 3], dim=1)
T.split(x, 3, dim=-1)
x.split(0)
e.split(2)
x.chunk(2)
x.chunk(2, 1)
x.chunk(5, 0)
x.chunk(0)
T.chunk(v, 3)
x.unbind()
x.unbind(1)
T.unbind(x, -1)
s.unbind()
x.squeeze()
x[:, :1].squeeze()
x[:, :1].squeeze(1)
x[:, :1].squeeze(0)
x[:1, :1].squeeze((0, 1))
s.squeeze(0)
s.squeeze()
x.squeeze(2)
x.unsqueeze(0)
x.unsqueeze(-1)
x.unsqueeze(2)
x.unsqueeze(3)
s.unsqueeze(0)
T.unsqueeze(x, 1)
c.diagonal()
x.diagonal()
x.diagonal(1)
x.diagonal(-1)
c.diagonal(0, 1, 2)
c.diagonal(offset=1, dim1=0, dim2=2)
x.select(0, 1)
x.select(-1, -1)
x.select(0, 3)
x.flip(0)
x.flip(0, 1)
x.flip((0,))
T.flip(x, [1])
x.repeat(2, 1)
x.repeat(2, 1, 1)
x.repeat(2)
x.repeat((2, 2))
v.repeat(0)
x.tile(2)
x.tile((2, 1, 1))
x.contiguous()
x.T.contiguous()
x.T.is_contiguous()
x.is_contiguous()
x.stride()
x.T.stride()
x[:, ::2].stride()
x.storage_offset()
x[1:].storage_offset()
x.T.shape
x.shape[-1]
x.size()
x.size(-1)
x.size(2)
x.dim()
x.ndim
x.ndimension()
x.numel()
x.nelement()
x.element_size()
x.itemsize
x.nbytes
x.is_floating_point()
T.is_floating_point(f)
T.is_tensor(x)
T.numel(x)
x.is_complex()
x.is_signed()
x.is_cuda
x.is_leaf
x.requires_grad
x.device.type
str(x.device)
T.cat([x, x])
T.cat([x, x], 1)
T.cat([x, x], -1)
T.cat((x, f))
T.cat([x.int(), T.ones(1, 4, dtype=T.bool)])
T.cat([x, e1])
T.cat([e1, x])
T.cat([x, v])
T.cat([])
T.cat([s, s])
T.cat([e, e])
T.cat([x.half(), f.bfloat16()])
T.cat([T.ones(1), k.view(1)])
T.concat([x, x])
T.stack([x, x])
T.stack([x, x], 1)
T.stack([x, x], -1)
T.stack([x, f])
T.stack([s, k])
T.stack([x, v])
T.stack([])
T.gather(x, 1, T.tensor([[0, 1], [2, 3], [3, 0]]))
T.gather(x, 0, T.tensor([[0, 1]]))
T.gather(x, 1, T.tensor([[4]]))
x.index_select(0, T.tensor([0, 2, 0]))
x.index_select(1, T.tensor([3]))
x.index_select(0, T.tensor([3]))
x.masked_select(m)
x.masked_select(b)
T.nonzero(b)
T.nonzero(m)
T.nonzero(m, as_tuple=True)
T.nonzero(T.tensor(3))
T.nonzero(e)
T.scatter(v, 0, T.tensor([1, 0]), T.tensor([8.0, 9.0]))
T.scatter(f, 1, T.tensor([[1], [0]]), 7.0)
T.scatter(f, 1, T.tensor([[1], [0]]), f[:, :2])
T.scatter_add(f, 0, T.tensor([[1, 1, 1, 1]]), f)
T.scatter(v, 0, T.tensor([1, 0]), 2.0, reduce="add")
T.index_put(f, (T.tensor([0]), T.tensor([1])), s)
f.tolist()
s.tolist()
e.tolist()
b.tolist()
"""

REDUCTIONS = """
{x}.sum()
{x}.sum(0)
{x}.sum(-1)
{x}.sum((0, 1))
{x}.sum(1, keepdim=True)
{x}.sum([])
{x}.sum(dim=None)
{x}.sum(2)
{x}.sum((0, 0))
{x}.sum(dtype=T.float64)
{x}.sum(0, dtype=T.int8)
T.sum({x}, dim=0)
{x}.mean()
{x}.mean(0)
{x}.mean(-1, keepdim=True)
{x}.mean(dtype=T.float32)
{x}.prod()
{x}.prod(1)
{x}.prod(0, keepdim=True)
{x}.max()
{x}.max(0)
{x}.max(1, keepdim=True)
{x}.max(-1)
{x}.max(dim=1)[1]
{x}.max(0).values
{x}.max(0).indices
{x}.min()
{x}.min(0)
{x}.min(dim=-1, keepdim=True)
{x}.amax()
{x}.amax(0)
{x}.amax((0, 1))
{x}.amin(1, keepdim=True)
{x}.amin(dim=())
{x}.argmax()
{x}.argmax(0)
{x}.argmax(1, keepdim=True)
{x}.argmin()
{x}.argmin(-1)
{x}.argmax(keepdim=True)
{x}.any()
{x}.any(0)
{x}.all()
{x}.all(1, keepdim=True)
{x}.any((0, 1))
{x}.var()
{x}.var(0)
{x}.var(0, unbiased=False)
{x}.var(1, correction=0)
{x}.var(False)
{x}.std()
{x}.std(dim=1, keepdim=True)
{x}.var((0, 1))
{x}.norm()
{x}.norm(1)
{x}.norm(p=2, dim=1)
{x}.norm(p=float("inf"))
{x}.norm(p=0)
{x}.norm(dim=0, keepdim=True)
{x}.softmax(0)
{x}.softmax(dim=-1)
{x}.log_softmax(1)
T.softmax({x}, 0)
T.softmax({x}, dim=0, dtype=T.float64)
{x}.logsumexp(0)
{x}.logsumexp((0, 1))
{x}.logsumexp(1, keepdim=True)
T.max({x}, 0)
T.all({x} == {x})
T.equal({x}, {x})
T.allclose({x}, {x})
"""

CONVERSION = """
len(x)
len(s)
len(e)
[w.tolist() for w in x]
list(v)
list(s)
3 in x
30 in x
2.5 in v
k in x
bool(s)
bool(e1)
bool(v)
bool(T.tensor([[1]]))
int(s)
int(T.tensor([2.9]))
float(k)
float(v)
[1, 2, 3, 4][k]
[1, 2, 3, 4][s]
range(k)
"abcd"[:k]
s.item()
k.item()
b[0].item()
v.item()
T.tensor([[5]]).item()
e1.item()
T.tensor(0.1).item()
T.tensor(0.1, dtype=T.float16).item()
T.tensor(0.1, dtype=T.bfloat16).item()
f"{s:.3f}"
f"{k:05d}"
f"{k:.2f}"
f"{v}"
f"{s}"
f"{v:.2f}"
str(v)
repr(x)
repr(f)
repr(b)
repr(s)
repr(e)
repr(e1)
repr(x.float().requires_grad_())
repr(x.float().requires_grad_() * 2)
repr(v.half())
repr(v.bfloat16())
repr(i.int())
repr(T.Size([1, 2]))
repr(x.shape)
x.shape.numel()
x.shape == (3, 4)
x.shape + (1,)
type(x.shape + (1,)) is T.Size
type(x.shape[1:]) is T.Size
type(x.shape[:0]) is T.Size
x.shape[0]
type(x.shape * 2) is T.Size
list(x.shape)
T.Size([2, 3]).numel()
T.Size()
hash(x.shape) == hash((3, 4))
x.type()
f.type()
b.type()
f.type(T.float64)
f.type("torch.DoubleTensor" if T.__name__ == "torch" else "tracegrad.DoubleTensor")
x.to(T.float32)
x.to("cpu")
x.to("cpu", T.float16)
x.to(T.device("cpu"), dtype=T.int8)
x.to(f)
x.to(x.dtype) is x
x.to(T.int64, copy=True) is x
x.to(dtype=T.float64)
x.to("nonsense")
x.float()
f.long()
f.int()
f.short()
f.char()
f.relu().byte()
x.half()
x.bfloat16()
x.bool()
x.double()
x.float() is x
f.float() is f
x.type_as(f)
x.cpu() is x
np.asarray(x)
np.asarray(f, dtype=np.float64)
np.add(x.numpy(), 1)
np.sum(v.numpy())
float(v.sum())
sum(v)
max(v)
sorted(v.tolist())
abs(s)
round(s)
divmod(i, 2)
math.sqrt(s)
math.floor(s)
x.numpy()
x.clone().numpy()
x.T.numpy()
T.tensor([1.0], requires_grad=True).numpy()
hash(x) == id(x)
{x: 1}[x]
x is x
all(v == v)
any(v > 100)
v.is_same_size(v)
x.get_device()
x.equal(x)
x.equal(f)
v.allclose(v)
T.allclose(v, v + 1e-9)
T.isclose(v, v + 1e-9)
x.data_ptr() == x.data_ptr()
x.names
x.unsafe_nonsense
T.float32.is_floating_point
T.int64.itemsize
T.get_default_dtype()
T.is_grad_enabled()
"""


def lines(text: str) -> list[str]:
    return [line for line in text.strip().split("\n") if line]


@pytest.mark.parametrize("source", lines(CREATION))
def test_creation(source: str) -> None:
    check(source)


@pytest.mark.parametrize("source", lines(ARITHMETIC))
def test_arithmetic(source: str) -> None:
    check(source)


@pytest.mark.parametrize("source", lines(INPLACE))
def test_inplace(source: str) -> None:
    check(source)


@pytest.mark.parametrize("index", lines(INDEXES))
def test_indexing(index: str) -> None:
    check(f"f[{index}]")


@pytest.mark.parametrize("index", lines(INDEXES_3D))
def test_indexing_in_three_dimensions(index: str) -> None:
    check(f"c[{index}]")
    check(f"c.transpose(0, 1).transpose(0, 1)[{index}]")


@pytest.mark.parametrize(
    "index", [("f", i) for i in lines(INDEXES)] + [("c", i) for i in lines(INDEXES_3D)], ids=str
)
def test_setitem(index: tuple[str, str]) -> None:
    base, at = index
    for value in VALUES:
        if at in ("False", "T.tensor(False)", "[]") and value == "T.zeros(7)":
            continue  # nothing is written, so PyTorch doesn't look at the shape
        check(f"region = {base}[{at}]; {base}[{at}] = {value}; r = {base}")
        check(f"w = {base}.transpose(-1, -2); region = {base}[{at}]; {base}[{at}] = {value}; r = w")


@pytest.mark.parametrize("source", lines(VIEWS))
def test_views(source: str) -> None:
    check(source)


@pytest.mark.parametrize("operand", ["x", "f", "m", "e", "f.half()", "x.to(T.uint8)"])
@pytest.mark.parametrize("source", lines(REDUCTIONS))
def test_reductions(source: str, operand: str) -> None:
    check(source.replace("{x}", operand))


@pytest.mark.parametrize("source", lines(REDUCTIONS))
def test_reductions_of_vectors_and_scalars(source: str) -> None:
    for operand in ("v", "s", "e1", "c"):
        check(source.replace("{x}", operand))


@pytest.mark.parametrize("source", lines(CONVERSION))
def test_conversion(source: str) -> None:
    check(source)


@pytest.mark.parametrize("a", DTYPES)
@pytest.mark.parametrize("b", DTYPES)
def test_promotion(a: str, b: str) -> None:
    for op in "+ * / // % ** < == & -".split():
        left, right = f"T.tensor([1, 3], dtype=T.{a})", f"T.tensor([2, 1], dtype=T.{b})"
        zero_d = f"T.tensor(2, dtype=T.{b})"
        check(f"{left} {op} {right}")
        check(f"{left} {op} {zero_d}")
        check(f"{zero_d} {op} {left}")
        check(f"T.tensor(1, dtype=T.{a}) {op} {zero_d}")
    check(f"{left}.add_({right})")
    check(f"{left}.mul_({zero_d})")
    check(f"{left}.div_({right})")
    check(f"T.where(T.tensor([True, False]), {left}, {right})")
    check(f"T.cat([{left}, {right}])")
    check(f"{left}.to(T.{b})")
    check(f"w = {left}; w[0] = {zero_d}; r = w")
    check(f"w = {left}; w[:] = {right}; r = w")
    check(f"w = {left}; w[T.tensor([0])] = {right}[:1]; r = w")
    check(f"T.maximum({left}, {right})")


@pytest.mark.parametrize("a", DTYPES)
@pytest.mark.parametrize("number", ["True", "2", "-1", "2.5"])
def test_promotion_with_numbers(a: str, number: str) -> None:
    left = f"T.tensor([1, 3], dtype=T.{a})"
    for op in "+ * / // % ** < == & -".split():
        if (a, number, op) == ("bool", "True", "**"):
            continue  # numbers only
        check(f"{left} {op} {number}")
        check(f"{number} {op} {left}")
        check(f"T.tensor(3, dtype=T.{a}) {op} {number}")
    check(f"{left}.add_({number})")
    check(f"{left}.fill_({number})")
    check(f"{left}.clamp({number})")
    check(f"w = {left}; w[0] = {number}; r = w")
