"""The handbook that the package carries."""

from __future__ import annotations

from colazip.demo import handbook


def test_passages_are_distinct_and_of_a_size() -> None:
    passages = handbook()
    assert len(passages) >= 150
    assert len({passage.id for passage in passages}) == len(passages)
    assert len({passage.text for passage in passages}) == len(passages)
    for passage in passages:
        assert passage.id.startswith(passage.topic + "/")
        assert passage.title
        assert 250 <= len(passage.text) <= 900
        assert passage.text == passage.text.strip()


def test_no_sentence_is_used_twice() -> None:
    sentences = [
        sentence.strip()
        for passage in handbook()
        for sentence in passage.text.split(". ")
        if len(sentence.strip()) > 25
    ]
    assert len(set(sentences)) == len(sentences)
