"""Filters: the grammar, its errors, and what passes, against plain Python."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colazip.errors import UsageError
from colazip.where import parse

COLUMNS = {
    "year": pa.array([2019, 2020, None, 2022]),
    "score": pa.array([0.5, -1.0, 2.0, None]),
    "lang": pa.array(["en", "de", "en", None]),
    "two words": pa.array(["a'b", "", "x%y", "x_y"]),
    "open": pa.array([True, False, None, True]),
    "day": pa.array([date(2024, 5, 31), None, date(2023, 1, 1), date(2024, 1, 1)]),
    "at": pa.array([datetime(2024, 5, 31, 12, tzinfo=UTC), None, None, datetime(2020, 1, 1, tzinfo=UTC)]),
    "naive": pa.array([datetime(2024, 5, 31, 12), None, None, datetime(2020, 1, 1)]),
    "clock": pa.array([time(9), time(12, 30), None, time(23)]),
    "price": pa.array([Decimal("1.50"), Decimal("2.00"), None, Decimal("10.00")]),
    "raw": pa.array([b"a", b"b", None, b""]),
    "nothing": pa.nulls(4),
}


def rows(condition: str) -> list[int]:
    return parse(condition).mask(COLUMNS.__getitem__).nonzero()[0].tolist()


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("year >= 2020", [1, 3]),
        ("year >= 2020 and lang = 'de'", [1]),
        ("YEAR = 2020 or year=2022".replace("YEAR", "year"), [1, 3]),
        ("not year >= 2020", [0]),
        ("not not year >= 2020", [1, 3]),
        ("year <> 2020", [0, 3]),
        ("year != 2020 AND lang IS NOT NULL", [0]),
        ("lang is null", [3]),
        ("lang in ('de', 'fr')", [1]),
        ("lang not in ('de')", [0, 2]),
        ("year between 2019 and 2020 and open = true", [0]),
        ("year not between 2019 and 2020", [3]),
        ("score < 0", [1]),
        ("score > -1.5e0 and score <= .5", [0, 1]),
        ("year > 2019.5", [1, 3]),
        ("year < 99999999999999999999999", [0, 1, 3]),
        ("year > -99999999999999999999999", [0, 1, 3]),
        ("\"two words\" = 'a''b'", [0]),
        ("\"two words\" like 'x%'", [2, 3]),
        ("\"two words\" not like 'x_y'", [0, 1]),
        ("open = false", [1]),
        ("day >= '2024-01-01'", [0, 3]),
        ("at < '2024-05-31T12:00:01'", [0, 3]),
        ("at = '2024-05-31T14:00:00+02:00'", [0]),
        ("naive = '2024-05-31T14:00:00+02:00'", [0]),
        ("clock > '12:00'", [1, 3]),
        ("price = 1.5 or price >= 10", [0, 3]),
        ("nothing = 1 or nothing like 'x'", []),
        ("nothing is null", [0, 1, 2, 3]),
        ("(year = 2019 or year = 2020) and (lang = 'en')", [0]),
        ("year = 2019 or year = 2020 and lang = 'fr'", [0]),
        ("lang = 'EN' or lang > 'de'", [0, 2]),
    ],
)
def test_conditions(condition: str, expected: list[int]) -> None:
    assert rows(condition) == expected


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("", "expected a column"),
        ("year", "expected a comparison"),
        ("year >=", "expected a value at character 8, not the end"),
        ("year >= 2020 and", "expected a column"),
        ("year >= 2020 lang = 'en'", "expected AND, OR or the end at character 14"),
        ("lang = en", "single quotes: 'en'"),
        ("lang = 'en", "can't be read from character 7"),
        ("year ? 3", "can't be read"),
        ("(year = 1", "expected )"),
        ("lang in ()", "expected a value"),
        ("lang in ('a' 'b')", "expected )"),
        ("lang not = 'a'", "IN, BETWEEN or LIKE"),
        ("lang is 'a'", "expected NULL"),
        ("lang like 3", "pattern in single quotes"),
        ("year between 1 or 2", "expected AND"),
        ("__import__('os')", "expected a comparison"),
        ("year = 'x'", "'year' holds numbers; 'x' doesn't fit"),
        ("year = true", "true doesn't fit"),
        ("open = 1", "true and false"),
        ("lang = 1", "holds texts"),
        ("year like '2%'", "holds values of type int64"),
        ("raw = 'a'", "can't be compared"),
        ("day = '31.5.2024'", "write one as '2024-05-31'"),
        ("day = 2024", "holds dates or times"),
        ("clock = 'noon'", "12:30:00"),
        ("(" * 60 + "year = 1" + ")" * 60, "nested deeper"),
        ("year = 1 or " * 1000 + "year = 1", "at most 10,000"),
    ],
)
def test_errors(condition: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        rows(condition)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_columns_in_order() -> None:
    assert parse("b = 1 and a = 2 or b > 3").columns == ("b", "a")


def test_many_terms_need_no_recursion() -> None:
    assert rows(" or ".join(["year = 2019"] * 600)) == [0]
    assert rows("not " * 1001 + "year = 2019") == [1, 3]


Truth = bool | None
Term = tuple[str, Callable[[int | None], Truth]]


def _compare(sign: str, value: int) -> Term:
    python = {"=": "__eq__", "<": "__lt__", ">=": "__ge__", "<>": "__ne__"}[sign]
    return f"n {sign} {value}", lambda n: None if n is None else getattr(n, python)(value)


def _and(a: Term, b: Term) -> Term:
    def both(n: int | None) -> Truth:
        found = {a[1](n), b[1](n)}
        return False if False in found else None if None in found else True

    return f"({a[0]} and {b[0]})", both


def _or(a: Term, b: Term) -> Term:
    def either(n: int | None) -> Truth:
        found = {a[1](n), b[1](n)}
        return True if True in found else None if None in found else False

    return f"({a[0]} or {b[0]})", either


def _not(a: Term) -> Term:
    def other(n: int | None) -> Truth:
        value = a[1](n)
        return None if value is None else not value

    return f"not {a[0]}", other


TERMS = st.recursive(
    st.builds(_compare, st.sampled_from(["=", "<", ">=", "<>"]), st.integers(-3, 3))
    | st.just(("n is null", lambda n: n is None)),
    lambda inner: st.builds(_and, inner, inner) | st.builds(_or, inner, inner) | st.builds(_not, inner),
    max_leaves=8,
)


@given(TERMS, st.lists(st.none() | st.integers(-4, 4), max_size=10))
@settings(max_examples=100, deadline=None)
def test_three_valued_logic(term: Term, values: list[int | None]) -> None:
    column = pa.array(values, type=pa.int64())
    mask = parse(term[0]).mask({"n": column}.__getitem__)
    assert mask.tolist() == [term[1](value) is True for value in values]


@given(st.text("ab '\"()<=>!.,-01é%andornotis\n", max_size=30))
@settings(max_examples=100, deadline=None)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse(text)
    except UsageError as error:
        assert str(error)
