"""The pass pipeline: each pass on small programs, results kept on random programs (NaN, infinities and both zeros
included), failures, records, regions, and whole training steps."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tracegrad.ir import dtypes
from tracegrad.ir.builder import Builder
from tracegrad.ir.errors import TracegradError, VerifyError
from tracegrad.ir.grad import backward
from tracegrad.ir.graph import Graph, Node, Value
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.op import REGISTRY, Op
from tracegrad.ir.passes import (
    PASSES,
    PassOptions,
    PassRecord,
    cse,
    dce,
    decompose,
    fold,
    optimize,
    run_pass,
    simplify,
)
from tracegrad.ir.text import parse_graph, print_graph
from tracegrad.ir.types import Type
from tracegrad.ir.verifier import verify

SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 2.0, -3.0)


def graph(text: str) -> Graph:
    g = parse_graph(text)
    verify(g)
    return g


def same_text(g: Graph, text: str) -> None:
    assert print_graph(g) == print_graph(parse_graph(text))


# --- single passes ----------------------------------------------------------------------------------------------


def test_dce_keeps_outputs_updates_and_inputs() -> None:
    g = graph(
        "graph g(%x: f32[2], %unused: f32[2], %s: f32[2]) { %0 = exp %x %1 = sin %x %2 = neg %1 %3 = cos %s "
        "update %s = %3 return %0 }"
    )
    made = dce(g)
    same_text(
        made,
        "graph g(%x: f32[2], %unused: f32[2], %s: f32[2]) { %0 = exp %x %1 = cos %s update %s = %1 return %0 }",
    )
    assert len(g.nodes) == 4
    assert dce(made) is made


def test_cse_merges_across_phases_and_keeps_the_first() -> None:
    g = graph(
        "graph g(%x: f32[2], %y: f32[2]) { %a = add %x, %y  # m.py:1\n// backward\n %b = add %y, %x "
        "%c = mul %a, %b return %a, %b, %c }"
    )
    made = cse(g)
    same_text(
        made,
        "graph g(%x: f32[2], %y: f32[2]) { %a = add %x, %y  # m.py:1\n// backward\n %c = mul %a, %a "
        "return %a, %a, %c }",
    )
    assert cse(made) is made


def test_cse_tells_zeros_apart() -> None:
    g = graph("graph g() { %0 = constant {value=0.0, dtype=f32} %1 = constant {value=-0.0, dtype=f32} return %0, %1 }")
    assert cse(g) is g


def test_decompose_leaves_scalar_and_kernel_ops_only() -> None:
    g = graph(
        "graph g(%x: f32[4,3], %w: f32[2,3], %b: f32[2]) { %h = linear %x, %w, %b  # m.py:7\n// backward\n"
        "%p = linear %h, %b return %p }"
    )
    made = decompose(g)
    verify(made)
    assert all(n.op.decompose is None for n in made.nodes)
    assert {(n.phase, str(n.loc)) for n in made.nodes} == {("forward", "m.py:7"), ("backward", "None")}
    assert [n.results[0].name for n in made.nodes][-1] == "p" and "h" in [n.results[0].name for n in made.nodes]
    assert decompose(made) is made


def test_simplify_reports_rules() -> None:
    options = PassOptions()
    g = graph("graph g(%x: f32[2]) { %0 = neg %x %1 = neg %0 %2 = neg %1 return %2 }")
    made = simplify(g, options)
    same_text(made, "graph g(%x: f32[2]) { %0 = neg %x return %0 }")
    assert options.fired["neg_neg"] >= 1


def test_fast_rules_only_where_asked() -> None:
    g = graph("graph g(%x: f32[2]) { %c = constant {value=0.0, dtype=f32} %0 = mul %x, %c return %0 }")
    assert simplify(g) is g
    made = simplify(g, PassOptions(fast=True))
    assert [n.op.name for n in made.nodes] == ["constant", "expand"]


def test_fold_computes_small_constants() -> None:
    g = graph(
        "graph g(%x: f32[2]) { %c = constant {value=(1.0, 2.0, 3.0, 4.0), dtype=f32, shape=(2, 2)} "
        "%s = sum %c {axes=(0,)} %e = exp %c %t = amax %e {axes=(0, 1)} %0 = add %x, %s %1 = mul %0, %t return %1 }"
    )
    made = optimize(g, verify=True)
    assert sorted(n.op.name for n in made.nodes) == ["add", "constant", "constant", "mul"]
    assert made.nodes[0].attrs == {"value": (4.0, 6.0), "dtype": dtypes.float32, "shape": (2,)}
    x = np.ones(2, np.float32)
    np.testing.assert_array_equal(evaluate(made, [x])[0][0], evaluate(g, [x])[0][0])


def test_fold_leaves_positions_and_large_constants() -> None:
    n = 100
    values = tuple(float(i) for i in range(n))
    g = graph(
        f"graph g(%x: f32[3,3]) {{ %i = iota {{shape=(3, 3), dim=0, dtype=i64}} "
        f"%j = iota {{shape=(3, 3), dim=1, dtype=i64}} %m = le %j, %i %z = constant {{value=0.0, dtype=f32}} "
        f"%0 = where %m, %x, %z %c = constant {{value={values}, dtype=f32, shape=({n},)}} %e = exp %c return %0, %e }}"
    )
    assert fold(g) is g


def test_fold_of_a_position_sum() -> None:
    g = graph(
        "graph g() { %i = iota {shape=(5,), dim=0, dtype=i64} %s = sum %i {axes=(0,)} "
        "%h = constant {value=(0.5, 1.5), dtype=bf16, shape=(2,)} %d = add %h, %h return %s, %d }"
    )
    made = dce(fold(g))
    same_text(
        made,
        "graph g() { %s = constant {value=10, dtype=i64} %d = constant {value=(1.0, 3.0), dtype=bf16, shape=(2,)} "
        "return %s, %d }",
    )


# --- the driver -------------------------------------------------------------------------------------------------


def test_record_says_what_made_each_graph() -> None:
    g = graph("graph g(%x: f32[2], %w: f32[2,2]) { %0 = linear %x, %w %1 = neg %0 %2 = neg %1 return %2 }")
    record: list[PassRecord] = []
    made = optimize(g, record=record)
    assert [r.name for r in record] == ["input", *(p.__name__ for p in PASSES)]
    assert record[-1].graph is made and record[0].graph is g
    simplified = next(r for r in record if r.name == "simplify")
    assert simplified.rules_fired == {"neg_neg": 1}
    assert re.match(r"// after simplify, [\d.]+ ms: neg_neg 1x\ngraph g\(", simplified.text)
    parse_graph(simplified.text)


def break_it(g: Graph, options: PassOptions) -> Graph:
    out = Graph(g.name)
    out.inputs, out.nodes, out.outputs = g.inputs, g.nodes[1:], g.outputs
    return out


def crash(g: Graph, options: PassOptions) -> Graph:
    raise KeyError("oops")


TEXT = "graph g(%x: f32[2]) { %0 = exp %x  # some/where.py:3\n%1 = sin %0 return %1 }"


@pytest.mark.parametrize(("bad", "kind"), [(break_it, VerifyError), (crash, TracegradError)])
def test_a_failing_pass_leaves_a_reproducer(
    bad: Callable[..., Graph], kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(kind, match=f"pass '{bad.__name__}' failed") as caught:
        optimize(graph(TEXT), verify=True, passes=(dce, bad))
    path = Path(str(caught.value).rsplit(" ", 1)[1])
    text = path.read_text()
    assert path.name == f"{bad.__name__}.ir" and path.parent.parent == tmp_path
    assert text.startswith(f"// pass '{bad.__name__}' fails on this graph\n// ")
    assert print_graph(parse_graph(text)) == print_graph(graph(TEXT))
    assert "some/where.py:3" in text


def test_a_full_disk_does_not_hide_the_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> str:
        raise OSError("No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(TracegradError, match=r"KeyError: 'oops'\n.*No space left"):
        optimize(graph(TEXT), passes=(crash,))


def test_verification_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEGRAD_VERIFY", "1")
    with pytest.raises(VerifyError, match="break_it"):
        optimize(graph(TEXT), passes=(break_it,))
    monkeypatch.setenv("TRACEGRAD_VERIFY", "0")
    optimize(graph(TEXT), passes=(break_it,))


def test_passes_reach_into_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    op = Op("test_twice", lambda x, *, regions=(): regions[0].outputs[0].type, kernel="control")
    monkeypatch.setitem(REGISTRY, op.name, op)
    text = (
        "graph g(%x: f32[2]) { %0: f32[2] = test_twice %x (%a: f32[2]) { %b = neg %a %c = neg %b %d = exp %a "
        "%z = sigmoid %c return %z } %1 = exp %0 return %1 }"
    )
    g = graph(text)
    before = print_graph(g)
    made = optimize(g, verify=True)
    same_text(
        made,
        "graph g(%x: f32[2]) { %0: f32[2] = test_twice %x (%a: f32[2]) { %z = sigmoid %a return %z } "
        "%1 = exp %0 return %1 }",
    )
    assert print_graph(g) == before
    assert run_pass(simplify, made, PassOptions()) is made


# --- random programs --------------------------------------------------------------------------------------------
# Small whole numbers in f64: every sum and product is exact in any order, so results must agree to the bit.

_F = dtypes.float64
_UNARY = ("neg", "abs", "relu", "square", "sign", "floor")
_BINARY = ("add", "add", "sub", "mul", "maximum", "minimum")
_REDUCE = ("sum", "sum", "amax", "amin")
_NUMBERS = (0.0, -0.0, 1.0, -1.0, 2.0, 0.5)


class Maker:
    """Draws one program, op by op."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw = draw
        self.graph = Graph("random")
        self.b = Builder(self.graph)
        self.values: list[Value] = []
        self.products = 0

    def pick(self, items: Any) -> Any:
        return self.draw(st.sampled_from(items))

    def value(self) -> Value:
        return self.pick(self.values[-6:] if self.pick((True, True, False)) else self.values)

    def make(self) -> Graph:
        for _ in range(self.pick((1, 2, 3))):
            shape = tuple(self.pick((1, 1, 2, 3)) for _ in range(self.pick((0, 1, 2, 3))))
            self.values.append(self.graph.add_input(Type(_F, shape)))
        for _ in range(self.pick((3, 6, 12, 20))):
            made = getattr(self, self.pick(_KINDS))()
            if made is not None and made.type.numel <= 200 and made.type.rank <= 4:
                self.values.append(made)
        made = [v for v in self.values if v.node is not None] or self.values
        self.graph.outputs = [self.pick(made) for _ in range(self.pick((1, 2)))]
        for state in self.graph.inputs:
            new = next((v for v in reversed(self.values) if v.node is not None and v.type == state.type), None)
            if new is not None:
                self.graph.updates[state] = new
        return self.graph

    def unary(self) -> Value:
        name = self.pick(_UNARY)
        self.products += name == "square"
        return getattr(self.b, name if self.products < 5 else "neg")(self.value())

    def fits(self, x: Value) -> Value:
        return self.pick([v for v in self.values if _broadcast(v.type.shape, x.type.shape)])

    def binary(self) -> Value:
        name = self.pick(_BINARY)
        self.products += name == "mul"
        x = self.value()
        return getattr(self.b, name if self.products < 5 else "add")(*self.draw(st.permutations([x, self.fits(x)])))

    def number(self) -> Value:
        x = self.value()
        c = self.b.const(self.pick(_NUMBERS), x)
        if self.pick((True, False)):
            c = self.b.expand(c, shape=x.type.shape)
        name = self.pick(("add", "sub", "mul", "div"))
        if name == "div" and self.pick((True, False)):
            return self.b.div(x, c)
        return getattr(self.b, name if name != "div" else "add")(*self.draw(st.permutations([x, c])))

    def select(self) -> Value:
        x = self.value()
        cond = getattr(self.b, self.pick(("lt", "eq", "ge", "ne")))(x, self.fits(x))
        if self.pick((True, False)):
            cond = self.b.logical_not(cond)
        return self.b.where(cond, x, self.pick((x, self.fits(cond), self.b.const(self.pick(_NUMBERS), x))))

    def casts(self) -> Value:
        x = self.b.cast(self.value(), dtype=dtypes.float32)
        x = self.b.neg(x) if self.pick((True, False)) else x
        return self.b.cast(x, dtype=_F)

    def reshape(self) -> Value:
        x = self.value()
        shape = [n for n in x.type.shape if n != 1]
        if len(shape) > 1 and self.pick((True, False)):
            shape[:2] = [shape[0] * shape[1]]
        for _ in range(self.pick((0, 1, 2))):
            shape.insert(self.pick(range(len(shape) + 1)), 1)
        return self.b.reshape(x, shape=tuple(shape))

    def permute(self) -> Value:
        x = self.value()
        return self.b.permute(x, dims=tuple(self.draw(st.permutations(range(x.type.rank)))))

    def expand(self) -> Value:
        x = self.value()
        shape = tuple(self.pick((1, 3)) if n == 1 else n for n in x.type.shape)
        return self.b.expand(x, shape=(*self.pick(((), (2,), (1,))), *shape))

    def slice(self) -> Value:
        x = self.value()
        return self.b.slice(x, **self.range_of(x))

    def range_of(self, x: Value) -> dict[str, tuple[int, ...]]:
        start = tuple(self.pick(range(n)) for n in x.type.shape)
        stop = tuple(self.pick(range(s + 1, n + 1)) for s, n in zip(start, x.type.shape))
        return {"start": start, "stop": stop, "step": tuple(self.pick((1, 1, 2)) for _ in start)}

    def pad(self) -> Value:
        x = self.value()
        low, high = (tuple(self.pick((0, 0, 1)) for _ in x.type.shape) for _ in "lh")
        return self.b.pad(x, low=low, high=high, value=self.pick((0.0, 0.0, 1.0)))

    def put(self) -> Value:
        base = self.value()
        part = self.b.slice(base, **(where := self.range_of(base)))
        new = self.pick((part, self.b.neg(part)))
        return self.b.slice_put(base, new, **where)

    def split(self) -> Value | None:
        """The sum of both parts' padded copies, as gradients of slices are."""
        x = self.value()
        if not x.type.rank or x.type.shape[0] < 2:
            return None
        n, rest = x.type.shape[0], x.type.shape[1:]
        zeros, ones = (0,) * len(rest), (1,) * (len(rest) + 1)
        left = self.b.slice(x, start=(0, *zeros), stop=(1, *rest), step=ones)
        right = self.b.slice(x, start=(1, *zeros), stop=(n, *rest), step=ones)
        left = self.b.pad(left, low=(0, *zeros), high=(n - 1, *zeros), value=0.0)
        return self.b.add(left, self.b.pad(right, low=(1, *zeros), high=(0, *zeros), value=0.0))

    def flip(self) -> Value:
        x = self.value()
        return self.b.flip(x, dims=tuple(d for d in range(x.type.rank) if self.pick((True, False))))

    def concat(self) -> Value | None:
        x = self.value()
        if not x.type.rank:
            return None
        return self.b.concat(x, self.pick([v for v in self.values if v.type == x.type]), dim=self.pick(range(x.type.rank)))

    def reduce(self) -> Value:
        x = self.value()
        axes = tuple(d for d in range(x.type.rank) if self.pick((True, False)))
        return getattr(self.b, self.pick(_REDUCE))(x, axes=axes, keepdim=self.pick((True, False)))

    def contract(self) -> Value | None:
        x, y = self.value(), self.value()
        if self.products >= 5 or x.type.rank + y.type.rank > 5:
            return None
        self.products += 1
        xs = "abcd"[: x.type.rank]
        ys = ""
        for n in y.type.shape:
            same = [c for c, m in zip(xs, x.type.shape) if m == n and c not in ys]
            ys += self.pick(same) if same and self.pick((True, True, False)) else "efgh"[len(ys)]
        keep = [c for c in xs + ys if not (c in xs and c in ys)]
        keep += [c for c in xs if c in ys and self.pick((True, False, False))]
        return self.b.contract(x, y, spec=f"{xs},{ys}->{''.join(self.draw(st.permutations(keep)))}")


