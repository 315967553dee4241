"""Fine-tuning with differential privacy: the weights hardly depend on any one text.

Source: Yu et al., "Differentially private fine-tuning of language models" (ICLR 2022), section 3: DP-SGD on low-rank weights alone,
beside a public model that stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from visynth.core.errors import DataError, UsageError, choices, raise_all
from visynth.privacy.accounting import Accountant, option_problems

if TYPE_CHECKING:
    from visynth.privacy.dp import DifferentialPrivacy

CARD = "differential privacy"  # entry of the card


@dataclass(frozen=True)
class TextPrivacy:
    """Options of a fine-tuning with differential privacy; the unit that is protected is a text.

    Attributes:
        epsilon: of the training.
        delta: by default the largest power of ten below one in the number of texts.
        classes: all there may be, because which ones there are is not for free; none where texts have no classes.
        max_grad_norm: length to which a text's gradient is cut.
        accountant: ``"rdp"`` or ``"prv"``.
        physical_batch_size: texts that are held at once.
        most_noise: noise of a step over the batch and ``max_grad_norm``, above which nothing is learned and the fit is refused.

    Raises:
        UsageError: numbers that cannot be, all of them at once.
    """

    epsilon: float
    delta: float | None = None
    classes: Sequence[str] = ()
    max_grad_norm: float = 1.0
    accountant: Accountant = "rdp"
    physical_batch_size: int | None = 16
    most_noise: float = 0.1

    def __post_init__(self) -> None:
        problems = option_problems(self.epsilon, self.max_grad_norm, physical_batch_size=self.physical_batch_size)
        raise_all("privacy", problems, UsageError)

    def training(self) -> DifferentialPrivacy:
        """The callback that makes the fine-tuning private."""
        from visynth.privacy.dp import DifferentialPrivacy

        return DifferentialPrivacy(
            self.epsilon, delta=self.delta, max_grad_norm=self.max_grad_norm, accountant=self.accountant, unit="text",
            physical_batch_size=self.physical_batch_size, most_noise=self.most_noise,
        )  # fmt: skip

    def check(self, classes: Sequence[str], shown: int, canaries: int = 0) -> None:
        """Refuse what would not be private.

        Args:
            classes: of the texts.
            shown: other texts in each prompt.
            canaries: secrets that are learned beside the texts.

        Raises:
            UsageError: prompts that show other texts; canaries; classes that are not named.
            DataError: texts of other classes than those that are named.
        """
        if shown:
            raise UsageError(
                f"prompts show {shown} other texts, so that a text stands in several gradients: take shown 0 with differential privacy."
            )
        if canaries:
            raise UsageError(
                "canaries are asked for by the prompt of a real text, which would then be in many gradients: take canaries 0 with "
                "differential privacy."
            )
        given = [name for name in classes if name]
        if given and not self.classes:
            raise UsageError(
                "name the classes (--privacy.classes): which ones there are is learned from the texts, and not paid for."
            )
        other = sorted(set(given) - set(self.classes))
        if other:
            raise DataError(f"texts are of {choices(other)}; the classes that were named are {choices(self.classes)}.")
