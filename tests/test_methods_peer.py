"""Calls as users write them, here and in PyTorch: results, dtypes, shapes, strides, and which calls are
errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tracegrad

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

#: Expressions of a module `m` and NumPy `np`, one per line. Both modules must give the same.
CASES = """
m.add(m.ones(2), m.ones(2), out=m.empty(0))
m.add(m.ones(2), m.ones(2), out=m.zeros(2, dtype=m.float64))
m.add(m.ones(2), m.ones(2), out=m.zeros(2, dtype=m.int64))
m.exp(m.ones(2, requires_grad=True), out=m.zeros(2))
m.max(m.tensor([[1., 3.], [2., 0.]]), 1, out=(m.empty(0), m.empty(0, dtype=m.int64))).values
m.full((2,), 3., out=m.empty(0))
m.arange(3, out=m.empty(0, dtype=m.int64))
m.linspace(0, 1, 3, out=m.empty(0))
m.eye(2, out=m.empty(0))
m.zeros(2, out=m.ones(2))

2 ** m.tensor([1, 2, 3])
2.5 // m.tensor([1., 2, 3])
1 << m.tensor([1, 2, 3])
16 >> m.tensor([1, 2, 3])
7 % m.tensor([4, 2, 3])
7 - m.tensor([4, 2, 3])
7 / m.tensor([4, 2, 3])
True & m.tensor([True, False])
m.tensor([1, 2]) // 0
m.tensor([1, 2]) // m.tensor([0, 1])
m.tensor([1, 2]) % m.tensor(0)
m.tensor([1., 2]) // 0
m.fmod(m.tensor([1, 2]), 0)
m.tensor([1, 2]) ** -1
m.tensor([1, 2]) ** 2.5
m.tensor([2.]) ** m.tensor([3])
~m.tensor([1, 2])
-m.tensor([True])
+m.tensor([1])
m.tensor([True]) - m.tensor([True])
abs(m.tensor([-1, 2]))
m.ones(2) + np.ones(2)
np.float64(2) * m.ones(2)
m.ones(2) * np.float32(2)
np.sin(m.ones(2))
m.tensor([1, 2]) == 1
m.tensor([1]) + None
m.tensor(2.) in [m.tensor(1.), m.tensor(2.)]
list(reversed(m.tensor([1, 2, 3])))
m.tensor([1., 2.]) @ m.tensor([3., 4.])
m.ones(2, 3) @ m.ones(2, 3)

m.tensor([1., 2.]).view(m.int32)
m.tensor([1., 2.]).view(m.int16)
m.tensor([1, 2]).view(m.float32)
m.ones(3, dtype=m.int8).view(m.int16)
m.tensor([[1, 2], [3, 4]]).view(-1)
m.ones(2, 3).t().view(6)
m.ones(2, 3).reshape(-1, 2)
m.ones(2, 3).reshape(shape=(3, 2))
m.ones(6).unflatten(0, (2, -1))
m.ones(2, 3).permute(dims=(1, 0)).stride()
m.ones(2, 1).expand(size=(2, 3)).stride()
m.ones(2).repeat(repeats=(2, 2))
m.ones(2).tile((2,))
m.ones(2, 3).size(dim=1)
m.ones(2, 3).transpose(dim0=0, dim1=1).stride()
[t.tolist() for t in m.arange(5).split(2)]
[t.tolist() for t in m.split(m.arange(5), split_size_or_sections=[2, 3])]
m.arange(5).narrow(0, 1, 2).storage_offset()
m.ones(2, 3, 4).movedim((0, 1), (2, 0)).stride()
m.arange(6).reshape(2, 3).diagonal(1).storage_offset()
m.ones(2, 3).t().is_contiguous()
m.ones(2, 3, 4).transpose(0, 2).dim_order()
m.arange(12.)[2:].as_strided((2, 3), (4, 1))
m.arange(12.)[2:].as_strided((2, 3), (4, 1), 1).storage_offset()
m.ones(2, 3).t().contiguous().stride()
m.arange(8).unfold(0, 4, 2)

m.tensor([1., 2]).to(m.float64, True, True)
m.tensor([1., 2]).to('cpu', m.int64)
m.tensor([1., 2]).to(m.device('cpu'))
m.tensor([1., 2]).to(m.tensor(1))
m.ones(1, 2, 3, 4).to(memory_format=m.channels_last)
m.tensor([1.]).type()
m.ones(2).float(memory_format=m.preserve_format)
m.ones(2).clone(memory_format=m.contiguous_format)
m.ones(2).type_as(m.ones(1, dtype=m.int8))
m.tensor([1., 2., 3.]).new_zeros(2, 3)
m.tensor([1]).new_tensor([1.5])
m.tensor([1]).new_full((2,), 3)
m.tensor([1.]).new_ones((2,), dtype=m.int32)
m.ones(2).new_zeros((2,), layout=m.strided, device='cpu')
m.tensor(3.).__format__('.2f')
f"{m.tensor([1., 2.])}"
m.tensor([[1, 2], [3, 4]]).tolist()
m.tensor(5).__index__()
complex(m.tensor(2.))
float(m.tensor([2.]))
m.ones(2, 3).nelement()
m.ones(2, 3).element_size()

