"""What a loop does that is better done once, before or after it. Rewrites of ir/pass_control.py.

    hoist_invariants    scan .. w (f(c, g(w)))             --> v = g(w); scan .. v (f(c, v))
    hoist_projections   scan .. xs (f(c, contract(x, w)))  --> v = contract(xs, w); scan .. v (f(c, v))
    hoist_sums          scan s (s + contract(f, g))        --> fs, gs = scan (f, g); s + contract(fs, gs)
    sink_outputs        ys = scan .. (contract(f, w))      --> fs = scan .. (f); ys = contract(fs, w)

Many small contractions become one large one; what a sum adds, it adds in another order. Work on all steps at
once is the op batched (ir/batch.py), the steps being the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .batch import batch_nodes
from .builder import Builder
from .graph import Graph, Node, Value, toposort, users
from .pattern import splat
from .regions import dependent, graft, part

Results = list[Value | None] | None

#: Bytes that a rewrite may add to what a loop reads and writes anyway.
_SPARE = 64 << 20
_BATCHED = ("movement", "reduce", "contract")
_LINEAR = ("reshape", "permute")


class _Scan:
    """A scan, or a while, taken apart, to be put together with other inputs and outputs.

    `stacks` and `rest` grow as values become xs and operands; `outs` as they become ys.
    """

    def __init__(self, node: Node, operands: Sequence[Value], used: Sequence[bool]) -> None:
        self.node = node
        self.body = node.regions[-1]
        self.k, self.m = node.attrs.get("carry", 0), node.attrs.get("xs", 0)
        self.length = node.attrs.get("length", 0)
        self.used = used
        inputs = self.body.inputs
        self.carried = inputs[: self.k]
        self.xs = inputs[self.k : self.k + self.m]
        self.consts = inputs[self.k + self.m :]
        self.operand = dict(zip(inputs, operands))
        self.varying = dependent(self.body, [*self.carried, *self.xs])
        self.moving = dependent(self.body, self.carried)
        self.invariant = dependent(self.body, self.consts) - self.varying

    @property
    def from_xs(self) -> set[Value]:
        """Values that depend on the xs and not on carried values."""
        return self.varying - self.moving

    def spare(self) -> int:
        """How many bytes of stacks a rewrite may add."""
        touched = sum(self.operand[v].type.nbytes for v in self.xs)
        return _SPARE + 4 * (touched + sum(r.type.nbytes for r in self.node.results[self.k :]))

    def again(
        self,
        b: Builder,
        body_outs: Sequence[Value],
        carry: Sequence[int],
        stacks: dict[Value, Value],
        consts: dict[Value, Value],
    ) -> list[Value]:
        """The loop with other xs and operands: `stacks` and `consts` say which values of the body come from
        outside now, and as what; the carried values `carry` stay. Gives the results in the order of
        `body_outs`, carried ones first."""
        carried = [self.carried[i] for i in carry]
        xs = {v: self.operand[v] for v in self.xs} | stacks
        rest = {v: self.operand[v] for v in self.consts} | consts
        order = [*carried, *xs, *rest]
        outs = [*(self.body.outputs[i] for i in carry), *body_outs]
        regions = [part(self.body, order, outs)]
        if self.node.op.name == "while":
            test = self.node.regions[0]
            out = Graph(test.name)
            new = {v: out.add_input(v.type, v.name) for v in order}
            env = {v: new[i] for v, i in zip(test.inputs, self.body.inputs)}
            graft(out, test.nodes, env)
            out.outputs = [env[v] for v in test.outputs]
            regions.insert(0, out)
        attrs = {**self.node.attrs, "carry": len(carried)}
        if self.node.op.name == "scan":
            attrs["xs"] = len(xs)
        given = [*(self.operand[v] for v in carried), *xs.values(), *rest.values()]
        if not outs:
            return []
        made: Any = b.emit(self.node.op, tuple(given), attrs, tuple(regions))
        return list(made) if isinstance(made, tuple) else [made]


def _computes(node: Node) -> bool:
    """More than moving elements about."""
    return node.op.kernel not in ("movement", "source") or node.op.name == "concat"


def _frontier(scan: _Scan, done: set[Node], movable: set[Value]) -> list[Value]:
    """Values of `done` nodes that what stays in the body reads, itself or through movement that stays."""
    read = users(scan.body)
    outs = set(scan.body.outputs)
    found = []
    for node in scan.body.nodes:
        if node not in done:
            continue
        for r in node.results:
            stack, seen = [r], {r}
            while stack:
                v = stack.pop()
                if v in outs or any(u not in done and not _passes_on(u, movable) for u in read.get(v, ())):
                    found.append(r)
                    break
                for u in read.get(v, ()):
                    if u not in done:
                        for w in u.results:
                            if w not in seen:
                                seen.add(w)
                                stack.append(w)
    return found


def _passes_on(node: Node, movable: set[Value]) -> bool:
    return not _computes(node) and node.results[0] in movable


# --- before the loop ----------------------------------------------------------------------------------------


def hoist_invariants(b: Builder, node: Node, operands: tuple[Value, ...], used: list[bool]) -> Results:
    """scan .. w (f(c, g(w))) --> v = g(w); scan .. v (f(c, v))"""
    if node.op.name not in ("scan", "while"):
        return None
    scan = _Scan(node, operands, used)
    risky = node.op.name == "while"  # it may not run once, and reading at an index may fail
    done = {
        n
        for n in scan.body.nodes
        if n.results[0] in scan.invariant
        and _computes(n)
        and not (risky and n.op.kernel in ("gather", "scatter"))
    }
    roots = _frontier(scan, done, scan.invariant)
    if not roots:
        return None
    env = dict(scan.operand)
    inside = part(scan.body, scan.consts, roots)
    env = {v: scan.operand[c] for v, c in zip(inside.inputs, scan.consts)}
    graft(b.graph, inside.nodes, env)
    made = scan.again(
        b,
        scan.body.outputs[scan.k :],
        range(scan.k),
        {},
        {v: env[o] for v, o in zip(roots, inside.outputs)},
    )
    return [*made]


def hoist_projections(b: Builder, node: Node, operands: tuple[Value, ...], used: list[bool]) -> Results:
    """scan .. xs (f(c, contract(x, w))) --> v = contract(xs, w); scan .. v (f(c, v))"""
    if node.op.name != "scan" or not node.attrs.get("xs") or not node.attrs["length"]:
        return None
    scan = _Scan(node, operands, used)
    ready = scan.from_xs
    able: set[Value] = set(scan.xs)
    worth: set[Value] = set()
    done: set[Node] = set()
    for n in scan.body.nodes:
        if n.results[0] not in ready or not _batches(n):
            continue
        if any(v in ready and v not in able for v in n.operands):
            continue
        able.update(n.results)
        if any(v in worth for v in n.operands) or _projects(n, able, scan):
            worth.update(n.results)
            if _computes(n):
                done.add(n)
    roots = _frontier(scan, done, ready)
    if not roots or sum(v.type.nbytes for v in roots) * scan.length > scan.spare():
        return None
    stacks = dict(zip(roots, _all_steps(b, scan, {}, roots)))
    made = scan.again(b, scan.body.outputs[scan.k :], range(scan.k), stacks, {})
    return [*made]


def _batches(n: Node) -> bool:
    return len(n.results) == 1 and (n.op.scalar is not None or n.op.kernel in _BATCHED)


def _projects(n: Node, able: set[Value], scan: _Scan) -> bool:
    """A contraction of something that changes from step to step with something that does not."""
    if n.op.kernel != "contract":
        return False
    x, y = n.operands
    return (x in able) != (y in able) and (x in scan.invariant or y in scan.invariant)


def _all_steps(b: Builder, scan: _Scan, stacks: dict[Value, Value], roots: Sequence[Value]) -> list[Value]:
    """Values of the body for all steps at once, from the xs, the operands, and values that are stacked
    already."""
    inside = part(scan.body, [*stacks, *scan.xs, *scan.consts], roots)
    given = [*stacks.values(), *(scan.operand[v] for v in (*scan.xs, *scan.consts))]
    flags = [True] * (len(stacks) + scan.m) + [False] * len(scan.consts)
    env = {v: (x, flag) for v, x, flag in zip(inside.inputs, given, flags)}
    loc, phase = b.loc, b.phase
    batch_nodes(b, inside.nodes, env, scan.length)
    b.loc, b.phase = loc, phase
    out = []
    for v in inside.outputs:
        x, flag = env[v]
        out.append(x if flag else b.expand(x, shape=(scan.length, *v.type.shape)))
    return out


# --- after the loop -----------------------------------------------------------------------------------------


class _Stacker:
    """Values of the body as stacks over the steps: what there is already, and more ys."""

    def __init__(self, scan: _Scan) -> None:
        self.scan = scan
        self.kept = [v for v, flag in zip(scan.body.outputs[scan.k :], scan.used[scan.k :]) if flag]
        self.more: dict[Value, None] = {}

    def there(self, v: Value) -> bool:
        """Whether stacking `v` costs nothing."""
        scan = self.scan
        if v in scan.xs or v in self.kept or v in self.more or v not in scan.varying:
            return True
        node = v.node
        return (
            node is not None
            and not _computes(node)
            and len(node.operands) == 1
            and node.results[0].type.numel <= node.operands[0].type.numel
            and self.there(node.operands[0])
        )

    def ask(self, v: Value) -> None:
        if not self.there(v):
            self.more[v] = None

    def bytes(self) -> int:
        return sum(v.type.nbytes for v in self.more) * self.scan.length


def _terms(scan: _Scan, i: int, read: dict[Value, list[Node]]) -> tuple[list[Value], bool]:
    """What step after step adds to carried value i, if that is all that is done with it."""
    start, end = scan.carried[i], scan.body.outputs[i]
    outs = scan.body.outputs
    if len(read.get(start, ())) != 1 or start in outs or outs.count(end) != 1 or read.get(end):
        return [], False
    terms: list[Value] = []
    met = 0
    stack = [end]
    while stack:
        v = stack.pop()
        n = v.node
        if v is start:
            met += 1
        elif n is not None and n.op.name == "add" and (v is end or (len(read[v]) == 1 and v not in outs)):
            if any(o.type != v.type for o in n.operands):
                if v is end:
                    return [], False
                terms.append(v)
            else:
                stack.extend(reversed(n.operands))
        else:
            terms.append(v)
    return terms, met == 1 and not any(start in _above(t) for t in terms)


def _above(v: Value) -> set[Value]:
    return {o for n in toposort([v]) for o in n.operands} | {v}


def _root(v: Value) -> tuple[Value, list[Node]]:
    """What a chain of reshapes and permutes begins with, and the chain."""
    chain = []
    while v.node is not None and v.node.op.name in _LINEAR:
        chain.append(v.node)
        v = v.node.operands[0]
    return v, chain[::-1]


def hoist_sums(b: Builder, node: Node, operands: tuple[Value, ...], used: list[bool]) -> Results:
    """scan s (s + contract(f, g)) --> fs, gs = scan (f, g); s + contract(fs, gs)"""
    if node.op.name != "scan" or not node.attrs.get("carry") or not node.attrs["length"]:
        return None
    scan = _Scan(node, operands, used)
    read = users(scan.body)
    stacker = _Stacker(scan)
    found: dict[int, tuple[list[Value], list[Value]]] = {}  # carried -> terms hoisted, terms left
    for i in range(scan.k):
        terms, ok = _terms(scan, i, read)
        if not ok:
            continue
        taken = [t for t in terms if _takes(stacker, t)]
        if taken:
            found[i] = (taken, [t for t in terms if t not in taken])
    # Sums of what is stacked now for others.
    for i in range(scan.k):
        terms, ok = _terms(scan, i, read)
        if ok and i in found and found[i][1]:
            again = [t for t in found[i][1] if _takes(stacker, t)]
            found[i] = ([*found[i][0], *again], [t for t in found[i][1] if t not in again])
        elif ok and i not in found:
            taken = [t for t in terms if _takes(stacker, t)]
            if taken:
                found[i] = (taken, [t for t in terms if t not in taken])
    if not found or stacker.bytes() > scan.spare():
        return None
    carry = [i for i in range(scan.k) if i not in found or found[i][1]]
    body = _with_less(scan, {i: left for i, (_, left) in found.items() if left})
    ys = [*scan.body.outputs[scan.k :], *stacker.more]
    smaller = _Scan(_over(node, body.graph), operands, used)
    made = smaller.again(b, [body.env[v] for v in ys], carry, {}, {})
    results: list[Value | None] = [None] * len(used)
    for i, v in zip(carry, made):
        results[i] = v
    for j, v in zip(range(scan.k, len(used)), made[len(carry) :]):
        results[j] = v
    more = made[len(carry) + len(scan.body.outputs) - scan.k :]
    at_hand = {*scan.xs, *scan.consts}
    stacks = {v: made[len(carry) + ys.index(v)] for v in stacker.kept if v not in at_hand}
    stacks.update(zip(stacker.more, more))
    for i, (taken, left) in found.items():
        total = results[i] if left else None if splat(operands[i]) == 0 else operands[i]
        for t in taken:
            v = _total(b, scan, stacks, t)
            total = v if total is None else b.add(total, v)
        results[i] = total
    return results


def _takes(stacker: _Stacker, term: Value) -> bool:
    """Whether a term's sum over the steps is worth doing after the loop; asks for what that reads."""
    v, _ = _root(term)
    n = v.node
    if n is not None and n.op.kernel == "contract":
        for o in n.operands:
            stacker.ask(o)
        return v in stacker.scan.varying
    if n is not None and n.op.name == "sum" and stacker.there(n.operands[0]):
        return v in stacker.scan.varying
    return stacker.there(v) and v in stacker.scan.varying


