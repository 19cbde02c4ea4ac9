"""`autograd.Function`: traced, compiled, transformed, differentiated again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad.ir.errors import GradError, TracegradError

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
