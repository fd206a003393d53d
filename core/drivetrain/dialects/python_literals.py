"""Literals of Python as JSON, read by a parser of its own: nothing is evaluated."""

from __future__ import annotations

import json
import re

MAX_DEPTH = 64
_NUMBER = re.compile(r"[+-]?(?:\d[\d_]*)?(?:\.\d*)?(?:[eE][+-]?\d+)?")
_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_WORD = re.compile(r"[A-Za-z]+")
_SPACE = re.compile(r"\s*")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": ""}
_PLAIN = {quote: re.compile(rf"[^{quote}\\]+") for quote in "\"'"}


class _NoLiteral(Exception):
    pass


def python_to_json(text: str) -> str:
    """JSON of a literal: a number, string, word, list, tuple or dictionary. Anything else becomes a string."""
    parser = _Parser(text)
    try:
        parser.value(0)
        parser.spaces()
        if parser.at == len(text):
            return "".join(parser.out)
    except _NoLiteral:
        pass
    return json.dumps(text.strip(), ensure_ascii=False)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.out: list[str] = []

    def spaces(self) -> str:
        """Goes past white space; the letter behind it, or nothing."""
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at
        return self.text[self.at : self.at + 1]

    def value(self, depth: int) -> None:
        """Reads one value."""
        letter = self.spaces()
        if depth > MAX_DEPTH or not letter:
            raise _NoLiteral
        if letter in "\"'":
            self.out.append(json.dumps(self.string(), ensure_ascii=False))
        elif letter in "[(":
            self.at += 1
            self.out.append("[")
            self.items("]" if letter == "[" else ")", depth, pairs=False)
            self.out.append("]")
        elif letter == "{":
            self.at += 1
            self.out.append("{")
            self.items("}", depth, pairs=True)
            self.out.append("}")
        elif word := _WORD.match(self.text, self.at):
            if word.group() not in _WORDS:
                raise _NoLiteral
            self.at = word.end()
            self.out.append(_WORDS[word.group()])
        else:
            self.number()

    def items(self, end: str, depth: int, *, pairs: bool) -> None:
        """Reads what stands in brackets."""
        first = True
        while (letter := self.spaces()) != end:
            if not letter:
                raise _NoLiteral
            if not first:
                if letter != ",":
                    raise _NoLiteral
                self.at += 1
                if self.spaces() == end:
                    break
                self.out.append(", ")
            first = False
            if pairs:
                if self.spaces() not in ('"', "'"):
                    raise _NoLiteral
                self.value(depth + 1)
                if self.spaces() != ":":
                    raise _NoLiteral
                self.at += 1
                self.out.append(": ")
            self.value(depth + 1)
        self.at += 1

    def number(self) -> None:
        """Reads a number as JSON writes it."""
        found = _NUMBER.match(self.text, self.at)
        written = found.group().replace("_", "").lstrip("+") if found else ""
        try:
            value = float(written)
        except ValueError:
            raise _NoLiteral from None
        if value in (float("inf"), float("-inf")):
            raise _NoLiteral
        self.at += len(found.group()) if found else 0
        digits = written.lstrip("-")
        if digits.isdecimal() and digits.isascii():
            self.out.append("-" * written.startswith("-") + (digits.lstrip("0") or "0"))
        else:
            self.out.append(json.dumps(value))

    def string(self) -> str:
        """Reads a string with the escapes that models write."""
        quote = self.text[self.at]
        plain = _PLAIN[quote]
        self.at += 1
        parts: list[str] = []
        while self.at < len(self.text):
            if found := plain.match(self.text, self.at):
                parts.append(found.group())
                self.at = found.end()
                continue
            letter = self.text[self.at]
            self.at += 1
            if letter == quote:
                return "".join(parts)
            parts.append(self.escape())
        raise _NoLiteral

    def escape(self) -> str:
        """Reads what follows a backslash."""
        letter = self.text[self.at : self.at + 1]
        self.at += 1
        digits = {"x": 2, "u": 4, "U": 8}.get(letter)
        if digits is None:
            return _ESCAPES.get(letter, letter)
        written = self.text[self.at : self.at + digits]
        self.at += len(written)
        try:
            code = int(written, 16)
            return chr(code) if not 0xD800 <= code < 0xE000 else "\ufffd"
        except (ValueError, OverflowError):
            return letter + written
