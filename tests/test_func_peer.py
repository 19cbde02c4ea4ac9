"""`func`, `autograd.functional`, `forward_ad` and `autograd.Function` against PyTorch: the same code with `T`
the package, values to 1e-9."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tracegrad as tg

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peer

RNG = np.random.default_rng(0)
M, W = RNG.standard_normal((3, 4)), RNG.standard_normal((4, 2))


def f(x: Any) -> Any:
    return (x.sin() * x.exp()).sum()


def wave(a: Any, b: Any) -> Any:
    return (a * b).sin().sum()


def layer(a: Any, w: Any) -> Any:
    return (a @ w).tanh()


def hidden(T: Any, a: Any) -> Any:
    with T.no_grad():
        return a.sin()


def written(a: Any) -> Any:
    c = a.clone()
    c[0] = a.sum()
    return c.mul_(a)


def dual(T: Any, x: Any) -> Any:
    fw = T.autograd.forward_ad
    with fw.dual_level():
        y = (fw.make_dual(x, x * 2).sin() * x).exp()
        return tuple(fw.unpack_dual(y))


def order(T: Any, x: Any, n: int) -> Any:
    x = x.clone().requires_grad_()
    y, out = f(x), []
    for _ in range(n):
        (g,) = T.autograd.grad(y, x, create_graph=True)
        y = (g * g).sum()
        out.append(g)
    return out


def model(T: Any) -> Any:
    T.manual_seed(0)
    return T.nn.Sequential(T.nn.Linear(4, 5), T.nn.Tanh(), T.nn.Linear(5, 3)).double()


def per_sample(T: Any, x: Any) -> Any:
    net = model(T)
    params = {k: v.detach() for k, v in net.named_parameters()}
    loss = lambda p, a: (T.func.functional_call(net, p, (a,)) ** 2).sum()  # noqa: E731
    return T.func.vmap(T.func.grad(loss), in_dims=(None, 0))(params, x)


def tangent_kernel(T: Any, x: Any) -> Any:
    net = model(T)
    params = {k: v.detach() for k, v in net.named_parameters()}
    return T.func.vmap(T.func.jacrev(lambda p, a: T.func.functional_call(net, p, (a,))), (None, 0))(params, x)


def ensemble(T: Any, x: Any) -> Any:
    nets = [model(T) for _ in range(3)]
    params, buffers = T.func.stack_module_state(nets)
    call = lambda p, b, a: T.func.functional_call(nets[0], (p, b), (a,))  # noqa: E731
    return T.func.vmap(call, (0, 0, None))(params, buffers, x)


def batch_norm(T: Any, x: Any) -> Any:
    net = T.nn.Sequential(T.nn.Linear(4, 3), T.nn.BatchNorm1d(3)).double()
    for p in net.parameters():
        p.data.fill_(0.3)
    params = {k: v.detach().clone() for k, v in net.named_parameters()}
    state = {k: v.clone() for k, v in net.named_buffers()}

    def loss(p: Any, b: Any) -> Any:
        return T.func.functional_call(net, (p, b), (x,)).pow(2).sum(), b

    g, (value, after) = T.func.grad_and_value(loss, has_aux=True)(params, state)
    return g, value, after["1.running_mean"], net[1].running_mean


ROW: dict[str, Callable[[Any, Any], Any]] = {
    "grad": lambda T, x: T.func.grad(f)(x),
    "grad of grad": lambda T, x: T.func.grad(lambda y: T.func.grad(f)(y).pow(2).sum())(x),
    "grad_and_value": lambda T, x: T.func.grad_and_value(f)(x),
    "hessian": lambda T, x: T.func.hessian(f)(x),
    "jacrev": lambda T, x: T.func.jacrev(lambda y: y.sin()[:2] * y.sum())(x),
    "jacfwd": lambda T, x: T.func.jacfwd(lambda y: y.sin()[:2] * y.sum())(x),
    "jvp": lambda T, x: T.func.jvp(lambda y: y.sin() * y.sum(), (x,), (x * 2,)),
    "vjp": lambda T, x: (lambda o: (o[0], o[1](o[0])))(T.func.vjp(lambda y: y.sin() * y.sum(), x)),
    "jvp of jvp": lambda T, x: T.func.jvp(lambda z: T.func.jvp(lambda y: y.sin(), (z,), (z,))[1], (x,), (x,)),
    "jvp of grad": lambda T, x: T.func.jvp(T.func.grad(f), (x,), (x * 2,)),
    "three times": lambda T, x: T.func.jacfwd(T.func.jacrev(T.func.jacfwd(f)))(x),
    "dual": dual,
    "jacobian": lambda T, x: T.autograd.functional.jacobian(lambda a, b: (a * b.sum(), a + b), (x, x * 2)),
    "functional hessian": lambda T, x: T.autograd.functional.hessian(wave, (x, x * 2)),
    "functional vjp": lambda T, x: T.autograd.functional.vjp(lambda a: a.sin() * a.sum(), x, x),
    "functional jvp": lambda T, x: T.autograd.functional.jvp(lambda a: a.sin() * a.sum(), x, x),
    "hvp": lambda T, x: T.autograd.functional.hvp(wave, (x, x), (x, x * 2)),
    "vhp": lambda T, x: T.autograd.functional.vhp(f, x, x),
    "fourth order": lambda T, x: order(T, x, 4),
    "softmax": lambda T, x: T.func.hessian(lambda a: a.softmax(0)[0])(x),
    "norm at zero": lambda T, x: T.func.vmap(T.func.grad(lambda a: (a * 0).norm()))(x[:, None]),
}
BOTH: dict[str, Callable[[Any, Any, Any], Any]] = {
    "vmap": lambda T, x, w: T.func.vmap(lambda a: a @ w)(x),
    "vmap dims": lambda T, x, w: T.func.vmap(lambda a: a.sin(), in_dims=1, out_dims=-1)(x),
    "vmap of grad": lambda T, x, w: T.func.vmap(T.func.grad(lambda u, a: (a @ u).tanh().sum()), (None, 0))(
        w, x
    ),
    "grad of vmap": lambda T, x, w: T.func.grad(lambda u: T.func.vmap(lambda a: (a @ u).tanh())(x).sum())(w),
    "vmap containers": lambda T, x, w: T.func.vmap(
        lambda d: {"o": d["x"] * d["y"]}, in_dims=({"x": 0, "y": None},)
    )({"x": x, "y": x[0]}),
    "vmap twice": lambda T, x, w: T.func.vmap(T.func.vmap(lambda a, b: a * b, (0, None)), (None, 1))(
        x[:, 0], w
    ),
    "chunks": lambda T, x, w: T.func.vmap(lambda a: a @ w, chunk_size=2)(x),
    "argnums": lambda T, x, w: T.func.grad(lambda a, b: (a @ b).sin().sum(), argnums=(0, 1))(x, w),
    "jacrev argnums": lambda T, x, w: T.func.jacrev(
        lambda a, b: {"p": (a @ b).sin().sum(0), "q": a}, argnums=(0, 1)
    )(x, w),
    "jacfwd argnums": lambda T, x, w: T.func.jacfwd(
        lambda a, b: {"p": (a @ b).sin().sum(0), "q": a}, argnums=(0, 1)
    )(x, w),
    "hessian argnums": lambda T, x, w: T.func.hessian(lambda a, b: (a @ b).sin().sum(), argnums=(0, 1))(x, w),
    "aux": lambda T, x, w: T.func.jacfwd(lambda a: ((a @ w).sin(), a * 2), has_aux=True)(x),
    "vmap of hessian": lambda T, x, w: T.func.vmap(T.func.hessian(lambda a: (a @ w).tanh().sum()))(x),
    "vjp in vmap": lambda T, x, w: T.func.vmap(lambda a: T.func.vjp(lambda z: (z * a).sin(), w[:, 0])[1](a))(
        x
    ),
    "written": lambda T, x, w: (T.func.vmap(written)(x), T.func.grad(lambda a: written(a).sum())(x)),
    "index": lambda T, x, w: T.func.vmap(lambda a, i: a[i])(x, T.tensor([0, 1, 2])),
    "where": lambda T, x, w: T.func.vmap(lambda a: T.where(a.sum() > 0, a, -a))(x),
    "no_grad": lambda T, x, w: T.func.grad(lambda a: (hidden(T, a) * a).sum())(x),
    "detach": lambda T, x, w: T.func.jvp(lambda a: a.detach() * a, (x,), (x,)),
    "no_grad forward": lambda T, x, w: T.func.jvp(lambda a: hidden(T, a) * a, (x,), (x,)),
}
MODULES = {g.__name__: g for g in (per_sample, tangent_kernel, ensemble, batch_norm)}


def leaves(x: Any) -> list[Any]:
    if isinstance(x, (tuple, list)):
        return [z for y in x for z in leaves(y)]
    if isinstance(x, dict):
        return [z for k in sorted(x) for z in leaves(x[k])]
    return [x]


def compare(make: Callable[[Any], Any]) -> None:
    want, got = leaves(make(torch)), leaves(make(tg))
    assert len(want) == len(got)
    for a, b in zip(want, got):
        assert tuple(a.shape) == tuple(b.shape)
        np.testing.assert_allclose(b.detach().numpy(), a.detach().numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ROW)
def test_of_a_vector(name: str) -> None:
    compare(lambda T: ROW[name](T, T.tensor(M[0])))


@pytest.mark.parametrize("name", BOTH)
def test_of_matrices(name: str) -> None:
    compare(lambda T: BOTH[name](T, T.tensor(M), T.tensor(W)))


@pytest.mark.parametrize("name", MODULES)
def test_of_modules(name: str) -> None:
    compare(lambda T: MODULES[name](T, T.tensor(M)))


def functions(T: Any) -> Any:
    class Exp(T.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            y = x.exp()
            ctx.save_for_backward(y)
            return y

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g * ctx.saved_tensors[0] * 2

    class Product(T.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Any, y: Any, c: float) -> Any:
            return x * y * c, x + y

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            x, y, ctx.c = inputs
            ctx.save_for_backward(x, y)

        @staticmethod
        def backward(ctx: Any, g: Any, h: Any) -> Any:
            x, y = ctx.saved_tensors
            return g * y * ctx.c + h, g * x * ctx.c + h, None

    return Exp, Product


def test_functions_with_their_own_gradient() -> None:
    def make(T: Any) -> Any:
        exp, product = functions(T)
        x = T.tensor(M, requires_grad=True)
        y = exp.apply(x)
        a, b = product.apply(x, y, 2.0)
        (g,) = T.autograd.grad((a * b).sum(), x, create_graph=True)
        (h,) = T.autograd.grad(g.sum(), x)
        z, F = T.tensor(M), T.func
        each = lambda r: product.apply(r, r.cos(), 2.0)[0]  # noqa: E731
        return g, h, F.vmap(F.grad(lambda r: each(r).sum()))(z), F.grad(lambda r: F.vmap(each)(r).sum())(z)

    compare(make)
    for T in (torch, tg):
        exp, product = functions(T)
        x = T.tensor(M, requires_grad=True)
        assert exp.apply(x).grad_fn.name() == "ExpBackward"
        names = [t.grad_fn.name() for t in product.apply(x, x, 1.0)]
        assert names == ["ProductBackward"] * 2
