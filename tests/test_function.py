"""`autograd.Function`, hooks of tensors and nodes, anomaly mode, and walking a graph again."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad.ir.errors import GradError, TracegradError
from tracegrad.tracer import hooks

X = np.random.default_rng(0).standard_normal((3, 4))


def leaf() -> tg.Tensor:
    return tg.tensor(X, requires_grad=True)


def close(a: Any, b: Any, tol: float = 1e-9) -> None:
    a, b = (np.array(t.detach().numpy()) if isinstance(t, tg.Tensor) else np.asarray(t) for t in (a, b))
    np.testing.assert_allclose(a, b, rtol=tol, atol=tol)


class Exp(tg.autograd.Function):
    """Saves its output; twice the gradient of exp, so that it shows which gradient ran."""

    @staticmethod
    def forward(ctx: Any, x: tg.Tensor, k: float = 2.0) -> tg.Tensor:
        y = x.exp()
        ctx.save_for_backward(y)
        ctx.k = k
        return y

    @staticmethod
    def backward(ctx: Any, g: tg.Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return g * y * ctx.k, None


class Product(tg.autograd.Function):
    """Two outputs, in the style with setup_context."""

    @staticmethod
    def forward(x: tg.Tensor, y: tg.Tensor, c: float) -> Any:
        return x * y * c, x + y

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, y, ctx.c = inputs
        ctx.save_for_backward(x, y)
        ctx.save_for_forward(x, y)

    @staticmethod
    def backward(ctx: Any, g: tg.Tensor, h: tg.Tensor) -> Any:
        x, y = ctx.saved_tensors
        return g * y * ctx.c + h, g * x * ctx.c + h, None

    @staticmethod
    def jvp(ctx: Any, a: Any, b: Any, _: Any) -> Any:
        x, y = ctx.saved_tensors
        a, b = (z.new_zeros(z.shape) if t is None else t for t, z in ((a, x), (b, y)))
        return (a * y + x * b) * ctx.c, a + b


class Sine(tg.autograd.Function):
    """x sin x; saves an input and something between."""

    @staticmethod
    def forward(ctx: Any, x: tg.Tensor) -> tg.Tensor:
        z = x.sin()
        ctx.save_for_backward(x, z)
        return z * x

    @staticmethod
    def backward(ctx: Any, g: tg.Tensor) -> tg.Tensor:
        x, z = ctx.saved_tensors
        return g * (z + x * x.cos())


# --- Function -----------------------------------------------------------------------------------------------


def test_backward_is_what_the_class_says() -> None:
    x = leaf()
    y = Exp.apply(x)
    assert y.grad_fn.name() == "ExpBackward" and y.requires_grad and y.grad_fn.k == 2.0
    y.sum().backward()
    close(x.grad, 2 * np.exp(X))
    x.grad = None
    Exp.apply(x, 5.0).sum().backward()
    close(x.grad, 5 * np.exp(X))
    with tg.no_grad():
        assert not Exp.apply(x).requires_grad
    assert not Exp.apply(x.detach()).requires_grad


def test_higher_derivatives_go_through_backward() -> None:
    x = leaf()
    (g,) = tg.autograd.grad(Exp.apply(x).sum(), x, create_graph=True)
    (h,) = tg.autograd.grad(g.sum(), x, create_graph=True)
    (k,) = tg.autograd.grad(h.sum(), x)
    for n, d in enumerate((g, h, k), 1):  # each time through the saved output, 2 exp(x)
        close(d, 2**n * np.exp(X))
    a, b = Product.apply(x, x.sin(), 3.0)
    (g,) = tg.autograd.grad((a * b).sum(), x, create_graph=True)
    (h,) = tg.autograd.grad(g.sum(), x)
    y = leaf()
    want = (y * y.sin() * 3 * (y + y.sin())).sum()
    (p,) = tg.autograd.grad(want, y, create_graph=True)
    (q,) = tg.autograd.grad(p.sum(), y)
    close(g, p)
    close(h, q)


def test_what_was_saved_outlives_a_run_and_later_writes() -> None:
    x = leaf()
    y = Sine.apply(x * 1.0)
    y.sum().item()
    with tg.no_grad():
        x.mul_(0.0)
    y.sum().backward()
    close(x.grad, np.sin(X) + X * np.cos(X))


def test_a_loop_compiles_one_program() -> None:
    x = leaf()
    for _ in range(5):
        Sine.apply(Exp.apply(x)).sum().backward()
        with tg.no_grad():
            x.sub_(1e-3 * x.grad)
        x.grad = None
    y = leaf()
    for _ in range(5):
        e = y.exp()
        (2 * (e * e.sin()) - (e * e.sin()).detach()).sum().backward()
        with tg.no_grad():
            y.sub_(1e-3 * y.grad)
        y.grad = None
    close(x, y)


def test_compiled() -> None:
    def f(x: tg.Tensor) -> Any:
        return tg.autograd.grad((Sine.apply(Exp.apply(x)) * Product.apply(x, x.cos(), 2.0)[1]).sum(), x)[0]

    compiled = tg.compile(f)
    for _ in range(2):
        close(compiled(leaf()), f(leaf()))
    x, y = leaf(), leaf()
    tg.compile(lambda a: Sine.apply(a).sum())(x).backward()
    Sine.apply(y).sum().backward()
    close(x.grad, y.grad)


def test_transformed() -> None:
    f = lambda a: Product.apply(a, a.cos(), 2.0)[0]  # noqa: E731
    plain = lambda a: a * a.cos() * 2.0  # noqa: E731
    x, F = tg.tensor(X), tg.func
    close(F.grad(lambda a: f(a).sum())(x), F.grad(lambda a: plain(a).sum())(x))
    close(F.vmap(F.grad(lambda a: f(a).sum()))(x), F.vmap(F.grad(lambda a: plain(a).sum()))(x))
    close(F.grad(lambda a: F.vmap(F.vmap(f))(a).sum())(x), F.grad(lambda a: plain(a).sum())(x))
    close(F.jacrev(f)(x[0]), F.jacrev(plain)(x[0]))
    close(F.jacfwd(f)(x[0]), F.jacfwd(plain)(x[0]))
    w = x[0]
    shared = lambda g: F.grad(lambda v: F.vmap(lambda a: g(a, v))(x).sum())(w)  # noqa: E731
    close(shared(lambda a, v: Product.apply(a, v, 2.0)[0]), shared(lambda a, v: a * v * 2.0))
    close(F.jvp(Sine.apply, (x,), (x,))[1], (np.sin(X) + X * np.cos(X)) * X)  # backward, transposed


def test_inside_a_scan() -> None:
    def scanned(xs: tg.Tensor) -> tg.Tensor:
        return tg.scan(lambda c, a: (Sine.apply(c * a), c), tg.ones(4, dtype=tg.float64), xs)[0].sum()

    def unrolled(xs: tg.Tensor) -> tg.Tensor:
        c: Any = tg.ones(4, dtype=tg.float64)
        for i in range(3):
            c = Sine.apply(c * xs[i])
        return c.sum()

    x, y = leaf(), leaf()
    scanned(x).backward()
    unrolled(y).backward()
    close(x.grad, y.grad)


def test_a_vmap_of_its_own() -> None:
    seen: list[Any] = []

    class Own(tg.autograd.Function):
        @staticmethod
        def forward(x: tg.Tensor, k: tg.Tensor) -> tg.Tensor:
            return tg.tensor(x.numpy() * 2) * k  # NumPy: can't be batched as it is

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def vmap(info: Any, in_dims: Any, x: tg.Tensor, k: tg.Tensor) -> Any:
            seen.append((info.batch_size, in_dims, tuple(x.shape)))
            return Own.apply(x, k), 0

    close(tg.vmap(Own.apply, in_dims=(1, None), out_dims=1)(tg.tensor(X), tg.tensor(3.0)), 6 * X)
    assert seen == [(4, (0, None), (4, 3))]


def test_numpy_inside() -> None:
    class Sort(tg.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: tg.Tensor) -> Any:
            order = tg.tensor(np.argsort(x.detach().numpy()))
            ctx.save_for_backward(order)
            ctx.mark_non_differentiable(order)
            return x[order], order

        @staticmethod
        @tg.autograd.function.once_differentiable
        def backward(ctx: Any, g: tg.Tensor, _: Any) -> tg.Tensor:
            out = np.zeros(4)
            out[ctx.saved_tensors[0].numpy()] = g.detach().numpy()
            return tg.tensor(out)

    x = tg.tensor(X[0], requires_grad=True)
    made, order = Sort.apply(x)
    assert made.tolist() == sorted(X[0]) and not order.requires_grad
    (made * tg.tensor([1.0, 2.0, 3.0, 4.0], dtype=tg.float64)).sum().backward()
    close(x.grad, 1 + np.argsort(np.argsort(X[0])))
    (g,) = tg.autograd.grad((Sort.apply(x)[0] ** 2).sum(), x, create_graph=True)
    with pytest.raises(GradError, match="once_differentiable"):
        g.sum().backward()


def test_gradients_that_are_missing() -> None:
    given: list[Any] = []

    class Two(tg.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: tg.Tensor, flag: bool) -> Any:
            ctx.set_materialize_grads(flag)
            return x * 2, x * 3

        @staticmethod
        def backward(ctx: Any, g: Any, h: Any) -> Any:
            given.append((g, h))
            return g * 2 if h is None else g * 2 + h * 3, None

    for flag in (True, False):
        x = leaf()
        Two.apply(x, flag)[0].sum().backward()
        close(x.grad, np.full_like(X, 2.0))
    assert given[0][1].tolist() == np.zeros_like(X).tolist() and given[1][1] is None


def test_written_in_place() -> None:
    class Double(tg.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: tg.Tensor) -> tg.Tensor:
            x.mul_(2)
            ctx.mark_dirty(x)
            return x

        @staticmethod
        def backward(ctx: Any, g: tg.Tensor) -> tg.Tensor:
            return g * 7

    x = leaf()
    y = x * 1.0
    assert Double.apply(y) is y
    close(y, 2 * X)
    y.sum().backward()
    close(x.grad, np.full_like(X, 7))
    z = leaf()
    rows = z * 1.0
    Double.apply(rows[0])
    rows.sum().backward()
    assert z.grad[:, 0].tolist() == [7, 1, 1]
    with pytest.raises(GradError, match="leaf"):
        Double.apply(leaf())


def test_function_errors() -> None:
    class Few(tg.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: tg.Tensor, y: tg.Tensor) -> tg.Tensor:
            return x * y

        @staticmethod
        def backward(ctx: Any, g: tg.Tensor) -> Any:
            return g

    class Shape(Few):
        @staticmethod
        def backward(ctx: Any, g: tg.Tensor) -> Any:
            return g[0], g

    class Kind(Few):
        @staticmethod
        def backward(ctx: Any, g: tg.Tensor) -> Any:
            return 1.0, g

    class Nothing(tg.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: tg.Tensor, y: tg.Tensor) -> tg.Tensor:
            return x + y

    for cls, words in (
        (Few, "gave 1 gradients, forward has 2 arguments"),
        (Shape, r"gradient of type f64\[4\] for argument 0 of type f64\[3,4\]"),
        (Kind, "gave float as gradient 0"),
    ):
        with pytest.raises(GradError, match=words):
            cls.apply(leaf(), leaf()).sum().backward()
    with pytest.raises(NotImplementedError, match="backward"):
        Nothing.apply(leaf(), leaf()).sum().backward()
    with pytest.raises(TypeError, match=r"Few.apply"):
        Few()
    with pytest.raises(TracegradError, match="save_for_backward"):
        _saves_a_number()


def _saves_a_number() -> None:
    class Number(tg.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: tg.Tensor) -> tg.Tensor:
            ctx.save_for_backward(3)
            return x

    Number.apply(leaf())


# --- hooks --------------------------------------------------------------------------------------------------


def test_hooks_that_look_at_gradients_do_not_lose_others() -> None:
    x, seen = leaf(), []
    a, b = x * 2, x.sin()
    a.register_hook(lambda g: seen.append(float(g.sum())))
    b.register_hook(lambda g: seen.append(float(g.sum())))
    (a * b + b * b * a).sum().backward()
    s, c = np.sin(X), np.cos(X)
    close(x.grad, 2 * s + 2 * s * s + (2 * X + 4 * s * X) * c)
    assert sorted(seen) == pytest.approx(sorted([np.sum(s + s * s), np.sum(2 * X + 4 * s * X)]))


def test_a_hook_stays_with_the_value_it_was_set_on() -> None:
    x = leaf()
    y = x * 3
    y.register_hook(lambda g: g * 10)
    y.mul_(2)
    y.register_hook(lambda g: g + 1)
    y.sum().backward()
    close(x.grad, np.full_like(X, (1 + 1) * 2 * 10 * 3))


def test_hooks_of_a_leaf_see_the_sum() -> None:
    x, seen = leaf(), []
    x.register_hook(lambda g: seen.append(float(g.sum())))
    loss = (x * 2).sum()
    with tg.no_grad():
        x.mul_(0.5)
    (loss + (x * 3).sum()).backward()
    assert seen == [5 * X.size]
    after: list[Any] = []
    handle = x.register_post_accumulate_grad_hook(lambda t: after.append(float(t.grad.sum())))
    (x * 1).sum().backward()
    assert after == [6 * X.size]
    with handle:
        pass
    (x * 1).sum().backward()
    assert len(after) == 1
    with pytest.raises(GradError, match="leaf"):
        (x * 1).register_post_accumulate_grad_hook(lambda t: None)


def test_hooks_of_nodes() -> None:
    x = leaf()
    y = x * 3
    calls: list[Any] = []
    y.grad_fn.register_prehook(lambda outs: (outs[0] * 2,))
    y.grad_fn.register_hook(
        lambda ins, outs: calls.append((float(ins[0][0, 0]), ins[1], float(outs[0][0, 0])))
    )
    y.sum().backward()
    assert calls == [(6.0, None, 2.0)]
    close(x.grad, np.full_like(X, 6))
    z = leaf()
    w = z.exp()
    handle = w.grad_fn.register_hook(lambda ins, outs: (ins[0] * 0,))
    w.sum().backward(retain_graph=True)
    close(z.grad, 0 * X)
    handle.remove()
    w.sum().backward()
    close(z.grad, np.exp(X))


def test_hooks_go_when_they_are_removed_or_die() -> None:
    gc.collect()
    before = len(hooks.LIVE)
    x = leaf()
    handle = x.register_hook(lambda g: g * 2)
    y = (x * 2).exp()
    y.register_hook(lambda g: g)
    assert len(hooks.LIVE) == before + 2
    handle.remove()
    handle.remove()
    del y
    x.tolist()  # a pending program holds its values
    gc.collect()
    assert len(hooks.LIVE) == before
    with pytest.raises(GradError, match=r"replaced a gradient of type f64\[3,4\] by one of type f64\[4\]"):
        x.register_hook(lambda g: g[0])
        (x * 2).sum().backward()
    with pytest.raises(GradError, match="callable"):
        x.register_hook(3)  # type: ignore[arg-type]


def test_hooks_and_higher_derivatives() -> None:
    x = tg.tensor([0.5], dtype=tg.float64, requires_grad=True)
    y = x.exp()
    y.register_hook(lambda g: g * 3)
    (g,) = tg.autograd.grad((y * y).sum(), x, create_graph=True)
    close(g, 6 * np.exp(1.0))
    (h,) = tg.autograd.grad(g.sum(), x)
    # g = 3 * 2y * y: the derivative with respect to y is 12 y, and goes through the hook once more.
    close(h, 3 * 12 * np.exp(1.0))


def test_hooks_under_transformations() -> None:
    def f(a: tg.Tensor) -> tg.Tensor:
        b = a.sin()
        b.register_hook(lambda g: g * 2)
        return b.sum()

    close(tg.func.grad(f)(tg.tensor(X)), 2 * np.cos(X))
    close(tg.func.vmap(tg.func.grad(f))(tg.tensor(X)), 2 * np.cos(X))


# --- walking again ------------------------------------------------------------------------------------------


def test_a_graph_that_saved_nothing_can_be_walked_again() -> None:
    x = leaf()
    y = (x + 1).sum()
    y.backward()
    y.backward()
    x.grad.tolist()
    y.backward()
    close(x.grad, np.full_like(X, 3))
    h = x * 2.0
    (h * h).sum().backward()
    h.sum().backward()  # of `mul` by a number nothing is kept
    with pytest.raises(GradError, match=r"mul .*second time.*retain_graph"):
        z = (x * x).sum()
        z.backward()
        z.backward()


def test_memory_of_a_walked_graph() -> None:
    """A loss that is kept does not keep old parameters."""
    w = tg.zeros(5, requires_grad=True)
    losses = []
    for _ in range(3):
        loss = (w + 1).sum()
        losses.append(loss)
        loss.backward()
        with tg.no_grad():
            w -= 0.1 * w.grad
            w.grad = None
        w.tolist()
    node = losses[0]._value().node.operands[0].node
    assert node.op.name == "add" and node.operands[0].leaf is not None and node.operands[0].buffer is None


def test_detached_tensors_have_a_history_of_their_own() -> None:
    x = leaf()
    base = x * 1.0
    d = base.detach()
    d[0] = x[1] * 2
    assert d.requires_grad and not d.is_leaf and base.requires_grad
    close(base[0], 2 * X[1])  # one memory
    (d * d).sum().backward()
    want = np.zeros_like(X)
    want[1] = 2 * 2 * X[1] * 2
    close(x.grad, want)
    x.grad = None
    base.sum().backward()  # whose gradient's path is the old one
    close(x.grad, np.ones_like(X))


def test_anomaly_mode_names_the_line() -> None:
    x = tg.tensor([0.0, 1.0], requires_grad=True)
    with tg.autograd.set_detect_anomaly(True):
        y = (x * 0).sqrt() * 0
        with pytest.raises(
            GradError, match=r"SqrtBackward0 returned NaN as gradient 0 of sqrt\(f32\[2\]\) at test_function"
        ):
            y.sum().backward()
        assert x.grad is None and tg.autograd.is_anomaly_enabled()
        (x * 2).sum().backward()
        assert x.grad.tolist() == [2, 2]
    assert not tg.autograd.is_anomaly_enabled()
    with pytest.warns(UserWarning, match="slows"), tg.autograd.detect_anomaly(check_nan=False):
        (x * 0).sqrt().sum().backward()


def test_batched_gradients() -> None:
    x = tg.tensor(X[0], requires_grad=True)
    y = x.sin() * x.sum()
    (rows,) = tg.autograd.grad(y, x, tg.eye(4, dtype=tg.float64), is_grads_batched=True)
    close(rows, tg.func.jacrev(lambda a: a.sin() * a.sum())(x.detach()))
    unused = tg.zeros(2, requires_grad=True)
    got = tg.autograd.grad(
        y, [x, unused], tg.eye(4, dtype=tg.float64), is_grads_batched=True, allow_unused=True
    )
    assert got[1] is None
    zero = tg.autograd.grad(y.sum(), [unused], materialize_grads=True)[0]
    assert zero.tolist() == [0, 0]


def test_names_of_squeeze() -> None:
    x = tg.ones(1, 2, 1, requires_grad=True)
    made = (x.squeeze(), x.squeeze(0), x.squeeze(1), x.squeeze((0, 2)), x.squeeze((0,)))
    assert [y.grad_fn.name()[15:] for y in made] == ["0", "1", "1", "2", "2"]
    assert [tuple(y.shape) for y in made] == [(2,), (2, 1), (1, 2, 1), (2,), (2, 1)]