_KINDS = (
    "unary", "binary", "binary", "number", "number", "select", "casts", "reshape", "permute", "expand", "slice",
    "pad", "put", "split", "flip", "concat", "reduce", "reduce", "contract", "contract",
)  # fmt: skip


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(m == n or 1 in (m, n) for m, n in zip(reversed(a), reversed(b)))


@st.composite
def programs(draw: Callable[[Any], Any]) -> Graph:
    return Maker(draw).make()


def assert_identical(got: list[np.ndarray], want: list[np.ndarray], text: str) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b, err_msg=text)
        zero = b == 0
        np.testing.assert_array_equal(np.signbit(a[zero]), np.signbit(b[zero]), err_msg=f"sign of zero\n{text}")


@settings(max_examples=250)
@given(programs(), st.integers(0, 3))
def test_random_programs_keep_their_results(g: Graph, seed: int) -> None:
    verify(g)
    text = print_graph(g)
    record: list[PassRecord] = []
    made = optimize(g, verify=True, record=record)
    assert print_graph(g) == text
    assert made.inputs == g.inputs and list(made.updates) == list(g.updates)
    assert [v.type for v in made.outputs] == [v.type for v in g.outputs]
    assert all(n.op.decompose is None for n in made.nodes)
    assert optimize(made) is made
    rng = np.random.default_rng(seed)
    whole = rng.integers(-3, 4, 1000).astype(np.float64)
    for k in range(3):
        arrays = []
        for v in g.inputs:
            special = rng.choice(SPECIAL, v.type.shape)
            arrays.append(np.where(rng.random(v.type.shape) < (0.0, 0.2, 1.0)[k], special, rng.choice(whole, v.type.shape)))
        want, updates = evaluate(g, arrays)
        got, new = evaluate(made, arrays)
        assert_identical(got + new, want + updates, text + str(made))


