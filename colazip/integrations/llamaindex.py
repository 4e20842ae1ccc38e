"""A LlamaIndex retriever on an archive. Needs the extra: pip install 'colazip[llamaindex]'."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from colazip.archive import Archive, Hit
from colazip.errors import UsageError
from colazip.integrations.passage import Searcher, passage_id, passage_metadata

try:
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.schema import (
        NodeRelationship,
        NodeWithScore,
        QueryBundle,
        RelatedNodeInfo,
        TextNode,
    )
except ImportError as error:
    raise ImportError(
        "colazip.integrations.llamaindex needs llama-index-core: pip install 'colazip[llamaindex]'"
    ) from error


class ColazipRetriever(BaseRetriever):
    """Finds nodes in an open archive.

    archive: open while the retriever is used. k: hits at most. search_options: keyword arguments of
    `Archive.search`, such as {"group": False} for each passage rather than the best one of each record.
    options: those of LlamaIndex's `BaseRetriever`.

    A node is a passage: its text (of the gist where the archive has no exact text), the record as its source,
    `metadata` that of the record, and under `colazip` the record's id, score and span, which embeddings and
    prompts leave out. Errors are those of `Archive.search`.
    """

    def __init__(
        self,
        archive: Archive,
        k: int = 10,
        search_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        if k < 1:
            raise UsageError(f"k must be at least 1, not {k}")
        super().__init__(**options)
        self._search = Searcher(archive, k, search_options or {})

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [_node(hit) for hit in self._search(query_bundle.query_str)]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [_node(hit) for hit in await asyncio.to_thread(self._search, query_bundle.query_str)]


def _node(hit: Hit) -> NodeWithScore:
    node = TextNode(
        id_=passage_id(hit),
        text=hit.text,
        metadata=passage_metadata(hit),
        excluded_embed_metadata_keys=["colazip"],
        excluded_llm_metadata_keys=["colazip"],
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=hit.id)},
    )
    return NodeWithScore(node=node, score=hit.score)
