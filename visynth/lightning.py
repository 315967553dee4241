"""``class_path: visynth.lightning.WithSynthetic`` for configurations of ``lightning.pytorch``, whose CLI checks its own base class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule

from visynth.data import mixing


class WithSynthetic(LightningDataModule):
    """:class:`visynth.WithSynthetic` under ``lightning.pytorch``'s base class; the arguments are the same."""

    def __new__(
        cls,
        datamodule: LightningDataModule,
        source: str | Path,
        balance: str | float | dict[str, int] = "not majority",
        share: float | None = None,
        to: int | None = None,
        spread: float = 0.1,
        seed: int = 0,
        classes: dict[str, int] | list[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        labels: list[int] | None = None,
        image_key: str | None = None,
        label_key: str | None = None,
        leak_guard: bool = True,
    ) -> Any:
        options = mixing.Options(
            balance, share, to, spread, seed, classes, transform, labels, image_key, label_key, leak_guard
        )
        return mixing.wrap(datamodule, source, options)
