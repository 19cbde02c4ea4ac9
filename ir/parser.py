"""Reads the graph IR's text (ir/text.py prints it). Every type is inferred again and compared with the
written one, so a hand-edited file either means what it says or is refused with line, column and a caret.

Grammar, with comments anywhere (`# file:line` after an op is its location, `// backward` its phase):

    graph  = "graph" NAME block
    block  = "(" [input {"," input}] ")" "{" {op} {"update" VALUE "=" VALUE} "return" [VALUE {"," VALUE}] "}"
    input  = VALUE ":" TYPE
    op     = result {"," result} "=" NAME [VALUE {"," VALUE}] ["{" NAME "=" literal {"," ...} "}"] {block}
    result = VALUE [":" TYPE]
    literal = NUMBER | STRING | "True" | "False" | "None" | DTYPE | "(" [literal {"," literal} [","]] ")"
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from .dtypes import BY_NAME
from .errors import OpError, ParseError
from .graph import PHASES, Graph, Location, Node, Value
from .op import REGISTRY, Op
from .types import Type
from .verifier import infer_node

_TOKEN = re.compile(
    r"""(?P<skip>[ \t\r]+)
      | (?P<newline>\n)
      | (?P<comment>\#[^\n]*|//[^\n]*)
      | (?P<value>%[\w.]+)
      | (?P<type>[a-z]\w*\[[\d, ]*\])
      | (?P<number>-(?:inf|nan)\b|-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)
      | (?P<string>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
      | (?P<name>[A-Za-z_]\w*)
      | (?P<punct>[(){},:=])
      | (?P<bad>.)""",
    re.VERBOSE,
)
_LOCATION = re.compile(r"#\s*(.*\S)\s*:(\d+)\s*$")
_WORDS = {"True": True, "False": False, "None": None, "inf": math.inf, "nan": math.nan, **BY_NAME}


def parse_graph(text: str) -> Graph:
    """The graph that `text` says. Raises ParseError with line, column, the source line and a caret."""
    return _Parser(text).whole()


def near(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no known name is close."""
    import difflib  # takes a while to load, and only an error needs it

    found = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean '{found[0]}'?" if found else ""


class _Token:
    __slots__ = ("kind", "pos", "text")

    def __init__(self, kind: str, text: str, pos: int) -> None:
        self.kind = kind
        self.text = text
        self.pos = pos


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[_Token] = []
        self.i = 0
        #: index of a token -> the phase that a comment just before it starts
        self.phases: dict[int, str] = {}
        #: line number -> location in its comment
        self.locs: dict[int, Location] = {}
        self.starts = [0]
        self._tokenize()

    # --- tokens ---------------------------------------------------------------------------------------------

    def _tokenize(self) -> None:
        for m in _TOKEN.finditer(self.text):
            kind = m.lastgroup
            if kind == "skip":
                continue
            if kind == "newline":
                self.starts.append(m.end())
            elif kind == "comment":
                self._comment(m.group())
            elif kind == "bad":
                at = _Token("bad", m.group(), m.start())
                self.fail(at, f"unexpected character {m.group()!r}")
            else:
                self.tokens.append(_Token(str(kind), m.group(), m.start()))
        self.tokens.append(_Token("end", "", len(self.text.rstrip())))

    def _comment(self, text: str) -> None:
        if text.startswith("#"):
            m = _LOCATION.match(text)
            if m:
                self.locs[len(self.starts)] = Location(m.group(1), int(m.group(2)))
        elif text[2:].strip() in PHASES:
            self.phases[len(self.tokens)] = text[2:].strip()

    def line_of(self, token: _Token) -> int:
        lo, hi = 0, len(self.starts)
        while hi - lo > 1:
            mid = (lo + hi) // 2
            lo, hi = (mid, hi) if self.starts[mid] <= token.pos else (lo, mid)
        return lo + 1

    def fail(self, token: _Token, message: str) -> NoReturn:
        line = self.line_of(token)
        start = self.starts[line - 1]
        source = self.text[start:].split("\n", 1)[0].rstrip()
        caret = re.sub(r"[^\t]", " ", source[: token.pos - start]) + "^" * max(1, len(token.text))
        raise ParseError(
            f"line {line}, column {token.pos - start + 1}: {message}\n  {source}\n  {caret}"
        ) from None

    @property
    def token(self) -> _Token:
        return self.tokens[self.i]

    def at(self, text: str) -> bool:
        t = self.tokens[self.i]
        return t.text == text and t.kind in ("punct", "name")

    def accept(self, text: str) -> bool:
        if self.at(text):
            self.i += 1
            return True
        return False

    def expect(self, text: str, why: str = "") -> None:
        if not self.accept(text):
            self.fail(self.token, f"expected '{text}'{why}, found {self.found()}")

    def take(self, kind: str, what: str) -> _Token:
        t = self.token
        if t.kind != kind:
            self.fail(t, f"expected {what}, found {self.found()}")
        self.i += 1
        return t

    def found(self) -> str:
        return f"'{self.token.text}'" if self.token.kind != "end" else "the end of the text"

    # --- grammar --------------------------------------------------------------------------------------------

    def whole(self) -> Graph:
        self.expect("graph", " (a graph reads `graph name(%x: f32[2]) { ... return %x }`)")
        name = self.take("name", "the graph's name").text
        g = self.block(name, {})
        if self.token.kind != "end":
            self.fail(self.token, f"expected the end of the text after the graph, found {self.found()}")
        return g

    def block(self, name: str, outer: dict[str, Any]) -> Graph:
        g = Graph(name)
        env: dict[str, Value] = {}
        self.expect("(", " before the inputs")
        while not self.accept(")"):
            v = self.take("value", "an input `%name: type` or ')'")
            self.expect(":", " and the input's type")
            self.define(env, v, g.add_input(self.type(), _own_name(v)))
            if not self.at(")"):
                self.expect(",", " or ')' after an input")
        self.expect("{", " before the ops")
        phase = "forward"
        while True:
            phase = self.phases.get(self.i, phase)
            t = self.token
            if t.kind == "value":
                self.op(g, env, outer, phase)
            elif self.accept("update"):
                self.update(g, env, outer)
            elif self.accept("return"):
                while self.token.kind == "value":
                    g.outputs.append(self.use(env, outer))
                    if not self.accept(","):
                        break
                self.expect("}", " after the values returned")
                return g
            elif self.at("}"):
                self.fail(t, "expected `return` with the outputs (none is fine) before '}'")
            else:
                self.fail(
                    t, f"expected an op `%x: type = op ...`, `update` or `return`, found {self.found()}"
                )

    def type(self) -> Type:
        t = self.take("type", "a type such as f32[4,2]")
        name, _, dims = t.text[:-1].partition("[")
        if name not in BY_NAME:
            self.fail(t, f"no dtype '{name}'{near(name, BY_NAME)} (there are {', '.join(BY_NAME)})")
        sizes = [d.strip() for d in dims.split(",")] if dims.strip() else []
        if not all(d.isdigit() for d in sizes):
            self.fail(t, f"a shape is sizes with commas between them, as in {name}[4,2]")
        return Type(BY_NAME[name], map(int, sizes))

    def define(self, env: dict[str, Value], t: _Token, v: Value) -> None:
        if t.text in env:
            self.fail(t, f"{t.text} is defined already; every value is defined once")
        env[t.text] = v

    def use(self, env: dict[str, Value], outer: dict[str, Any]) -> Value:
        t = self.take("value", "a value such as %x")
        v = env.get(t.text)
        if v is None:
            if t.text in outer:
                self.fail(t, f"{t.text} belongs to the graph around this region; pass it in as an operand")
            self.fail(t, f"value {t.text} is not defined before its use{near(t.text, env)}")
        return v

    def update(self, g: Graph, env: dict[str, Value], outer: dict[str, Any]) -> None:
        t = self.token
        state = self.use(env, outer)
        if state.node is not None or state not in g.inputs:
            self.fail(t, f"only inputs are updated, and {t.text} is the result of an op")
        if state in g.updates:
            self.fail(t, f"{t.text} is updated twice")
        self.expect("=", " in an update")
        t = self.token
        new = self.use(env, outer)
        if new.type != state.type:
            self.fail(t, f"an update keeps the type: the input is {state.type}, {t.text} is {new.type}")
        g.updates[state] = new

    def op(self, g: Graph, env: dict[str, Value], outer: dict[str, Any], phase: str) -> None:
        loc = self.locs.get(self.line_of(self.token))
        results: list[tuple[_Token, _Token | None, Type | None]] = []
        while True:
            v = self.take("value", "a result such as %x")
            if self.accept(":"):
                at = self.token
                results.append((v, at, self.type()))
            else:
                results.append((v, None, None))
            if not self.accept(","):
                break
        self.expect("=", " and an op")
        name = self.take("name", "the name of an op")
        op = REGISTRY.get(name.text)
        if op is None:
            self.fail(name, f"no op named '{name.text}'{near(name.text, REGISTRY)}")
        operands: list[Value] = []
        # A value here that `:` or `=` follows is the next op's result.
        while self.token.kind == "value" and (operands or self.tokens[self.i + 1].text not in (":", "=")):
            operands.append(self.use(env, outer))
            if not self.accept(","):
                break
            if self.token.kind != "value":
                self.fail(self.token, f"expected another operand after ',', found {self.found()}")
        attrs = self.attrs(op) if self.at("{") else {}
        regions = []
        while self.at("("):
            regions.append(self.block(f"{op.name}_{len(regions)}", {**outer, **env}))
        node = Node(op, tuple(operands), attrs, loc, phase, tuple(regions))
        types = self.infer(name, node)
        if len(types) != len(results):
            s = "s" if len(types) != 1 else ""
            self.fail(name, f"{op.name} gives {len(types)} result{s}, the text names {len(results)}")
        for k, ((v, at, written), t) in enumerate(zip(results, types)):
            if written is not None and written != t:
                assert at is not None
                self.fail(at, f"{op.name} gives {t}, the text says {written}")
            self.define(env, v, Value(t, node, k, _own_name(v)))
        node.results = tuple(env[v.text] for v, _, _ in results)
        g.nodes.append(node)

    def infer(self, at: _Token, node: Node) -> tuple[Type, ...]:
        called = f"{node.op.name}({', '.join(str(v.type) for v in node.operands)})"
        try:
            return infer_node(node)
        except OpError as e:
            self.fail(at, f"{called}: {e}")
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as e:
            known = [n for n in node.op.attr_defaults if n != "regions"]
            self.fail(at, f"{called} with attributes {node.attrs}: {e} (the op takes attributes {known})")

    def attrs(self, op: Op) -> dict[str, Any]:
        out: dict[str, Any] = {}
        self.expect("{")
        while not self.accept("}"):
            t = self.take("name", "an attribute `name=value` or '}'")
            if t.text in out:
                self.fail(t, f"attribute '{t.text}' is given twice")
            if op.attr_defaults and t.text not in op.attr_defaults:
                hint = f"{near(t.text, op.attr_defaults)} (it takes {', '.join(op.attr_defaults)})"
                self.fail(t, f"{op.name} has no attribute '{t.text}'{hint}")
            self.expect("=", " and the attribute's value")
            out[t.text] = self.literal()
            if not self.at("}"):
                self.expect(",", " or '}' after an attribute")
        return out

    def literal(self) -> Any:
        t = self.token
        if self.accept("("):
            items = []
            while not self.accept(")"):
                items.append(self.literal())
                if not self.accept(",") and not self.at(")"):
                    self.fail(self.token, f"expected ',' or ')' in a tuple, found {self.found()}")
            return tuple(items)
        self.i += 1
        if t.kind == "number":
            return int(t.text) if re.fullmatch(r"-?\d+", t.text) else float(t.text)
        if t.kind == "string":
            return ast.literal_eval(t.text)
        if t.kind == "name":
            if t.text in _WORDS:
                return _WORDS[t.text]
            hint = near(t.text, _WORDS) or f"; write text as '{t.text}'"
            self.fail(t, f"'{t.text}' is no value{hint}")
        self.i -= 1
        self.fail(t, f"expected a number, text, True, False, None, a dtype or a tuple, found {self.found()}")


def _own_name(t: _Token) -> str | None:
    name = t.text[1:]
    return None if name.isdigit() else name
