"""``class_path: visynth.lightning.WithSynthetic`` for configurations of ``lightning.pytorch``, whose CLI checks its own
base class."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule

from visynth.mixing import wrapper as mixing


class WithSynthetic(LightningDataModule):
    """:class:`visynth.WithSynthetic` under ``lightning.pytorch``'s base class; the arguments are the same."""

    __new__ = mixing.retyped(mixing.WithSynthetic.__new__, datamodule=LightningDataModule)
