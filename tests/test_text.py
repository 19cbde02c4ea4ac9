"""The graph IR's text: what is printed, that it parses back to the same, and what the parser says of "
"mistakes."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tracegrad.ir import dtypes, ops
from tracegrad.ir.builder import Builder
from tracegrad.ir.errors import ParseError
from tracegrad.ir.graph import Graph, Location, Node, Value
from tracegrad.ir.op import REGISTRY, Op
from tracegrad.ir.text import format_literal, parse_graph, print_graph, print_node
from tracegrad.ir.types import Type
from tracegrad.ir.verifier import verify

STEP = """\
graph step(%x: f32[4,3], %w: f32[2,3], %b: f32[2]) {
  %h: f32[4,2] = linear %x, %w, %b                    # model.py:7
  %0: f32[4,2] = relu %h                              # model.py:7
  %loss: f32[] = sum %0 {axes=(0, 1)}                 # train.py:3
  // backward
  %1: f32[] = constant {value=1.0, dtype=f32}
  %2: f32[4,2] = expand %1 {shape=(4, 2)}             # train.py:3
  %3: f32[2,3] = contract %2, %x {spec='mn,mk->nk'}   # model.py:7
  // update
  %4: f32[2,3] = sub %w, %3
  update %w = %4
  return %loss, %h
}
"""


def test_the_format() -> None:
    g = parse_graph(STEP)
    verify(g)
    assert print_graph(g) == STEP
    assert str(g) == STEP
    assert [n.phase for n in g.nodes] == ["forward"] * 3 + ["backward"] * 3 + ["update"]
    assert g.nodes[0].loc == Location("model.py", 7) and g.nodes[3].loc is None
    assert g.updates == {g.inputs[1]: g.nodes[-1].results[0]}
    assert [v.name for v in g.outputs] == ["loss", "h"] and g.nodes[1].results[0].name is None
    assert g.nodes[2].attrs == {"axes": (0, 1)}


def test_whitespace_comments_and_missing_types_are_fine() -> None:
    g = parse_graph(
        "// a note\n# another\ngraph g(%x:f32[ 2 ],) {%a = neg %x // odd\n# note: 12 things\nreturn %a}  "
        "// end"
    )
    assert print_graph(g) == "graph g(%x: f32[2]) {\n  %a: f32[2] = neg %x\n  return %a\n}\n"
    assert g.nodes[0].loc is None


def test_long_input_lists_are_one_per_line() -> None:
    g = Graph("wide")
    g.outputs = [g.add_input(Type(dtypes.float32, (64, 64)), f"layer{i}.weight") for i in range(6)][:1]
    text = print_graph(g)
    assert "\n    %layer3.weight: f32[64,64],\n" in text and max(map(len, text.splitlines())) <= 110
    assert print_graph(parse_graph(text)) == text


def test_names_are_made_unique_and_legal() -> None:
    g = Graph("a b")
    named = [
        g.add_input(Type(dtypes.float32, ()), n)
        for n in ("x", "x", "x_1", "my x!", None, "7", "0.weight", "")
    ]
    g.outputs = named
    text = print_graph(g)
    header = text.split(") {")[0]
    assert re.findall(r"%([\w.]+)", header) == ["x", "x_1", "x_1_1", "my_x_", "0", "1", "0.weight", "2"]
    assert header.startswith("graph a_b(")
    assert print_graph(parse_graph(text)) == text


def test_locations_full_and_short() -> None:
    g = parse_graph("graph g(%x: f32[]) {\n%a = neg %x # C:/my dir/<stdin>:12\nreturn %a }")
    assert g.nodes[0].loc == Location("C:/my dir/<stdin>", 12)
    assert "# <stdin>:12\n" in print_graph(g)
    full = print_graph(g, full_paths=True)
    assert "# C:/my dir/<stdin>:12\n" in full
    assert print_graph(parse_graph(full), full_paths=True) == full


def test_defaults_are_left_out() -> None:
    b = Builder(Graph())
    x = b.graph.add_input(Type(dtypes.float32, (3,)), "x")
    for attrs, text in (
        ({"low": (1,), "high": (0,), "value": 0.0}, "{low=(1,), high=(0,)}"),
        ({"low": (1,), "high": (0,), "value": -0.0}, "{low=(1,), high=(0,), value=-0.0}"),
        ({"value": 2.0, "high": (0,), "low": (1,)}, "{low=(1,), high=(0,), value=2.0}"),
    ):
        assert print_node(b.pad(x, **attrs).node) == f"%0: f32[4] = pad %x: f32[3] {text}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"), (True, "True"), (None, "None"), (1.0, "1.0"), (-0.0, "-0.0"), (math.inf, "inf"), (-math.inf,
        "-inf"), (math.nan, "nan"), (1e-45, "1e-45"), ("a'b\n#%", '"a\'b\\n#%"'), ((), "()"), ((1,), "(1,)"),
        ((1, (2.5, "x")), "(1, (2.5, 'x'))"), (dtypes.float32, "f32"), (dtypes.bool_, "bool"),
    ],
)  # fmt: skip
def test_literals(value: object, text: str) -> None:
    assert format_literal(value) == text


LITERALS = st.recursive(
    st.one_of(
        st.integers(),
        st.floats(),
        st.booleans(),
        st.none(),
        st.text(max_size=12),
        st.sampled_from(dtypes.ALL),
    ),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=8,
)


@given(LITERALS)
def test_every_literal_parses_back(value: object) -> None:
    op = Op("test_literal", lambda *, value: Type(dtypes.float32, ()), kernel="source")
    REGISTRY[op.name] = op
    try:
        node = Node(op, (), {"value": value})
        node.results = (Value(Type(dtypes.float32, ()), node),)
        g = Graph()
        g.nodes, g.outputs = [node], [node.results[0]]
        again = parse_graph(print_graph(g))
        assert format_literal(again.nodes[0].attrs["value"]) == format_literal(value)
        assert print_graph(again) == print_graph(g)
    finally:
        del REGISTRY[op.name]


def test_samples_of_every_op_print_and_parse() -> None:
    assert ops  # registers
    seen = 0
    for op in list(REGISTRY.values()):
        for sample in op.samples():
            g = Graph(op.name)
            b = Builder(g)
            b.loc = Location("/home/me/model.py", 3)
            inputs = [g.add_input(t) for t in sample.types]
            made = b.emit(op, tuple(inputs), dict(sample.attrs), sample.regions_for(sample.types))
            g.outputs = list(made) if isinstance(made, tuple) else [made]
            text = print_graph(g)
            again = parse_graph(text)
            verify(again)
            assert print_graph(again) == text
            node, same = g.nodes[0], again.nodes[0]
            assert [v.type for v in same.results] == [v.type for v in node.results]
            known = {**op.attr_defaults, **node.attrs}
            assert {k: format_literal(v) for k, v in {**op.attr_defaults, **same.attrs}.items()} == {
                k: format_literal(v) for k, v in known.items()
            }
            seen += 1
    assert seen > 500


def test_several_results_and_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Op("test_two", lambda x: (x, Type(dtypes.int64, x.shape)), kernel="sort")
    run = Op("test_run", lambda x, *, times=1, regions=(): regions[0].outputs[0].type, kernel="control")
    monkeypatch.setitem(REGISTRY, "test_two", two)
    monkeypatch.setitem(REGISTRY, "test_run", run)
    text = """\
