"""Filters on metadata: `year >= 2020 and lang = 'en'` -> which rows pass, by Arrow's compute functions.

    condition := condition OR condition | condition AND condition | NOT condition | ( condition )
               | column = value            also != <> < <= > >=
               | column [NOT] IN ( value, ... )
               | column [NOT] BETWEEN value AND value
               | column [NOT] LIKE 'pattern'      % any text, _ one character
               | column IS [NOT] NULL
    value     := number | 'text' | true | false    a quote in a text is doubled: 'don''t'
    column    := name | "any name"                 id is the record's id unless metadata has that key

SQL's rules: a row without a value passes no comparison, negated or not. Dates and times are texts in ISO
form. Nothing is evaluated but this grammar. It knows no Python, and its size is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from functools import reduce
from typing import TYPE_CHECKING, Any, NoReturn

from colazip.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_MAX_CHARS = 10_000
_MAX_DEPTH = 50

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
    | (?P<text>'(?:[^']|'')*')
    | (?P<quoted>"(?:[^"]|"")+")
    | (?P<name>[^\W\d][\w.\-]*)
    | (?P<sign><=|>=|<>|!=|==|=|<|>|\(|\)|,)
    )""",
    re.VERBOSE,
)
_KEYWORDS = {"and", "or", "not", "in", "between", "like", "is", "null", "true", "false"}
_COMPARISONS = {
    "=": "equal",
    "==": "equal",
    "!=": "not_equal",
    "<>": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
}

Value = bool | int | float | str
Columns = Callable[[str], "pa.Array"]  # name -> the column's values in the rows at hand


@dataclass(frozen=True)
class Where:
    """A parsed condition. columns: the names it uses, in order of appearance."""

    text: str
    columns: tuple[str, ...]
    _condition: Callable[[Columns], pa.Array]

    def mask(self, columns: Columns) -> np.ndarray:
        """bool [rows]: which rows pass. Raises UsageError where a value doesn't fit its column's type."""
        passed = self._condition(columns).fill_null(False)
        return passed.to_numpy(zero_copy_only=False)


def parse(text: str) -> Where:
    """Raises UsageError, with the place, for what is no condition."""
    if len(text) > _MAX_CHARS:
        raise UsageError(f"the filter has {len(text):,} characters; at most {_MAX_CHARS:,} are read")
    parser = _Parser(text)
    condition = parser.alternatives(0)
    if parser.kind != "end":
        parser.fail("AND, OR or the end")
    return Where(text, tuple(dict.fromkeys(parser.columns)), condition)


_Condition = Callable[[Columns], "pa.Array"]


class _Parser:
    """Recursive descent, one token ahead: `kind` and `token` are the next one."""

    def __init__(self, text: str) -> None:
        self.columns: list[str] = []
        self._text = text
        self._tokens = self._scan()
        self.advance()

    def _scan(self) -> Iterator[tuple[str, str, int]]:
        at, end = 0, len(self._text.rstrip())
        while at < end:
            match = _TOKEN.match(self._text, at)
            if match is None or match.lastgroup is None:
                raise UsageError(
                    f"filter {self._text!r}: can't be read from character {at + 1}: "
                    f"{self._text[at : at + 20]!r}"
                )
            kind, token = match.lastgroup, match[match.lastgroup]
            if kind == "name" and token.lower() in _KEYWORDS:
                kind, token = "word", token.lower()
            yield kind, token, match.start(match.lastgroup)
            at = match.end()
        yield "end", "", end

    def advance(self) -> str:
        """Step to the next token; returns the one left behind."""
        left = getattr(self, "token", "")
        self.kind, self.token, self._at = next(self._tokens)
        return left

    def fail(self, expected: str) -> NoReturn:
        found = repr(self.token) if self.kind != "end" else "the end"
        raise UsageError(
            f"filter {self._text!r}: expected {expected} at character {self._at + 1}, not {found}"
        )

    def take(self, *tokens: str) -> bool:
        """Step over the next token if it is one of these words or signs."""
        if self.kind in ("word", "sign") and self.token in tokens:
            self.advance()
            return True
        return False

    def need(self, token: str) -> None:
        if not self.take(token):
            self.fail(token.upper())

    def alternatives(self, depth: int) -> _Condition:
        if depth > _MAX_DEPTH:
            raise UsageError(f"filter {self._text[:40]!r}...: nested deeper than {_MAX_DEPTH} levels")
        parts = [self.conjunction(depth)]
        while self.take("or"):
            parts.append(self.conjunction(depth))
        return _joined("or_kleene", parts)

    def conjunction(self, depth: int) -> _Condition:
        parts = [self.negation(depth)]
        while self.take("and"):
            parts.append(self.negation(depth))
        return _joined("and_kleene", parts)

    def negation(self, depth: int) -> _Condition:
        negated = False
        while self.take("not"):
            negated = not negated
        if self.take("("):
            inner = self.alternatives(depth + 1)
            self.need(")")
        else:
            inner = self.predicate()
        return _negated(inner) if negated else inner

    def predicate(self) -> _Condition:
        column = self.column()
        if self.take("is"):
            negated = self.take("not")
            self.need("null")
            return _is_null(column, negated)
        negated = self.take("not")
        if self.take("in"):
            found = self._in(column)
        elif self.take("between"):
            low = self.value()
            self.need("and")
            bounds = [
                _comparison(column, "greater_equal", low),
                _comparison(column, "less_equal", self.value()),
            ]
            found = _joined("and_kleene", bounds)
        elif self.take("like"):
            if self.kind != "text":
                self.fail("a pattern in single quotes")
            found = _like(column, str(self.value()))
        elif negated:
            self.fail("IN, BETWEEN or LIKE")
        elif self.kind == "sign" and self.token in _COMPARISONS:
            return _comparison(column, _COMPARISONS[self.advance()], self.value())
        else:
            self.fail("a comparison")
        return _negated(found) if negated else found

    def _in(self, column: str) -> _Condition:
        self.need("(")
        values = [self.value()]
        while self.take(","):
            values.append(self.value())
        self.need(")")
        return _joined("or_kleene", [_comparison(column, "equal", value) for value in values])

    def column(self) -> str:
        if self.kind == "name":
            name = self.advance()
        elif self.kind == "quoted":
            name = self.advance()[1:-1].replace('""', '"')
        else:
            self.fail("a column")
        self.columns.append(name)
        return name

    def value(self) -> Value:
        if self.kind == "number":
            token = self.advance()
            return int(token) if token.lstrip("-").isdecimal() and len(token) <= 40 else float(token)
        if self.kind == "text":
            return self.advance()[1:-1].replace("''", "'")
        if self.kind == "word" and self.token in ("true", "false"):
            return self.advance() == "true"
        if self.kind in ("name", "quoted"):
            self.fail(f"a value (write a text in single quotes: '{self.token.strip(chr(34))}')")
        self.fail("a value")


