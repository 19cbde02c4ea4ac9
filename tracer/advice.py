"""Errors for Python that needs the value of a traced tensor: they name the user's line, show it, and
write down the traced form of it where the source is at hand."""

from __future__ import annotations

import ast
import linecache
from typing import Any

from ..ir.errors import TraceError
from ..ir.graph import Location
from .callers import user_location
from .values import TracedValue


def needs_value(value: TracedValue, when: str) -> TraceError:
    """The error for a value that is asked for while `when` ("'f' is being compiled")."""
    loc = user_location()
    made = f", made by {value.node.op.name} at {value.node.loc}" if value.node is not None else ""
    head = f"{loc}: the value of a traced tensor ({value.type}{made}) is needed while {when}"
    written = advice(loc) if loc is not None else ""
    if written:
        return TraceError(f"{head}, but it is only known when the program runs.\n{written}")
    return TraceError(
        f"{head} (a branch on it, .item(), print, numpy()), but it is only known when the program runs; "
        f"return the tensor and read it outside, or write a branch as tracegrad.where or tracegrad.cond and "
        f"a loop as tracegrad.while_loop"
    )


def advice(loc: Location) -> str:
    """The statement at `loc` and what to write instead; "" where it is no branch or there is no source."""
    lines = linecache.getlines(loc.file)
    if not lines:
        return ""
    try:
        tree = ast.parse("".join(lines))
    except SyntaxError:
        return ""
    found = _at(tree, loc.line)
    if found is None:
        return ""
    shown = lines[found.lineno - 1].strip()
    return f"    {shown}\ncan be written\n" + "".join(f"    {line}\n" for line in _instead(found)).rstrip(
        "\n"
    )


def _at(tree: ast.AST, line: int) -> Any:
    """The innermost branch or loop whose condition is on `line`."""
    best: Any = None
    for node in ast.walk(tree):
        if isinstance(node, (ast.If, ast.While, ast.IfExp, ast.Assert)):
            test = node.test
            if test.lineno <= line <= (test.end_lineno or test.lineno):
                best = node
    return best


def _instead(node: Any) -> list[str]:
    test = ast.unparse(node.test)
    if isinstance(node, ast.IfExp):
        return [f"tracegrad.where({test}, {ast.unparse(node.body)}, {ast.unparse(node.orelse)})"]
    if isinstance(node, ast.Assert):
        return [f"return {test}    # and assert outside, where its value is known"]
    if isinstance(node, ast.While):
        return _loop(node, test)
    then, other = _assigned(node.body), _assigned(node.orelse)
    names = list(dict.fromkeys((*then, *other)))
    one = _single(node.body), _single(node.orelse)
    if len(names) == 1 and one[0] is not None and (one[1] is not None or not node.orelse):
        (name,) = names
        return [f"{name} = tracegrad.where({test}, {ast.unparse(one[0])}, {_or_name(one[1], name)})"]
    if _returns(node.body):
        last = _single_return(node.body), _single_return(node.orelse)
        left = ast.unparse(last[0]) if last[0] is not None else "..."
        right = ast.unparse(last[1]) if last[1] is not None else "..."
        return [
            f"return tracegrad.cond({test}, lambda: {left}, lambda: {right})",
            f"# or, where both are cheap: tracegrad.where({test}, ..., ...)",
        ]
    listed = ", ".join(names) or "..."
    call = f"tracegrad.cond({test}, then, otherwise)"
    return [
        *_function("then()", node.body, listed),
        *_function("otherwise()", node.orelse, listed),
        f"{listed} = {call}" if names else call,
    ]


def _loop(node: ast.While, test: str) -> list[str]:
    names = _assigned(node.body)
    listed = ", ".join(names) or "x"
    one = len(names) == 1
    carried = f"({listed},)" if one else f"({listed})"
    call = f"tracegrad.while_loop(lambda {listed}: {test}, body, {carried})"
    return [
        *_function(f"body({listed})", node.body, listed),
        f"{listed + ',' if one else listed} = {call}",
        "# with max_trips=N gradients flow through it",
    ]


def _function(head: str, body: list[ast.stmt], returns: str) -> list[str]:
    lines = [f"def {head}:"]
    for stmt in body:
        lines += [f"    {line}" for line in ast.unparse(stmt).split("\n")]
    return [*lines, f"    return {returns}"]


def _assigned(body: list[ast.stmt]) -> list[str]:
    found: dict[str, None] = {}
    for stmt in body:
        for node in ast.walk(stmt):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found[node.id] = None
    return list(found)


def _single(body: list[ast.stmt]) -> ast.expr | None:
    """The value of a body that is one assignment to one name."""
    if len(body) == 1 and isinstance(body[0], ast.Assign) and isinstance(body[0].targets[0], ast.Name):
        return body[0].value
    if len(body) == 1 and isinstance(body[0], ast.AugAssign) and isinstance(body[0].target, ast.Name):
        return ast.BinOp(ast.Name(body[0].target.id, ast.Load()), body[0].op, body[0].value)
    return None


def _or_name(value: ast.expr | None, name: str) -> str:
    return name if value is None else ast.unparse(value)


def _returns(body: list[ast.stmt]) -> bool:
    return any(isinstance(stmt, ast.Return) for stmt in body)


def _single_return(body: list[ast.stmt]) -> ast.expr | None:
    return body[0].value if len(body) == 1 and isinstance(body[0], ast.Return) else None
