"""Model configuration: frozen dataclasses <-> config.json."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from colazip.errors import ModelError


@dataclass(frozen=True)
class StackConfig:
    """Width, depth and heads of one transformer."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of the search encoder (`colazip.nn.context`)."""

    width: int
    layers: int
    heads: int
    hidden: int


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a Text VAE, its prior and its search head. Every field decides tensor shapes or the stream."""

    name: str
    classes: int = 128  # the vocabulary is classes * slots tokens: a token is its class, then its slot
    slots: int = 64
    details: int = 1  # gists of so many details can be written, the most detailed first
    patch: int = 4  # tokens a patch
    segment: int = 256  # patches that see each other; a longer part is several segments
    embedding: int = 96
    channels: int = 8  # of a token's latent
    decoder: StackConfig = field(default_factory=lambda: StackConfig(256, 2, 4))
    coder: StackConfig = field(default_factory=lambda: StackConfig(320, 5, 5))
    local_width: int = 192
    local_hidden: int = 576
    ngram_rows: int = 32768
    ngram_width: int = 32
    prior: StackConfig = field(default_factory=lambda: StackConfig(192, 4, 4))
    prior_block: int = 16  # patches of a block of the DiT prior
    prior_features: int = 0  # of a token in a prior that knows the tokens; 0 is one over values alone
    vector: int = 240  # width of search vectors
    code_bytes: int = 24  # bytes of a search code
    word_rows: int = 12288  # search rows that words of several tokens share by their hash
    code_sizes: tuple[int, ...] | None = (
        None  # bytes of all codes it makes, ascending; None: code_bytes alone
    )
    search_encoder: EncoderConfig | None = None  # None: search vectors are sums of rows
    conditional: bool | None = None  # True: gists can be coded given the search codes beside them
    pointer: int | None = None  # width of the keys that tokens before are pointed at by; None: they are not

    @property
    def vocabulary(self) -> int:
        return self.classes * self.slots

    @property
    def codes(self) -> tuple[int, ...]:
        """Bytes of the search codes it makes."""
        return self.code_sizes or (self.code_bytes,)

    def to_json(self) -> str:
        """Without what the model does not have: a field that came later changes no older model's id."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Raises ModelError on unknown or ill-typed fields, or without a name; other fields have defaults."""
        try:
            return _build(cls, json.loads(text))
        except (ValueError, TypeError, KeyError, RecursionError) as e:
            raise ModelError(f"config.json is not one of this release: {e}") from e


_PARTS: dict[str, type] = {"StackConfig": StackConfig, "EncoderConfig | None": EncoderConfig}
_SIZES = "tuple[int, ...] | None"
_FLAG = "bool | None"
_LIMIT = 1 << 20  # no field of a sane model is larger; bounds what a hostile config can allocate


def _least(name: str) -> int:
    return 0 if name == "prior_features" else 1


def _is_size(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _LIMIT


def _build(cls: type, values: Any) -> Any:
    if not isinstance(values, dict):
        raise TypeError(f"expected an object, found {type(values).__name__}")
    known = {f.name: f for f in dataclasses.fields(cls)}
    if unknown := sorted(set(values) - set(known)):
        raise KeyError(f"unknown field {unknown[0]!r}")
    made: dict[str, Any] = {}
    for name, value in values.items():
        if name == "name":
            if not isinstance(value, str) or len(value) > 200:
                raise TypeError("name must be a short string")
            made[name] = value
        elif part := _PARTS.get(str(known[name].type)):  # annotations are strings here
            made[name] = _build(part, value)
        elif known[name].type == _SIZES:
            if not isinstance(value, list) or not value or not all(_is_size(n, 1) for n in value):
                raise TypeError(f"{name} must be a list of positive integers")
            made[name] = tuple(value)
        elif known[name].type == _FLAG:
            if value is not True:
                raise TypeError(f"{name} must be true, or not be there")
            made[name] = value
        elif _is_size(value, _least(name)):
            made[name] = value
        else:
            raise TypeError(f"{name} must be a positive integer below {_LIMIT}")
    return cls(**made)
