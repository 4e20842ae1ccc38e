"""Give a LangChain chain passages from an archive. Needs: pip install 'colazip[langchain]'

python examples/langchain_retriever.py ["a question" ...]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough

import colazip
from colazip.demo import handbook
from colazip.integrations.langchain import ColazipRetriever

PROMPT = ChatPromptTemplate.from_template("Answer from these passages.\n\n{passages}\n\nQuestion: {question}")


def show(documents: list[Document]) -> str:
    """Passages with their sources, as a prompt takes them."""
    return "\n".join(f"[{d.metadata['title']}] {d.page_content}" for d in documents)


def main(questions: list[str]) -> None:
    codec = colazip.Codec.from_pretrained()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "handbook.cola"
        records = [colazip.Record(p.text.encode(), p.id, {"title": p.title}) for p in handbook()]
        colazip.Archive.pack(path, records, codec=codec, preset="fast")
        with colazip.Archive(path, codec) as archive:
            retriever = ColazipRetriever(archive=archive, k=3)
            # A chat model would follow the prompt: `... | PROMPT | model`.
            chain = {"passages": retriever | show, "question": RunnablePassthrough()} | PROMPT
            for question in questions:
                print(chain.invoke(question).to_string())


if __name__ == "__main__":
    main(sys.argv[1:] or ["how long should green tea steep"])