def _joined(function: str, parts: list[_Condition]) -> _Condition:
    def condition(columns: Columns) -> pa.Array:
        import pyarrow.compute as pc

        return reduce(getattr(pc, function), (part(columns) for part in parts))

    return condition if len(parts) > 1 else parts[0]


def _negated(part: _Condition) -> _Condition:
    def condition(columns: Columns) -> pa.Array:
        import pyarrow.compute as pc

        return pc.invert(part(columns))

    return condition


def _is_null(column: str, negated: bool) -> _Condition:
    def condition(columns: Columns) -> pa.Array:
        values = columns(column)
        return values.is_valid() if negated else values.is_null()

    return condition


def _comparison(column: str, function: str, value: Value) -> _Condition:
    def condition(columns: Columns) -> pa.Array:
        import pyarrow as pa
        import pyarrow.compute as pc

        values = columns(column)
        if pa.types.is_null(values.type):
            return pa.nulls(len(values), pa.bool_())
        other = _fitting(column, values.type, value)
        if isinstance(other, int) and not isinstance(other, bool) and abs(other) >= 1 << 63:
            # Beyond Arrow's integers: larger or smaller than any value, which floats say as well.
            values, other = values.cast(pa.float64()), float(other)
        elif pa.types.is_decimal(values.type):
            values, other = values.cast(pa.float64()), float(other)
        return getattr(pc, function)(values, other)

    return condition


def _like(column: str, pattern: str) -> _Condition:
    def condition(columns: Columns) -> pa.Array:
        import pyarrow as pa
        import pyarrow.compute as pc

        values = columns(column)
        if pa.types.is_null(values.type):
            return pa.nulls(len(values), pa.bool_())
        _fitting(column, values.type, pattern, only_text=True)
        return pc.match_like(values, pattern)

    return condition


def _fitting(column: str, kind: pa.DataType, value: Value, only_text: bool = False) -> Any:
    """`value` as what a column of this type is compared with. Raises UsageError where it doesn't fit."""
    import pyarrow as pa

    types = pa.types
    if types.is_string(kind):
        name, fits = "texts", isinstance(value, str)
    elif only_text:
        name, fits = f"values of type {kind}", False
    elif types.is_boolean(kind):
        name, fits = "true and false", isinstance(value, bool)
    elif types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        name, fits = "numbers", isinstance(value, int | float) and not isinstance(value, bool)
    elif types.is_date(kind) or types.is_timestamp(kind) or types.is_time(kind):
        return _moment(column, kind, value)
    else:
        name, fits = f"values of type {kind}, which can't be compared", False
    if not fits:
        raise UsageError(f"filter: column {column!r} holds {name}; {_shown(value)} doesn't fit")
    return value


def _moment(column: str, kind: pa.DataType, value: Value) -> pa.Scalar:
    """A date or time in ISO form as a scalar of the column's type; without a zone it is in UTC."""
    import pyarrow as pa

    try:
        if not isinstance(value, str):
            raise ValueError("not a text")
        if pa.types.is_date(kind):
            return pa.scalar(date.fromisoformat(value), kind)
        if pa.types.is_time(kind):
            return pa.scalar(time.fromisoformat(value), kind)
        moment = datetime.fromisoformat(value)
        if kind.tz is None and moment.tzinfo is not None:
            moment = moment.astimezone(UTC).replace(tzinfo=None)
        elif kind.tz is not None and moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return pa.scalar(moment, kind)
    except (ValueError, OverflowError, pa.ArrowException):
        example = "12:30:00" if pa.types.is_time(kind) else "2024-05-31"
        raise UsageError(
            f"filter: column {column!r} holds dates or times; write one as '{example}', not {_shown(value)}"
        ) from None


def _shown(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
