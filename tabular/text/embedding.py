"""Texts as vectors: words and runs of characters by weight, reduced to some dimensions; or a local model's hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import DataError

if TYPE_CHECKING:
    from visynth.tabular.text.models import LanguageModel

Vectors = NDArray[np.float64]
Embedder = Callable[[Sequence[str]], Vectors]  # unit length, [N, D]
WORDS = {
    "analyzer": "word",
    "ngram_range": (1, 2),
    "sublinear_tf": True,
    "min_df": 1,
    "token_pattern": r"(?u)\b\w[\w']*\b",
}
LETTERS = {"analyzer": "char_wb", "ngram_range": (3, 5), "sublinear_tf": True, "min_df": 1}
DIMENSIONS = 64


class Weighted:
    """Weights of words, pairs of words and runs of characters (tf-idf), sparse ``[N, V]``.

    Args:
        texts: whose counts decide the weights.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        if not any(text.strip() for text in texts):
            raise DataError("there are no texts to take words from.")
        self.parts = [TfidfVectorizer(**options) for options in (WORDS, LETTERS)]
        for part in self.parts:
            try:
                part.fit(texts)
            except ValueError as error:
                raise DataError(f"the texts have no words: {error}.") from error

    def __call__(self, texts: Sequence[str]) -> Any:
        from scipy.sparse import hstack

        return hstack([part.transform(texts) for part in self.parts]).tocsr()


class Latent:
    """Latent semantic analysis: :class:`Weighted` on its first singular vectors, scaled to unit length (Deerwester et al.,
    "Indexing by latent semantic analysis", 1990).

    Args:
        texts: whose words decide the space.
        dimensions: of it, at most.

    Example:
        >>> embed = Latent(["good phone", "bad phone", "a film that I liked"])
        >>> bool(np.isclose((embed(["good phone"]) ** 2).sum(), 1.0))
        True
    """

    def __init__(self, texts: Sequence[str], dimensions: int = DIMENSIONS) -> None:
        from sklearn.decomposition import TruncatedSVD

        self.weighted = Weighted(texts)
        matrix = self.weighted(texts)
        dimensions = max(min(dimensions, min(matrix.shape) - 1), 1)
        self.space = (
            TruncatedSVD(dimensions, algorithm="arpack", random_state=0).fit(matrix) if min(matrix.shape) > 1 else None
        )

    def __call__(self, texts: Sequence[str]) -> Vectors:
        matrix = self.weighted(texts)
        return unit(np.asarray(matrix.todense()) if self.space is None else self.space.transform(matrix))


class HiddenStates:
    """Mean of a language model's last hidden states over a text's tokens, scaled to unit length.

    Args:
        model: that is loaded.
        batch: texts computed together; each is padded on the right to the longest of its batch.
        most: tokens of a text; what follows is left out.
    """

    def __init__(self, model: LanguageModel, batch: int = 16, most: int = 256) -> None:
        self.model, self.batch, self.most = model, batch, most

    def __call__(self, texts: Sequence[str]) -> Vectors:
        import torch

        rows = []
        for start in range(0, len(texts), self.batch):
            ids = [
                self.model.tokenizer(text)["input_ids"][: self.most] or [0]
                for text in texts[start : start + self.batch]
            ]
            width = max(map(len, ids))
            mask = torch.tensor([[1] * len(own) + [0] * (width - len(own)) for own in ids], device=self.model.device)
            tokens = torch.tensor([own + [0] * (width - len(own)) for own in ids], device=self.model.device)
            with torch.inference_mode():
                out = self.model.model(input_ids=tokens, attention_mask=mask, output_hidden_states=True)
            weights = mask[..., None] / mask.sum(dim=1)[:, None, None]
            rows.append((out.hidden_states[-1] * weights).sum(dim=1).float().cpu().numpy())
        return unit(np.concatenate(rows).astype(np.float64)) if rows else np.zeros((0, 1))


def unit(vectors: Any) -> Vectors:
    """Rows of unit length; rows of nothing stay so."""
    vectors = np.asarray(vectors, np.float64)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
