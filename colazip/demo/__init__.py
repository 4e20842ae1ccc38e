"""The handbook: short factual passages written for this package, so that it can show itself on real text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Passage:
    """One passage. id: `topic/name`, unique in the handbook. text: one paragraph."""

    id: str
    topic: str
    title: str
    text: str


def handbook() -> list[Passage]:
    """All passages, in order."""
    lines = files(__name__).joinpath("handbook.jsonl").read_text(encoding="utf-8").splitlines()
    return [Passage(**json.loads(line)) for line in lines]