@settings(max_examples=100)
@given(programs())
def test_random_programs_print_and_parse(g: Graph) -> None:
    text = print_graph(g)
    again = parse_graph(text)
    verify(again)
    assert print_graph(again) == text
    assert print_graph(optimize(again)) == print_graph(optimize(g))


# --- training steps ---------------------------------------------------------------------------------------------


def training_step(batch: int, sizes: tuple[int, ...]) -> Graph:
    """An MLP with squared error and gradient descent."""
    f32 = dtypes.float32
    g = Graph("step")
    b = Builder(g)
    h = g.add_input(Type(f32, (batch, sizes[0])), "x")
    y = g.add_input(Type(f32, (batch, sizes[-1])), "y")
    params = []
    for n, m in zip(sizes, sizes[1:]):
        params += [g.add_input(Type(f32, (m, n)), "w"), g.add_input(Type(f32, (m,)), "b")]
        h = b.linear(h, *params[-2:])
        h = b.tanh(h) if m != sizes[-1] else h
    d = b.sub(h, y)
    loss = b.div(b.sum(b.mul(d, d), axes=(0, 1)), b.const(batch * sizes[-1]))
    b.phase = "backward"
    grads = backward(b, {loss: b.full(shape=(), value=1.0, dtype=f32)}, params)
    b.phase = "update"
    for p in params:
        g.updates[p] = b.sub(p, b.mul(grads[p], b.const(0.1)))
    g.outputs = [loss]
    return g


