"""Rewriting of graphs by rules. A rule is a pattern (ir/pattern.py) and a function that builds the
replacement:

    @rule("mul(x, 1)")
    def mul_one(b, x):
        \"\"\"x*1 --> x\"\"\"
        return x

`Rewriter` copies a graph node by node through its own builder. Whatever is emitted, by the copy or by a rule,
is first offered to the rules of its op, and merged with an equal op that exists. Operands are always in
normal form by then, so one walk reaches the fixpoint in time proportional to the ops made; passes
(ir/passes.py) are such walks.

Rules live in ir/rules*.py. None may change a NaN, Inf or signed-zero result unless it is tagged `fast`; the
order in which a reduction adds is not part of its result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from .builder import Builder, infer_or_explain
from .errors import TracegradError
from .graph import Graph, Node, Value
from .op import Op
from .pattern import COMMUTATIVE, Call, Number, parse_pattern, splat
from .regions import exact

_DEEPEST = 48


class Rule:
    """One rewrite.

    Attributes:
        name: the function's name; dumps count it and golden tests are found by it.
        patterns: texts in the pattern language.
        fn: `fn(b, ...)`, its other parameters named after what the pattern binds; `n` is the node matched.
            Returns the replacement (of the same dtype; of the shape, or one that broadcasts to it) or None to
            decline.
        fast: may change NaN, Inf or signed-zero results.
        some: if given, at least one operand is made by one of these ops (`number`: is one number everywhere).
        doc: the rule as `before --> after`.
    """

    __slots__ = ("_forms", "doc", "fast", "fn", "name", "params", "patterns", "some")

    def __init__(
        self,
        patterns: tuple[str, ...],
        fn: Callable[..., Value | None],
        fast: bool,
        some: tuple[str, ...] = (),
    ) -> None:
        code = fn.__code__
        self.name = fn.__name__
        self.patterns = patterns
        self.fn = fn
        self.fast = fast
        self.some = some
        self.doc = (fn.__doc__ or "").strip()
        self.params = code.co_varnames[1 : code.co_argcount]
        self._forms: list[Call] | None = None

    @property
    def roots(self) -> tuple[str, ...]:
        """The ops, or op classes, it starts from."""
        return tuple(p.partition("(")[0].strip() for p in self.patterns)

    @property
    def forms(self) -> list[Call]:
        """Parsed on first use: a program needs few of the rules."""
        if self._forms is None:
            self._forms = [f for p in self.patterns for f in parse_pattern(p)]
        return self._forms

    def __repr__(self) -> str:
        return f"<rule {self.name}: {self.doc}>"


#: Every rule by name, in the order they are tried.
RULES: dict[str, Rule] = {}


def rule(
    *patterns: str, fast: bool = False, some: tuple[str, ...] = ()
) -> Callable[[Callable[..., Value | None]], Rule]:
    """Registers the decorated function as a rewrite of what `patterns` match; see Rule for `fast` and
    `some`."""

    def add(fn: Callable[..., Value | None]) -> Rule:
        r = Rule(patterns, fn, fast, some)
        if r.name in RULES:
            raise ValueError(f"rule {r.name} is defined twice")
        RULES[r.name] = r
        return r

    return add


class RuleSet:
    """Rules indexed by the op they start from."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self._by_root: dict[str, list[Rule]] = {}
        for r in self.rules:
            for root in dict.fromkeys(r.roots):
                self._by_root.setdefault(root, []).append(r)
        self._of_op: dict[Op, list[tuple[Rule, Call]]] = {}
        self._of_kinds: dict[Any, list[tuple[Rule, Call]]] = {}

    def of(self, node: Node) -> list[tuple[Rule, Call]]:
        """The rules that may match `node` by its op and what makes its operands, with the form of pattern
        that does.

        Found once for each combination, so that a node costs one look-up and not an attempt at every rule of
        its op.
        """
        of_op = self._of_op.get(node.op)
        if of_op is None:
            of_op = self._of_op[node.op] = self._find(node.op)
        if not of_op:
            return of_op
        kinds = tuple([_kind(v) for v in node.operands])
        key = (node.op, kinds)
        found = self._of_kinds.get(key)
        if found is None:
            found = self._of_kinds[key] = [(r, f) for r, f in of_op if _may_match(r, f, kinds)]
        return found

    def _find(self, op: Op) -> list[tuple[Rule, Call]]:
        of_class = "any_scalar" if op.scalar is not None else f"any_{op.kernel}"
        return [
            (r, f)
            for root in (op.name, of_class)
            for r in self._by_root.get(root, ())
            for f in r.forms
            if f.op == root
        ]