m.Size([1, 2]) + (3,)
m.Size([1, 2])[:1]
m.Size([2, 3]).numel()
(m.Size([2, 3]) == (2, 3), hash(m.Size([2])) == hash((2,)))
(m.device('cpu'), m.device('cpu', 0), m.device('cpu:1'), m.device('cpu') == m.device('cpu'))
(m.float32.itemsize, m.int8.is_signed, m.float16.is_floating_point, m.bool.itemsize, m.float32.is_complex)
m.finfo(m.float32)
m.finfo(m.float64)
m.finfo(m.float16)
m.finfo(m.bfloat16)
m.iinfo(m.int8)
m.iinfo(m.uint8)
m.iinfo(m.int64)
m.finfo(m.int8)
m.promote_types(m.int8, m.uint8)
m.result_type(m.ones(1), 2.)
m.result_type(1, 2.)
m.can_cast(m.float32, m.int32)
m.is_tensor(3)
m.broadcast_shapes((2, 1), (3,))

m.zeros(size=(2, 3))
m.ones(2, 3, layout=m.strided, pin_memory=False, device='cpu')
m.ones_like(m.ones(2), layout=m.strided, memory_format=m.preserve_format, device='cpu')
m.full(size=(2,), fill_value=3)
m.full((2,), True)
m.full((2,), 3, dtype=m.float32, layout=m.strided)
m.arange(start=1, end=3)
m.arange(end=3, dtype=m.float32)
m.arange(1, 2, 0.5, layout=m.strided)
m.arange(3, 1)
m.linspace(start=0, end=1, steps=3)
m.eye(2, 3, dtype=m.int64)
m.as_tensor([1, 2], dtype=m.float32, device='cpu')
m.asarray([1, 2], dtype=m.float32, copy=True)
m.tensor([1, 2], dtype=m.float32, device='cpu', requires_grad=True, pin_memory=False).detach()
m.scalar_tensor(2, dtype=m.int64)
m.zeros_like(m.ones(2, dtype=m.int64), dtype=m.float32)
m.full_like(m.ones(2), 3.5)
m.zeros([2, 3])
m.zeros(m.Size([2]))
m.zeros(())
m.zeros(-1)
m.ones(2.5)
m.logspace(0, 2, 3)
m.logspace(0, 2, 3, base=2)
m.range(1, 4)
m.range(1, 4, 0.5)
m.tril_indices(3, 3)
m.triu_indices(3, 4, 1)
m.randint(5, size=(2,)).dtype

m.ones(2, 3).sum(dim=(0, 1), keepdim=True)
m.ones(2, 3).sum(axis=0)
m.sum(m.ones(2, 3), axis=1, keepdims=True)
m.cat([m.ones(1), m.ones(1)], axis=0)
m.cat(tensors=[m.ones(1)], dim=0)
m.stack(tensors=(m.ones(1), m.ones(1)), dim=1)
m.add(input=m.ones(1), other=2, alpha=3)
m.mm(m.ones(2, 2), mat2=m.ones(2, 2))
m.mm(input=m.ones(2, 2), mat2=m.ones(2, 2))
m.matmul(m.ones(2, 2), other=m.ones(2, 2))
m.max(m.ones(2, 3), axis=1).values
m.max(m.ones(2, 3), dim=1, keepdims=True).values
m.mean(m.ones(2, 3), axis=1)
m.softmax(m.ones(2, 3), axis=1)
m.squeeze(m.ones(1, 2), axis=0)
m.unsqueeze(m.ones(2), axis=0)
m.argmax(m.ones(2, 3), axis=1)
m.where(m.tensor([True, False]), 1, 0)
m.where(m.tensor([True, False]), 1., m.tensor([1, 2]))
m.where(m.tensor([True, False]))[0]
m.pow(2, m.tensor([1., 2]))
m.clamp(m.tensor([1., 5.]), max=2)
m.clamp(m.tensor([1, 5]), max=2.5)
m.div(m.tensor([5, -5]), 2, rounding_mode='floor')
m.div(m.tensor([5., -5]), 2, rounding_mode='trunc')
m.lerp(m.zeros(2), m.ones(2), 0.3)
m.logical_and(m.tensor([1, 0]), m.tensor([2., 1.]))
m.round(m.tensor([1.25, 2.35]), decimals=1)
m.round(m.tensor([2, 3]))
m.sqrt(m.tensor([4]))
m.floor(m.tensor([1]))
m.sign(m.tensor([True, False]))
m.square(m.tensor([True]))
m.exp(m.tensor([1], dtype=m.float16))
(m.tensor([1], dtype=m.float16) + m.tensor([1], dtype=m.bfloat16)).dtype
(m.tensor([1], dtype=m.uint8) + m.tensor([1], dtype=m.int8)).dtype
(m.tensor([1]) + 1.5).dtype
(m.tensor([1.], dtype=m.float16) * m.tensor(2., dtype=m.float64)).dtype

