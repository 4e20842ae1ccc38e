"""The retrievers for LangChain and LlamaIndex, against the real packages where they are installed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from colazip import Archive, Record
from colazip.errors import UsageError
from tests.plain_codec import PlainCodec

LONG = (
    " ".join(f"Filler sentence {i}." for i in range(200))
    + " The lighthouse keeper trims the wick of the lamp." * 5
)


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    codec = PlainCodec(passage_bytes=300)
    records = [
        Record(b"Bread needs flour and water.", "bread", {"year": 2020, "score": "mine"}),
        Record(LONG.encode(), "long"),
    ]
    Archive.pack(tmp_path / "a.cola", records, codec=codec)
    with Archive(tmp_path / "a.cola", codec) as opened:
        yield opened


def test_langchain(archive: Archive) -> None:
    pytest.importorskip(
        "langchain_core", reason="langchain-core is not installed: pip install 'colazip[langchain]'"
    )
    from langchain_core.runnables import RunnableLambda

    from colazip.integrations.langchain import ColazipRetriever

    retriever = ColazipRetriever(archive=archive, k=2)
    documents = retriever.invoke("bread flour water")
    assert [d.metadata["colazip"]["record"] for d in documents] == ["bread", "long"]
    assert documents[0].page_content == "Bread needs flour and water."
    assert documents[0].metadata["year"] == 2020 and documents[0].metadata["score"] == "mine"
    assert documents[0].id == "bread#0-28"
    assert asyncio.run(retriever.ainvoke("bread flour water")) == documents
    assert retriever.batch(["bread flour water"] * 4) == [documents] * 4
    (lamp,) = ColazipRetriever(archive=archive, k=1).invoke("lighthouse keeper trims the wick of the lamp")
    assert "lighthouse" in lamp.page_content and len(lamp.page_content) < 400
    start, end = lamp.metadata["colazip"]["span"]
    assert archive.get("long")[start:end].decode() == lamp.page_content
    each = ColazipRetriever(archive=archive, k=5, search_options={"group": False}).invoke("filler sentence")
    assert len({d.id for d in each}) == 5
    chain = retriever | RunnableLambda(lambda found: found[0].page_content)
    assert chain.invoke("bread flour water") == documents[0].page_content
    with pytest.raises(ValueError, match="k"):
        ColazipRetriever(archive=archive, k=0)


def test_llamaindex(archive: Archive) -> None:
    pytest.importorskip("llama_index.core", reason="not installed: pip install 'colazip[llamaindex]'")
    from llama_index.core.schema import MetadataMode

    from colazip.integrations.llamaindex import ColazipRetriever

    retriever = ColazipRetriever(archive, k=2)
    nodes = retriever.retrieve("bread flour water")
    assert [n.node.ref_doc_id for n in nodes] == ["bread", "long"]
    assert nodes[0].get_content() == "Bread needs flour and water."
    assert nodes[0].metadata["year"] == 2020 and nodes[0].score == nodes[0].metadata["colazip"]["score"]
    assert "colazip" not in nodes[0].get_content(MetadataMode.LLM)
    again = asyncio.run(retriever.aretrieve("bread flour water"))
    assert [(n.node_id, n.score) for n in again] == [(n.node_id, n.score) for n in nodes]
    each = ColazipRetriever(archive, 5, {"group": False}).retrieve("filler sentence")
    assert len({n.node_id for n in each}) == 5
    with pytest.raises(UsageError):
        ColazipRetriever(archive, 0)


@pytest.mark.parametrize(
    ("module", "package"), [("langchain", "langchain_core"), ("llamaindex", "llama_index")]
)
def test_without_the_package(module: str, package: str) -> None:
    """One line says what to install; colazip itself never imports them."""
    code = f"""
import sys
sys.modules[{package!r}] = None
import colazip.archive
assert "pydantic" not in sys.modules
try:
    import colazip.integrations.{module}
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=120)
    assert f"pip install 'colazip[{module}]'" in done.stdout, done.stderr
