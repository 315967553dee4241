"""Training the inpainting generator: the same diffusion, told the surroundings and the hole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from visynth.core.errors import UsageError
from visynth.generators.base import Generator, Spec
from visynth.generators.inpainting import Inpainting as InpaintingGenerator
from visynth.generators.inpainting import surroundings
from visynth.lightning_modules.diffusion import Diffusion
from visynth.lightning_modules.facts import Facts

OUTSIDE = 0.05  # weight of a known pixel's error against that of a pixel in the hole


class Inpainting(Diffusion):
    """:class:`Diffusion` conditioned on a window's surroundings and the hole in it; train it with ``DefectCrops``.

    The exported generator sets its defects into real defect-free images, seed for seed where composition would set
    them. Arguments are those of :class:`Diffusion`; its labelled augmentation is off, because crops are drawn anew and
    mirrored anyway.
    """

    def __init__(self, augment: float = 0.0, width: int = 24, **kwargs: Any) -> None:
        super().__init__(augment=augment, width=width, **kwargs)
        if augment:
            raise UsageError("Inpainting mirrors and shifts its crops itself: leave augment at 0.")

    def warn_if_few(self) -> None:
        """Inpainting is what few images are advised to use."""

    def conditions(self, facts: Facts) -> int:
        return facts.channels + 1

    def prepare(
        self, batch: Any, images: Tensor, labels: Tensor, positions: Sequence[int]
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        known, hole = self._values(images), batch["mask"].float()
        condition, level = surroundings(known, hole)
        draws = self.draw(positions, images.shape[1:])
        labels, others = self._dropped(labels, draws)
        focus = hole + OUTSIDE * (1 - hole)
        extra: dict[str, Any] = {"condition": condition, "focus": focus / focus.mean(dim=(1, 2, 3), keepdim=True)}
        if self.args.cbdm > 0:
            extra["balance"] = (self.args.cbdm, others)
        return known - level, labels, extra | self._noise(draws, known.device)

    def federation_problems(self) -> list[str]:
        """A server has none of the real backgrounds and masks that an inpainting generator holds."""
        return [
            "an inpainting generator holds real backgrounds and the shapes of real defects: train it where they are"
        ]

    def make_spec(self) -> Spec:
        composition = self._composition()
        return replace(
            super().make_spec(),
            network="inpaint",
            arguments={
                **composition.spec.arguments,
                "network": self.arguments(),
                "window": self.facts.size[0],
            },
            size=composition.spec.size,
            kind="inpainted",
        )

    def make_generator(self, spec: Spec, network: Any, **kwargs: Any) -> Generator:
        composition = self._composition()
        # Of the real defects only the shapes are used, and their surroundings, which say where they may go: their own pixels
        # need not leave the house.
        defects = [
            replace(d, image=np.where(d.mask[:, :, None], 0, d.image).astype(spec.dtype)) for d in composition.defects
        ]
        return InpaintingGenerator(spec, defects, composition.backgrounds, composition.settings, network, **kwargs)

    def card(self) -> dict[str, Any]:
        return {**super().card(), "task": "inpainting of defects by conditional diffusion (EDM)"}

    def _composition(self) -> Any:
        composition = getattr(self.data, "composition", None)
        if composition is None:
            raise UsageError(
                "an inpainting generator needs its backgrounds and masks: attach the DefectCrops datamodule that it "
                "was trained with."
            )
        return composition