m.einsum('ii', m.arange(9.).reshape(3, 3))
m.einsum('...ij,...jk', m.ones(2, 2, 3), m.ones(3, 2))
m.einsum(m.ones(2, 3), [0, 1], m.ones(3, 4), [1, 2], [0, 2])
m.einsum('bij,bjk,bkl->bil', m.ones(2, 3, 4), m.ones(2, 4, 5), m.ones(2, 5, 2))
m.einsum('ij,jk', m.ones(2, 3), m.ones(4, 5))
m.einsum('Ab->bA', m.arange(6.).reshape(2, 3))
m.einsum('bA', m.arange(6.).reshape(2, 3))
m.tensordot(m.arange(12.).reshape(3, 4), m.arange(12.).reshape(4, 3), dims=([1, 0], [0, 1]))
m.tensordot(m.ones(2, 3), m.ones(3, 2), 1)
m.inner(m.ones(2, 3), m.ones(4, 3))
m.kron(m.tensor([1, 2]), m.ones(2))
m.cross(m.tensor([1., 0, 0]), m.tensor([0., 1, 0]))
m.cdist(m.tensor([[0., 0]]), m.tensor([[3., 4]]))
m.trace(m.arange(9).reshape(3, 3))
m.addr(m.tensor([[True, False]]), m.tensor([True]), m.tensor([True, True]))
m.vander(m.tensor([1, 2, 3]))
m.vander(m.tensor([1., 2, 3]), 2, increasing=True)
m.block_diag(m.ones(2, 1), m.tensor(3.), m.ones(2))
m.combinations(m.tensor([1, 2, 3]), 2)
m.combinations(m.tensor([1, 2, 3]), 2, with_replacement=True)
m.cartesian_prod(m.tensor([1, 2]), m.tensor([3, 4]))
[t.tolist() for t in m.meshgrid(m.arange(2), m.arange(3), indexing='xy')]
[t.tolist() for t in m.tensor_split(m.arange(7), 3)]
[t.tolist() for t in m.tensor_split(m.arange(7), (1, 9, 3))]
[t.tolist() for t in m.hsplit(m.ones(4, 4), [1, 3])]
m.hsplit(m.ones(4), 3)
m.repeat_interleave(m.tensor([0, 2, 1]))
m.repeat_interleave(m.arange(4).reshape(2, 2), m.tensor([1, 2]), dim=1)
m.rot90(m.arange(6).reshape(2, 3), -1)
m.roll(m.arange(6).reshape(2, 3), 1)
m.atleast_2d(m.tensor(1.), m.ones(2))
m.heaviside(m.tensor([-1., 0., 2.]), m.tensor([0.5]))
m.gcd(m.tensor([12, -18]), m.tensor([8, 12]))
m.lcm(m.tensor([4, 0]), m.tensor([6, 3]))
m.ldexp(m.tensor([1.]), m.tensor([3]))
m.signbit(m.tensor([-0., 1.]))
m.logit(m.tensor([0.2, 0.9]), eps=0.3)
m.fmax(m.tensor([1., float('nan')]), m.tensor([float('nan'), 2.]))
m.frexp(m.tensor([1., -3., 0., 0.1, 1e-30]))[1]
m.tensor([1.5, 2.]).float_power(2)
m.nextafter(m.tensor([0., 1., -1.]), m.tensor([1., 0., -5.]))
m.erfinv(m.tensor([0.5, -0.999, 0., 1., -1., 1.1]))
m.lgamma(m.tensor([0.5, -1.5, 3., 100., 0.]))
m.digamma(m.tensor([0.5, -1.5, 3., 100., 0., -1.]))