def _total(b: Builder, scan: _Scan, stacks: dict[Value, Value], term: Value) -> Value:
    """The sum of a term over all steps."""
    v, chain = _root(term)
    n = v.node

    def stacked(o: Value) -> Value:
        return stacks[o] if o in stacks else _all_steps(b, scan, stacks, [o])[0]

    def single(o: Value) -> Value:
        return stacked_once(b, scan, o)

    if v in stacks:
        total = b.sum(stacks[v], axes=(0,))
    elif n is not None and n.op.kernel == "contract":
        total = _one_contraction(b, scan, n, stacked, single)
    elif n is not None and n.op.name == "sum":
        axes = tuple(sorted((0, *(a + 1 for a in n.attrs["axes"]))))
        total = b.sum(stacked(n.operands[0]), axes=axes)
        if total.type.shape != v.type.shape:
            total = b.reshape(total, shape=v.type.shape)
    else:
        total = b.sum(stacked(v), axes=(0,))
    for c in chain:
        total = getattr(b, c.op.name)(total, **c.attrs)
    return total


def stacked_once(b: Builder, scan: _Scan, v: Value) -> Value:
    """A value that is the same at every step, outside of the loop."""
    inside = part(scan.body, scan.consts, [v])
    env = {i: scan.operand[c] for i, c in zip(inside.inputs, scan.consts)}
    graft(b.graph, inside.nodes, env)
    return env[inside.outputs[0]]


