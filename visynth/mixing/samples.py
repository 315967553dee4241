"""Any image as a sample of a dataset: through its own transform, in its own container."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from visynth.core.codec import Array
from visynth.core.errors import UsageError, choices
from visynth.data.labels import class_names, find_labels, map_classes
from visynth.mixing.agreement import check_values
from visynth.mixing.convert import find_converter, random_state_kept
from visynth.mixing.fields import learn_fields
from visynth.mixing.layout import Layout
from visynth.mixing.options import Options
from visynth.mixing.plan import only_names, sharing_names
from visynth.mixing.positions import check_targets, first_sample, more_samples, parts_of, stacked, targets_of
from visynth.mixing.targets import Truth, labels_in


class Samples:
    """Images as a dataset of the user's would give them: what :class:`visynth.WithSynthetic` does to rendered images, for
    images of any source.

    Args:
        dataset: the user's, map-style, giving ``(image, label)``, dicts or dataclasses, whose labels are classes.
        names: classes of the images.
        examples: some images ``[H, W, C]``, uint8 or uint16.
        classes: number of each class, where the dataset does not say it.

    Raises:
        UsageError: labels are masks or boxes; classes that the dataset has no number for; images that cannot be converted;
            further fields that have no value for another image.

    Example:
        >>> import numpy as np, torch
        >>> from torch.utils.data import TensorDataset
        >>> own = TensorDataset(torch.rand(6, 3, 8, 8), torch.tensor([0, 1] * 3))
        >>> own.classes = ["crack", "free"]
        >>> made = Samples(own, ["free", "crack"], [np.full((16, 16, 1), 255, np.uint8)])
        >>> image, label = made(np.full((16, 16, 1), 255, np.uint8), "crack")
        >>> tuple(image.shape), int(label)
        ((3, 8, 8), 0)
    """

    def __init__(
        self,
        dataset: Any,
        names: Sequence[str],
        examples: Sequence[Array],
        classes: Mapping[str, int] | None = None,
    ) -> None:
        labels = find_labels(dataset)
        if classes is None and class_names(dataset) is None:
            raise UsageError(
                f"{type(dataset).__name__} does not say which number is which class, and an order is never guessed: give it "
                f"class_to_idx or classes, or name the numbers ({', '.join(names)}) under classes."
            )
        self.numbers: Mapping[str, int] = map_classes(dataset, list(names), list(names), classes, labels)
        with random_state_kept():
            place, self.example = first_sample(dataset)
            samples = [(place, self.example), *more_samples(dataset, labels, place, set(self.numbers.values()))]
        self.layout = Layout.of(self.example, None, None)
        given = [self.layout.get(sample, self.layout.label) for _, sample in samples]
        check_targets(given)
        mask = self.layout.mask
        masks = [] if mask is None else [self.layout.get(sample, mask) for _, sample in samples]
        targets = targets_of(given[0], masks, dataset)
        if any(target.joint for target in targets):
            raise UsageError(
                f"the labels of {type(dataset).__name__} are masks or boxes: this takes a training that classifies images."
            )
        shown = [(p, _only(label), sample) for (p, sample), label in zip(samples, given, strict=True)]
        options = Options()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of is refused
            self.fields = learn_fields(
                self.layout, shown, only_names(self.numbers), options.extra, sharing_names(self.numbers)
            )
        if self.fields.unknown:
            raise UsageError(
                f"samples of {type(dataset).__name__} carry {choices(self.fields.unknown)} beside image and label, which other "
                "images have no value for: let the dataset give samples without them here."
            )
        images = [self.layout.get(sample, self.layout.image) for _, sample in samples]
        self.convert = find_converter(dataset, images[0], images[0], targets, None, examples[0], stacked(images))
        check_values(self.convert, dataset, images, list(examples), lambda s: self.layout.get(s, self.layout.image))

    def __call__(self, array: Array, name: str) -> Any:
        """A sample of an image of a class."""
        if name not in self.numbers:
            raise UsageError(f"there is no class {name!r}; there are {choices(self.numbers)}.")
        truth = Truth(self.numbers[name], None, (), name)
        parts = dict(zip(parts_of(self.layout), self.convert(array, truth), strict=True))
        return self.layout.put(self.example, parts | self.fields.values(truth.label, 0))


def _only(label: Any) -> int | None:
    shown = labels_in(label)
    return next(iter(shown)) if len(shown) == 1 else None
