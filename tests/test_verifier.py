"""The verifier: every rule of the graph IR, broken once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tracegrad.ir import dtypes, ops
from tracegrad.ir.errors import VerifyError
from tracegrad.ir.graph import Graph, Node, Value
from tracegrad.ir.op import REGISTRY, Op
from tracegrad.ir.text import parse_graph
from tracegrad.ir.types import Type
from tracegrad.ir.verifier import verify

TEXT = """
graph g(%x: f32[2,3], %s: f32[3]) {
  %a: f32[2,3] = exp %x        # m.py:4
  %b: f32[3] = sum %a {axes=(0,)}
  update %s = %b
  return %b, %x
}
"""


def sample() -> Graph:
    assert ops  # registers
    return parse_graph(TEXT)


def test_a_sound_graph_passes() -> None:
    verify(sample())
    verify(Graph())


def swap(g: Graph) -> None:
    g.nodes.reverse()


def drop_first(g: Graph) -> None:
    del g.nodes[0]


def twice(g: Graph) -> None:
    g.nodes.append(g.nodes[0])


def wrong_type(g: Graph) -> None:
    g.nodes[0].results[0].type = Type(dtypes.float32, (2, 4))


def wrong_dtype_downstream(g: Graph) -> None:
    g.inputs[0].type = Type(dtypes.int64, (2, 3))


def two_results(g: Graph) -> None:
    node = g.nodes[0]
    node.results = (*node.results, Value(node.results[0].type, node, 1))


def no_results(g: Graph) -> None:
    g.nodes[1].results = ()
    g.updates, g.outputs = {}, []


def wrong_index(g: Graph) -> None:
    g.nodes[0].results[0].index = 1


def wrong_owner(g: Graph) -> None:
    g.nodes[0].results[0].node = g.nodes[1]


def bad_phase(g: Graph) -> None:
    g.nodes[0].phase = "sideways"


def array_attribute(g: Graph) -> None:
    g.nodes[1].attrs = {"axes": np.array([0])}


def list_attribute(g: Graph) -> None:
    g.nodes[1].attrs = {"axes": ([0],)}


def numpy_number(g: Graph) -> None:
    g.nodes[1].attrs = {"axes": (np.int64(0),)}


def unknown_attribute(g: Graph) -> None:
    g.nodes[1].attrs = {"axes": (0,), "color": 1}


def missing_attribute(g: Graph) -> None:
    g.nodes[1].attrs = {}


def illegal_attribute(g: Graph) -> None:
    g.nodes[1].attrs = {"axes": (7,)}


def list_operands(g: Graph) -> None:
    g.nodes[0].operands = list(g.nodes[0].operands)


def output_undefined(g: Graph) -> None:
    g.outputs.append(Value(Type(dtypes.float32, ())))


def update_of_a_result(g: Graph) -> None:
    g.updates = {g.nodes[0].results[0]: g.inputs[0]}


def update_undefined(g: Graph) -> None:
    g.updates = {g.inputs[1]: Value(Type(dtypes.float32, (3,)))}


def update_of_another_type(g: Graph) -> None:
    g.updates = {g.inputs[1]: g.inputs[0]}


def input_twice(g: Graph) -> None:
    g.inputs[1] = g.inputs[0]


def input_index(g: Graph) -> None:
    g.inputs[1].index = 0


def input_with_a_node(g: Graph) -> None:
    g.inputs[1] = g.nodes[0].results[0]


def private_op(g: Graph) -> None:
    op = Op("exp", lambda x: x, kernel="movement")
    g.nodes[0].op = op


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (swap, "operand 0, .* is not defined before its use"),
        (drop_first, "operand 0, .* is not defined before its use"),
        (twice, "in the graph twice"),
        (wrong_type, r"results have types f32\[2,4\], exp gives f32\[2,3\]"),
        (wrong_dtype_downstream, "exp does not take these operands and attributes: expected"),
        (two_results, "exp gives f32"),
        (no_results, r"results have types none, sum gives f32\[3\]"),
        (wrong_index, "does not point back"),
        (wrong_owner, "does not point back"),
        (bad_phase, "phase 'sideways' is none of forward, backward, update"),
        (array_attribute, "attribute axes is a ndarray"),
        (list_attribute, "attribute axes is a tuple"),
        (numpy_number, "attribute axes is a tuple"),
        (unknown_attribute, "does not take these operands and attributes"),
        (missing_attribute, "does not take these operands and attributes"),
        (illegal_attribute, "dimension 7 is out of range"),
        (list_operands, "operands are a list"),
        (output_undefined, "output 2, .* is not defined"),
        (update_of_a_result, "is updated and is no input"),
        (update_undefined, "the update of .* is not defined"),
        (update_of_another_type, r"the update of .* has type f32\[2,3\]"),
        (input_twice, "is an input twice"),
        (input_index, "says it is input 0"),
        (input_with_a_node, "input 1 is the result of an op"),
        (private_op, "op exp is not the registry's"),
    ],
)
def test_each_rule(spoil: Callable[[Graph], None], message: str) -> None:
    g = sample()
    spoil(g)
    with pytest.raises(VerifyError, match=message):
        verify(g)


def test_errors_name_the_pass_the_op_and_its_line() -> None:
    g = sample()
    g.nodes[0].phase = "sideways"
    with pytest.raises(VerifyError) as caught:
        verify(g, "my_pass")
    text = str(caught.value)
    assert text.startswith("graph 'g' is malformed after pass 'my_pass': ")
    assert text.endswith("%a: f32[2,3] = exp %x: f32[2,3]   # m.py:4")


def test_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    op = Op("test_run", lambda x, *, regions=(): regions[0].outputs[0].type, kernel="control")
    monkeypatch.setitem(REGISTRY, op.name, op)
    text = "graph g(%x: f32[2]) { %0 = test_run %x (%c: f32[2]) { %1 = neg %c return %1 } return %0 }"
    g = parse_graph(text)
    verify(g)
    inner: Node = g.nodes[0].regions[0].nodes[0]
    inner.operands = (g.inputs[0],)
    with pytest.raises(VerifyError, match=r"graph 'g/test_run' .*it belongs to the graph around this region"):
        verify(g)
    g = parse_graph(text)
    g.nodes[0].regions[0].outputs = [g.nodes[0].regions[0].inputs[0]]
    g.nodes[0].regions[0].inputs[0].type = Type(dtypes.float32, (5,))
    with pytest.raises(VerifyError, match="results have types"):
        verify(g)
