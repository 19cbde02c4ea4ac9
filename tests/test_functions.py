"""Functions and methods of the public API beyond single ops: einsum, views that are written through, in-place
variants, `out=`, interop with NumPy and pickle, what scripts name around tensors."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import tracegrad as tg
from tracegrad.ir.errors import DTypeError, GradError, IndexOutOfRange, OpError, TracegradError
from tracegrad.ir.ops.linear_algebra import contraction_order
from tracegrad.runtime.tensor_bytes import from_bytes, to_bytes
from tracegrad.tracer.functions.einsum import expand_equation
from tracegrad.tracer.methods import FUNCTIONS
from tracegrad.tracer.public import PUBLIC

rng = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


# --- einsum -----------------------------------------------------------------------------------------------

EQUATIONS = [
    ("ij,jk->ik", (2, 3), (3, 4)),
    ("ij,jk", (2, 3), (3, 4)),
    ("ba", (2, 3)),
    ("ii", (3, 3)),
    ("ii->i", (3, 3)),
    ("iij->j", (3, 3, 2)),
    ("ijij->ij", (2, 3, 2, 3)),
    ("iii->i", (3, 3, 3)),
    ("...ij,...jk->...ik", (2, 5, 2, 3), (5, 3, 4)),
    ("i...,i...->...", (3, 1, 4), (3, 2, 4)),
    ("...a->a...", (2, 3, 4)),
    ("ij,kl->", (2, 3), (4, 5)),
    ("ij,kl->il", (2, 3), (4, 5)),
    ("ab,cb,cd,ed->ae", (2, 3), (4, 3), (4, 5), (6, 5)),
    ("bhqd,bhkd->bhqk", (2, 2, 3, 4), (2, 2, 5, 4)),
    ("bhwi,hki,wkj->bhwj", (2, 3, 4, 5), (3, 6, 5), (4, 6, 7)),
    ("a,a,a->a", (3,), (3,), (3,)),
    (" i j , j -> i ", (2, 3), (3,)),
    ("ij,ij,ij->", (2, 3), (1, 3), (2, 1)),
    (",i->i", (), (3,)),
    ("aab,bc->ac", (2, 2, 3), (3, 3)),
]


@pytest.mark.parametrize("case", EQUATIONS, ids=lambda c: c[0])
def test_einsum_is_numpys(case: tuple[str, tuple[int, ...]]) -> None:
    equation, *shapes = case
    arrays = [draw(*s) for s in shapes]
    want = np.einsum(equation, *[a.astype(np.float64) for a in arrays])
    got = tg.einsum(equation, *[tg.tensor(a) for a in arrays]).numpy()
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    native = tg.compile(lambda *ts: tg.einsum(equation, *ts))(*[tg.tensor(a) for a in arrays]).numpy()
    np.testing.assert_allclose(native, want, rtol=1e-4, atol=1e-5)


def test_einsum_of_sublists() -> None:
    x, y = draw(2, 3, 4), draw(2, 4, 5)
    want = np.einsum("bij,bjk->bik", x, y)
    got = tg.einsum(tg.tensor(x), [0, 1, 2], tg.tensor(y), [0, 2, 3], [0, 1, 3])
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-5)
    got = tg.einsum(tg.tensor(x), [..., 1, 2], tg.tensor(y), [..., 2, 3], [..., 1, 3])
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-5)
    assert tg.einsum("ij->i", [tg.ones(2, 3)]).tolist() == [3.0, 3.0]


def test_einsum_takes_a_cheap_order() -> None:
    """A vector at the end of a chain of matrices: from the right, each step is a matrix times a vector."""
    sizes = {"a": 100, "b": 100, "c": 100, "d": 1}
    order = contraction_order(["ab", "bc", "cd"], sizes, "ad")
    assert order[0] == (1, 2)
    assert contraction_order(["ab", "b", "bc"], {"a": 9, "b": 9, "c": 9}, "ac")[0] != (0, 2)


def test_einsum_gradients() -> None:
    x = tg.tensor(draw(3, 3), dtype=tg.float64).requires_grad_()
    y = tg.tensor(draw(3, 4), dtype=tg.float64).requires_grad_()
    tg.einsum("ii,ij->j", x, y).square().sum().backward()
    diagonal = np.diag(x.detach().numpy())
    out = diagonal @ y.detach().numpy()
    np.testing.assert_allclose(y.grad.numpy(), np.outer(diagonal, 2 * out))
    np.testing.assert_allclose(x.grad.numpy(), np.diag(y.detach().numpy() @ (2 * out)))


@pytest.mark.parametrize(
    ("equation", "shapes", "message"),
    [
        ("ij,jk->ik", [(2, 3), (4, 5)], "dimension 'j'"),
        ("ij", [(2,)], "do not fit"),
        ("ij,jk->ik", [(2, 3)], "subscripts for 2 operands"),
        ("ij->iz", [(2, 3)], "result only"),
        ("ij->ii", [(2, 3)], "twice in the result"),
        ("i?->i", [(2, 3)], "subscripts are letters"),
    ],
)
def test_einsum_errors_name_the_equation(equation: str, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(OpError, match=message) as e:
        tg.einsum(equation, *[tg.ones(*s) for s in shapes])
    assert "einsum" in str(e.value)


def test_equations_are_expanded() -> None:
    assert expand_equation("...ij,jk", [4, 2]) == "ABij,jk->ABik"
    assert expand_equation("Ba...", [3]) == "BaA->ABa"


# --- views ------------------------------------------------------------------------------------------------

VIEWS = {
    "diagonal": lambda x: x.diagonal(1),
    "movedim": lambda x: x.movedim(0, 1),
    "t": lambda x: x.t()[1:],
    "atleast_3d": lambda x: tg.atleast_3d(x)[:, 1],
    "tensor_split": lambda x: tg.tensor_split(x, 3, 1)[1],
    "hsplit": lambda x: tg.hsplit(x, 2)[1],
    "narrow": lambda x: x.narrow(1, 1, 2),
    "as_strided": lambda x: x[1:].as_strided((2, 2), (4, 1), 5),
    "meshgrid": lambda x: x.unflatten(1, (2, 2)).select(2, 1),
}


@pytest.mark.parametrize("name", VIEWS)
def test_writing_through_a_view(name: str) -> None:
    """The same elements of the base change as in NumPy, where all of these are views too."""
    view = VIEWS[name]
    x = tg.arange(12.0).reshape(3, 4)
    places = view(tg.arange(12).reshape(3, 4)).tolist()
    want = np.arange(12.0)
    want[np.array(places).reshape(-1)] = -1
    view(x).fill_(-1)
    np.testing.assert_array_equal(x.numpy().reshape(-1), want)


def test_in_place_changes_of_shape() -> None:
    x = tg.arange(6.0).reshape(1, 2, 3)
    row = x[0, 0]
    same = x.squeeze_(0).t_().unsqueeze_(-1).transpose_(1, 2).swapaxes_(0, 2)
    assert same is x and x.shape == (2, 1, 3)
    x[0, 0, 1] = 50
    assert row.tolist() == [0, 50, 2]
    with pytest.raises(GradError, match="leaf"):
        tg.ones(2, 3, requires_grad=True).t_()
    y = tg.ones(2, 3, requires_grad=True)
    z = y * 2
    z.t_()
    (z * tg.arange(6.0).reshape(3, 2)).sum().backward()
    assert y.grad.tolist() == [[0, 4, 8], [2, 6, 10]]


def test_as_strided_overlapping_windows() -> None:
    x = tg.arange(5.0, requires_grad=True)
    windows = x.as_strided((3, 3), (1, 1))
    assert windows.tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    windows.sum().backward()
    assert x.grad.tolist() == [1, 2, 3, 2, 1]
    with pytest.raises(OpError, match="share memory"):
        tg.arange(5.0).as_strided((3, 3), (1, 1)).fill_(0)
    with pytest.raises(OpError, match="place 9 of 5"):
        tg.arange(5.0).as_strided((4, 4), (2, 1))


# --- in place and out= --------------------------------------------------------------------------------------


def test_in_place_variants_come_from_the_functions() -> None:
    named = [n for n in dir(tg.Tensor) if n.endswith("_") and not n.startswith("_") and n[:-1] in FUNCTIONS]
    assert len(named) > 120
    x = tg.tensor([0.5, -0.25])
    for name in (
        "sin",
        "abs",
        "mul",
        "clamp",
        "tril",
        "index_fill",
        "masked_fill",
        "addmm",
        "lerp",
        "eq",
        "pow",
    ):
        assert f"{name}_" in named
    assert x.abs_().mul_(2).clamp_(max=0.75) is x and x.tolist() == [0.75, 0.5]


def test_in_place_keeps_dtype_and_shape() -> None:
    with pytest.raises(DTypeError):
        tg.tensor([1, 2]).add_(0.5)
    with pytest.raises(OpError, match="does not fit"):
        tg.ones(3).add_(tg.ones(2, 3))
    with pytest.raises(OpError, match="expanded"):
        tg.ones(3).expand(2, 3).add_(1)
    with pytest.raises(GradError):
        tg.ones(3, requires_grad=True).mul_(2)
    x = tg.tensor([1, 2, 3])
    assert x.add_(True).dtype is tg.int64 and x.tolist() == [2, 3, 4]
    assert tg.tensor([0.0, 2.0]).logical_not_().tolist() == [1.0, 0.0]


def test_in_place_gradients() -> None:
    x = tg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    y = x * 1
    y.mul_(y).index_fill_(0, tg.tensor([1]), 5.0).masked_fill_(tg.tensor([True, False, False]), 0.0)
    y.sum().backward()
    assert x.grad.tolist() == [0, 0, 6]


def test_out_takes_results() -> None:
    out = tg.empty(0)
    got = tg.add(tg.ones(2), 1, out=out)
    assert got is out and out.tolist() == [2.0, 2.0]
    wide = tg.zeros(2, dtype=tg.float64)
    tg.mul(tg.ones(2), 3, out=wide)
    assert wide.dtype is tg.float64 and wide.tolist() == [3.0, 3.0]
    base = tg.zeros(2, 2)
    tg.exp(tg.zeros(2), out=base[1])
    assert base.tolist() == [[0, 0], [1, 1]]
    values, indices = tg.empty(0), tg.empty(0, dtype=tg.int64)
    pair = tg.max(tg.tensor([[1.0, 3.0], [2.0, 0.0]]), 1, out=(values, indices))
    assert pair.values is values and values.tolist() == [3, 2] and indices.tolist() == [1, 0]


def test_out_errors() -> None:
    with pytest.raises(DTypeError, match="int64"):
        tg.add(tg.ones(2), 1.5, out=tg.zeros(2, dtype=tg.int64))
    with pytest.raises(GradError, match="out="):
        tg.exp(tg.ones(2, requires_grad=True), out=tg.zeros(2))
    with pytest.raises(TypeError):
        tg.add(tg.ones(2), 1, out=[1.0, 2.0])
    with pytest.warns(UserWarning, match="out= of shape"):
        out = tg.zeros(3)
        tg.exp(tg.zeros(2), out=out)
    assert out.shape == (2,)


def test_public_functions_in_place() -> None:
    x = tg.tensor([-1.0, 2.0])
    assert tg.relu_(x) is x and x.tolist() == [0.0, 2.0]
    assert tg.threshold_(x, 1.0, 9.0).tolist() == [9.0, 2.0]
    assert all(callable(PUBLIC[n]) for n in ("celu_", "selu_", "sin_", "index_put_", "zero_"))


# --- operators
# ------------------------------------------------------------------------------------------------


def test_reflected_operators() -> None:
    x = tg.tensor([1, 2, 3])
    assert (2**x).tolist() == [2, 4, 8]
    assert (7 % x).tolist() == [0, 1, 1]
    assert (1 << x).tolist() == [2, 4, 8]
    assert (16 >> x).tolist() == [8, 4, 2]
    assert (7 // x).tolist() == [7, 3, 2]
    assert (6 & x).tolist() == [0, 2, 2]
    assert (1.0 - x).tolist() == [0.0, -1.0, -2.0]
    y = x
    y @= tg.eye(3, dtype=tg.int64)
    assert y is x
    y **= 2
    y ^= 1
    assert y.tolist() == [0, 5, 8]
    assert [int(v) for v in reversed(tg.tensor([1, 2]))] == [2, 1]
    assert x.__add__(object()) is NotImplemented
    with pytest.raises(TypeError, match="expected a tensor or a number, got str"):
        _ = x + "text"
    with pytest.raises(DTypeError, match="two numbers"):
        tg.remainder(1, 2)


def test_integers_divided_by_zero() -> None:
    for f in (tg.remainder, tg.floor_divide, tg.fmod, lambda a, b: tg.div(a, b, rounding_mode="trunc")):
        for zero in (0, tg.tensor(0), tg.tensor([1, 0])):
            with pytest.raises(TracegradError, match="ZeroDivisionError"):
                f(tg.tensor([4, 5]), zero)
        assert f(tg.tensor([4.0]), 0).dtype is tg.float32


def test_numpy_arrays_mix_in() -> None:
    x = tg.ones(2)
    assert (x + np.array([1.0, 2.0])).dtype is tg.float64
    assert isinstance(np.array([1.0, 2.0]) + x, tg.Tensor)
    assert (np.float32(2) * x).tolist() == [2.0, 2.0]
    assert isinstance(np.sin(x), tg.Tensor)
    np.testing.assert_array_equal(np.asarray(x), [1, 1])


# --- memory shared with others
# ----------------------------------------------------------------------------------


def test_dlpack_shares_memory_with_numpy() -> None:
    x = tg.arange(6.0).reshape(2, 3)
    seen = np.from_dlpack(x)
    assert seen.ctypes.data == x.data_ptr()
    row = x[1, ::2].numpy()
    row[0] = -3
    assert x.tolist() == [[0, 1, 2], [-3, 4, 5]] and np.from_dlpack(x.t())[0, 1] == -3
    x[1, 2] = 8
    x.numpy()
    assert row.tolist() == [-3, 8]
    a = np.arange(4.0)
    y = tg.from_dlpack(a)
    a[0] = 9
    assert y.tolist() == [9, 1, 2, 3] and y.dtype is tg.float64
    y[1] = 7
    assert a[1] == 7
    assert x.__dlpack_device__() == (1, 0)
    with pytest.raises(BufferError, match="detach"):
        tg.ones(2, requires_grad=True).__dlpack__()
    with pytest.raises(DTypeError, match="from_dlpack"):
        tg.from_dlpack("text")
    z = tg.from_dlpack(a, copy=True)
    a[0] = -1
    assert z.tolist()[0] == 9


def test_pickle_and_deepcopy_hold_bytes_alone() -> None:
    for t in (tg.arange(6.0).reshape(2, 3).t(), tg.tensor([True, False]), tg.tensor(3), tg.zeros(0, 2)):
        data = pickle.dumps(t)
        back = pickle.loads(data)
        assert back.dtype is t.dtype and back.shape == t.shape and back.tolist() == t.tolist()
        assert b"numpy" not in data and b"ndarray" not in data
    half = tg.tensor([1.5, 2.5], dtype=tg.bfloat16)
    assert pickle.loads(pickle.dumps(half)).tolist() == [1.5, 2.5]
    x = tg.tensor([1.0], requires_grad=True)
    twin = copy.deepcopy(x)
    assert twin.requires_grad and twin is not x and twin.data_ptr() != x.data_ptr()
    layer = tg.nn.Linear(2, 3)
    again = pickle.loads(pickle.dumps(layer.weight))
    assert type(again) is tg.nn.Parameter and again.tolist() == layer.weight.tolist()


def test_the_bytes_are_safetensors() -> None:
    load = pytest.importorskip("safetensors.numpy").load
    data = to_bytes(tg.arange(6).reshape(2, 3)._buffer())
    np.testing.assert_array_equal(load(data)["tensor"], [[0, 1, 2], [3, 4, 5]])
    for broken in (b"", data[:20], data[:-8], b"\xff" * 40):
        with pytest.raises(OpError, match="not the bytes"):
            from_bytes(broken)


# --- conversions
# --------------------------------------------------------------------------------------------------


def test_to_takes_pytorchs_overloads() -> None:
    x = tg.tensor([1.5, 2.5])
    assert x.to("cpu") is x and x.to(tg.float32) is x and x.to(x) is x
    assert x.to(tg.int64).tolist() == [1, 2]
    assert x.to("cpu", tg.float64).dtype is x.to(device="cpu", dtype=tg.float64).dtype is tg.float64
    assert x.to(tg.tensor(1)).dtype is tg.int64
    assert x.to(tg.float32, False, True) is not x and x.to(tg.float32, copy=True) is not x
    assert x.long().type() == "tracegrad.LongTensor" and x.type("tracegrad.DoubleTensor").dtype is tg.float64
    with pytest.raises(DTypeError, match="cuda"):
        x.to("cuda")
    with pytest.raises(TypeError):
        x.to(speed=1)


def test_view_reinterprets_bits() -> None:
    assert tg.tensor([1.0, -2.0]).view(tg.int32).tolist() == [1065353216, -1073741824]
    assert tg.tensor([1065353216], dtype=tg.int32).view(tg.float32).tolist() == [1.0]
    assert tg.tensor([[1, 2]], dtype=tg.int16).view(tg.int8).tolist() == [[1, 0, 2, 0]]
    with pytest.raises(OpError, match="does not divide"):
        tg.zeros(3, dtype=tg.int8).view(tg.int16)


def test_new_tensors_have_the_dtype() -> None:
    x = tg.tensor([1, 2])
    assert x.new_zeros(2, 3).dtype is tg.int64 and x.new_ones((2,)).shape == (2,)
    assert x.new_full((2,), 3).tolist() == [3, 3] and x.new_tensor([1.9]).tolist() == [1]
    assert x.new_empty(size=(4,)).shape == (4,) and x.new_ones(2, dtype=tg.float32).dtype is tg.float32


def test_sizes_devices_and_number_types() -> None:
    size = tg.ones(2, 3).shape
    assert isinstance(size[:1], tg.Size) and isinstance(size.__add__((1,)), tg.Size) and size.numel() == 6
    assert size == (2, 3) and hash(size) == hash((2, 3))
    assert tg.device("cpu") == tg.device(tg.device("cpu")) and str(tg.device("cpu:0")) == "cpu:0"
    with tg.device("cpu"):
        assert tg.ones(1).device == tg.device("cpu")
    assert tg.finfo(tg.float32).eps == np.finfo(np.float32).eps and tg.finfo().bits == 32
    assert tg.finfo(tg.bfloat16).max == 3.3895313892515355e38
    assert (tg.iinfo(tg.uint8).min, tg.iinfo(tg.int16).max) == (0, 32767)
    with pytest.raises(DTypeError):
        tg.finfo(tg.int8)
    with pytest.raises(DTypeError):
        tg.iinfo(tg.float32)
    assert tg.float16.itemsize == 2 and tg.float16.is_floating_point and not tg.int8.is_complex
    assert str(tg.contiguous_format) == "tracegrad.contiguous_format" and tg.ones(1).layout is tg.strided


def test_threads() -> None:
    before = tg.get_num_threads()
    try:
        tg.set_num_threads(1)
        assert tg.get_num_threads() == 1
        with pytest.raises(ValueError):
            tg.set_num_threads(0)
    finally:
        tg.set_num_threads(before)


def test_trace_is_both() -> None:
    assert tg.trace(tg.arange(9).reshape(3, 3)).tolist() == 12
    assert "mul" in str(tg.trace(lambda x: x * x)(tg.ones(2)))


# --- errors of bad input
# -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: tg.index_add(tg.ones(3), 0, tg.tensor([5]), tg.ones(1)), IndexOutOfRange),
        (lambda: tg.index_add(tg.ones(3), 0, tg.tensor([1]), tg.ones(1, dtype=tg.float64)), DTypeError),
        (lambda: tg.take(tg.ones(3), tg.tensor([4])), IndexOutOfRange),
        (lambda: tg.cross(tg.ones(2), tg.ones(2)), OpError),
        (lambda: tg.cdist(tg.ones(2, 3), tg.ones(2, 4)), OpError),
        (lambda: tg.kron("a", tg.ones(2)), DTypeError),
        (lambda: tg.addmm(tg.ones(2, 2), tg.ones(2, 3), tg.ones(2, 3)), OpError),
        (lambda: tg.addmv(tg.ones(2), tg.ones(2, 3), tg.ones(3, 1)), OpError),
        (lambda: tg.tensordot(tg.ones(2, 3), tg.ones(2, 3), 1), OpError),
        (lambda: tg.meshgrid(tg.ones(2, 2)), OpError),
        (lambda: tg.hsplit(tg.ones(4), 3), OpError),
        (lambda: tg.diag(tg.ones(2, 2, 2)), OpError),
        (lambda: tg.tril(tg.ones(2)), OpError),
        (lambda: tg.movedim(tg.ones(2, 3), (0, 0), (1, 0)), OpError),
        (lambda: tg.rot90(tg.ones(2, 3), 1, (0, 0)), OpError),
        (lambda: tg.roll(tg.ones(3), (1, 2)), OpError),
        (lambda: tg.repeat_interleave(tg.ones(3), tg.tensor([1, 2])), OpError),
        (lambda: tg.scatter(tg.ones(3), 0, tg.tensor([0]), tg.ones(1), reduce="most"), OpError),
        (lambda: tg.scatter_reduce(tg.ones(3), 0, tg.tensor([0]), tg.ones(1), "most"), OpError),
        (lambda: tg.masked_scatter(tg.ones(3), tg.tensor([1, 0, 1]), tg.ones(3)), DTypeError),
        (lambda: tg.vander(tg.ones(2, 2)), OpError),
        (lambda: tg.select_scatter(tg.ones(2, 2), tg.ones(3), 0, 0), OpError),
        (lambda: tg.cat(tg.ones(2)), DTypeError),
        (lambda: tg.ones(2).is_nonzero(), OpError),
    ],
)
def test_bad_input(call: object, error: type[TracegradError]) -> None:
    with pytest.raises(error) as e:
        call()  # type: ignore[operator]
    assert "(" in str(e.value) or "expected" in str(e.value)


# --- functions whose meaning is more than one op
# ---------------------------------------------------------------------


def test_repeat_interleave() -> None:
    x = tg.tensor([[1, 2], [3, 4]])
    assert tg.repeat_interleave(x, 2).tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert tg.repeat_interleave(x, tg.tensor([1, 2]), dim=0).tolist() == [[1, 2], [3, 4], [3, 4]]
    assert tg.repeat_interleave(tg.tensor([0, 2, 1])).tolist() == [1, 1, 2]
    native = tg.compile(lambda v, r: tg.repeat_interleave(v, r, dim=0, output_size=4))
    assert native(tg.tensor([5.0, 6.0, 7.0]), tg.tensor([2, 0, 2])).tolist() == [5, 5, 7, 7]


def test_masked_scatter_and_scatter_reduce_compiled() -> None:
    x, mask = tg.zeros(2, 3), tg.tensor([[True, False, True], [False, True, True]])
    source = tg.arange(1.0, 6.0)
    want = [[1, 0, 2], [0, 3, 4]]
    assert x.masked_scatter(mask, source).tolist() == want
    assert tg.compile(lambda a, m, s: a.masked_scatter(m, s))(x, mask, source).tolist() == want
    i, src = tg.tensor([0, 0, 2]), tg.tensor([2.0, 4.0, 9.0])
    for reduce, answer in (("mean", [3, 1, 9]), ("sum", [6, 1, 9]), ("amax", [4, 1, 9]), ("prod", [8, 1, 9])):
        run = lambda t, i, s, r=reduce: t.scatter_reduce(0, i, s, r, include_self=False)  # noqa: E731
        assert run(tg.ones(3), i, src).tolist() == answer
        assert tg.compile(run)(tg.ones(3), i, src).tolist() == answer


def test_frexp_is_exact() -> None:
    values = [1.0, -3.0, 0.0, 0.1, 1e-30, 3e38, 0.5, 2.0**-126]
    mantissa, exponent = tg.frexp(tg.tensor(values))
    want = np.frexp(np.float32(values))
    np.testing.assert_array_equal(mantissa.numpy(), want[0])
    np.testing.assert_array_equal(exponent.numpy(), want[1])


def test_warnings_are_not_raised_by_ordinary_calls() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tg.add(tg.ones(2), 1, out=tg.empty(0))
        tg.einsum("ij->ji", tg.ones(2, 3)).numpy()
