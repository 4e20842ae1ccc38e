"""An archive as a Ray dataset, and a Ray dataset as an archive. Needs: pip install 'colazip[ray]'

python examples/ray_pipeline.py
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

import colazip
from colazip.demo import handbook
from colazip.integrations.ray import read_archive, write_archive


def count_words(batch: dict[str, Any]) -> dict[str, Any]:
    """Adds a column to a batch of rows: what any step of a pipeline does."""
    batch["words"] = [len(text.split()) for text in batch["text"]]
    return batch


def main() -> None:
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # On a cluster, a folder that all nodes share.
    with tempfile.TemporaryDirectory() as folder:
        source, counted = Path(folder) / "handbook.cola", Path(folder) / "counted.cola"
        rows = [{"id": p.id, "topic": p.topic, "text": p.text} for p in handbook()]
        # The preset is for speed; without it tasks code with the networks, and the archive is smaller.
        summary = write_archive(ray.data.from_items(rows), source, id_column="id", preset="fast")
        print(
            f"{summary.records} records packed, {summary.text_bytes / summary.file_bytes:.1f} times smaller"
        )

        # The filter runs on the metadata: blocks without such a record are not decoded.
        tea = read_archive(source, where="topic = 'tea'")
        write_archive(tea.map_batches(count_words), counted, id_column="id", preset="fast")
        with colazip.open(counted) as archive:
            words = [values["words"] for _, values in archive.rows()]
            print(f"{len(words)} of them about tea, with {sum(words)} words")

        # Without the text among the columns nothing is decoded.
        print(f"{len(read_archive(source, ['topic']).unique('topic'))} topics")
    ray.shutdown()


if __name__ == "__main__":
    main()
