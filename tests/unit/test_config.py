"""config.json: what is written is read; anything else is a ModelError."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colazip.config import EncoderConfig, ModelConfig, StackConfig
from colazip.errors import ModelError

sizes = st.integers(1, 1 << 20)
stacks = st.builds(StackConfig, sizes, sizes, sizes)
plain_fields = [f.name for f in dataclasses.fields(ModelConfig) if isinstance(f.default, int)]
stack_fields = [f.name for f in dataclasses.fields(ModelConfig) if f.type == "StackConfig"]
encoders = st.none() | st.builds(EncoderConfig, sizes, sizes, sizes, sizes)


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        ModelConfig,
        name=st.text(max_size=200),
        **{name: sizes for name in plain_fields},
        **{name: stacks for name in stack_fields},
        search_encoder=encoders,
    )
)
def test_round_trip(config: ModelConfig) -> None:
    assert ModelConfig.from_json(config.to_json()) == config


def test_there_are_both_kinds_of_fields() -> None:
    assert {"classes", "details", "patch", "vector"} <= set(plain_fields)
    assert set(stack_fields) == {"decoder", "coder", "prior"}


def test_vocabulary() -> None:
    assert ModelConfig("x", classes=16, slots=32).vocabulary == 512


@pytest.mark.parametrize(
    "field", [*plain_fields, *stack_fields, "search_encoder", "name", "decoder.width", "coder.heads"]
)
@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1, 1.0, 1 << 21, 10**400, "", "7", [], [4], {}, {"width": 4}, {"width": {"width": 4}}],
    ids=lambda value: repr(value)[:20],
)
def test_hostile_values(field: str, value: Any) -> None:
    body = json.loads(ModelConfig("x").to_json())
    outer, _, inner = field.partition(".")
    if inner:
        body[outer][inner] = value
    else:
        body[outer] = value
    if field == "name" and isinstance(value, str):
        assert ModelConfig.from_json(json.dumps(body)).name == value
    elif field == "prior_features" and value == 0:
        assert ModelConfig.from_json(json.dumps(body)).prior_features == 0  # an older prior
    else:
        with pytest.raises(ModelError, match=r"config\.json"):
            ModelConfig.from_json(json.dumps(body))


@pytest.mark.parametrize("field", plain_fields)
def test_a_stack_is_no_number(field: str) -> None:
    value = {"width": 4, "layers": 1, "heads": 1}
    with pytest.raises(ModelError, match=r"config\.json"):
        ModelConfig.from_json(json.dumps({"name": "x", field: value}))


@pytest.mark.parametrize("field", stack_fields)
def test_a_number_is_no_stack(field: str) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        ModelConfig.from_json(json.dumps({"name": "x", field: 7}))


def test_a_name_is_short() -> None:
    with pytest.raises(ModelError):
        ModelConfig.from_json(json.dumps({"name": "x" * 201}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "5",
        "[]",
        "{}",
        '"name"',
        "[" * 100_000,
        '{"name": "x", "nonsense": 1}',
        '{"name": "x", "decoder": {"width": 4, "layers": 1, "heads": 1, "nonsense": 1}}',
        '{"name": "x", "decoder": {"width": 4, "layers": 1}}',
        '{"name": "x", "classes": NaN}',
        '{"name": "x", "classes": ' + "9" * 5000 + "}",
    ],
    ids=lambda text: text[:40],
)
def test_other_json(text: str) -> None:
    with pytest.raises(ModelError, match=r"config\.json") as caught:
        ModelConfig.from_json(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
