"""Generators that fail on purpose: not finite, of one colour, or ending their process. Registered by nobody."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from visynth.core import seeds as seeding
from visynth.generators.base import Generator, Samples, Spec


class Faulty(Generator):
    """Noise images of two classes, of which some cannot be used, by their seeds.

    Args:
        bad: share of seeds that give nothing.
        fault: ``"nan"``, ``"constant"``, ``"exit"``, ``"hang"`` or ``"raise"``.
        never: class that never comes out.
        once: folder in which each seed's fault is noted, so that it happens once.
    """

    def __init__(self, bad: float = 0.0, fault: str = "nan", never: str = "", side: int = 8, once: str = "") -> None:
        arguments = {"bad": bad, "fault": fault, "never": never, "side": side, "once": once}
        super().__init__(Spec("faulty", arguments, ("crack", "spot"), 1, (side, side), micro_batch=4))
        self.bad, self.fault, self.never, self.side, self.once = bad, fault, never, side, once

    def _sample(self, seeds, labels, **options):
        images = torch.stack([self._image(seed) for seed in seeds])
        fails = torch.tensor([self.fails(s, label) for s, label in zip(seeds, labels, strict=True)])
        if self.fault in ("exit", "hang", "raise"):
            for seed in [s for s, wrong in zip(seeds, fails.tolist(), strict=True) if wrong and s]:
                self._end(seed)
            return Samples(images)
        if self.fault == "constant":
            images[fails] = 7
            return Samples(images)
        return Samples(images, valid=~fails)

    def _end(self, seed: int) -> None:
        note = Path(self.once) / str(seed)
        if self.once and note.exists():
            return
        if self.once:
            note.touch()
        if self.fault == "exit":
            os._exit(3)
        if self.fault == "hang":
            time.sleep(600)
        raise RuntimeError("the sampler broke")

    def fails(self, seed: int, label: int) -> bool:
        return self.classes[label] == self.never or float(seeding.rng(seed, "fault").random()) < self.bad

    def _image(self, seed: int) -> torch.Tensor:
        noise = seeding.rng(seed, "image").integers(0, 256, (1, self.side, self.side))
        return torch.from_numpy(noise.astype("uint8"))

    def weights(self):
        return {"nothing": torch.zeros(1)}

    @classmethod
    def build(cls, spec, weights, device):
        return cls(**spec.arguments)
