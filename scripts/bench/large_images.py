"""Memory of a 64 px training's reading, and of evaluation's features, on photographs of 12 MP (synthetic images).

    OMP_WAIT_POLICY=PASSIVE .venv/bin/python scripts/bench/large_images.py --count 10000

The images are one photograph-like JPEG of 4000x3000 pixels under many names (hard links), so the disk holds one. Prints
the peak resident memory of a process that reads them as ``visynth fit`` does, and the seconds.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np


def write(root: Path, count: int) -> None:
    """``count`` names of two classes for one 12 MP JPEG."""
    rng = np.random.default_rng(0)
    coarse = cv2.resize(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8), (4000, 3000), interpolation=cv2.INTER_CUBIC)
    photo = np.clip(coarse.astype(np.int16) + rng.integers(-12, 12, coarse.shape, dtype=np.int16), 0, 255).astype(
        np.uint8
    )
    for label in range(2):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        first = folder / "000000.jpg"
        cv2.imwrite(str(first), photo if label else 255 - photo, [cv2.IMWRITE_JPEG_QUALITY, 85])
        for number in range(1, count // 2):
            os.link(first, folder / f"{number:06}.jpg")


def measure(root: Path, what: str) -> None:
    """Read the set in this process, and say what it took."""
    from visynth.lightning_modules.data import GeneratorData

    started = time.monotonic()
    data = GeneratorData(str(root), size=64)
    if what == "training":
        data.setup("fit")
        images = len(data.pool.images)  # type: ignore[union-attr]
    else:
        from visynth.data.imageset import Lazy
        from visynth.data.reading import read_images
        from visynth.metrics.bank import FeatureBank
        from visynth.metrics.extractors import extractor

        found = read_images(root)
        bank = FeatureBank(extractor(), resolutions=(112,))
        images = len(bank.add(Lazy(lambda item: found.image(item, (224, 224)), found.items)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what}: {images} images of 12 MP in {time.monotonic() - started:.0f} s, peak {peak:.2f} GiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--what", nargs="*", default=["training"], choices=["training", "features"])
    parser.add_argument("--root", type=Path)
    told = parser.parse_args()
    if told.root is not None:
        measure(told.root, told.what[0])
        return
    with tempfile.TemporaryDirectory(prefix="visynth.") as folder:
        root = Path(folder) / "images"
        write(root, told.count)
        for what in told.what:  # each in a process of its own: peak memory never falls
            subprocess.run([sys.executable, __file__, "--root", str(root), "--what", what], check=True)


if __name__ == "__main__":
    main()