def _one_contraction(b: Builder, scan: _Scan, n: Node, stacked: Any, single: Any) -> Value:
    """The sum over the steps of a contraction: the steps are one more letter that is summed over."""
    spec = n.attrs["spec"]
    x, y = n.operands
    parts, out = spec.split("->")
    a, c = parts.split(",")
    letter = next(z for z in "tTabcdefghijklmnopqrsuvwxyzABCDEFGHIJKLMNOPQRSUVWXYZ" if z not in spec)
    varies = x in scan.varying, y in scan.varying
    if all(varies):
        return b.contract(stacked(x), stacked(y), spec=f"{letter}{a},{letter}{c}->{out}")
    first = b.sum(stacked(x), axes=(0,)) if varies[0] else single(x)
    second = b.sum(stacked(y), axes=(0,)) if varies[1] else single(y)
    return b.contract(first, second, spec=spec)


class _Changed:
    def __init__(self, graph: Graph, env: dict[Value, Value]) -> None:
        self.graph = graph
        self.env = env


def _with_less(scan: _Scan, left: dict[int, list[Value]]) -> _Changed:
    """The body where carried values of `left` have only these terms added."""
    out = Graph(scan.body.name)
    env = {v: out.add_input(v.type, v.name) for v in scan.body.inputs}
    graft(out, scan.body.nodes, env)
    outputs = [env[v] for v in scan.body.outputs]
    b = Builder(out)
    for i, terms in left.items():
        end = scan.body.outputs[i].node
        with b.at(end.loc if end is not None else None, end.phase if end is not None else "forward"):
            total = env[scan.carried[i]]
            for t in terms:
                total = b.add(total, env[t])
        outputs[i] = total
    out.outputs = outputs
    return _Changed(out, env)