graph g(%x: f32[2]) {
  %v: f32[2], %i: i64[2] = test_two %x                # a.py:1
  %0: f32[2] = test_run %v {times=3} (%c: f32[2]) {   # a.py:2
    %1: f32[2] = neg %c                               # a.py:3
    // backward
    %2: f32[2] = test_run %1 (%c_1: f32[2]) {
      return %c_1
    } () {
      return
    }
    return %2
  }
  %3: f32[2] = neg %0
  return %3, %i
}
"""
    g = parse_graph(text)
    verify(g)
    assert print_graph(g) == text
    assert g.nodes[1].loc == Location("a.py", 2) and len(g.nodes[1].regions[0].nodes[1].regions) == 2
    assert g.nodes[0].results[1].index == 1
    with pytest.raises(ParseError, match="%x belongs to the graph around this region"):
        parse_graph(
            "graph g(%x: f32[2]) { %0 = test_run %x (%c: f32[2]) { %1 = neg %x return %1 } return %0 }"
        )


def nested(line: str) -> str:
    return f"graph g(%x: f32[4,3], %i: i64[4]) {{\n  %a: f32[4,3] = neg %x\n  {line}\n}}"


@pytest.mark.parametrize(
    ("line", "column", "message"),
    [
        ("%y: f32[4,3] = rellu %x", 18, "no op named 'rellu'; did you mean 'relu'?"),
        ("%y: f32[4,3] = relu %z", 23, "value %z is not defined before its use"),
        ("%y: f32[4,3] = relu %aa", 23, "did you mean '%a'?"),
        ("%y: f32[4,2] = relu %x", 7, "relu gives f32[4,3], the text says f32[4,2]"),
        ("%y: i64[4,3] = relu %x", 7, "relu gives f32[4,3], the text says i64[4,3]"),
        ("%a: f32[4,3] = relu %x", 3, "%a is defined already"),
        ("%y: f33[4,3] = relu %x", 7, "no dtype 'f33'; did you mean 'f32'?"),
        ("%y: f32 = relu %x", 7, "expected a type such as f32[4,2], found 'f32'"),
        ("%y: f32[4,,3] = relu %x", 7, "a shape is sizes with commas"),
        ("%y: f32[] = sum %x {axis=(0,)}", 23, "sum has no attribute 'axis'; did you mean 'axes'?"),
        ("%y: f32[] = sum %x {axes=(0,), axes=(1,)}", 34, "attribute 'axes' is given twice"),
        ("%y: f32[] = sum %x {axes=maybe}", 28, "'maybe' is no value"),
        ("%y: f32[] = sum %x {axes=(0 1)}", 31, "expected ',' or ')' in a tuple, found '1'"),
        ("%y: f32[] = sum %x {axes=}", 28, "expected a number"),
        ("%y: f32[] = sum %x {axes=(0, 1) keepdim=True}", 35, "expected ',' or '}' after an attribute"),
        ("%y: f32[] = sum %x", 15, "sum(f32[4,3])"),
        ("%y: f32[] = sum %x {axes=(5,)}", 15, "dimension 5 is out of range"),
        ("%y: f32[4,3] = add %x", 18, "add(f32[4,3])"),
        ("%y: f32[4,3] = add %x, %i", 18, "add(f32[4,3], i64[4]): expected operands of one dtype"),
        ("%y: f32[4,3] = add %x, ", 3, "expected another operand after ','"),
        ("%y, %z = relu %x", 12, "relu gives 1 result, the text names 2"),
        ("%y: f32[4,3] relu %x", 16, "expected '=' and an op, found 'relu'"),
        ("%y: f32[4,3] = %x", 18, "expected the name of an op, found '%x'"),
        ("update %a = %x", 10, "only inputs are updated"),
        ("update %x = %i", 15, "an update keeps the type: the input is f32[4,3], %i is i64[4]"),
        ("update %x = %a update %x = %a", 25, "%x is updated twice"),
        ("relu %x", 3, "expected an op `%x: type = op ...`"),
        ("%y: f32[4,3] = relu %x; return %y", 25, "unexpected character ';'"),
        ("%y: f32[4,3] = relu 'x", 23, "unexpected character \"'\""),
        ("return %a %x", 13, "expected '}' after the values returned, found '%x'"),
    ],
)  # fmt: skip
def test_mistakes_are_explained(line: str, column: int, message: str) -> None:
    source = nested(line)
    with pytest.raises(ParseError) as caught:
        parse_graph(source)
    head, shown, caret = str(caught.value).split("\n")
    at = re.match(r"line (\d+), column (\d+): ", head)
    assert at is not None and message in head
    number = int(at[1])
    assert (number, int(at[2])) == (
        (3, column) if column != 3 or "%a:" in line or line == "relu %x" else (4, 1)
    )
    assert shown == "  " + source.splitlines()[number - 1].rstrip()
    assert caret.index("^") == int(at[2]) + 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1: expected 'graph'"),
        ("grph g() { return }", "expected 'graph'"),
        ("graph g(%x) { return }", "expected ':' and the input's type, found ')'"),
        ("graph g(%x: f32[] %y: f32[]) { return }", "expected ',' or ')' after an input"),
        ("graph g(%x: f32[], %x: f32[]) { return }", "%x is defined already"),
        ("graph g() { }", "expected `return`"),
        ("graph g() {\n\n", "line 1, column 12: expected an op"),
        (
            "graph g() { return } graph h() { return }",
            "expected the end of the text after the graph, found 'graph'",
        ),
    ],
)
def test_malformed_graphs_are_explained(text: str, message: str) -> None:
    with pytest.raises(ParseError, match=re.escape(message)):
        parse_graph(text)


@given(st.text(alphabet="graph g(%x:f32[2]){=neg,returnupdate }\n/#'\"-1.e", max_size=80))
def test_any_text_parses_or_is_a_parse_error(text: str) -> None:
    for source in (text, nested(text)):
        try:
            parse_graph(source)
        except ParseError as e:
            assert str(e).startswith("line ")


def test_a_broken_graph_still_prints() -> None:
    g = parse_graph(STEP)
    lost = g.nodes.pop(0)
    assert "%0" in print_graph(g) or "%h" in print_graph(g)
    assert "linear %x: f32[4,3], %w: f32[2,3], %b: f32[2]   # model.py:7" in print_node(lost)
