"""What a module that takes its optimisers' steps itself must have to be trained privately.

Only one part of it, the discriminator, sees real records, and moves by clipped and noised gradients; everything else learns from
that part alone, as often as it likes: Xie et al., "Differentially private generative adversarial network" (2018), algorithm 1.
Many steps of the discriminator for one of the generator serve best: Bie, Kamath and Zhang, "Private GANs, revisited" (TMLR
2023), section 4.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Adversary(Protocol):
    """A module whose real records are seen by one part of it alone; its first optimiser is that of this part."""

    def private_part(self) -> nn.Module:
        """What is trained on real records."""

    def before_private_step(self, rows: int) -> None:
        """Whatever a step needs that must not depend on which records are drawn for it: ``rows`` of it, as many as are expected
        (units times copies); a row takes the one at its place modulo ``rows``."""

    def private_loss(self, batch: Any) -> Tensor:
        """Mean of the part's losses of single rows of a batch."""

    def after_private_step(self, loss: Tensor) -> None:
        """Whatever else learns, from the part alone."""
