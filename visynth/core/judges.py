"""Which networks had a hand in a generator: whoever trained or chose by a network's features cannot be judged by them alone.

A generator that was trained against some features, or picked by a distance in them, is good in just those; the same distance
then says little about the images (Morozov et al., "On self-supervised image representations for GAN evaluation", ICLR 2021;
Kynkaanniemi et al., "The role of ImageNet classes in Frechet inception distance", ICLR 2023, section 4).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

USED = "extractors"  # entry of a generator's card and of a rendered set's summary: {name: what for}
OWN = "own"  # an encoder that is trained on the user's images,
OWN_SIDE = 64  # on squares of so many pixels,
FEWEST = 20  # and on so many of them at least
# Backbones as they are called within names, the longer ones first, and the family of each.
STEMS = {
    "inception_next": "inception_next", "inception": "inception", "efficientnet": "efficientnet", "mobilenet": "mobilenet",
    "mnasnet": "mobilenet", "resnext": "resnet", "resnet": "resnet", "resnest": "resnet", "regnet": "regnet", "deit": "vit",
    "dino": "vit", "beit": "vit", "vit": "vit", "convnext": "convnext", "swin": "swin", "densenet": "densenet", "vgg": "vgg",
}  # fmt: skip


def family(name: str) -> str:
    """Backbone family of an extractor, by its name.

    Example:
        >>> [family(n) for n in ("efficientnet_lite0@112", "tf_efficientnetv2_s.in1k", "dinov2", "deit_tiny", "vit_small_patch14")]
        ['efficientnet', 'efficientnet', 'vit', 'vit', 'vit']
        >>> [family(n) for n in ("wide_resnet50_2", "seresnext50", "resnetv2_50", "ssl_resnet18", "inception_next_tiny")]
        ['resnet', 'resnet', 'resnet', 'resnet', 'inception_next']
        >>> family("inception_v3"), family("own@64"), family("Conv2d")
        ('inception', 'own', 'conv')
    """
    lower = name.lower()
    for stem, own in STEMS.items():
        if stem in lower:
            return own
    found = re.match(r"[a-z]+", lower)
    return found.group(0) if found else lower


def circular(used: Mapping[str, str], judge: str) -> list[str]:
    """What the family of a judge was used for in making the images; empty where it is free to judge.

    Example:
        >>> circular({"efficientnet_lite0": "features of the discriminator"}, "efficientnet_lite0@native")
        ['efficientnet_lite0: features of the discriminator']
        >>> circular({"efficientnet_lite0": "features of the discriminator"}, "own@64")
        []
    """
    return [f"{name}: {what}" for name, what in used.items() if family(name) == family(judge)]
