"""Layout of a user's sample or batch: where its image, its label and its mask are."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from visynth.core.errors import UsageError, choices
from visynth.data.labels import LABEL_KEYS

IMAGE_KEYS = ("image", "img", "images", "x", "pixel_values", "input", "inputs")
MASK_KEYS = ("mask", "gt_mask", "masks", "segmentation")
FLAG, WEIGHT = "is_synthetic", "weight"


@dataclass(frozen=True)
class Layout:
    """Places of the parts of a sample: indices of a tuple, keys of a dict, names of a dataclass's fields.

    Attributes:
        image: of the image.
        label: of the label, mask or detection target.
        mask: of a mask beside the label, or None.

    Example:
        >>> layout = Layout.of({"image": 1, "label": 2, "id": 7})
        >>> layout.put({"image": 1, "label": 2, "id": 7}, {"image": 3, "label": 4})
        {'image': 3, 'label': 4, 'id': 7}
    """

    image: Any
    label: Any
    mask: Any = None

    @classmethod
    def of(cls, sample: Any, image_key: str | int | None = None, label_key: str | int | None = None) -> Layout:
        """From one real sample or batch.

        Raises:
            UsageError: neither a pair, a dict nor a dataclass with an image and a label.
        """
        keys = keys_of(sample)
        if isinstance(sample, (list, tuple)) and sample and all(isinstance(part, Mapping) for part in sample):
            raise UsageError(
                f"a sample is a {type(sample).__name__} of {len(sample)} dicts, several images at once: "
                "WithSynthetic exchanges samples of one "
                "image. Let the dataset give them one by one and group them in collate_fn, or mix before they are "
                "cropped."
            )
        if keys is None:
            raise UsageError(
                f"samples must be (image, label), dicts or dataclasses, but got {type(sample).__name__}: wrap the "
                "dataset so that "
                "it gives one of these, or, where only one of several loaders has labels, name that one with loader=."
            )
        if isinstance(sample, (tuple, list)) and not hasattr(sample, "_fields"):
            layout = cls(0 if image_key is None else int(image_key), 1 if label_key is None else int(label_key))
            if max(layout.image, layout.label) >= len(sample):
                raise UsageError(
                    f"samples have {len(sample)} parts, but image and label were looked for at {layout.image} and "
                    f"{layout.label}: "
                    "name their places with image_key= and label_key=, or wrap the dataset so that it gives (image, "
                    "label)."
                )
            return layout
        image = image_key if image_key is not None else next((k for k in IMAGE_KEYS if k in keys), None)
        mask = next((k for k in MASK_KEYS if k in keys and _get(sample, k) is not None), None)
        label = label_key if label_key is not None else next((k for k in LABEL_KEYS if k in keys), mask)
        if image not in keys or label not in keys:
            raise UsageError(
                f"samples have the keys {choices(keys)}: name the image and the label with image_key= and label_key=."
            )
        return cls(image, label, None if mask == label else mask)

    def get(self, sample: Any, place: Any) -> Any:
        return _get(sample, place)

    def put(self, sample: Any, parts: Mapping[Any, Any]) -> Any:
        """The sample with other parts, in a container of its own; what else it held is kept."""
        if isinstance(sample, Mapping):
            changed = {**sample, **parts}
            return changed if type(sample) is dict else _rebuilt(sample, changed)
        if dataclasses.is_dataclass(sample) and not isinstance(sample, type):
            return dataclasses.replace(sample, **dict(parts))
        if hasattr(sample, "_replace"):
            return sample._replace(**{k if isinstance(k, str) else sample._fields[k]: v for k, v in parts.items()})
        rest = list(sample)
        for place, value in parts.items():
            if isinstance(place, int):
                rest[place] = value
            else:  # a field more, see options is_synthetic and weight
                rest.append(value)
        return type(sample)(rest)

    def check_extras(self, sample: Any, told: Collection[Any] = ()) -> None:
        """Refuse samples that carry more images: a synthetic sample would bring another image's along.

        Raises:
            UsageError: a further field with two or more dimensions, or a dict.
        """
        known = (self.image, self.label, self.mask)
        keys = getattr(sample, "_fields", None) or keys_of(sample) or []
        more = [k for k in keys if k not in known and k not in told and _is_image(_get(sample, k))]
        if more:
            raise UsageError(
                f"samples carry {choices(more)} beside image and label: a synthetic sample cannot fill them (a mask is "
                "filled where "
                f"it is called one of {choices(MASK_KEYS)}). Say what stands there with extra={{field: value}}, or "
                "give a dataset without them."
            )


def check_growth(sample: Any) -> None:
    """Refuse to add fields to a container that has a fixed number of them.

    Raises:
        UsageError: a named tuple or a dataclass.
    """
    if hasattr(sample, "_fields") or dataclasses.is_dataclass(sample):
        raise UsageError(
            "is_synthetic and weight are added to dicts (by name) and to tuples and lists (at the end), but samples "
            "are "
            f"{type(sample).__name__}: leave them off, or let the dataset give dicts."
        )


def keys_of(sample: Any) -> list[Any] | None:
    """Keys, names or places of a sample's parts; None where it has none."""
    if isinstance(sample, Mapping):
        return list(sample)
    if dataclasses.is_dataclass(sample) and not isinstance(sample, type):
        return [field.name for field in dataclasses.fields(sample)]
    if hasattr(sample, "_fields"):
        return [*sample._fields, *range(len(sample))]
    if isinstance(sample, (tuple, list)) and len(sample) >= 2:
        return list(range(len(sample)))
    return None


def _get(sample: Any, place: Any) -> Any:
    if isinstance(sample, Mapping) or (isinstance(place, int) and isinstance(sample, (tuple, list))):
        return sample[place]
    return getattr(sample, place)


def _rebuilt(sample: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    try:
        return type(sample)(values)  # type: ignore[call-arg]  # OrderedDict, UserDict, BatchEncoding, ...
    except TypeError:
        return values


def _is_image(value: Any) -> bool:
    return isinstance(value, (dict, Image.Image)) or getattr(value, "ndim", 0) >= 2
