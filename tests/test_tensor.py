"""Tensors as PyTorch users know them: creation, promotion, indexing, views, in-place writes, NumPy."""

import math

import numpy as np
import pytest
import tracegrad as tg
from tracegrad.ir.errors import DTypeError, GradError, IndexOutOfRange, OpError, TraceError


def test_creation_dtypes_and_values() -> None:
    assert tg.tensor([1, 2]).dtype is tg.int64
    assert tg.tensor([1.0]).dtype is tg.float32
    assert tg.tensor([True]).dtype is tg.bool
    assert tg.tensor(np.zeros(2)).dtype is tg.float64
    assert tg.zeros(2, 3).shape == (2, 3)
    assert tg.arange(3).tolist() == [0, 1, 2]
    assert tg.arange(1.0, 2.0, 0.5).tolist() == [1.0, 1.5]
    assert tg.linspace(0, 1, 5).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert tg.full((2,), 7).dtype is tg.int64
    assert tg.eye(2).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("a", "b", "dtype"),
    [
        (tg.float32, tg.float64, tg.float64),
        (tg.float16, tg.bfloat16, tg.float32),
        (tg.int8, tg.uint8, tg.int16),
        (tg.int64, tg.float16, tg.float16),
        (tg.bool, tg.uint8, tg.uint8),
    ],
)
def test_promotion_of_tensors(a: tg.dtype, b: tg.dtype, dtype: tg.dtype) -> None:
    x = tg.ones(2, dtype=a) + tg.ones(2, dtype=b)
    assert x.dtype is dtype
    assert x.tolist() == ([2, 2] if dtype is not tg.bool else [True, True])


def test_promotion_with_numbers_and_scalars() -> None:
    assert (tg.ones(2, dtype=tg.int32) + 1).dtype is tg.int32
    assert (tg.ones(2, dtype=tg.int32) + 1.5).dtype is tg.float32
    assert (tg.ones(2, dtype=tg.float16) * 2.5).dtype is tg.float16
    assert (tg.ones(2, dtype=tg.bool) + 1).dtype is tg.int64
    assert (tg.ones(2) * tg.tensor(2.0, dtype=tg.float64)).dtype is tg.float32
    assert (tg.ones(2, dtype=tg.int64) / 2).dtype is tg.float32
    assert tg.sqrt(tg.tensor([4])).dtype is tg.float32
    assert tg.tensor([1, 2]).sum().dtype is tg.int64


def test_basic_indexing_gives_views() -> None:
    x = tg.arange(12).reshape(3, 4)
    assert x[1].tolist() == [4, 5, 6, 7]
    assert x[:, 0:1].tolist() == [[0], [4], [8]]
    assert x[..., -1].tolist() == [3, 7, 11]
    assert x[None].shape == (1, 3, 4)
    assert x[1:, ::2].tolist() == [[4, 6], [8, 10]]
    assert x[1, None, 2].tolist() == [6]
    assert x[:, 0:1]._is_view()


def test_advanced_indexing() -> None:
    x = tg.arange(12).reshape(3, 4)
    assert x[[0, 2]].tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert x[tg.tensor([0, 2]), tg.tensor([1, 3])].tolist() == [1, 11]
    assert x[:, tg.tensor([3, 0])].tolist() == [[3, 0], [7, 4], [11, 8]]
    assert x[x > 8].tolist() == [9, 10, 11]
    assert x[tg.tensor([True, False, True])].shape == (2, 4)
    assert x[tg.tensor([[0], [1]]), tg.tensor([0, 1])].tolist() == [[0, 1], [4, 5]]
    assert x[-1, tg.tensor([-1])].tolist() == [11]


def test_index_errors_name_the_trouble() -> None:
    x = tg.zeros(2, 3)
    with pytest.raises(IndexOutOfRange, match="index 5 is out of bounds for dimension 1 with size 3"):
        x[0, 5]
    with pytest.raises(IndexOutOfRange, match="too many indices"):
        x[0, 0, 0]
    with pytest.raises(DTypeError, match="integers or bools"):
        x[tg.tensor([0.5])]
    with pytest.raises(IndexOutOfRange):
        x[tg.tensor([7])].tolist()


def test_setitem_changes_the_base_through_views() -> None:
    x = tg.zeros(2, 3)
    x[:, 0] = 1
    assert x.tolist() == [[1, 0, 0], [1, 0, 0]]
    y = x.view(-1)
    y.add_(1)
    assert x.tolist() == [[2, 1, 1], [2, 1, 1]]
    y[4] = 9
    assert x[1, 1].item() == 9
    x.t()[2] = tg.tensor([5.0, 6.0])
    assert x.tolist() == [[2, 1, 5], [2, 9, 6]]
    assert y.tolist() == [2, 1, 5, 2, 9, 6]


def test_setitem_masks_and_integers() -> None:
    x = tg.arange(6).float()
    x[x > 3] = -1.0
    assert x.tolist() == [0, 1, 2, 3, -1, -1]
    x[[0, 2]] = tg.tensor([10.0, 20.0])
    assert x.tolist() == [10, 1, 20, 3, -1, -1]
    m = tg.zeros(2, 2)
    m[tg.tensor([[True, False], [False, True]])] = tg.tensor([3.0, 4.0])
    assert m.tolist() == [[3, 0], [0, 4]]


def test_view_after_base_write_and_iadd_on_slice() -> None:
    x = tg.zeros(3)
    v = x[1:]
    x += 2
    assert v.tolist() == [2, 2]
    v *= 5
    assert x.tolist() == [2, 10, 10]
    x[0:2] += 1
    assert x.tolist() == [3, 11, 10]


