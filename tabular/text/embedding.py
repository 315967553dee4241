"""Texts as vectors: words and runs of characters by weight, reduced to some dimensions; or a model's hidden states."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core.errors import DataError, UsageError, choices
from visynth.tabular.text.models import load_model

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


class Encoder:
    """A text as the mean of a model's last hidden states over its tokens (or the first of them, where a sentence-transformers folder
    says so), scaled to unit length. What was embedded once is not embedded again.

    Args:
        path: folder as transformers or sentence-transformers save it, or a GGUF file.
        device: where it runs.
        batch: texts computed together; each is padded on the right to the longest of its batch.
        most: tokens of a text; what follows is left out.

    Raises:
        UsageError: there is no such model, or it pools in another way.
    """

    def __init__(self, path: str | Path, device: str = "cpu", batch: int = 16, most: int = 256) -> None:
        self.model, self.batch, self.most = load_model(path, device, encoder=True), batch, most
        self.first = _pools_first(Path(path))
        self._known: dict[str, Vectors] = {}

    @property
    def digest(self) -> str:
        """Hex sha256 of the weights' files."""
        return self.model.digest

    def __call__(self, texts: Sequence[str]) -> Vectors:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        for start in range(0, len(new), self.batch):
            own = new[start : start + self.batch]
            self._known.update(zip(own, self._embedded(own), strict=True))
        return np.stack([self._known[text] for text in texts]) if texts else np.zeros((0, 1))

    def _embedded(self, texts: Sequence[str]) -> Vectors:
        import torch

        limit = min(self.most, self.model.context)
        ids = [self.model.tokenizer(text, truncation=True, max_length=limit)["input_ids"] or [0] for text in texts]
        width = max(map(len, ids))
        mask = torch.tensor([[1] * len(own) + [0] * (width - len(own)) for own in ids], device=self.model.device)
        tokens = torch.tensor([own + [0] * (width - len(own)) for own in ids], device=self.model.device)
        with torch.inference_mode():
            states = self.model.model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
        weights = mask[..., None] / mask.sum(dim=1)[:, None, None]
        pooled = states[:, 0] if self.first else (states * weights).sum(dim=1)
        return unit(pooled.cpu().numpy().astype(np.float64))


def _pools_first(path: Path) -> bool:
    """Whether a sentence-transformers folder takes the first token; folders that say nothing take the mean."""
    modules = path / "modules.json"
    if modules.is_file():
        kinds = {
            str(module.get("type", "")).rsplit(".", 1)[-1] for module in json.loads(modules.read_text(encoding="utf-8"))
        }
        if kinds - {"Transformer", "Pooling", "Normalize"}:
            raise UsageError(
                f"{modules} has {choices(sorted(kinds))}; visynth knows Transformer, Pooling and Normalize."
            )
    said = path / "1_Pooling" / "config.json"
    if not said.is_file():
        return False
    config = json.loads(said.read_text(encoding="utf-8"))
    modes = {name for name, value in config.items() if name.startswith("pooling_mode_") and value is True}
    if modes == {"pooling_mode_cls_token"}:
        return True
    if modes != {"pooling_mode_mean_tokens"}:
        raise UsageError(
            f"{said} pools by {choices(sorted(modes))}; visynth knows the mean of the tokens, and the first one."
        )
    return False


def unit(vectors: Any) -> Vectors:
    """Rows of unit length; rows of nothing stay so."""
    vectors = np.asarray(vectors, np.float64)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
