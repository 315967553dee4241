"""Somebody else's training under the plugin: anomalib's Folder, its Engine and its dataclass samples, wrapped with one
line.

    python3.11 -m venv /tmp/anomalib
    /tmp/anomalib/bin/pip install torch==2.14.1 torchvision==0.29.1
    /tmp/anomalib/bin/pip install . anomalib
    OMP_WAIT_POLICY=PASSIVE /tmp/anomalib/bin/python scripts/bench/anomalib_training.py

anomalib (Apache-2.0) trains on defect-free parts alone and gives ImageItems and ImageBatches with a boolean label. Two
things are shown: its own model under its own Engine, alone and with ``share=0``, and a supervised training on the same
Folder whose defects are all rendered, every row of which must be a file with its own label. The set is the built-in
one, parted by region.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import Ganomaly
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torchvision.transforms.v2 import Resize
from torchvision.transforms.v2.functional import pil_to_tensor, to_dtype

import visynth
from visynth.core.codec import decode
from visynth.core.errors import DataError
from visynth.data.demo import write_samples
from visynth.data.reading import read_images
from visynth.jobs.make import fit_compose
from visynth.lightning import WithSynthetic
from visynth.render.run import make_plan, render_set

DEFECTS = ["scratch", "spot", "stain"]
LABELS = {"good": 0, **dict.fromkeys(DEFECTS, 1)}


def part(root: Path, out: Path) -> Path:
    """The built-in set as train/ and test/, whole regions each: every third region is held out."""
    names = sorted({f.stem.split("_")[0] for f in (root / "images").rglob("*.png")})
    held = set(names[::3])
    for folder in ("images", "masks"):
        for file in sorted((root / folder).rglob("*.png")):
            side = "test" if file.stem.split("_")[0] in held else "train"
            target = out / side / folder / file.relative_to(root / folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    return out


def folder(root: Path) -> Folder:
    """The user's DataModule, as anomalib's documentation has it."""
    return Folder(
        name="parts",
        root=root,
        normal_dir="train/images/good",
        normal_test_dir="test/images/good",
        abnormal_dir=[f"test/images/{name}" for name in DEFECTS],
        train_batch_size=16,
        num_workers=0,
        augmentations=Resize((64, 64), antialias=True),
        seed=0,
    )


class Losses(Callback):
    """What each step said, to the last bit."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, float]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        first = next(p for p in module.parameters() if p.requires_grad)
        self.steps.append((len(batch.image), float(first.detach().sum())))


def engine_run(data: Any, out: Path) -> tuple[list[tuple[int, float]], dict[str, float]]:
    """anomalib's own Ganomaly under its own Engine: what its steps did, and what its test said."""
    lightning.pytorch.seed_everything(0, verbose=False)
    watch = Losses()
    model = Ganomaly(batch_size=16, n_features=16, latent_vec_size=32)
    engine = Engine(max_epochs=2, accelerator="cpu", default_root_dir=out, callbacks=[watch], logger=False)
    engine.fit(model, datamodule=data)
    return watch.steps, dict(engine.test(model, datamodule=data, verbose=False)[0])


class Net(lightning.pytorch.LightningModule):
    """A supervised detector over anomalib's batches."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, 2), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3, 2), torch.nn.ReLU(),
            torch.nn.AdaptiveMaxPool2d(1), torch.nn.Flatten(), torch.nn.Linear(16, 1),
        )  # fmt: skip
        self.rows: list[torch.Tensor] = []
        self.labels: list[int] = []

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        self.rows += list(batch.image.as_subclass(torch.Tensor).clone())
        self.labels += batch.gt_label.int().tolist()
        score = self.layers(batch.image.as_subclass(torch.Tensor)).squeeze(1)
        return torch.nn.functional.binary_cross_entropy_with_logits(score, batch.gt_label.float())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


def supervised(data: Any) -> tuple[Net, float]:
    lightning.pytorch.seed_everything(0, verbose=False)
    net = Net()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = lightning.pytorch.Trainer(max_epochs=3, accelerator="cpu", enable_model_summary=False, **quiet)
    started = time.perf_counter()
    trainer.fit(net, data)
    return net, time.perf_counter() - started


def strangers(net: Net, files: list[Path]) -> int:
    """Rows that are no file under the Folder's own transform, or have another label than its folder."""
    resize = Resize((64, 64), antialias=True)
    made = torch.stack([resize(to_dtype(pil_to_tensor(_rgb(f)), torch.float32, scale=True)) for f in files]).flatten(1)
    wrong = 0
    for row, label in zip(net.rows, net.labels, strict=True):
        apart = (made - row.flatten()).abs().amax(1)
        best = int(apart.argmin())
        wrong += float(apart[best]) > 1e-3 or LABELS[files[best].parent.name] != label
    return wrong


def _rgb(file: Path) -> Any:
    return Image.fromarray(decode(file).squeeze()).convert("RGB")


def main() -> int:
    warnings.simplefilter("ignore")
    failed = False
    with tempfile.TemporaryDirectory() as there:
        root = part(write_samples(Path(there) / "set"), Path(there) / "parts")
        images = read_images(root / "train" / "images", masks=root / "train" / "masks")
        fit_compose(images, Path(there) / "generator")
        generator = visynth.load_generator(Path(there) / "generator")
        renders = Path(there) / "renders"
        render_set(generator, make_plan(generator, per_class=40), renders)
        told = {"classes": LABELS, "share": 0.3, "balance": dict.fromkeys(DEFECTS, 20)}

        alone, tested = engine_run(folder(root), Path(there) / "a")
        same, tested_too = engine_run(WithSynthetic(folder(root), renders, share=0), Path(there) / "b")
        print(f"Ganomaly under anomalib's Engine: {len(alone)} steps, the same with share=0: {alone == same}, {tested}")
        failed |= alone != same or tested != tested_too

        files = [*sorted((root / "train" / "images" / "good").glob("*.png")), *sorted(renders.rglob("*.png"))]
        user = folder(root)
        user.setup()
        labels = (
            user.train_data.samples.label_index.tolist()
        )  # anomalib's table of files, which "samples" cannot know of
        for backend, more in {"samples": {"labels": labels}, "batches": {}}.items():
            net, took = supervised(WithSynthetic(folder(root), renders, backend=backend, **more, **told))
            wrong = strangers(net, files)
            print(
                f"{backend:<8} labels {dict(sorted(Counter(net.labels).items()))}, rows that are no file or wrongly "
                "labelled: "
                f"{wrong} of {len(net.rows)}, {took:.1f} s"
            )
            failed |= wrong > 0 or not any(net.labels)

        whole = read_images(root / "test" / "images", masks=root / "test" / "masks")
        fit_compose(whole, Path(there) / "leaky")
        try:
            WithSynthetic(folder(root), Path(there) / "leaky", **told).setup("fit")
            print("a generator of the test parts: not refused")
            failed = True
        except DataError as error:
            print(f"a generator of the test parts: {str(error).splitlines()[0]}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
