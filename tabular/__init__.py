"""Synthetic data that are not images: tables; texts and series in rooms of their own.

Import as ``visynth.tabular``; names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visynth.tabular.aim import AIM
    from visynth.tabular.balance import oversample
    from visynth.tabular.base import Synthesizer
    from visynth.tabular.conditions import Between
    from visynth.tabular.constraints import Combinations, Inequality, Product, Range, Sum, Unique
    from visynth.tabular.counting import GaussianCopula, IndependentMarginals
    from visynth.tabular.data import TableData
    from visynth.tabular.diffusion import Diffusion
    from visynth.tabular.dp_marginals import PrivateMarginals
    from visynth.tabular.frames import read_table, write_table
    from visynth.tabular.gan import CTGAN
    from visynth.tabular.inference import infer
    from visynth.tabular.masked import Masked
    from visynth.tabular.oversampler import Oversampler
    from visynth.tabular.private import TablePrivacy
    from visynth.tabular.relational import ForeignKey, Relational
    from visynth.tabular.sampler import SyntheticSampler
    from visynth.tabular.schema import Schema
    from visynth.tabular.trial import TableTrial, run_trial
    from visynth.tabular.vae import TVAE

_HOMES = {
    "AIM": "aim",
    "Between": "conditions",
    **dict.fromkeys(("Combinations", "Inequality", "Product", "Range", "Sum", "Unique"), "constraints"),
    **dict.fromkeys(("GaussianCopula", "IndependentMarginals"), "counting"),
    "CTGAN": "gan",
    "Diffusion": "diffusion",
    "Masked": "masked",
    "Oversampler": "oversampler",
    "PrivateMarginals": "dp_marginals",
    "TablePrivacy": "private",
    **dict.fromkeys(("ForeignKey", "Relational"), "relational"),
    "SyntheticSampler": "sampler",
    "TVAE": "vae",
    "TableData": "data",
    **dict.fromkeys(("TableTrial", "run_trial"), "trial"),
    "oversample": "balance",
    "Schema": "schema",
    "Synthesizer": "base",
    "infer": "inference",
    **dict.fromkeys(("read_table", "write_table"), "frames"),
}
__all__ = [
    "AIM",
    "CTGAN",
    "TVAE",
    "Between",
    "Combinations",
    "Diffusion",
    "ForeignKey",
    "GaussianCopula",
    "IndependentMarginals",
    "Inequality",
    "Masked",
    "Oversampler",
    "PrivateMarginals",
    "Product",
    "Range",
    "Relational",
    "Schema",
    "Sum",
    "Synthesizer",
    "SyntheticSampler",
    "TableData",
    "TablePrivacy",
    "TableTrial",
    "Unique",
    "infer",
    "oversample",
    "read_table",
    "run_trial",
    "write_table",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"visynth.tabular.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'visynth.tabular' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
