"""Lightning modules that train image models. Import as ``visynth.lightning_modules``; names load on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visynth.lightning_modules.crops import DefectCrops
    from visynth.lightning_modules.data import GeneratorData
    from visynth.lightning_modules.diffusion import Diffusion
    from visynth.lightning_modules.embedding import MeanEmbedding
    from visynth.lightning_modules.gans import CGAN, BigGAN, StyleGAN2
    from visynth.lightning_modules.inpainting import Inpainting
    from visynth.lightning_modules.lora import LoRA

__all__ = [
    "CGAN",
    "BigGAN",
    "DefectCrops",
    "Diffusion",
    "GeneratorData",
    "Inpainting",
    "LoRA",
    "MeanEmbedding",
    "StyleGAN2",
]

_HOMES = {
    "DefectCrops": "crops",
    "Diffusion": "diffusion",
    "GeneratorData": "data",
    "Inpainting": "inpainting",
    "LoRA": "lora",
    "MeanEmbedding": "embedding",
    **dict.fromkeys(("CGAN", "BigGAN", "StyleGAN2"), "gans"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"visynth.lightning_modules.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'visynth.lightning_modules' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