m.tensor([1., 2, 3]).index_add_(0, m.tensor([0, 2]), m.tensor([1., 1.]))
m.zeros(3).index_put_((m.tensor([1, 1]),), m.tensor([1., 2.]), accumulate=True)
m.zeros(3, 3).fill_diagonal_(2)
m.zeros(7, 2).fill_diagonal_(2, wrap=True)
m.zeros(2, 2).masked_scatter_(m.tensor([[True, False], [True, True]]), m.tensor([1., 2., 3.]))
m.scatter_reduce(m.ones(3), 0, m.tensor([0, 0, 1]), m.tensor([2., 4., 6.]), 'mean', include_self=False)
m.index_reduce(m.ones(3), 0, m.tensor([0, 0, 1]), m.tensor([2., 4., 6.]), 'amax')
m.zeros(2, 2).put_(m.tensor([1, -1]), m.tensor([5., 6.]))
m.select_scatter(m.zeros(2, 2), m.ones(2), 0, 1)
m.slice_scatter(m.zeros(5), m.ones(2), start=1, end=5, step=2)
m.diagonal_scatter(m.zeros(2, 2), m.ones(2))
m.take_along_dim(m.tensor([[3, 1], [2, 4]]), m.tensor([[1], [0]]), dim=1)
m.tensor([1., 2.]).clamp_(min=1.5)
m.tensor([1., 2.]).mul_(2).sub_(1).pow_(2).sqrt_()
m.tensor([1, 2]).add_(1.5)
m.tensor([1, 2]).div_(2)
m.tensor([True]).add_(1)
m.tensor([3., 1.]).eq_(1)
m.tensor([1, 2, 3]).bitwise_and_(1)
m.tensor([1, 0]).logical_not_()
m.ones(3).expand(2, 3).add_(1)
m.ones(3, requires_grad=True).add_(1)
m.ones(3).add_(m.ones(2, 3))
m.ones(3).resize_(2)
m.relu_(m.tensor([-1., 1.]))
m.threshold_(m.tensor([-1., 1.]), 0., 5.)
m.celu_(m.tensor([-1., 1.]))
m.is_nonzero(m.tensor(0.))
m.is_nonzero(m.ones(2))
m.ones(2, 2).triu_().tril_(-1)
"""


def same_diagonals(m: Any) -> Any:
    x = m.arange(12.0).reshape(3, 4)
    x.diagonal().fill_(0)
    m.movedim(x, 0, 1)[1, 2] = 99
    x.t().diagonal(1)[0] = -1
    return x


def same_after_t(m: Any) -> Any:
    x = m.arange(6.0).reshape(2, 3)
    row = x[0]
    x.t_()
    x[2, 0] = 7
    return row.tolist(), x.stride(), x.tolist()


def same_shapes_in_place(m: Any) -> Any:
    x = m.arange(6.0).reshape(1, 2, 3)
    x.squeeze_(0).unsqueeze_(-1).transpose_(0, 1)
    x.add_(1)
    return x


def same_gradients_in_place(m: Any) -> Any:
    x = m.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    y = x * 2
    y.t_()
    y[0].mul_(3)
    y.index_add_(0, m.tensor([1]), m.ones(1, 2))
    y.sum().backward()
    return x.grad


def same_numpy_views(m: Any) -> Any:
    x = m.arange(6.0).reshape(2, 3)
    column = x[:, 1].numpy()
    column[0] = 50
    x[1, 1] = 60
    return x.tolist(), column.tolist()


PROGRAMS = [same_diagonals, same_after_t, same_shapes_in_place, same_gradients_in_place, same_numpy_views]


def shown(x: Any) -> Any:
    """A result as plain values that both modules have."""
    if isinstance(x, (torch.Tensor, tracegrad.Tensor)):
        values = (x.float() if "bfloat16" in str(x.dtype) else x).detach().numpy().tolist()
        return ("tensor", str(x.dtype).partition(".")[2], tuple(x.shape), values)
    if isinstance(x, (list, tuple)):
        return [shown(v) for v in x]
    if isinstance(x, (int, float, str)) or x is None:
        return x.replace("torch.", "tracegrad.") if isinstance(x, str) else x
    return str(x).replace("torch.", "tracegrad.")


def outcome(module: Any, f: Any) -> Any:
    try:
        return shown(f(module))
    except (RuntimeError, TypeError, ValueError, IndexError) as e:
        return f"an error: {type(e).__name__}: {e}"


def close(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return bool(np.isclose(a, b, 1e-6, 1e-7, equal_nan=True))
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(close(x, y) for x, y in zip(a, b))
    return type(a) is type(b) and a == b


def check(f: Any) -> None:
    got, want = outcome(tracegrad, f), outcome(torch, f)
    if isinstance(want, str) and want.startswith("an error"):
        assert isinstance(got, str) and got.startswith("an error"), f"{got}, in PyTorch {want}"
    else:
        assert close(got, want), f"{got}, in PyTorch {want}"


@pytest.mark.parametrize("expression", [line for line in CASES.splitlines() if line])
def test_calls(expression: str) -> None:
    code = compile(expression, "case", "eval")
    check(lambda m: eval(code, {"m": m, "np": np}))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_programs(program: Any) -> None:
    check(program)
