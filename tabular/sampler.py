"""A sampler for imbalanced-learn's and scikit-learn's pipelines: ``fit_resample`` with a table generator."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from visynth.core import plugins
from visynth.core.errors import MissingExtra
from visynth.tabular.frames import pandas

try:
    from imblearn.over_sampling.base import BaseOverSampler
except ImportError as _error:
    raise MissingExtra("SyntheticSampler needs imbalanced-learn: pip install 'visynth[smote]'.") from _error


class SyntheticSampler(BaseOverSampler):  # type: ignore[misc]
    """Adds synthetic rows of each class that ``sampling_strategy`` names, drawn by a table generator.

    Args:
        sampling_strategy: as of every over-sampler of imbalanced-learn.
        synthesizer: registered name.
        arguments: of the synthesizer, such as ``{"steps": 500}``.
        random_state: an integer, a ``RandomState`` or None.

    Attributes:
        sampling_strategy_: rows that are added of each class.
        generator_: the fitted generator.

    Example:
        >>> import numpy as np
        >>> x, y = np.random.default_rng(0).normal(size=(60, 3)), np.array([0] * 45 + [1] * 15)
        >>> x_more, y_more = SyntheticSampler(synthesizer="copula", random_state=0).fit_resample(x, y)
        >>> x_more.shape, np.bincount(y_more).tolist()
        ((90, 3), [45, 45])
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **BaseOverSampler._parameter_constraints,
        "synthesizer": [str],
        "arguments": [dict, None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        *,
        sampling_strategy: Any = "auto",
        synthesizer: str = "masked",
        arguments: dict[str, Any] | None = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(sampling_strategy=sampling_strategy)
        self.synthesizer = synthesizer
        self.arguments = arguments
        self.random_state = random_state

    def _fit_resample(self, x: Any, y: Any) -> tuple[Any, Any]:
        from scipy import sparse
        from sklearn.utils import check_random_state

        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        is_sparse = sparse.issparse(x)
        dense = x.toarray() if is_sparse else x
        columns = {f"x{number}": np.asarray(dense)[:, number] for number in range(dense.shape[1])}
        kinds = {name: "numeric" for name in columns if np.asarray(columns[name]).dtype.kind in "fiu"}
        labels, codes = np.unique(y, return_inverse=True)
        frame = pandas().DataFrame({**columns, "class": codes})
        kind = plugins.load("synthesizers", self.synthesizer)
        self.generator_ = kind(**{"seed": seed, **(self.arguments or {})}).fit(
            frame, target="class", kinds=kinds, members="none"
        )
        rows, classes = [np.asarray(dense)], [np.asarray(y)]
        for label, count in self.sampling_strategy_.items():
            if not count:
                continue
            code = int(np.flatnonzero(labels == label)[0])
            own = self.generator_.sample(int(count), conditions={"class": code}, seed=seed)
            rows.append(own[list(columns)].to_numpy().astype(np.asarray(dense).dtype))
            classes.append(np.full(count, labels[code], dtype=np.asarray(y).dtype))
        stacked = np.concatenate(rows)
        matrix = (
            (sparse.csc_matrix if is_sparse and x.format == "csc" else sparse.csr_matrix)(stacked)
            if is_sparse
            else stacked
        )
        return matrix, np.concatenate(classes)
