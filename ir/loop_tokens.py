"""The tokens of the loop IR's text, and errors that show where they are. Base of the parser in
loop_parser.py."""

from __future__ import annotations

import re

from .errors import ParseError

_TOKEN = re.compile(
    r"(?P<space>[ \t\r]+|#.*)|(?P<newline>\n)|(?P<string>\"(?:[^\"\\]|\\.)*\")"
    r"|(?P<number>(?:\d+\.\d*(?:e[-+]?\d+)?|\d+e[-+]?\d+|\d+)(?![\w.]))"
    r"|(?P<name>[A-Za-z_]\w*)|(?P<op><<|>>|<=|>=|==|!=|//|[-+*/%<>&|^~()\[\]{}:,?@=.])"
)


class Tokens:
    """A text taken apart, token by token.

    Attributes:
        kind, token: of the next one; `start`: where it is.
        end: where the one before ended.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.kind = ""
        self.token = ""
        self.start = 0
        self.end = 0
        self.advance()

    def advance(self) -> None:
        self.end = self.at  # of the token before
        while True:
            if self.at >= len(self.text):
                self.kind, self.token, self.start = "end", "", len(self.text)
                return
            m = _TOKEN.match(self.text, self.at)
            if m is None:
                self.start = self.at
                raise self.error(f"unexpected character {self.text[self.at]!r}")
            self.start, self.at = self.at, m.end()
            if m.lastgroup not in ("space", "newline"):
                self.kind, self.token = m.lastgroup or "", m.group()
                return

    def error(self, message: str) -> ParseError:
        line = self.text.count("\n", 0, self.start) + 1
        begin = self.text.rfind("\n", 0, self.start) + 1
        end = self.text.find("\n", self.start)
        source = self.text[begin : end if end >= 0 else len(self.text)]
        column = self.start - begin
        return ParseError(f"line {line}, column {column + 1}: {message}\n{source}\n{' ' * column}^")

    def expect(self, token: str) -> None:
        if self.token != token:
            raise self.error(f"expected {token!r}, found {self.token or 'the end'!r}")
        self.advance()

    def accept(self, token: str) -> bool:
        if self.kind != "string" and self.token == token:
            self.advance()
            return True
        return False

    def name(self) -> str:
        if self.kind != "name":
            raise self.error(f"expected a name, found {self.token or 'the end'!r}")
        token = self.token
        self.advance()
        return token

    def integer(self) -> int:
        sign = -1 if self.accept("-") else 1
        if self.kind != "number" or not self.token.isdigit():
            raise self.error(f"expected an integer, found {self.token or 'the end'!r}")
        value = sign * int(self.token)
        self.advance()
        return value

    def string(self) -> str:
        if self.kind != "string":
            raise self.error(f"expected a quoted string, found {self.token or 'the end'!r}")
        value = re.sub(r"\\(.)", r"\1", self.token[1:-1])
        self.advance()
        return value

    def same_line(self) -> bool:
        """Whether the next token stands on the line of the last one."""
        return "\n" not in self.text[self.end : self.start]
