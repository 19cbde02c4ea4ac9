"""The pipeline that takes a traced graph to what the scheduler sees: scalar and kernel ops only, simplified,
each value computed once, nothing dead. `PASSES` is the order; a pass is a function from a graph to a graph.

Passes never change the graph they are given; what they leave alone is shared with it. Inputs stay all, in
their order.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from .dataclass import dataclass, field
from .errors import TracegradError, VerifyError
from .graph import Graph, Node, Value
from .op import Op
from .pass_control import control
from .pass_fold import fold
from .regions import unshared
from .rewrite import Rewriter
from .rules import rule_set
from .text import print_graph
from .verifier import verify as verify_graph

__all__ = [
    "PASSES",
    "PassOptions",
    "PassRecord",
    "control",
    "cse",
    "dce",
    "decompose",
    "fold",
    "optimize",
    "simplify",
]


@dataclass
class PassOptions:
    """What passes are told and report.

    Attributes:
        fast: allow rules that may change NaN, Inf and signed-zero results.
        fired: how often each rule was applied, filled by the passes.
    """

    fast: bool = False
    fired: Counter[str] = field(default_factory=Counter)


Pass = Callable[[Graph, PassOptions], Graph]


@dataclass
class PassRecord:
    """What one pass did.

    Attributes:
        name: of the pass; `input` for the graph as it came in.
        seconds: how long it took.
        rules_fired: rule name -> times.
        graph: the graph after it.
    """

    name: str
    seconds: float
    rules_fired: Counter[str]
    graph: Graph

    @property
    def text(self) -> str:
        """The graph after the pass, below a line that says what made it."""
        rules = ", ".join(f"{n} {k}x" for n, k in sorted(self.rules_fired.items()))
        head = f"// after {self.name}, {self.seconds * 1e3:.2f} ms" + (f": {rules}" if rules else "")
        return f"{head}\n{print_graph(self.graph)}"


# --- the passes ---------------------------------------------------------------------------------------------


def dce(graph: Graph, options: PassOptions | None = None) -> Graph:
    """Drops ops that no output or update depends on."""
    live = set(graph.live_outs())
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(r in live for r in node.results):
            kept.append(node)
            live.update(node.operands)
    if len(kept) == len(graph.nodes):
        return graph
    return _with_nodes(graph, kept[::-1])


def cse(graph: Graph, options: PassOptions | None = None) -> Graph:
    """Gives ops that compute the same one node, the first; the phase does not matter."""
    return Rewriter(graph).run()


class _Decomposer(Rewriter):
    def visit(self, node: Node) -> tuple[Value, ...]:
        if node.op.decompose is None:
            return self.place(node)
        made = node.op.decompose(self, *node.operands, **node.attrs)
        results = made if isinstance(made, tuple) else (made,)
        for new, old in zip(results, node.results, strict=True):
            if new.type != old.type:
                raise VerifyError(f"{node.op.name} decomposes to {new.type} where its type is {old.type}")
        return results

    def emit(
        self,
        op: Op,
        operands: tuple[Value, ...],
        attrs: dict[str, object],
        regions: tuple[Graph, ...] = (),
    ) -> Value | tuple[Value, ...]:
        if op.decompose is not None:
            return op.decompose(self, *operands, **attrs)
        return super().emit(op, operands, attrs, regions)


def decompose(graph: Graph, options: PassOptions | None = None) -> Graph:
    """Expands every op that is defined by simpler ones, until only scalar and kernel ops are left."""
    if all(node.op.decompose is None for node in graph.nodes):
        return graph
    return dce(_Decomposer(graph).run())


def simplify(graph: Graph, options: PassOptions | None = None) -> Graph:
    """Applies the rewrite rules to their fixpoint."""
    options = options or PassOptions()
    rules = rule_set(options.fast)
    # One walk normalises; what it let die may make others the only reader of a value, hence the next.
    for _ in range(_MOST_WALKS):
        walk = Rewriter(graph, rules)
        graph = dce(walk.run())
        options.fired += walk.fired
        if not walk.fired:
            break
    return graph


_MOST_WALKS = 16

#: The order. A pass whose input is the graph it gave last time is not run again.
PASSES: tuple[Pass, ...] = (dce, cse, control, decompose, simplify, fold, control, simplify)


# --- the driver ---------------------------------------------------------------------------------------------


def optimize(
    graph: Graph,
    fast: bool = False,
    verify: bool | None = None,
    record: list[PassRecord] | None = None,
    passes: Sequence[Pass] = PASSES,
) -> Graph:
    """`graph` after all passes; the graph itself is not changed.

    Args:
        fast: allow rules that may change NaN, Inf and signed-zero results.
        verify: check the graph after every pass; None: where the environment says `TRACEGRAD_VERIFY=1`.
        record: gets one PassRecord for the input and one for each pass.

    Raises:
        TracegradError: a pass failed, a fault in it; the message names a file with the graph it failed on.
    """
    if verify is None:
        verify = os.environ.get("TRACEGRAD_VERIFY") == "1"
    if verify:
        verify_graph(graph)
    if record is not None:
        record.append(PassRecord("input", 0.0, Counter(), graph))
    graph = unshared(graph)
    done: dict[Pass, Graph] = {}
    for run in passes:
        name = getattr(run, "__name__", "pass")
        options = PassOptions(fast)
        began = time.perf_counter()
        try:
            after = graph if done.get(run) is graph else run_pass(run, graph, options)
            if verify:
                verify_graph(after, name)
        except Exception as e:
            raise _failure(name, graph, e) from e
        graph = done[run] = after
        if record is not None:
            record.append(PassRecord(name, time.perf_counter() - began, options.fired, graph))
    return graph


def run_pass(run: Pass, graph: Graph, options: PassOptions) -> Graph:
    """One pass on a graph and, before it, on the regions in it."""
    if any(node.regions for node in graph.nodes):
        graph = _Regions(graph, run, options).run()
    return run(graph, options)


class _Regions(Rewriter):
    def __init__(self, source: Graph, run: Pass, options: PassOptions) -> None:
        super().__init__(source, merge=False)
        self.run_one = run
        self.options = options

    def visit(self, node: Node) -> tuple[Value, ...]:
        if node.regions:
            regions = tuple(run_pass(self.run_one, r, self.options) for r in node.regions)
            if any(new is not old for new, old in zip(regions, node.regions)):
                node = node.over(node.operands, regions)
        return self.place(node)


def _with_nodes(graph: Graph, nodes: list[Node]) -> Graph:
    out = Graph(graph.name)
    out.inputs, out.nodes, out.outputs, out.updates = graph.inputs, nodes, graph.outputs, graph.updates
    return out


def _failure(name: str, graph: Graph, error: Exception) -> TracegradError:
    """The error for a failed pass, after leaving a reproducer."""
    kind = type(error) if isinstance(error, VerifyError) else TracegradError
    what = f"{type(error).__name__}: {error}" if not isinstance(error, TracegradError) else str(error)
    try:
        said = "\n".join(f"// {line}" for line in f"pass '{name}' fails on this graph\n{what}".split("\n"))
        path = Path(tempfile.mkdtemp(prefix="tracegrad-")) / f"{name}.ir"
        path.write_text(f"{said}\n{print_graph(graph, full_paths=True)}", encoding="utf-8")
        left = f"the graph it fails on is in {path}"
    except Exception as e:  # a full disk, or a graph too broken to print, must not hide the failure
        left = f"no file with the graph could be written ({e})"
    return kind(f"pass '{name}' failed: {what}\n{left}")
