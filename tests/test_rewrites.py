"""Rewrite rules: a golden case for each (tests/rewrites.txt), the same results before and after on inputs
with NaN, infinities and both zeros, and the pattern language."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tracegrad.ir import dtypes
from tracegrad.ir.builder import Builder
from tracegrad.ir.errors import TracegradError
from tracegrad.ir.graph import Graph, toposort
from tracegrad.ir.interpreter import evaluate
from tracegrad.ir.passes import dce, optimize
from tracegrad.ir.pattern import parse_pattern, splat
from tracegrad.ir.rewrite import Rewriter, Rule, RuleSet, node_key
from tracegrad.ir.rules import RULES, rule_set
from tracegrad.ir.text import parse_graph, print_graph
from tracegrad.ir.types import Type
from tracegrad.ir.verifier import verify

_NUMBER = re.compile(r"(?<![\w.%])(-?\d[\d.]*|-?inf|nan|True|False):([a-z]+\d*)(\[[\d,]+\])?")


def spelled(inputs: str, body: str) -> str:
    """A whole graph from a case's inputs and body, the shorthand for constants written out."""
    lines, count = [], 0
    for line in body.strip().splitlines():
        for m in list(_NUMBER.finditer(line)):
            name = f"%9{count:03}"
            count += 1
            lines.append(f"{name} = constant {{value={m[1]}, dtype={m[2]}}}")
            if m[3]:
                lines.append(f"%8{count:03} = expand {name} {{shape=({m[3][1:-1]},)}}")
                name = f"%8{count:03}"
            line = line.replace(m[0], name, 1)
        lines.append(line)
    return f"graph case({inputs}) {{\n" + "\n".join(lines) + "\n}"


def cases() -> list[tuple[str, str, str]]:
    """(rule, text before, text after) of every case."""
    text = (Path(__file__).parent / "rewrites.txt").read_text()
    out = []
    for block in text.split("\n== ")[1:]:
        head, after = block.split("\n--\n")
        name, *before = head.splitlines()
        inputs = before.pop(0) if before[0].startswith("%") and " = " not in before[0] else ""
        out.append((name.strip(), spelled(inputs, "\n".join(before)), spelled(inputs, after)))
    return out


CASES = cases()
IDS = [f"{name}-{sum(c[0] == name for c in CASES[:i])}" for i, (name, _, _) in enumerate(CASES)]

SPECIAL = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0)


