"""A LangChain retriever on an archive. Needs the extra: pip install 'colazip[langchain]'."""

from __future__ import annotations

import asyncio
from typing import Any

from colazip.archive import Archive, Hit
from colazip.integrations.passage import Searcher, passage_id, passage_metadata

try:
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
    from pydantic import ConfigDict, Field, PrivateAttr
except ImportError as error:
    raise ImportError(
        "colazip.integrations.langchain needs langchain-core: pip install 'colazip[langchain]'"
    ) from error


class ColazipRetriever(BaseRetriever):
    """Finds documents in an open archive.

    archive: open while the retriever is used. k: hits at most. search_options: keyword arguments of
    `Archive.search`, such as {"group": False} for every passage rather than the best one of each record.

    A document is a passage: `page_content` its text (of the gist where the archive has no exact text), `id`
    the record's id and the range of bytes, `metadata` that of the record, and under `colazip` the record's
    id, score and span. Errors are those of `Archive.search`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    archive: Archive
    k: int = Field(default=10, ge=1)
    search_options: dict[str, Any] = Field(default_factory=dict)
    _search: Searcher = PrivateAttr()

    def model_post_init(self, context: Any) -> None:
        self._search = Searcher(self.archive, self.k, self.search_options)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        return [_document(hit) for hit in self._search(query)]

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun
    ) -> list[Document]:
        return [_document(hit) for hit in await asyncio.to_thread(self._search, query)]


def _document(hit: Hit) -> Document:
    return Document(id=passage_id(hit), page_content=hit.text, metadata=passage_metadata(hit))
