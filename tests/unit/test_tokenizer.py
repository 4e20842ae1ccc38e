"""Tokenizer: any bytes come back; a damaged file is one clear error."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colazip.errors import ModelError
from colazip.tokenizer import PAD, Tokenizer
from tests.tiny_model import passages

AWKWARD = [
    b"",
    b"\0",
    b"<pad>",
    b"a<pad>b <pad><pad>",
    bytes(range(256)),
    b"\xff\xfe tail",
    b"half a character \xe2\x82",
    b"\xe2\x82 and on",
    "\ud800".encode("utf-8", "surrogatepass"),
    b"\xc0\x80 overlong",
    "é e\u0301 ﬁ Å".encode(),  # would change under any Unicode normalization
    "日本語 😀 \u200b\u00a0".encode(),
    b"CRLF\r\n\r\n  spaces  \t\n",
    b"1234567890",
]


@settings(max_examples=150, deadline=None)
@given(
    records=st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.text(max_size=60).map(str.encode),
            st.lists(st.sampled_from(AWKWARD), max_size=4).map(b"".join),
        ),
        max_size=5,
    )
)
def test_any_bytes_come_back(tiny_tokenizer: Tokenizer, records: list[bytes]) -> None:
    coded = tiny_tokenizer.encode(records)
    assert [tiny_tokenizer.decode(tokens) for tokens in coded] == records
    for tokens, data in zip(coded, records, strict=True):
        assert tokens.dtype == np.int64
        assert not (tokens == PAD).any()
        assert tiny_tokenizer.lengths[tokens].sum() == len(data)


@pytest.mark.parametrize("data", AWKWARD)
def test_awkward_records_come_back(tiny_tokenizer: Tokenizer, data: bytes) -> None:
    (tokens,) = tiny_tokenizer.encode([data])
    assert tiny_tokenizer.decode(tokens) == data


def test_a_record_does_not_depend_on_its_neighbours(tiny_tokenizer: Tokenizer) -> None:
    records = [*AWKWARD, *(p.encode() for p in passages()[:5])]
    together = tiny_tokenizer.encode(records)
    for tokens, data in zip(together, records, strict=True):
        assert tokens.tolist() == tiny_tokenizer.encode([data])[0].tolist()


def test_text_takes_fewer_tokens_than_bytes(tiny_tokenizer: Tokenizer) -> None:
    data = " ".join(passages()[:10]).encode()
    assert len(tiny_tokenizer.encode([data])[0]) < 0.6 * len(data)


def test_digits_stand_alone(tiny_tokenizer: Tokenizer) -> None:
    assert len(tiny_tokenizer.encode([b"20261231"])[0]) == 8


def test_padding_gives_no_bytes(tiny_tokenizer: Tokenizer) -> None:
    tokens = [PAD, *tiny_tokenizer.encode([b"abc"])[0].tolist(), PAD]
    assert tiny_tokenizer.decode(tokens) == b"abc"
    assert tiny_tokenizer.lengths[PAD] == 0
    assert tiny_tokenizer.lengths[1:].min() == 1


def test_the_same_text_trains_the_same_tokenizer(tiny_tokenizer: Tokenizer) -> None:
    assert Tokenizer.train(passages(), 512).to_json() == tiny_tokenizer.to_json()
    assert tiny_tokenizer.size == 512


def test_json_round_trip(tiny_tokenizer: Tokenizer) -> None:
    again = Tokenizer(tiny_tokenizer.to_json())
    assert again.table == tiny_tokenizer.table
    data = passages()[0].encode()
    assert again.encode([data])[0].tolist() == tiny_tokenizer.encode([data])[0].tolist()


def _vocabulary(body: dict[str, Any]) -> dict[str, Any]:
    return body["model"]["vocab"]


def _last(body: dict[str, Any]) -> str:
    return max(_vocabulary(body), key=_vocabulary(body).__getitem__)


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "no model": lambda b: b.pop("model"),
    "model is a list": lambda b: b.update(model=[]),
    "vocabulary is a list": lambda b: b["model"].update(vocab=["a", "b"]),
    "vocabulary is empty": lambda b: b["model"].update(vocab={}),
    "a hole": lambda b: _vocabulary(b).update({_last(b): 0}),
    "a number too large": lambda b: _vocabulary(b).update({_last(b): 10**9}),
    "a negative number": lambda b: _vocabulary(b).update({_last(b): -1}),
    "a number is text": lambda b: _vocabulary(b).update({_last(b): "511"}),
    "a number is a fraction": lambda b: _vocabulary(b).update({_last(b): 511.0}),
    "a number is a truth": lambda b: _vocabulary(b).update(
        {next(k for k, v in _vocabulary(b).items() if v == 1): True}
    ),
    "a token of no bytes": lambda b: _vocabulary(b).update({"": _vocabulary(b).pop(_last(b))}),
    "a token outside of the alphabet": lambda b: _vocabulary(b).update({"日": _vocabulary(b).pop(_last(b))}),
    "a byte without a token": lambda b: _vocabulary(b).update({"ab" * 9: _vocabulary(b).pop("z")}),
    "merges of unknown tokens": lambda b: b["model"].update(merges=[["qqq", "zzz"]]),
    "no merges": lambda b: b["model"].pop("merges"),
    "another kind of model": lambda b: b["model"].update(type="WordLevel", unk_token="z"),
    "a normalizer": lambda b: b.update(normalizer={"type": "Lowercase"}),
    "added tokens": lambda b: b.update(
        added_tokens=[
            {
                "id": 0,
                "content": "<pad>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ]
    ),
    "truncation": lambda b: b.update(
        truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    ),
    "a pre-tokenizer that drops spaces": lambda b: b.update(pre_tokenizer={"type": "Whitespace"}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_a_model_error(tiny_tokenizer: Tokenizer, damage: str) -> None:
    body = json.loads(tiny_tokenizer.to_json())
    DAMAGE[damage](body)
    # At the latest when it is first used, and never as other tokens.
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer(json.dumps(body)).encode([b"<pad> and Some TEXT"])


@pytest.mark.parametrize("text", ["", "{", "null", "5", "[]", '"model"', "[" * 100_000, '{"model": 5}'])
def test_other_json_is_a_model_error(text: str) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Tokenizer(text)
