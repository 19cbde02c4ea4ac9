"""`tracegrad.func`: transformations of functions compose with each other, with compiled functions and with
control flow; what can't be transformed says why."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import tracegrad as tg
from tracegrad import func
from tracegrad.ir.errors import GradError, TraceError, TracegradError
from tracegrad.tracer.recording import STATE

X = [[0.3, -1.2, 0.7], [1.5, 0.2, -0.4]]
W = [[0.5, -0.1], [0.2, 0.9], [-0.7, 0.4]]


def x64() -> tg.Tensor:
    return tg.tensor(X, dtype=tg.float64)


def w64() -> tg.Tensor:
    return tg.tensor(W, dtype=tg.float64)


def close(a: Any, b: Any, tol: float = 1e-9) -> None:
    a, b = (np.array(t.detach().numpy()) if isinstance(t, tg.Tensor) else np.array(t) for t in (a, b))
    np.testing.assert_allclose(a, b, rtol=tol, atol=tol)


def scalar(a: tg.Tensor) -> tg.Tensor:
    return (a.sin() * a.exp()).sum()


def slope(f: Any, at: tg.Tensor, eps: float = 1e-6) -> np.ndarray:
    """The Jacobian of `f` by central differences: [*out, *in]."""
    base = np.array(at.numpy())
    columns = []
    for i in range(base.size):
        ends = []
        for sign in (1, -1):
            moved = base.copy()
            moved.flat[i] += sign * eps
            ends.append(np.array(f(tg.tensor(moved)).detach().numpy()))
        columns.append(np.asarray(ends[0] - ends[1]) / (2 * eps))
    return np.stack(columns, -1).reshape((*ends[0].shape, *base.shape))


# --- derivatives --------------------------------------------------------------------------------------------


def test_grad_to_the_fourth_order() -> None:
    x = tg.tensor(0.7, dtype=tg.float64)
    f: Any = lambda a: a.sin() * a.exp()  # noqa: E731
    for _ in range(4):
        close(func.grad(f)(x), slope(f, x), 1e-7)
        f = func.grad(f)
    close(f(x), -4 * np.sin(0.7) * np.exp(0.7))


def test_grad_arguments_aux_and_value() -> None:
    def f(a: tg.Tensor, b: Any, c: float = 1.0) -> Any:
        return (a @ b["w"]).sum() * c, {"double": a * 2}

    x, w = x64(), w64()
    (ga, gb), (value, aux) = func.grad_and_value(f, argnums=(0, 1), has_aux=True)(x, {"w": w}, c=3.0)
    close(value, 3 * np.sum(np.array(X) @ np.array(W)))
    close(ga, np.tile(3 * np.array(W).sum(1), (2, 1)))
    close(gb["w"], np.tile(3 * np.array(X).sum(0)[:, None], (1, 2)))
    close(aux["double"], 2 * np.array(X))
    g, aux = func.grad(f, argnums=-2, has_aux=True)(x, {"w": w})
    assert tuple(g.shape) == (2, 3) and not aux["double"].requires_grad
    (only,) = func.grad(lambda a: a.sum(), argnums=(0,))(x)
    close(only, np.ones((2, 3)))


def test_an_argument_that_is_not_used_has_a_zero_gradient() -> None:
    g = func.grad(lambda a, b: b.sum(), argnums=(0, 1))(x64(), w64())
    close(g[0], np.zeros((2, 3)))
    close(g[1], np.ones((3, 2)))


def test_vjp_can_be_called_often_and_jvp_is_its_transpose() -> None:
    w = w64()
    f = lambda a: ((a @ w).tanh(), a.sum(0))  # noqa: E731
    x = x64()
    out, back = func.vjp(f, x)
    v = tg.tensor(np.linspace(-1, 1, 6).reshape(2, 3))
    _, moved = func.jvp(f, (x,), (v,))
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        c = tuple(tg.tensor(rng.standard_normal(tuple(t.shape))) for t in out)
        (g,) = back(c)
        left = sum(float((a * b).sum()) for a, b in zip(c, moved))
        assert left == pytest.approx(float((g * v).sum()), rel=1e-12)
    linear_out, push = func.linearize(f, x)
    close(linear_out[0], out[0])
    for a, b in zip(push(v * 2), moved):
        close(a, 2 * b)


def test_jacobians_and_hessians_agree_with_differences() -> None:
    w, row = w64(), x64()[0]
    f = lambda a: (a @ w).tanh() * a.sum()  # noqa: E731
    for transform in (func.jacrev, func.jacfwd):
        close(transform(f)(row), slope(f, row), 1e-7)
    g = lambda a: f(a).sum()  # noqa: E731
    want = slope(func.grad(g), row)
    twice = [outer(inner(g)) for outer in (func.jacrev, func.jacfwd) for inner in (func.jacrev, func.jacfwd)]
    for second in twice:
        close(second(row), want, 1e-6)
    close(func.jacrev(f, chunk_size=1)(row), func.jacrev(f)(row))


def test_no_grad_and_detach_inside() -> None:
    x = x64()

    def held(a: tg.Tensor) -> tg.Tensor:
        with tg.no_grad():
            b = a.sin()
        return (b * a).sum()

    close(func.grad(held)(x), np.sin(X))
    with tg.no_grad():
        close(func.grad(scalar)(x), np.exp(X) * (np.sin(X) + np.cos(X)))
    _, moved = func.jvp(lambda a: a.detach() * a, (x,), (tg.ones_like(x),))
    close(moved, X)
    y = x.requires_grad_()
    outer = tg.autograd.grad(func.vmap(held)(y).sum(), y)[0]  # the level outside must not see what is hidden
    close(outer, np.sin(X))


def test_ordinary_gradients_flow_through() -> None:
    w = w64().requires_grad_()
    x = x64()
    func.grad(lambda a: (a @ w).sin().sum())(x).pow(2).sum().backward()
    got = np.array(w.grad.numpy())
    want = slope(lambda u: func.grad(lambda a: (a @ u).sin().sum())(x).pow(2).sum(), w.detach())
    close(got, want, 1e-6)


def test_python_may_look_at_values() -> None:
    def f(a: tg.Tensor) -> tg.Tensor:
        return a.sin().sum() if a.sum() > 0 else a.cos().sum()

    close(func.grad(f)(x64()), np.cos(X))
    close(func.grad(f)(-x64()), np.sin(X))
    seen = []
    func.vmap(lambda a: (seen.append(w64().sum().item()), a)[1])(x64())
    assert seen == [pytest.approx(np.sum(W))]


def test_what_the_function_writes_is_written() -> None:
    total, x = tg.zeros(3), tg.tensor(X)

    def f(a: tg.Tensor) -> tg.Tensor:
        total.add_(a.detach().sum(0))
        return (a * a).sum()

    func.grad(f)(x)
    close(total, np.sum(X, 0), 1e-6)
    y = x.clone()
    func.vmap(lambda a: a.mul_(2), in_dims=1, out_dims=1)(y)
    close(y, 2 * np.array(X), 1e-6)
    z = x.clone()
    close(func.grad(lambda a: (a.mul_(2) ** 2).sum())(z), 8 * np.array(X), 1e-6)
    close(z, 2 * np.array(X), 1e-6)


def test_a_failed_call_leaves_tensors_as_they_were() -> None:
    total = tg.zeros(3)

    def f(a: tg.Tensor) -> tg.Tensor:
        total.add_(1)
        raise KeyError("no")

    with pytest.raises(KeyError):
        func.grad(f)(x64())
    assert total.tolist() == [0, 0, 0]
    close(func.grad(scalar)(x64()), np.exp(X) * (np.sin(X) + np.cos(X)))


# --- vmap ---------------------------------------------------------------------------------------------------


def test_vmap_dims_and_containers() -> None:
    x, w = x64(), w64()
    close(func.vmap(lambda a, b: a @ b, in_dims=(0, None))(x, w), np.array(X) @ np.array(W))
    close(func.vmap(lambda a: a.cumsum(0), in_dims=1, out_dims=-1)(x), np.cumsum(X, 0))
    out = func.vmap(
        lambda d, k: {"s": d["x"] * k, "w": d["w"].sum()}, ({"x": 0, "w": None}, None), {"s": 1, "w": None}
    )({"x": x, "w": w}, 2)
    close(out["s"], 2 * np.array(X).T)
    close(out["w"], np.sum(W))
    close(func.vmap(lambda a: tg.ones(2))(x), np.ones((2, 2)))
    close(
        func.vmap(func.vmap(lambda a, b: a * b, (None, 0)), (0, None))(x[:, 0], w[:, 0]),
        np.outer([0.3, 1.5], [0.5, 0.2, -0.7]),
    )
    for chunk in (1, 2, 5):
        close(func.vmap(lambda a: a.exp().sum(), chunk_size=chunk)(x), np.exp(X).sum(1))


def test_per_sample_gradients_of_a_module() -> None:
    tg.manual_seed(0)
    net = tg.nn.Sequential(tg.nn.Linear(3, 4), tg.nn.Tanh(), tg.nn.Linear(4, 1))
    params = {k: v.detach() for k, v in net.named_parameters()}
    x = tg.randn(5, 3)

    def loss(p: Any, a: tg.Tensor) -> tg.Tensor:
        return func.functional_call(net, p, (a,)).pow(2).sum()

    found = func.vmap(func.grad(loss), in_dims=(None, 0))(params, x)
    compiled = tg.compile(lambda p, a: func.vmap(func.grad(loss), in_dims=(None, 0))(p, a))(params, x)
    for i in range(5):
        net.zero_grad()
        net(x[i]).pow(2).sum().backward()
        for k, p in net.named_parameters():
            close(found[k][i], p.grad, 1e-5)
            close(compiled[k][i], p.grad, 1e-5)


def test_random_numbers_under_vmap() -> None:
    x = tg.zeros(4, 3)
    with pytest.raises(TracegradError, match="randomness"):
        func.vmap(lambda a: a + tg.rand(3))(x)
    same = func.vmap(lambda a: a + tg.rand(3), randomness="same")(x).numpy()
    apart = func.vmap(lambda a: a + tg.rand(3), randomness="different")(x).numpy()
    assert (same == same[0]).all() and len({tuple(row) for row in apart.tolist()}) == 4
    with pytest.raises(TracegradError, match="must be one of error, different, same"):
        func.vmap(lambda a: a, randomness="some")


# --- modules ------------------------------------------------------------------------------------------------


def test_functional_call() -> None:
    net = tg.nn.Linear(2, 2)
    tied = tg.nn.ModuleDict({"a": net, "b": tg.nn.Linear(2, 2)})
    tied["b"].weight = net.weight
    before = net.weight.tolist()
    out = func.functional_call(net, {"weight": tg.eye(2), "bias": tg.ones(2)}, tg.tensor([1.0, 2.0]))
    assert out.tolist() == [2, 3] and net.weight.tolist() == before

    class Both(tg.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = tied

        def forward(self, a: Any, k: float = 1.0) -> Any:
            return self.m["b"](self.m["a"](a)) * k

    both = Both()
    swap = {"m.a.weight": tg.eye(2) * 2, "m.a.bias": tg.zeros(2), "m.b.bias": tg.zeros(2)}
    one = tg.ones(2)
    assert func.functional_call(both, swap, (one,), {"k": 2.0}).tolist() == [8, 8]
    untied = func.functional_call(both, swap, (one,), tie_weights=False)
    assert untied.tolist() != [4, 4]
    with pytest.raises(TracegradError, match=r"nothing not in the module.*It has weight, bias"):
        func.functional_call(net, {"nothing": one}, (one,), strict=True)
    assert func.functional_call(net, {"nothing": one}, (one,)).tolist() == net(one).tolist()
    with pytest.raises(TracegradError, match="bias not given"):
        func.functional_call(net, {"weight": tg.eye(2)}, (one,), strict=True)
    with pytest.raises(TracegradError, match="different ones"):
        func.functional_call(both, {"m.a.weight": tg.eye(2), "m.b.weight": tg.zeros(2, 2)}, (one,))


def test_functional_call_inside_a_compiled_function_is_compiled_once() -> None:
    net = tg.nn.Linear(3, 1)
    params = {k: v.detach().clone() for k, v in net.named_parameters()}

    @tg.compile
    def step(p: Any, a: tg.Tensor) -> Any:
        return func.grad(lambda q: func.functional_call(net, q, (a,)).pow(2).sum())(p)

    x = tg.tensor(X)
    for _ in range(3):
        tg.nn.Linear(2, 2).eval()  # moves the count of changes that guards look at
        found = step(params, x)
    assert sum(len(s) for s in step.specializations.values()) == 1
    net.zero_grad()
    net(x).pow(2).sum().backward()
    close(found["weight"], net.weight.grad, 1e-5)


def test_stacked_models() -> None:
    nets = [tg.nn.Linear(3, 2) for _ in range(4)]
    params, buffers = func.stack_module_state(nets)
    assert buffers == {} and params["weight"].is_leaf and params["weight"].requires_grad
    x = tg.tensor(X)
    out = func.vmap(lambda p, b, a: func.functional_call(nets[0], (p, b), (a,)), (0, 0, None))(
        params, buffers, x
    )
    for i, net in enumerate(nets):
        close(out[i], net(x), 1e-6)
    out.sum().backward()
    assert tuple(params["weight"].grad.shape) == (4, 2, 3)
    with pytest.raises(TracegradError, match="one class"):
        func.stack_module_state([tg.nn.Linear(1, 1), tg.nn.Tanh()])


# --- with compile and control flow --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "transform",
    [func.grad, func.hessian, lambda f: func.vmap(func.grad(f)), lambda f: func.jacfwd(lambda a: a * f(a))],
    ids=["grad", "hessian", "vmap_grad", "jacfwd"],
)
def test_compiled_is_the_same(transform: Any) -> None:
    w = w64()
    f = transform(lambda a: (a @ w).tanh().sum())
    compiled = tg.compile(lambda a: f(a))
    for scale in (1, 2):
        close(compiled(x64() * scale), f(x64() * scale), 1e-7)


def test_compiled_functions_inside() -> None:
    w = w64()
    c = tg.compile(lambda a: (a @ w).tanh())
    close(func.vmap(c)(x64()), np.tanh(np.array(X) @ np.array(W)))
    close(func.grad(lambda a: c(a).sum())(x64()), func.grad(lambda a: (a @ w).tanh().sum())(x64()))


def unrolled(x: tg.Tensor) -> tg.Tensor:
    c: Any = tg.ones(3, dtype=tg.float64)
    total: Any = 0
    for i in range(4):
        total = total + (c + x[i]).sum()
        c = c * x[i].sin()
    return total + c.sum()


def scanned(x: tg.Tensor) -> tg.Tensor:
    c, ys = tg.scan(lambda c, a: (c * a.sin(), c + a), tg.ones(3, dtype=tg.float64), x)
    return c.sum() + ys.sum()


def test_scan_inside() -> None:
    rng = np.random.default_rng(0)
    x, many = tg.tensor(rng.standard_normal((4, 3))), tg.tensor(rng.standard_normal((5, 4, 3)))
    close(func.grad(scanned)(x), func.grad(unrolled)(x))
    close(func.jvp(scanned, (x,), (x,))[1], func.jvp(unrolled, (x,), (x,))[1])
    close(func.hessian(scanned)(x), func.hessian(unrolled)(x))
    close(func.vmap(func.grad(scanned))(many), func.vmap(func.grad(unrolled))(many))
    close(tg.compile(func.vmap(func.grad(scanned)))(many), func.vmap(func.grad(unrolled))(many))


def test_transformed_inside_a_scan() -> None:
    x = tg.tensor(np.random.default_rng(0).standard_normal((4, 3)))
    f = lambda c, a: (c * a).sin().sum()  # noqa: E731

    def step(c: tg.Tensor, a: tg.Tensor) -> Any:
        c = c - 0.1 * func.grad(f)(c, a)
        return c, func.vmap(lambda z: z * z)(c)

    got, ys = tg.scan(step, tg.ones(3, dtype=tg.float64), x)
    want = tg.ones(3, dtype=tg.float64)
    for i in range(4):
        want = want - 0.1 * func.grad(f)(want, x[i])
    close(got, want)
    close(ys[-1], want * want)


def test_branches_and_loops_that_differ_between_examples() -> None:
    x = x64()
    f = lambda a: tg.cond(a.sum() > 0, lambda a: a.sin(), lambda a: a * 2, (a,))  # noqa: E731
    positive = np.sum(X, 1, keepdims=True) > 0
    close(func.vmap(f)(x), np.where(positive, np.sin(X), 2 * np.array(X)))
    close(func.vmap(func.grad(lambda a: f(a).sum()))(x), np.where(positive, np.cos(X), 2))
    loop = lambda a: tg.while_loop(lambda s: s.sum() < 10, lambda s: (s * 1.5 + 1,), (a,))[0]  # noqa: E731
    close(func.vmap(loop)(x), np.stack([loop(row).numpy() for row in x]))


def test_a_loop_of_transformed_functions_ends_its_programs() -> None:
    """...each time, so that one program is compiled and used again."""
    w = tg.zeros(3)
    x = tg.tensor(X)
    lengths = []
    for _ in range(6):
        g = func.grad(lambda v: ((x @ v - 1) ** 2).sum())(w)
        w = w - 0.1 * g
        lengths.append(len(STATE.lazy.values))
    assert len(set(lengths[1:])) == 1


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda x: func.grad(lambda a: a)(x),
            r"grad\(\) at test_func.py:\d+: .* type f64\[2,3\].*reduce it with",
        ),
        (lambda x: func.grad(lambda a: 3)(x), "must return a tensor, got int"),
        (lambda x: func.grad(lambda a: (a > 0).any())(x), "bool.* has no gradient"),
        (lambda x: func.grad(lambda a: a.sum(), argnums=2)(x), "argnums=2 .* 1 positional"),
        (lambda x: func.grad(lambda a: a.sum(), argnums="0")(x), "an int or a tuple of ints"),
        (lambda x: func.grad(lambda a, b: a.sum(), argnums=(0, -2))(x, x), "twice"),
        (lambda x: func.grad(lambda a: a.sum())(3.0), "argument 0 is float 3.0 without a tensor"),
        (lambda x: func.grad(lambda a: a.sum())(tg.arange(3)), r"i64\[3\].*\.float\(\)"),
        (lambda x: func.grad(lambda a: a.sum(), has_aux=True)(x), r"pair \(output, aux\)"),
        (lambda x: func.vjp(lambda a: a * 2, x)[1](x[0]), r"tensor 0 of the cotangents has type f64\[3\]"),
        (lambda x: func.jvp(lambda a: a, x, x), "must be a tuple"),
        (lambda x: func.jvp(lambda a: a, (x,), (x, x)), "expected tangents with 1 tensors"),
        (lambda x: func.jvp(lambda a: tg.ones(2), (x,), (x,), strict=True), "does not depend"),
        (lambda x: func.vmap(lambda a: a, in_dims=5)(x), "in_dims 5 is out of range"),
        (lambda x: func.vmap(lambda a, b: a)(x, x[:1]), r"one size, got 2 \(tensor 0\), 1 \(tensor 1\)"),
        (lambda x: func.vmap(lambda a: a, in_dims=None)(x), "no tensor is mapped over"),
        (lambda x: func.vmap(lambda a: a, out_dims=None)(x), "differs from example"),
        (lambda x: func.vmap(lambda a: a, out_dims=3)(x), "out_dims 3 is out of range"),
        (lambda x: func.vmap(lambda a, b: a, in_dims=(0,))(x, x), r"in_dims=\(0,\) does not fit"),
        (lambda x: func.vmap(lambda a: 3)(x), "must return tensors"),
        (lambda x: func.vmap(lambda a: x.add_(a))(x), "one for all of them"),
        (lambda x: func.vmap(lambda a: a, chunk_size=0)(x), "chunk_size"),
        (lambda x: func.functional_call(tg.nn.Linear(1, 1), [1], x), "attribute|dict"),
    ],
)
def test_errors_say_what_to_do(call: Any, words: str) -> None:
    with pytest.raises((TracegradError, AttributeError), match=words):
        call(x64())


def test_values_that_differ_between_examples_have_no_python_value() -> None:
    with pytest.raises(TraceError) as e:
        func.vmap(lambda a: a if a.sum() > 0 else -a)(x64())
    message = str(e.value)
    assert re.search(
        r"test_func.py:\d+: .*bool\[\] for each of 2 examples, made by gt at test_func.py", message
    )
    assert "tracegrad.where" in message
    with pytest.raises(TraceError, match=r"f64\[\] for each of 2 examples"):
        func.vmap(lambda a: a.sum().item())(x64())


def test_tensors_that_outlive_their_function() -> None:
    kept: list[tg.Tensor] = []
    func.grad(lambda a: (kept.append(a * 2), a.sum())[1])(x64())
    with pytest.raises(TraceError, match=r"made inside a function under grad\(\) is used after"):
        _ = kept[0] + 1
    with pytest.raises(GradError, match=r"backward\(\) inside a function under grad\(\)"):
        func.grad(lambda a: (a.sum().backward(), a.sum())[1])(x64().requires_grad_())


# --- the older names ----------------------------------------------------------------------------------------


def test_functional_and_forward_ad() -> None:
    x = x64()[0]
    f = lambda a: a.sin() * a.sum()  # noqa: E731
    F = tg.autograd.functional
    close(F.jacobian(f, x), slope(f, x), 1e-7)
    g = lambda a: f(a).sum()  # noqa: E731
    h = slope(func.grad(g), x)
    close(F.hessian(g, x), h, 1e-6)
    value, moved = F.hvp(g, x, tg.ones(3, dtype=tg.float64))
    close(moved, h.sum(1), 1e-6)
    close(value, g(x))
    close(F.vhp(g, (x,), (x,))[1][0], h @ x.numpy(), 1e-6)
    fw = tg.autograd.forward_ad
    with fw.dual_level():
        dual = fw.make_dual(x, tg.ones(3, dtype=tg.float64))
        y = f(dual)
        primal, tangent = fw.unpack_dual(y)
        assert fw.unpack_dual(x).tangent is None
    close(tangent, slope(f, x).sum(1), 1e-7)
    close(primal, y)
    close(y + 1, f(x) + 1)  # what was made inside lives on
    with pytest.raises(TracegradError, match="dual_level"):
        fw.make_dual(x, x)


def test_gradcheck() -> None:
    x = x64().requires_grad_()
    assert tg.autograd.gradcheck(lambda a: (a.sin() * a.sum(), a.exp()), x)
    assert tg.autograd.gradgradcheck(lambda a: a.sin() * a.sum(), x)
    close(x, X)  # as it was

    class Wrong(tg.autograd.Function):
        @staticmethod
        def forward(ctx: Any, a: tg.Tensor) -> tg.Tensor:
            ctx.save_for_backward(a)
            return a * a

        @staticmethod
        def backward(ctx: Any, g: tg.Tensor) -> tg.Tensor:
            return g * ctx.saved_tensors[0]

    assert not tg.autograd.gradcheck(Wrong.apply, x, raise_exception=False)
    with pytest.raises(GradError, match="off by up to"):
        tg.autograd.gradcheck(Wrong.apply, x)
