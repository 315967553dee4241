"""Texts that say the same again: equal after normalising, near by MinHash, or near in an embedding. The first one stays."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visynth.core.errors import MissingExtra, UsageError, raise_all
from visynth.tabular.text.checks import grams, words
from visynth.tabular.text.embedding import Embedder, Weighted

PERMUTATIONS = 128
BLOCK = 256  # texts compared at a time with all before
SHINGLE = 5  # characters; short sentences have few words


@dataclass(frozen=True)
class Deduplication:
    """When two texts are the same.

    Attributes:
        equal: whether texts of equal words are.
        minhash: least estimated Jaccard similarity of their runs of characters (Broder, "On the resemblance and containment
            of documents", 1997); None does not ask.
        cosine: least cosine of their embeddings; None does not ask.
    """

    equal: bool = True
    minhash: float | None = 0.7
    cosine: float | None = 0.8

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be above 0 and at most 1, but got {value}"
            for name, value in (("minhash", self.minhash), ("cosine", self.cosine))
            if value is not None and not 0 < value <= 1
        ]
        raise_all("the deduplication", problems, UsageError)


def normalised(text: str) -> str:
    """A text's words in lower case and compatibility form: what two copies share.

    Example:
        >>> normalised("  Great\u00a0phone!! ") == normalised("great phone")
        True
    """
    return " ".join(words(unicodedata.normalize("NFKC", text)))


def repeats(
    texts: Sequence[str], rule: Deduplication, embedder: Embedder | None = None, before: Sequence[str] = ()
) -> dict[int, str]:
    """Places of texts that repeat an earlier one, with how.

    Args:
        texts: in order.
        rule: what counts.
        embedder: for ``rule.cosine``; by default weights of words and runs of characters, over all these texts.
        before: texts that come earlier than all.

    Example:
        >>> repeats(["Good phone.", "good phone", "Bad phone"], Deduplication(minhash=None, cosine=None))
        {1: 'equal'}
    """
    everything = [*before, *texts]
    found: dict[int, str] = {}
    seen: set[str] = set()
    index = _MinHashes(rule.minhash) if rule.minhash is not None else None
    alike: dict[int, list[int]] = {}
    if rule.cosine is not None and any(map(words, everything)):
        alike = _alike((embedder or _weights)(everything), rule.cosine, len(before))
    kept: set[int] = set()
    for place, text in enumerate(everything):
        own, how = normalised(text), ""
        minhash = None if index is None else index.of(own)
        if place >= len(before):  # those before stay, whatever they repeat
            if own in seen and rule.equal:
                how = "equal"
            elif index is not None and index.has(minhash):
                how = "near by MinHash"
            elif kept.intersection(alike.get(place, ())):
                how = "near in the embedding"
        if how:
            found[place - len(before)] = how
            continue
        seen.add(own)
        kept.add(place)
        if index is not None:
            index.add(str(place), minhash)
    return found


def _alike(vectors: Any, least: float, first: int) -> dict[int, list[int]]:
    """Earlier rows with at least such a cosine, of each row from the first on that has some; in blocks, so that memory stays
    flat."""
    found: dict[int, list[int]] = {}
    for start in range(first, vectors.shape[0], BLOCK):
        block = vectors[start : start + BLOCK] @ vectors[: start + BLOCK].T
        block = block.toarray() if hasattr(block, "toarray") else np.asarray(block)
        for row, column in zip(*np.nonzero(block >= least), strict=True):
            if column < start + row:
                found.setdefault(int(start + row), []).append(int(column))
    return found


def _weights(texts: Sequence[str]) -> Any:
    """Sparse weights, of unit length: the cosine of two texts is the mean of that of their words and of their characters."""
    return Weighted(texts)(texts) * np.sqrt(0.5)


class _MinHashes:
    """Texts by locality-sensitive hashing, each hit checked by its estimated similarity."""

    def __init__(self, threshold: float) -> None:
        try:
            from datasketch import MinHashLSH
        except ImportError as error:
            raise MissingExtra("near-duplicates by MinHash need datasketch: pip install 'visynth[text]'.") from error
        self.threshold = threshold
        self.index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
        self.hashes: dict[str, Any] = {}

    def of(self, text: str) -> Any:
        """The MinHash of a text's runs of characters."""
        from datasketch import MinHash

        made = MinHash(num_perm=PERMUTATIONS, seed=1)
        runs = {"".join(gram) for gram in grams(list(text), SHINGLE)} or {text}
        made.update_batch([run.encode() for run in sorted(runs)])
        return made

    def has(self, own: Any) -> bool:
        return any(own.jaccard(self.hashes[key]) >= self.threshold for key in self.index.query(own))

    def add(self, key: str, own: Any) -> None:
        self.hashes[key] = own
        self.index.insert(key, own)
