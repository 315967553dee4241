"""What synthetic texts are like beside real ones: fidelity, diversity by number of texts, privacy. Each a closed formula.

Texts are compared by words in lower case. Distances in embeddings are of whatever embedder is given; its name stands beside
the figures.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visynth.core import seeds as seeding
from visynth.core.errors import DataError
from visynth.metrics.kernel import mmd2
from visynth.tabular.fidelity import jensen_shannon, ks_distance
from visynth.tabular.text.checks import Overlap, grams, words
from visynth.tabular.text.duplicates import normalised

Vectors = NDArray[np.float64]
SELF_BLEU = 200  # texts of which each is compared with all others
BLEU_N = 4
NO_MATCH = 0.1  # matches that an order without any counts as
MAUVE_SCALE = 5.0
MAUVE_CLUSTERS = 10  # texts a cluster has on average


def distinct(texts: Sequence[str], n: int) -> float:
    """Different runs of ``n`` words as a share of all runs (Li et al., "A diversity-promoting objective function for neural
    conversation models", NAACL 2016). It falls as texts are added: compare equal numbers.

    Example:
        >>> distinct(["a b a b"], 2)
        0.6666666666666666
    """
    runs = [run for text in texts for run in grams(words(text), n)]
    return len(set(runs)) / len(runs) if runs else 0.0


def bleu(text: Sequence[str], references: Sequence[Sequence[str]], n: int = BLEU_N) -> float:
    """BLEU of one text of words against others, with all orders up to ``n`` weighted alike (Papineni et al., "BLEU", ACL 2002,
    section 2.3); orders that the text is too short for are left out, an order without a match counts as a tenth of a match
    (Chen and Cherry, "A systematic comparison of smoothing techniques", 2014, technique 1).

    Example:
        >>> bleu("the cat sat on it".split(), ["the cat sat on it".split()])
        1.0
    """
    if not text or not references:
        return 0.0
    most = [_most([Counter(grams(r, order)) for r in references]) for order in range(1, n + 1)]
    return _bleu(text, [{run: best[0] for run, best in own.items()} for own in most], list(map(len, references)))


def _bleu(text: Sequence[str], most: Sequence[Mapping[tuple[str, ...], int]], lengths: Sequence[int]) -> float:
    """From the largest count of each run in any reference, by order, and the references' lengths."""
    logs = []
    for order in range(1, min(len(most), len(text)) + 1):
        own = Counter(grams(text, order))
        matched = sum(min(count, most[order - 1].get(run, 0)) for run, count in own.items())
        logs.append(np.log(max(matched, NO_MATCH) / sum(own.values())))
    nearest = min((abs(length - len(text)), length) for length in lengths)[1]
    return float(np.exp(np.mean(logs) + min(0.0, 1 - nearest / len(text))))


def _most(counts: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """By run, its largest count in one of several texts, that text's place, and its largest count in the others."""
    best: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for place, own in enumerate(counts):
        for run, count in own.items():
            first, where, second = best.get(run, (0, -1, 0))
            best[run] = (count, place, first) if count > first else (first, where, max(second, count))
    return best


def self_bleu(texts: Sequence[str], seed: int = 0) -> float:
    """Mean BLEU-4 of each text against all others: 1 where all say the same (Zhu et al., "Texygen", SIGIR 2018). At most 200
    texts, drawn at random.

    Example:
        >>> self_bleu(["a good phone"] * 3)
        1.0
    """
    order = seeding.rng(seed, "text/self-bleu").permutation(len(texts))[:SELF_BLEU]
    own = [text for place in order if (text := words(texts[place]))]
    if len(own) < 2:
        return 0.0
    most = [_most([Counter(grams(text, n)) for text in own]) for n in range(1, BLEU_N + 1)]
    scores = []
    for place, text in enumerate(own):
        others = [
            {run: best[run][2 if best[run][1] == place else 0] for run in set(grams(text, n))}
            for n, best in enumerate(most, 1)
        ]
        scores.append(_bleu(text, others, [len(t) for k, t in enumerate(own) if k != place]))
    return float(np.mean(scores))


def compression_ratio(texts: Sequence[str]) -> float:
    """Bytes of all texts over their bytes when compressed: the more they repeat one another, the larger (Shaib et al.,
    "Standardizing the measurement of text diversity", 2024).

    Example:
        >>> compression_ratio(["the same again"] * 100) > 20
        True
    """
    data = "\n".join(texts).encode("utf-8", "replace")
    return len(data) / len(zlib.compress(data, 9)) if data else 0.0


def length_ks(real: Sequence[str], fake: Sequence[str]) -> float:
    """Kolmogorov-Smirnov distance of the numbers of words.

    Example:
        >>> length_ks(["a", "a b"], ["a b", "a b c"])
        0.5
    """
    sides = [np.array([len(words(text)) for text in side], float) for side in (real, fake)]
    return ks_distance(*sides)


def gram_distance(real: Sequence[str], fake: Sequence[str], n: int = 1) -> float:
    """Jensen-Shannon distance of the frequencies of runs of ``n`` words, base 2: 0 for equal, 1 for disjoint.

    Example:
        >>> gram_distance(["a b"], ["b a"]), gram_distance(["a"], ["b"])
        (0.0, 1.0)
    """
    sides = [Counter(run for text in side for run in grams(words(text), n)) for side in (real, fake)]
    if not all(sides):
        return 1.0
    names = sorted(set(sides[0]) | set(sides[1]))
    counts = [np.array([side[name] for name in names], float) for side in sides]
    return jensen_shannon(*(count / count.sum() for count in counts))


def embedding_mmd(real: Vectors, fake: Vectors) -> float:
    """Unbiased squared maximum mean discrepancy of embeddings of unit length, with the kernel exp(x.y - 1), a Gaussian of their
    distance (Gretton et al., "A kernel two-sample test", JMLR 2012, eq. 3). It may be negative.

    Example:
        >>> points = np.eye(4)
        >>> round(embedding_mmd(points[:2], points[2:]), 6)
        0.0
    """
    if min(len(real), len(fake)) < 2:
        raise DataError("an MMD needs two texts a side.")
    return mmd2(*(np.exp(x @ y.T - 1) for x, y in ((real, real), (fake, fake), (real, fake))))


def mauve_like(real: Vectors, fake: Vectors, seed: int = 0) -> float:
    """Area under the divergence curve of the clusters of both sides: 1 for equal shares, towards 0 for disjoint ones.

    As MAUVE (Pillutla et al., NeurIPS 2021, eqs. 2 and 3, with its scale of 5), but of the given embeddings and with one
    cluster for every ten texts, so it is called MAUVE-like and compares with no published MAUVE.

    Args:
        real: ``[N, D]``.
        fake: ``[M, D]``.
        seed: of the clusters.
    """
    from sklearn.cluster import KMeans

    both = np.concatenate([real, fake])
    clusters = max(2, min(len(real), len(fake)) // MAUVE_CLUSTERS)
    if len(both) <= clusters:
        raise DataError(f"a MAUVE-like score needs more than {clusters} texts.")
    labels = KMeans(clusters, n_init=3, random_state=seed % 2**32).fit_predict(both)
    p, q = (np.bincount(side, minlength=clusters) / len(side) for side in (labels[: len(real)], labels[len(real) :]))
    return frontier_area(p, q)


def frontier_area(p: Vectors, q: Vectors, scale: float = MAUVE_SCALE) -> float:
    """Area under the curve of (exp(-c KL(q|r)), exp(-c KL(p|r))) over mixtures r = a p + (1 - a) q.

    Example:
        >>> one, other = np.array([1.0, 0.0]), np.array([0.0, 1.0])
        >>> frontier_area(one, one), round(frontier_area(one, other), 3) < 0.05
        (1.0, True)
    """
    points = [(0.0, 1.0), (1.0, 0.0)]
    for part in np.linspace(1e-6, 1 - 1e-6, 101):
        mixed = part * p + (1 - part) * q
        points.append((float(np.exp(-scale * _kl(q, mixed))), float(np.exp(-scale * _kl(p, mixed)))))
    x, y = np.array(sorted(points, key=lambda point: (point[0], -point[1]))).T
    return float(np.trapezoid(y, x))


def _kl(p: Vectors, q: Vectors) -> float:
    own = p > 0
    return float((p[own] * np.log(p[own] / q[own])).sum())


def copied_share(texts: Sequence[str], real: Sequence[str], run: int = 8) -> float:
    """Share of texts that have ``run`` words in a row, or all their words, from a real text.

    Example:
        >>> copied_share(["Great phone!", "It never rang."], ["great phone"], run=3)
        0.5
    """
    overlap = Overlap(real, run)
    return float(np.mean([bool(overlap.copied(text)) for text in texts])) if texts else 0.0


def equal_share(texts: Sequence[str], real: Sequence[str]) -> float:
    """Share of texts whose words are those of a real text."""
    known = {normalised(text) for text in real}
    return float(np.mean([normalised(text) in known for text in texts])) if texts else 0.0


def closer_to_shown(fake: Vectors, shown: Vectors, held: Vectors, seed: int = 0) -> tuple[float, int]:
    """Share of texts whose nearest real text is one that was shown to the generator, against held-out ones of equal number: 0.5
    where nothing was copied. Ties count half.

    Returns:
        The share, and the number of real texts a side.
    """
    few = min(len(shown), len(held))
    sides = [
        side[seeding.rng(seed, f"text/closer/{k}").permutation(len(side))[:few]] for k, side in enumerate((shown, held))
    ]
    near = [np.asarray(fake @ side.T).max(axis=1) for side in sides]
    return float(np.mean((near[0] > near[1]) + 0.5 * (near[0] == near[1]))), few


def diversity_by_number(texts: Sequence[str], vectors: Vectors, seed: int = 0) -> list[dict[str, Any]]:
    """Diversity of the first 50, 100, 200, ... texts in random order: what it falls to as more are written.

    Args:
        texts: all of them.
        vectors: their embeddings.
        seed: of the order.
    """
    from visynth.metrics.diversity import vendi

    order = seeding.rng(seed, "text/diversity").permutation(len(texts))
    sizes = [size for size in (50, 100, 200, 500, 1000, 2000, 5000) if size < len(texts)] + [len(texts)]
    rows = []
    for size in sizes:
        places = order[:size]
        own = [texts[place] for place in places]
        rows.append(
            {
                "texts": size,
                "distinct-1": distinct(own, 1),
                "distinct-2": distinct(own, 2),
                "distinct-3": distinct(own, 3),
                "self-BLEU-4": self_bleu(own, seed),
                "compression ratio": compression_ratio(own),
                "Vendi": vendi(vectors[places]),
            }
        )
    return rows