def test_inplace_keeps_dtype_and_refuses_to_lose_category() -> None:
    x = tg.zeros(2, dtype=tg.int64)
    with pytest.raises(DTypeError, match="in place"):
        x.add_(0.5)
    x.add_(tg.tensor([1, 2], dtype=tg.int32))
    assert x.dtype is tg.int64 and x.tolist() == [1, 2]
    with pytest.raises(OpError):
        tg.zeros(2).add_(tg.zeros(3, 2))


def test_expand_can_be_read_but_not_written() -> None:
    x = tg.zeros(1, 3).expand(2, 3)
    assert x.sum().item() == 0
    with pytest.raises(OpError, match="clone"):
        x.add_(1)


def test_numpy_shares_memory_both_ways() -> None:
    a = np.zeros(3, np.float32)
    t = tg.from_numpy(a)
    t.add_(1)
    assert a.tolist() == [1, 1, 1]
    a[0] = 5
    assert t.tolist() == [5, 1, 1]
    u = tg.zeros(2)
    n = u.numpy()
    u.fill_(3)
    assert n.tolist() == [3, 3]


def test_results_do_not_see_later_numpy_writes() -> None:
    a = np.ones(3, np.float32)
    y = tg.from_numpy(a) * 2
    a[:] = 100
    assert y.tolist() == [2, 2, 2]


def test_numpy_of_a_grad_tensor_is_an_error() -> None:
    with pytest.raises(GradError, match="detach"):
        tg.ones(2, requires_grad=True).numpy()


def test_clone_and_detach() -> None:
    x = tg.ones(2)
    c, d = x.clone(), x.detach()
    x.mul_(3)
    assert c.tolist() == [1, 1]
    assert d.tolist() == [3, 3]


def test_scalars_out() -> None:
    assert tg.tensor(3).item() == 3
    assert float(tg.tensor([2.5])) == 2.5
    assert bool(tg.tensor([1]))
    assert [10, 20, 30][tg.tensor(1)] == 20
    with pytest.raises(TraceError, match="ambiguous"):
        bool(tg.zeros(2))
    with pytest.raises(TraceError, match="elements"):
        tg.zeros(2).item()
    assert f"{tg.tensor(1.25):.1f}" == "1.2"


def test_errors_name_op_types_and_line() -> None:
    with pytest.raises(OpError, match=r"add\(f32\[2\], f32\[3\]\) at test_tensor.py:\d+"):
        _ = tg.zeros(2) + tg.zeros(3)
    with pytest.raises(OpError, match=r"mm\(f32\[2,3\], f32\[2,3\]\) at test_tensor.py:\d+"):
        tg.mm(tg.zeros(2, 3), tg.zeros(2, 3))
    with pytest.raises(DTypeError, match="one dtype"):
        tg.mm(tg.zeros(2, 3), tg.zeros(3, 2, dtype=tg.float64))


def test_changing_numbers_become_runtime_scalars() -> None:
    from tracegrad.tracer.recording import STATE

    x = tg.tensor([1.0, 2.0])

    def step(k: float) -> list[float]:
        return (x * k + 1).tolist()

    for k in (1.0, 2.0, 3.0, -0.0, 0.0, math.inf):
        assert step(k) == [k + 1, 2 * k + 1]
    node = STATE.lazy.root
    programs = []
    stack = [node]
    while stack:
        n = stack.pop()
        stack.extend(n.children.values())
        for key, p in (n.programs or {}).items():
            if key[1] and len(p.graph.nodes) <= 3 and any(m.op.name == "mul" for m in p.graph.nodes):
                programs.append(p)
    assert any(p.runs >= 4 for p in programs)


def test_max_with_dim_and_where() -> None:
    x = tg.tensor([[1.0, 5.0], [7.0, 2.0]])
    values, indices = x.max(dim=1)
    assert values.tolist() == [5, 7] and indices.tolist() == [1, 0]
    assert x.max().item() == 7
    assert tg.where(x > 2, x, 0.0).tolist() == [[0, 5], [7, 0]]


def test_split_chunk_cat_stack() -> None:
    x = tg.arange(5)
    assert [p.tolist() for p in x.split(2)] == [[0, 1], [2, 3], [4]]
    assert [p.tolist() for p in x.chunk(2)] == [[0, 1, 2], [3, 4]]
    assert tg.cat([x[:2], x[4:]]).tolist() == [0, 1, 4]
    assert tg.stack([x, x]).shape == (2, 5)
    a, b = x[:2].unbind()
    assert (a.item(), b.item()) == (0, 1)


def test_shared_lazy_values_across_threads() -> None:
    import threading

    x = tg.arange(4).float() * 2
    seen: list[list[float]] = []
    t = threading.Thread(target=lambda: seen.append((x + 1).tolist()))
    t.start()
    t.join()
    assert seen == [[1, 3, 5, 7]]


def test_setitem_broadcasts_values_over_advanced_indices() -> None:
    x = tg.zeros(3, 2)
    x[tg.tensor([0, 2])] = 5.0
    assert x.tolist() == [[5, 5], [0, 0], [5, 5]]
    x[[1]] = tg.tensor([1.0, 2.0])
    assert x.tolist() == [[5, 5], [1, 2], [5, 5]]
    y = tg.zeros(2, 2).scatter(1, tg.tensor([[0], [1]]), tg.ones(2, 2))
    assert y.tolist() == [[1, 0], [0, 1]]