Kind = tuple[str, bool]


def _kind(v: Value) -> Kind:
    """What a first look at an operand tells: the op that makes it and whether it is a number."""
    node = v.node
    return ("", False) if node is None else (node.op.name, splat(v) is not None)


def _may_match(r: Rule, form: Call, kinds: tuple[Kind, ...]) -> bool:
    if r.some and not any(name in r.some or (number and "number" in r.some) for name, number in kinds):
        return False
    if len(kinds) != len(form.args) and (not form.rest or len(kinds) < len(form.args)):
        return False
    for a, (name, number) in zip(form.args, kinds):
        if isinstance(a, Call):
            if a.op != name:
                return False
        elif not number and (isinstance(a, Number) or a.constant):
            return False
    return True


NO_RULES = RuleSet(())


def attr(node: Node, name: str) -> Any:
    """An attribute, or its default where the node does not spell it."""
    value = node.attrs.get(name, node)
    return node.op.attr_defaults[name] if value is node else value


def node_key(node: Node) -> tuple[Any, ...] | None:
    """Equal for nodes that compute the same; None for nodes that are never merged (those with regions)."""
    if node.regions:
        return None
    operands = node.operands
    if (
        len(operands) == 2
        and node.op.name in COMMUTATIVE
        and id(operands[0]) > id(operands[1])
        # maximum(-0, 0) may be either zero, so their order counts.
        and (node.op.name not in ("maximum", "minimum") or operands[0].type.dtype.kind != "f")
    ):
        operands = (operands[1], operands[0])
    attrs = node.attrs
    if not node.op.attr_defaults:
        return (node.op, operands)
    return (node.op, operands, *(exact(attrs.get(name, d)) for name, d in node.op.attr_defaults.items()))


