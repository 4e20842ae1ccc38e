"""Tickets that no honest client sends: each is refused with an error of Flight, in one line, and the server
serves on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colazip.archive import Archive, Record
from colazip.errors import UsageError
from colazip.transport.requests import parse, spell
from colazip.transport.server import ArchiveServer
from tests.plain_codec import PlainCodec

CODEC = PlainCodec()
COUNT = 20


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fl.FlightClient]:
    path = tmp_path_factory.mktemp("hostile") / "a.cola"
    records = [Record(f"the cat {i}".encode(), f"id-{i}", {"n": i, "s": "x" * i}) for i in range(COUNT)]
    Archive.pack(path, records, codec=CODEC)
    with ArchiveServer({"a": path}, codec=CODEC) as server, fl.connect(server.location) as client:
        yield client


def answer(client: fl.FlightClient, ticket: bytes) -> pa.Table | None:
    """What a ticket gives; None if it is refused as it should be, whatever way it comes."""
    descriptor = fl.FlightDescriptor.for_command(ticket)
    refusals = [_refused(lambda: client.get_flight_info(descriptor))]
    table: list[pa.Table] = []
    refusals.append(_refused(lambda: table.append(client.do_get(fl.Ticket(ticket)).read_all())))
    assert refusals[1] or not refusals[0]  # what has a flight may yet fail, as for a filter; not the reverse
    return table[0] if table else None


def _refused(call: Any) -> bool:
    try:
        call()
    except fl.FlightServerError as error:  # never FlightInternalError: that is a bug or damage
        message = str(error).split(". gRPC client debug context")[0]
        assert message.endswith(". Detail: Failed") and "\n" not in message and len(message) < 500
        assert error.extra_info.endswith(b"Error")
        return True
    return False


def serves_on(client: fl.FlightClient) -> bool:
    return len(client.do_get(fl.Ticket(b'{"archive": "a"}')).read_all()) == COUNT


@pytest.mark.parametrize(
    "ticket",
    [
        b"",
        b"null",
        b"[]",
        b'"a"',
        b"{}",
        b"\xff\xfe",
        b'{"archive": "a"',
        b'{"archive": null}',
        b'{"archive": 1}',
        b'{"archive": "b"}',
        b'{"archive": "../a.cola"}',
        b'{"archive": "\\ud800"}',
        b'{"archive": "a", "archive": "a"}',
        b'{"archive": "a", "kind": null}',
        b'{"archive": "a", "kind": "drop"}',
        b'{"archive": "a", "kind": ["records"]}',
        b'{"archive": "a", "query": "x"}',
        b'{"archive": "a", "__class__": "x"}',
        b'{"archive": "a", "start": null}',
        b'{"archive": "a", "start": 1.0}',
        b'{"archive": "a", "start": true}',
        b'{"archive": "a", "start": 4611686018427387905}',
        b'{"archive": "a", "stop": NaN}',
        b'{"archive": "a", "stop": ' + b"9" * 5000 + b"}",
        b'{"archive": "a", "columns": []}',
        b'{"archive": "a", "columns": "n"}',
        b'{"archive": "a", "columns": ["n", 1]}',
        b'{"archive": "a", "columns": ["n", "n"]}',
        b'{"archive": "a", "columns": [["n"]]}',
        b'{"archive": "a", "columns": ["' + b"x" * 60_000 + b'"]}',
        b'{"archive": "a", "where": "n ="}',
        b'{"archive": "a", "where": "' + b"(" * 9000 + b'"}',
        b'{"archive": "a", "where": "' + b"x" * 60_000 + b'"}',
        b'{"archive": "a", "where": "s > 1"}',
        b'{"archive": "a", "layer": "search"}',
        b'{"archive": "a", "layer": ["exact"]}',
        b'{"archive": "a", "binary": 1}',
        b'{"archive": "a", "kind": "search"}',
        b'{"archive": "a", "kind": "search", "query": "x", "like": "id-1"}',
        b'{"archive": "a", "kind": "search", "like": "id-1", "mode": "lexical"}',
        b'{"archive": "a", "kind": "search", "like": "id-1", "group": false}',
        b'{"archive": "a", "kind": "search", "query": "x", "k": 0}',
        b'{"archive": "a", "kind": "search", "query": "x", "k": 1001}',
        b'{"archive": "a", "kind": "search", "query": "x", "mode": "lexical"}',
        b'{"archive": "a", "kind": "search", "query": "x", "mode": "x\\u0000"}',
        b'{"archive": "a", "kind": "bytes"}',
        b'{"archive": "a", "kind": "bytes", "offset": 0}',
        b'{"archive": "a", "kind": "bytes", "offset": -1, "length": 1}',
        b'{"archive": "a", "kind": "bytes", "offset": 0, "length": 0}',
        b'{"archive": "a", "kind": "bytes", "offset": 0, "length": 16777217}',
        b'{"archive": "a", "kind": "bytes", "offset": 4611686018427387904, "length": 16777216}',
        b'{"archive": "a", "kind": "bytes", "offset": 0, "length": 4, "fingerprint": "00"}',
        b"[" * 60_000,
        b'{"a":' * 12_000,
        b'{"archive": "a"}' + b" " * (1 << 16),
        b'{"archive": "' + b"\xc3\xa4" * 30_000 + b'"}',
    ],
)
def test_refused(client: fl.FlightClient, ticket: bytes) -> None:
    assert answer(client, ticket) is None
    assert serves_on(client)


@pytest.mark.parametrize(
    ("ticket", "rows"),
    [
        (b'{"archive": "a", "start": -4611686018427387904, "stop": 4611686018427387904}', COUNT),
        (b'{"archive": "a", "start": 4611686018427387904}', 0),
        (b'{"archive": "a", "columns": null, "stop": null, "where": null}', COUNT),
        (b' {"archive": "a", "stop": -15}\n', 5),
        (b'{"archive": "a", "kind": "search", "query": ""}', 0),
        (b'{"archive": "a", "kind": "search", "query": "\\u0000 cat", "k": 100}', COUNT),
        (b'{"archive": "a", "kind": "search", "query": "' + b"cat " * 15_000 + b'", "k": 3}', 3),
    ],
)
def test_odd_and_allowed(client: fl.FlightClient, ticket: bytes, rows: int) -> None:
    table = answer(client, ticket)
    assert table is not None and len(table) == rows


NAMES = ["archive", "kind", "columns", "start", "stop", "where", "layer", "binary", "query", "like", "k"]
NAMES += ["mode", "group", "snippets", "offset", "length", "fingerprint"]
WORDS = [
    "a",
    "records",
    "search",
    "bytes",
    "exact",
    "gist",
    "semantic",
    "id-3",
    "n",
    "text",
    "n > 3",
    "s like 'x%'",
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 30),
    st.integers(),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=8),
)
VALUES = st.one_of(
    SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.text(max_size=3), SCALARS, max_size=2)
)
# Of fields with values that fit most often, so that many requests get past the first checks.
LIKELY = st.fixed_dictionaries(
    {"archive": st.just("a")},
    optional={
        "kind": st.sampled_from(["records", "search", "bytes"]),
        "columns": st.lists(st.sampled_from(["id", "text", "n", "s", "m"]), max_size=3),
        "start": st.integers(-40, 40),
        "stop": st.integers(-40, 40),
        "where": st.sampled_from(["n > 3", "s like 'x%'", "id = 'id-2'", "n", "m = 1", "n = 'x'", ""]),
        "layer": st.sampled_from(["exact", "gist", "plain"]),
        "binary": st.booleans(),
        "query": st.text(max_size=10),
        "like": st.sampled_from(["id-3", "id-99", ""]),
        "k": st.integers(0, 30),
        "mode": st.sampled_from(["semantic", "lexical", "hybrid", "x"]),
        "group": st.booleans(),
        "snippets": st.booleans(),
        "offset": st.integers(0, 2000),
        "length": st.integers(0, 2000),
    },
)
OBJECTS = st.one_of(
    LIKELY,
    st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=5)), VALUES, max_size=6),
    st.tuples(LIKELY, st.sampled_from(NAMES), VALUES).map(lambda three: three[0] | {three[1]: three[2]}),
)


@given(st.one_of(OBJECTS.map(lambda value: json.dumps(value).encode()), st.binary(max_size=60)))
@settings(max_examples=250, deadline=None)
def test_anything(client: fl.FlightClient, ticket: bytes) -> None:
    table = answer(client, ticket)
    try:
        request = parse(ticket)
    except UsageError:
        assert table is None
    else:
        assert parse(spell(request)) == request
        assert table is None or len(table) <= COUNT


@given(st.binary(max_size=40))
@settings(max_examples=40, deadline=None)
def test_actions_of_anything(client: fl.FlightClient, body: bytes) -> None:
    call = lambda: list(client.do_action(fl.Action("describe", body)))  # noqa: E731
    assert _refused(call) != (body in (b"", b"a"))


def test_serves_on(client: fl.FlightClient) -> None:
    assert serves_on(client)