def special_inputs(graph: Graph, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    out = []
    for v in graph.inputs:
        kind = v.type.dtype.kind
        if kind == "f":
            drawn = rng.choice(SPECIAL, v.type.shape)
            plain = rng.standard_normal(v.type.shape)
            drawn = np.where(rng.random(v.type.shape) < 0.5 if seed % 2 else True, drawn, plain)
        elif kind == "b":
            drawn = rng.integers(0, 2, v.type.shape)
        else:
            drawn = rng.integers(0 if kind == "u" else -9, 9, v.type.shape)
        out.append(np.asarray(drawn).astype(v.type.dtype.numpy))
    return out


def assert_same(got: np.ndarray, want: np.ndarray, exact: bool) -> None:
    """Equal NaNs, infinities and signs of zeros; finite values equal, or close where sums may be "
    "reordered."""
    assert got.dtype == want.dtype and got.shape == want.shape
    if want.dtype.kind in "iub":
        np.testing.assert_array_equal(got, want)
        return
    a, b = got.astype(np.float64), want.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
    np.testing.assert_array_equal(np.where(np.isinf(a), a, 0), np.where(np.isinf(b), b, 0))
    zero = b == 0
    np.testing.assert_array_equal(np.signbit(a[zero]), np.signbit(b[zero]))
    if exact:
        np.testing.assert_array_equal(a, b)
    else:
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def ordered(graph: Graph) -> str:
    """Text with equal constants merged and every op just before its first reader, so that it does not tell
    where a rule happens to place a new constant."""
    graph = Rewriter(graph).run()
    out = Graph(graph.name)
    out.inputs, out.outputs, out.nodes = graph.inputs, graph.outputs, toposort(graph.live_outs())
    return print_graph(out)


def test_every_rule_has_a_golden_case() -> None:
    assert {name for name, _, _ in CASES} == set(RULES)


@pytest.mark.parametrize(("name", "before", "after"), CASES, ids=IDS)
def test_golden(name: str, before: str, after: str) -> None:
    graph = parse_graph(before)
    verify(graph)
    text = print_graph(graph)
    walk = Rewriter(graph, RuleSet([RULES[name]]))
    made = dce(walk.run())
    verify(made, name)
    assert ordered(made) == ordered(parse_graph(after))
    assert print_graph(graph) == text, "the source graph was changed"


def test_every_rule_applies_to_a_case_of_its_own() -> None:
    """Cases may show where a rule declines, but not only."""
    fired: set[str] = set()
    for name, before, _ in CASES:
        walk = Rewriter(parse_graph(before), RuleSet([RULES[name]]))
        walk.run()
        fired |= set(walk.fired)
    assert fired == set(RULES)


EXACT = [(i, c) for i, c in zip(IDS, CASES) if not RULES[c[0]].fast]


@pytest.mark.parametrize(("name", "before", "after"), [c for _, c in EXACT], ids=[i for i, _ in EXACT])
def test_golden_cases_keep_results(name: str, before: str, after: str) -> None:
    """What rules that are not `fast` make of a case gives the same, NaN, infinities and zeros included."""
    graph, made = parse_graph(before), parse_graph(after)
    whole = optimize(graph, verify=True)
    summing = any(n.op.name in ("sum", "prod", "contract", "pow", "exp2") for n in graph.nodes)
    for seed in range(6):
        arrays = special_inputs(graph, seed)
        want, _ = evaluate(graph, arrays)
        for g in (made, whole):
            for a, b in zip(evaluate(g, arrays)[0], want, strict=True):
                assert_same(a, b, not summing)


@pytest.mark.parametrize(("name", "before", "after"), CASES, ids=IDS)
def test_fast_keeps_ordinary_results(name: str, before: str, after: str) -> None:
    graph = parse_graph(before)
    made = optimize(graph, fast=True, verify=True)
    rng = np.random.default_rng(1)
    arrays = []
    for v, a in zip(graph.inputs, special_inputs(graph, 0)):
        arrays.append(rng.uniform(0.5, 2, v.type.shape).astype(a.dtype) if v.type.dtype.kind == "f" else a)
    with np.errstate(all="ignore"):
        for a, b in zip(evaluate(made, arrays)[0], evaluate(graph, arrays)[0], strict=True):
            np.testing.assert_allclose(a.astype(np.float64), b.astype(np.float64), rtol=1e-3, atol=1e-6)


def test_every_rule_is_documented() -> None:
    for r in RULES.values():
        assert "-->" in r.doc, r.name


# --- patterns -----------------------------------------------------------------------------------------------


def test_commutative_patterns_have_both_orders() -> None:
    assert len(parse_pattern("mul(x, 1)")) == 2
    assert len(parse_pattern("sub(x, 1)")) == 1
    assert len(parse_pattern("add(x, y)")) == 1
    assert len(parse_pattern("add(mul(x, C), D)")) == 4


@pytest.mark.parametrize("text", ["x", "1", "mul(x, dim=1)", "f.g(x)", "mul(x, 'a')"])
def test_bad_patterns_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        parse_pattern(text)


def body(text: str, inputs: str = "%x: f32[2], %y: f32[2]") -> Graph:
    return parse_graph(spelled(inputs, text))


def test_numbers_are_seen_through_movement() -> None:
    g = body("%0 = reshape 2.5:f32[4] {shape=(2, 2)}\n%1 = add %0, 1.0:f32\nreturn %0, %1")
    assert splat(g.outputs[0]) == 2.5
    assert splat(g.outputs[1]) is None
    assert splat(g.inputs[0]) is None


def test_zero_literals_tell_their_sign() -> None:
    (plus,) = parse_pattern("sub(x, 0.0)")
    for text, hit in (("0.0:f32", True), ("-0.0:f32", False), ("1.0:f32", False)):
        node = body(f"%0 = sub %x, {text}\nreturn %0").outputs[0].node
        assert node is not None
        assert plus.match_operands(node.operands, {}) is hit


def test_node_key_tells_zeros_and_defaults() -> None:
    g = body(
        "%0 = constant {value=0.0, dtype=f32}\n%1 = constant {value=-0.0, dtype=f32}\n"
        "%2 = constant {value=nan, dtype=f32}\n%3 = constant {value=nan, dtype=f32}\n"
        "%4 = sum %x {axes=(0,)}\n%5 = sum %x {axes=(0,), keepdim=False}\n%6 = add %x, %y\n%7 = add %y, %x\n"
        "%8 = sub %x, %y\n%9 = sub %y, %x\n%10 = maximum %x, %y\n%11 = maximum %y, %x\nreturn"
    )
    keys = [node_key(n) for n in g.nodes]
    assert keys[0] != keys[1] and keys[2] == keys[3] and keys[4] == keys[5]
    assert keys[6] == keys[7] and keys[8] != keys[9] and keys[10] != keys[11]


# --- the mechanism ------------------------------------------------------------------------------------------


def test_rules_that_undo_each_other_are_reported() -> None:
    there = Rule(("exp(x)",), lambda b, x: b.sin(x), False)
    back = Rule(("sin(x)",), lambda b, x: b.exp(x), False)
    there.name, back.name = "there", "back"
    with pytest.raises(TracegradError, match=r"undo each other.*(there|back)"):
        Rewriter(body("%0 = exp %x\nreturn %0"), RuleSet([there, back])).run()


def test_a_rule_of_another_dtype_is_reported() -> None:
    wrong = Rule(("exp(x)",), lambda b, x: b.const(1, dtypes.int64), False)
    wrong.name = "wrong"
    with pytest.raises(TracegradError, match="rule wrong made i64"):
        Rewriter(body("%0 = exp %x\nreturn %0"), RuleSet([wrong])).run()


def test_untouched_graphs_come_back_as_they_are() -> None:
    g = body("%0 = exp %x\n%1 = mul %0, %y\nreturn %1")
    assert Rewriter(g, rule_set(False)).run() is g
    assert optimize(g) is g


def test_only_use_counts_readers() -> None:
    seen: list[bool] = []

    def look(b: Rewriter, e: object, x: object) -> None:
        seen.append(b.only_use(e))

    r = Rule(("neg(e := exp(x))",), look, False)
    Rewriter(body("%0 = exp %x\n%1 = neg %0\nreturn %1"), RuleSet([r])).run()
    Rewriter(body("%0 = exp %x\n%1 = neg %0\nreturn %0, %1"), RuleSet([r])).run()
    assert seen == [True, False]


def test_names_locations_and_phases_follow() -> None:
    text = spelled(
        "%x: f32[2]", "%a = neg %x\n// backward\n%loss = neg %a  # m.py:3\n%d = exp %loss\nreturn %d"
    )
    made = dce(Rewriter(parse_graph(text), rule_set(False)).run())
    (d,) = made.nodes
    assert d.results[0].name == "d" and d.phase == "backward"
    text = spelled("%x: f32[2], %y: f32[2]", "%a = neg %y\n// backward\n%s = add %x, %a  # m.py:3\nreturn %s")
    (s,) = dce(Rewriter(parse_graph(text), rule_set(False)).run()).nodes
    assert (s.op.name, s.results[0].name, s.phase, str(s.loc)) == ("sub", "s", "backward", "m.py:3")


def test_long_chains_need_no_recursion() -> None:
    g = Graph()
    b = Builder(g)
    x = v = g.add_input(Type(dtypes.float32, (3,)))
    for _ in range(3000):
        v = b.neg(b.add(v, b.const(-0.0)))
    g.outputs = [v]
    assert optimize(g).outputs == [x]
