"""The installation and this machine."""

from __future__ import annotations


def doctor() -> int:
    """Check the installation: versions, weights of the default features, augmentation backend, cores."""
    import os

    from visynth.core.files import cache_folder
    from visynth.core.report import environment
    from visynth.data.transforms import backend
    from visynth.metrics.extractors import efficientnet_lite0

    for name, value in environment().items():
        print(f"{name:<26}{value}")
    print(f"{'cores':<26}{os.cpu_count()}")
    print(f"{'features':<26}{efficientnet_lite0().name}, weights found")
    print(f"{'classic augmentation':<26}{backend()}")
    print(f"{'feature cache':<26}{cache_folder()}")
    return 0
