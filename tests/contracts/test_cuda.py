"""On a GPU: every family trains in bfloat16, samples as on a CPU, renders the same bytes twice, mixes online.

Left out of ``scripts/test``, skipped without CUDA; ``VISYNTH_TEST_DEVICE=cpu`` runs the same tests on a CPU.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning
import torch

import visynth
from visynth.cli import main
from visynth.core.manifest import read_renders
from visynth.generators.base import load_generator
from visynth.metrics.extractor import prepare
from visynth.metrics.extractors import efficientnet_lite0
from visynth.render.run import Here, make_plan, render_set

DEVICE = os.environ.get("VISYNTH_TEST_DEVICE", "cuda" if torch.cuda.is_available() else "")
CONFIGS = Path("configs/smoke").resolve()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not DEVICE, reason="needs a GPU"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # a GPU's own: autotuning, missing worker processes
]


@pytest.fixture(scope="module", params=["cgan", "biggan", "stylegan2", "projected", "diffusion", "inpainting"])
def trained(request, samples, tmp_path_factory) -> Path:
    """A generator of a smoke config, trained for some steps in bfloat16."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "tiles").symlink_to(samples)
    words = ["--trainer.accelerator", "gpu" if DEVICE == "cuda" else "cpu", "--trainer.precision", "bf16-mixed"]
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["fit", "-c", str(CONFIGS / f"{request.param}.yaml"), *words]) == 0
    finally:
        os.chdir(before)
    return next(folder.glob("run_*")) / "generator"


def test_what_it_makes_is_what_a_cpu_makes(trained: Path) -> None:
    here, there = load_generator(trained, device="cpu"), load_generator(trained, device=DEVICE)
    one, other = (generator.sample([3, 4], [0, 1]).images.cpu().numpy().astype(int) for generator in (here, there))
    assert np.abs(one - other).mean() < 2  # of 255: other kernels, other rounding
    torch.testing.assert_close(
        there.sample([4], [1]).images.cpu(), torch.from_numpy(other[1:]).to(torch.uint8), atol=2, rtol=0
    )


def test_it_renders_the_same_bytes_twice(trained: Path, tmp_path) -> None:
    generator = load_generator(trained, device=DEVICE)
    plan = make_plan(generator, per_class=6)
    hashes = []
    for encoders in (0, 2):
        render_set(generator, plan, tmp_path / str(encoders), engine=Here(encoders=encoders))
        hashes.append([r.sha256 for r in read_renders(tmp_path / str(encoders)).records])
    assert hashes[0] == hashes[1]


def test_features_are_those_of_a_cpu(picture) -> None:
    images = [prepare(picture(96, 64, 1, seed=k), 0) for k in range(4)]
    extractor = efficientnet_lite0()
    here = extractor.described(images, patches=True)
    extractor.network.to(DEVICE)
    try:
        there = extractor.described(images, patches=True)
    finally:
        extractor.network.to("cpu")
    torch.testing.assert_close(there.pooled, here.pooled, atol=2e-2, rtol=2e-2)
    assert here.patches is not None
    assert there.patches is not None
    torch.testing.assert_close(there.patches, here.patches, atol=2e-2, rtol=2e-2)


class Small(pytorch_lightning.LightningModule):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(channels, 4)
        self.devices: set[str] = set()

    def training_step(self, batch, index):
        self.devices.add(batch[0].device.type)
        return torch.nn.functional.cross_entropy(self.layer(batch[0].mean((2, 3))), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Images(pytorch_lightning.LightningDataModule):
    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.channels, self.size = channels, size

    def train_dataloader(self):
        images = torch.rand(32, self.channels, self.size, self.size)
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.arange(32) % 4), 8)


def test_it_mixes_online_on_the_device(trained: Path) -> None:
    generator = load_generator(trained)
    channels, size = generator.sample([0], [0]).images.shape[1:3]
    classes = {name: k % 4 for k, name in enumerate(generator.classes)}
    balance = dict.fromkeys(generator.classes[:2], 4)
    data = visynth.WithSynthetic(
        Images(channels, size), trained, backend="online", balance=balance, share=0.5, classes=classes,
        autocast="bfloat16", transform=lambda image: torch.from_numpy(np.asarray(image, np.float32) / 255).reshape(channels, size, size),
    )  # fmt: skip
    module = Small(channels)
    trainer = pytorch_lightning.Trainer(
        max_epochs=2, accelerator="gpu" if DEVICE == "cuda" else "cpu", devices=1, precision="bf16-mixed", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    assert module.devices == {DEVICE}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_private_training_is_that_of_a_cpu(precision: str) -> None:
    """The same rows, the same noise: what differs is rounding."""
    from tests.lightning_modules.test_private import data, module, private

    weights = {}
    for accelerator in ("cpu", "gpu" if DEVICE == "cuda" else "cpu"):
        net, callback = module(), private(steps=6, physical_batch_size=8)
        net.build(data().facts.public())
        start = torch.cat([p.detach().clone().reshape(-1) for p in net.network.parameters()])
        trainer = pytorch_lightning.Trainer(
            max_epochs=-1, callbacks=[callback], logger=False, enable_checkpointing=False, accelerator=accelerator,
            enable_progress_bar=False, enable_model_summary=False, precision=precision,  # type: ignore[arg-type]
        )  # fmt: skip
        trainer.fit(net, data())
        assert callback.steps_done == 6
        weights[accelerator] = torch.cat([p.detach().cpu().float().reshape(-1) for p in net.network.parameters()])
    one, other = (*weights.values(), *weights.values())[:2]
    moved = (one - start).abs().mean()
    assert (one - other).abs().mean() < (0.01 if precision == "32-true" else 0.2) * moved