class Rewriter(Builder):
    """Copies `source` through rules; also the builder that rules get.

    Nodes that nothing touches are shared between the two graphs, not copied: nodes are immutable once made.

    Args:
        source: the graph to rewrite; it stays as it is.
        rules: what to apply.
        merge: give equal ops one node.
    """

    def __init__(self, source: Graph, rules: RuleSet = NO_RULES, *, merge: bool = True) -> None:
        super().__init__(Graph(source.name))
        self.source = source
        self.rules = rules
        self.merge = merge
        self.fired: Counter[str] = Counter()
        self._made: dict[tuple[Any, ...], tuple[Value, ...]] = {}
        self._uses: dict[Value, int] = {}
        self._stack: list[str] = []

    # --- what rules may ask ---------------------------------------------------------------------------------

    def only_use(self, v: Value) -> bool:
        """Whether the node being rewritten is the only reader of `v`, so that `v` dies if the rule drops
        it."""
        return self._uses.get(v, 0) <= (1 if len(self._stack) == 1 else 0)

    def fit(self, v: Value, shape: tuple[int, ...]) -> Value:
        """`v` expanded to `shape`, or `v` itself where it has it."""
        return v if v.type.shape == shape else self.expand(v, shape=shape)

    def again(self, n: Node, operands: Iterable[Value]) -> Value:
        """The op of `n`, a node with one result, on other operands."""
        made = self.emit(n.op, tuple(operands), n.attrs, n.regions)
        assert isinstance(made, Value)
        return made

    # --- the walk -------------------------------------------------------------------------------------------

    def run(self) -> Graph:
        """The rewritten graph, or `source` itself where nothing changed. Dead nodes stay (`dce` drops
        them)."""
        source, out, uses = self.source, self.graph, self._uses
        out.inputs = source.inputs
        for node in source.nodes:
            for v in node.operands:
                uses[v] = uses.get(v, 0) + 1
        for v in source.live_outs():
            uses[v] = uses.get(v, 0) + 1
        env: dict[Value, Value] = {}
        for node in source.nodes:
            self.loc, self.phase = node.loc, node.phase
            old = node.results
            if env:
                operands = tuple([env.get(v, v) for v in node.operands])
                if operands != node.operands:
                    node = node.over(operands)
            before = len(out.nodes)
            new = self.visit(node)
            if new is not old:
                for was, now in zip(old, new):
                    if was is not now:
                        env[was] = now
                        uses[now] = uses.get(now, 0) + uses.get(was, 0)
                        if (
                            now.name is None
                            and was.name
                            and len(out.nodes) > before
                            and out.nodes[-1] is now.node
                        ):
                            now.name = was.name
                if new is not node.results:
                    self._release(node.operands)
        if not env and len(out.nodes) == len(source.nodes):
            return source
        out.outputs = [env.get(v, v) for v in source.outputs]
        out.updates = {k: env.get(v, v) for k, v in source.updates.items()}
        return out

    def visit(self, node: Node) -> tuple[Value, ...]:
        """The values that stand for a copied node's results. Passes override it."""
        return self.place(node)

    def emit(
        self,
        op: Op,
        operands: tuple[Value, ...],
        attrs: dict[str, Any],
        regions: tuple[Graph, ...] = (),
    ) -> Value | tuple[Value, ...]:
        node = Node(op, operands, attrs, self.loc, self.phase, regions)
        types = infer_or_explain(op, operands, attrs, self.loc, regions)
        node.results = tuple([Value(t, node, i) for i, t in enumerate(types)])
        results = self.place(node)
        if results is node.results:
            for v in operands:
                self._uses[v] = self._uses.get(v, 0) + 1
        return results[0] if len(results) == 1 else results

    def place(self, node: Node) -> tuple[Value, ...]:
        """What a node over values of the new graph becomes: a rule's replacement, an equal node's results,
        or, added to the graph, itself."""
        rules = self.rules.of(node)
        if rules and len(node.results) == 1:
            replaced = self._apply(rules, node)
            if replaced is not None:
                return (replaced,)
        if self.merge:
            key = node_key(node)
            if key is not None:
                made = self._made.setdefault(key, node.results)
                if made is not node.results:
                    return made
        self.graph.nodes.append(node)
        return node.results

    def _apply(self, rules: list[tuple[Rule, Call]], node: Node) -> Value | None:
        for r, form in rules:
            env: dict[str, Any] = {}
            if not form.match_operands(node.operands, env):
                continue
            env["n"] = node
            self._stack.append(r.name)
            if len(self._stack) > _DEEPEST:
                last = ", ".join(dict.fromkeys(self._stack[-6:]))
                raise TracegradError(f"rewrite rules undo each other without end; the last were {last}")
            out = r.fn(self, *[env[p] for p in r.params])
            self._stack.pop()
            if out is None:
                continue
            want = node.results[0].type
            if out.type.dtype is not want.dtype:
                raise TracegradError(f"rule {r.name} made {out.type} of {want}")
            self.fired[r.name] += 1
            return self.fit(out, want.shape)
        return None

    def _release(self, operands: tuple[Value, ...]) -> None:
        """Counts a reader of each operand less, and so on upwards from what nobody reads any more."""
        stack = list(operands)
        uses = self._uses
        while stack:
            v = stack.pop()
            uses[v] = uses.get(v, 0) - 1
            if uses[v] == 0 and v.node is not None and len(v.node.results) == 1:
                stack.extend(v.node.operands)