@pytest.mark.parametrize(("batch", "sizes"), [(5, (4, 3, 2)), (1, (4, 3, 1)), (4, (1, 3, 1)), (1, (1, 1))])
@pytest.mark.parametrize("fast", [False, True])
def test_training_steps(batch: int, sizes: tuple[int, ...], fast: bool) -> None:
    g = training_step(batch, sizes)
    made = optimize(g, fast=fast, verify=True)
    assert list(made.updates) == list(g.updates)
    if batch > 1 and min(sizes) > 1:  # elsewhere contractions give way to several elementwise ops
        assert len(made.nodes) < len(decompose(g).nodes)
        assert not any(n.op.name in ("permute", "reshape", "expand") for n in made.nodes)
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(v.type.shape).astype(np.float32) for v in g.inputs]
    for a, b in zip(sum(evaluate(made, arrays), []), sum(evaluate(g, arrays, dtype=dtypes.float64), []), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_seed_gradients_vanish() -> None:
    """The gradient of a plain sum is ones, and the products with them go."""
    f32 = dtypes.float32
    g = Graph()
    b = Builder(g)
    x = g.add_input(Type(f32, (3, 4)), "x")
    w = g.add_input(Type(f32, (3, 4)), "w")
    loss = b.sum(b.mul(x, w), axes=(0, 1))
    grads = backward(b, {loss: b.full(shape=(), value=1.0, dtype=f32)}, [x, w])
    g.outputs = [grads[x], grads[w]]
    made = optimize(g, verify=True)
    assert made.outputs == [w, x] and not made.nodes


def nodes_of(g: Graph, name: str) -> list[Node]:
    return [n for n in g.nodes if n.op.name == name]


def test_transposed_weights_are_absorbed() -> None:
    """x @ w.T and its gradients need no permute."""
    f32 = dtypes.float32
    g = Graph()
    b = Builder(g)
    x, w = (g.add_input(Type(f32, s)) for s in ((5, 3), (4, 3)))
    y = b.contract(x, b.permute(w, dims=(1, 0)), spec="mk,kn->mn")
    grads = backward(b, {y: b.exp(y)}, [x, w])
    g.outputs = [y, grads[x], grads[w]]
    made = optimize(g, verify=True)
    assert not nodes_of(made, "permute") and len(nodes_of(made, "contract")) == 3