def _over(node: Node, body: Graph) -> Node:
    return _like(node, (*node.regions[:-1], body))


def _like(node: Node, regions: tuple[Graph, ...]) -> Node:
    copy = Node(node.op, node.operands, node.attrs, node.loc, node.phase, regions)
    copy.results = node.results
    return copy


def sink_outputs(b: Builder, node: Node, operands: tuple[Value, ...], used: list[bool]) -> Results:
    """ys = scan .. (contract(f, w)) --> fs = scan .. (f); ys = contract(fs, w)"""
    if node.op.name != "scan" or not node.attrs["length"]:
        return None
    scan = _Scan(node, operands, used)
    carried = scan.body.outputs[: scan.k]
    stays = {n for n in toposort(carried)}
    read = users(scan.body)
    sunk: set[Node] = set()
    for n in scan.body.nodes:
        if n in stays or n in sunk or n.results[0] not in scan.varying:
            continue
        if not (n.op.kernel == "contract" and sum(v in scan.invariant for v in n.operands) == 1):
            continue
        below = _below(n, read)
        if all(_batches(u) and u not in stays for u in below):
            sunk |= below
    if not sunk:
        return None
    roots = [v for v, flag in zip(scan.body.outputs[scan.k :], used[scan.k :]) if flag and v.node in sunk]
    if not roots:
        return None
    keep = [v for v in scan.body.outputs[scan.k :] if v.node not in sunk]
    stacker = _Stacker(scan)
    stacker.kept = [v for v in stacker.kept if v.node not in sunk]
    needed = {n for n in toposort(roots) if n in sunk}
    for n in scan.body.nodes:
        if n in needed:
            for v in n.operands:
                if v.node not in sunk:
                    stacker.ask(v)
    gained = sum(v.type.nbytes for v in roots) * scan.length
    if stacker.bytes() > scan.spare() + gained:
        return None
    ys = list(dict.fromkeys([*keep, *stacker.more]))
    made = scan.again(b, ys, range(scan.k), {}, {})
    got = dict(zip(ys, made[scan.k :]))
    stacks = {v: x for v, x in got.items() if v not in scan.xs and v not in scan.consts}
    after = dict(zip(roots, _all_steps(b, scan, stacks, roots)))
    results: list[Value | None] = [*made[: scan.k]]
    results += [after.get(v) or got.get(v) for v in scan.body.outputs[scan.k :]]
    return results


def _below(node: Node, read: dict[Value, list[Node]]) -> set[Node]:
    """The node and all that depends on it."""
    found = {node}
    stack = [node]
    while stack:
        for r in stack.pop().results:
            for u in read.get(r, ()):
                if u not in found:
                    found.add(u)
                    stack.append(u)
    return found
