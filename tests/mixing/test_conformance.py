"""Every kind of user DataModule, in both Lightning packages: nothing changes at share=0, and only the samples do above
it."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import visynth
from tests.mixing.kinds import BATCH, CLASSES, KINDS, SIDE, base_of
from tests.mixing.white import White, white_set
from tests.ranks import DDP, TRAINER, run_ranks
from visynth.core.errors import UsageError

pytestmark = [  # webdataset leaves its tar files to the garbage collector
    pytest.mark.filterwarnings("ignore:.*shard.tar:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*shard.tar:pytest.PytestUnraisableExceptionWarning"),
]
PACKAGES = ["pytorch_lightning", "lightning.pytorch"]
STEPS = 20
MIXED = {"share": 0.25, "balance": {"spot": 12}, "spread": 0.0}


def net(package: str, read, validated: bool):
    base = importlib.import_module(package).LightningModule

    class Net(base):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 4))
            self.losses: list[float] = []
            self.sizes: list[int] = []
            self.white: list[int] = []
            self.hooks = 0

        def on_before_batch_transfer(self, batch, dataloader_idx):
            self.hooks += 1
            return batch

        def training_step(self, batch, index):
            images, labels = read(batch)
            images = images[:, :1]
            flat = images.flatten(1)
            white = (flat.amax(1) - flat.amin(1)) < 1e-5
            self.white += labels[white].tolist()
            self.sizes.append(len(images))
            loss = nn.functional.cross_entropy(self.layers(images), labels)
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)

    class Validated(Net):
        def validation_step(self, batch, index):
            flat = batch[0].flatten(1)
            assert ((flat.amax(1) - flat.amin(1)) > 1e-5).all(), "validation must stay real"

    return Validated() if validated else Net()


def fit(package: str, name: str, root: Path, source=None, trainer=TRAINER, **options):
    """Train 20 steps: on the user's datamodule, or on the wrapped one where there is a source."""
    kind = KINDS[name]
    lightning = importlib.import_module(package)
    lightning.seed_everything(3, verbose=False)
    data = kind.make(base_of(package), root)
    if source is not None:
        data = visynth.WithSynthetic(data, source, **{**kind.options, **options})
    lightning.seed_everything(4, verbose=False)
    module = net(package, kind.read, name == "with_everything")
    with warnings.catch_warnings():
        # Of the kinds themselves, with or without the plugin; and what one of them is to be told.
        warnings.filterwarnings("ignore", "'pin_memory' argument is set as true")
        warnings.filterwarnings("ignore", "samples carry (.|\n)* follow neither from the label nor from the position")
        if name in ("with_everything", "augmented_on_the_device"):
            warnings.filterwarnings("ignore", "You have overridden `on_before_batch_transfer` in both")
        lightning.Trainer(max_steps=STEPS, max_epochs=-1, **trainer).fit(module, data)
    return module, data


def same(plain, wrapped) -> bool:
    states = zip(plain.state_dict().values(), wrapped.state_dict().values(), strict=True)
    return len(plain.losses) == STEPS and plain.losses == wrapped.losses and all(torch.equal(a, b) for a, b in states)


@pytest.fixture(scope="session")
def root(samples) -> Path:
    return samples / "images"


@pytest.fixture(scope="session")
def white(tmp_path_factory):
    return white_set(tmp_path_factory.mktemp("white") / "set", {"spot": 30}, tuple(CLASSES))


def test_there_are_enough_kinds() -> None:
    assert len(KINDS) >= 12


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", KINDS)
def test_share_zero_is_bit_identical(package: str, name: str, root, white) -> None:
    plain, _ = fit(package, name, root)
    wrapped, _ = fit(package, name, root, white.folder, share=0)
    assert same(plain, wrapped)
    assert plain.hooks == wrapped.hooks
    assert not plain.white


@pytest.mark.parametrize("backend", ["samples", "batches", "online"])
@pytest.mark.parametrize("name", KINDS)
def test_the_share_is_met_and_all_else_stays(name: str, backend: str, root, white) -> None:
    kind = KINDS[name]
    package = PACKAGES[len(name) % 2]  # either package does for either backend; the other test has both
    source = White(("spot",)) if backend == "online" else white.folder
    if backend == "samples" and not kind.samples:
        with pytest.raises(UsageError, match=r"backend='samples' exchanges(.|\n)*Take backend='batches'"):
            fit(package, name, root, source, backend=backend, **MIXED)
        return
    plain, bare = fit(package, name, root)
    wrapped, data = fit(package, name, root, source, backend=backend, **MIXED)
    assert wrapped.sizes == plain.sizes
    assert wrapped.hooks == plain.hooks
    assert set(wrapped.white) == {CLASSES["spot"]}
    items = STEPS * BATCH
    if name == "weighted_sampler":  # a quarter of the spots, which are an eighth to a third of what the sampler draws
        assert 1 <= len(wrapped.white) <= 0.25 * items
    elif (
        backend == "samples"
    ):  # 12 positions of each whole epoch; the rest of one, or a weighted sampler, draws by chance
        assert 0.08 * items <= len(wrapped.white) <= 0.42 * items
    else:
        assert 0.25 * items - 5 <= len(wrapped.white) <= 0.25 * items
    if hasattr(bare, "calls"):
        assert data.calls == bare.calls


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if not kind.samples])
def test_auto_takes_the_backend_that_works(name: str, root, white) -> None:
    wrapped, _ = fit("pytorch_lightning", name, root, white.folder, **MIXED)
    assert wrapped.white


def worker(rank: int, package: str, root: str, folder: str, out: str) -> None:
    found = {}
    for name in KINDS:
        plain, _ = fit(package, name, Path(root), trainer=DDP)
        wrapped, _ = fit(package, name, Path(root), folder, DDP, share=0)
        mixed, _ = fit(package, name, Path(root), folder, DDP, **MIXED)
        found[name] = {
            "same": same(plain, wrapped),
            "sizes": plain.sizes == mixed.sizes,
            "steps": len(mixed.losses),
            "white": len(mixed.white),
            "weights": mixed.state_dict(),
        }
    torch.save(found, f"{out}/{rank}.pt")


@pytest.mark.parametrize(
    "package", [pytest.param(p, marks=pytest.mark.slow) if p != PACKAGES[0] else p for p in PACKAGES]
)
def test_two_processes(package: str, root, white, tmp_path) -> None:
    run_ranks(worker, package, str(root), str(white.folder), str(tmp_path), seconds=280)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert list(ranks[0]) == list(KINDS)
    for name in KINDS:
        first, second = (rank[name] for rank in ranks)
        for rank in (first, second):
            assert rank["same"], f"{name}: share=0 changed the training"
            assert rank["sizes"], f"{name}: batches have other sizes"
            assert rank["steps"] == STEPS
        least = 0.01 if name == "weighted_sampler" else 0.08
        assert least * 2 * STEPS * BATCH <= first["white"] + second["white"] <= 0.42 * 2 * STEPS * BATCH, name
        pairs = zip(first["weights"].values(), second["weights"].values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), f"{name}: ranks went apart"
