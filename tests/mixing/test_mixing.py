"""WithSynthetic: the user's training unchanged but for the samples, in both Lightning packages."""

from __future__ import annotations

import importlib
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, WeightedRandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

import visynth
from tests.ranks import DDP, run_ranks
from visynth.core.errors import IntegrityError, UsageError
from visynth.core.recipe import ClassRecipe, Recipe
from visynth.mixing.adapter import Adapter
from visynth.mixing.layout import Layout
from visynth.mixing.options import Options
from visynth.mixing.plan import Mix, deal, plan_epoch, replaceable
from visynth.mixing.positions import MixedDataset
from visynth.mixing.sources import RenderedSource, truth_of
from visynth.mixing.targets import label_like

PACKAGES = ["pytorch_lightning", "lightning.pytorch"]
EXACT = {"share": 0.3, "balance": {"spot": 10, "scratch": 5}, "leak_guard": False}


def folder_module(package: str, root: Path, validate: Path | None = None, **loader):
    """A plain user DataModule over class folders."""
    base = importlib.import_module(package).LightningDataModule

    class Folders(base):
        def __init__(self) -> None:
            super().__init__()
            self.batch_size = 4
            self.calls: list[str] = []

        def prepare_data(self) -> None:
            self.calls.append("prepare_data")

        def setup(self, stage: str | None = None) -> None:
            self.calls.append(f"setup {stage}")
            steps = transforms.Compose(
                [
                    transforms.Resize((16, 16)),
                    transforms.RandomHorizontalFlip(),
                    transforms.ToTensor(),
                    transforms.Normalize(0.5, 0.2),
                ]
            )
            self.train = ImageFolder(root, steps)
            self.held_out = ImageFolder(validate, steps) if validate else None

        def teardown(self, stage: str | None = None) -> None:
            self.calls.append(f"teardown {stage}")

        def train_dataloader(self) -> DataLoader:
            return DataLoader(self.train, self.batch_size, **({"shuffle": True} | loader))

        def state_dict(self) -> dict[str, int]:
            return {"seen": 7}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.calls.append(f"load {state['seen']}")

    if validate:
        Folders.val_dataloader = lambda self: DataLoader(self.held_out, 4)
    return Folders()


def net(package: str):
    base = importlib.import_module(package).LightningModule

    class Net(base):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
            self.losses: list[float] = []
            self.labels: list[int] = []
            self.moved = 0

        def on_before_batch_transfer(self, batch, index):
            self.moved += 1
            return batch

        def training_step(self, batch, index):
            images, labels = batch
            self.labels += labels.tolist()
            loss = nn.functional.cross_entropy(self.layers(images), labels)
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    return Net()


def fit(package: str, data, folder, epochs: int = 2, **kwargs):
    lightning = importlib.import_module(package)
    lightning.seed_everything(3, verbose=False)
    module = net(package)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **kwargs,
    )
    trainer.fit(module, data)
    return module, trainer


@pytest.fixture
def train(samples) -> Path:
    return samples / "images"


@pytest.mark.parametrize("package", PACKAGES)
class TestBothPackages:
    def test_share_zero_is_bit_identical(self, package: str, train, renders, tmp_path) -> None:
        plain, _ = fit(package, folder_module(package, train), tmp_path)
        wrapped, _ = fit(
            package, visynth.WithSynthetic(folder_module(package, train), renders.folder, share=0), tmp_path
        )
        assert len(plain.losses) >= 20
        assert plain.losses == wrapped.losses
        assert all(
            torch.equal(a, b) for a, b in zip(plain.state_dict().values(), wrapped.state_dict().values(), strict=True)
        )

    def test_epoch_length_and_hooks_stay_and_the_share_is_met(self, package: str, train, renders, tmp_path) -> None:
        bare = folder_module(package, train)
        plain, _ = fit(package, bare, tmp_path)
        inner = folder_module(package, train)
        module, trainer = fit(package, visynth.WithSynthetic(inner, renders.folder, **EXACT), tmp_path)
        assert len(module.losses) == len(plain.losses)
        assert module.moved == plain.moved == len(plain.losses)
        assert inner.calls == bare.calls
        assert len(inner.calls) == 3
        assert inner.trainer is trainer
        added = Counter(module.labels) - Counter(plain.labels)
        names = ImageFolder(train).classes
        # 48 samples, 14 slots an epoch, two epochs; classes that receive none make room.
        removed = Counter(plain.labels) - Counter(module.labels)
        receiving = {names.index("spot"), names.index("scratch")}
        assert sum(added.values()) == sum(removed.values())
        assert not set(removed) & receiving
        assert 0.85 * 28 <= sum(added.values()) <= 28
        assert added[names.index("spot")] > added[names.index("scratch")] > 0

    def test_it_is_a_datamodule_of_its_own_package(self, package: str, train, renders) -> None:
        wrapped = visynth.WithSynthetic(folder_module(package, train), renders.folder)
        assert isinstance(wrapped, importlib.import_module(package).LightningDataModule)
        assert type(wrapped).__qualname__ == type(wrapped._visynth_inner).__qualname__

    def test_checkpoints_hold_the_users_state_under_the_users_name(
        self, package: str, train, renders, tmp_path
    ) -> None:
        inner = folder_module(package, train)
        wrapped = visynth.WithSynthetic(inner, renders.folder, **EXACT)
        _, trainer = fit(package, wrapped, tmp_path, epochs=1)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
        assert saved[type(inner).__qualname__] == {"seen": 7}
        # Without the plugin the same checkpoint goes on, and the other way round.
        bare = folder_module(package, train)
        lightning = importlib.import_module(package)
        again = lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        again.fit(net(package), bare, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
        assert "load 7" in bare.calls

    def test_hyperparameters_are_logged_as_before(self, package: str, train, renders) -> None:
        base = importlib.import_module(package).LightningDataModule

        class Told(base):
            def __init__(self, width: int = 3) -> None:
                super().__init__()
                self.save_hyperparameters()

            def train_dataloader(self):
                return None

        wrapped = visynth.WithSynthetic(Told(5), renders.folder)
        assert wrapped._log_hyperparams is True
        assert dict(wrapped.hparams_initial) == {"width": 5}

    def test_without_validation_none_appears(self, package: str, train, renders) -> None:
        wrapped = visynth.WithSynthetic(folder_module(package, train), renders.folder)
        base = importlib.import_module(package).LightningDataModule
        assert type(wrapped).val_dataloader is base.val_dataloader

    def test_pickle_deepcopy_and_attributes_reach_the_inner_one(self, package: str, train, renders) -> None:
        import copy

        wrapped = visynth.WithSynthetic(folder_module(package, train), renders.folder, **EXACT)
        wrapped.batch_size = 9
        assert wrapped._visynth_inner.batch_size == 9
        assert copy.deepcopy(wrapped).batch_size == 9
        with pytest.raises(AttributeError, match="nothing"):
            _ = wrapped.nothing

    def test_two_processes_see_disjoint_samples(self, package: str, train, renders, tmp_path) -> None:
        wrapped = visynth.WithSynthetic(folder_module(package, train), renders.folder, **EXACT)
        wrapped.setup("fit")
        whole = set(wrapped.train_dataloader().dataset.plan())
        assert len(whole) == 14
        # What Lightning does under DDP: the loader is made again over the same dataset with a distributed sampler.
        seen = []
        for rank in range(2):
            sampler = torch.utils.data.DistributedSampler(
                wrapped.train_dataloader().dataset, num_replicas=2, rank=rank, shuffle=True, seed=1
            )
            seen.append(set(sampler))
        assert not seen[0] & seen[1]


def ddp_worker(rank: int, train: str, folder: str, out: str) -> None:
    import pytorch_lightning

    package = "pytorch_lightning"
    data = visynth.WithSynthetic(folder_module(package, Path(train)), folder, **EXACT)
    pytorch_lightning.seed_everything(3, verbose=False)
    module = net(package)
    module.layers(torch.zeros(1, 3, 16, 16))  # lazy layers need their shapes before DDP
    module.seen = []
    trainer = pytorch_lightning.Trainer(max_epochs=2, **DDP)
    trainer.fit(module, data)
    dataset = trainer.train_dataloader.dataset
    torch.save(
        {
            "steps": len(module.losses),
            "labels": module.labels,
            "plan": dataset.plan(),
            "indices": list(trainer.train_dataloader.sampler),
        },
        f"{out}/{rank}.pt",
    )


def test_under_ddp_ranks_share_the_plan_and_not_the_samples(train, renders, tmp_path) -> None:
    run_ranks(ddp_worker, str(train), str(renders.folder), str(tmp_path))
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2))
    assert first["plan"] == second["plan"] != {}
    assert first["steps"] == second["steps"] == 2 * 6
    assert not set(first["indices"]) & set(second["indices"])


class TestPlanning:
    def test_epochs_differ_repeat_and_keep_to_the_allowed(self) -> None:
        mix = Mix({"a": 30, "b": 10}, 0.4, 0.0, seed=1)
        places = {"a": list(range(7)), "b": [7, 8]}
        plans = [plan_epoch(range(50, 100), places, mix, epoch, 20, 20 * epoch) for epoch in (0, 1, 0)]
        assert plans[0] == plans[2] != plans[1]
        assert all(50 <= position < 100 for position in plans[0])
        assert Counter("a" if row < 7 else "b" for row in plans[0].values()) == {"a": 15, "b": 5}

    def test_all_pictures_of_a_class_are_used_evenly_over_epochs(self) -> None:
        mix = Mix({"a": 1}, 0.25, 0.0, seed=0)
        places = {"a": list(range(30))}
        used = Counter(row for e in range(21) for row in plan_epoch(range(40), places, mix, e, 10, 10 * e).values())
        assert set(used.values()) == {7}

    def test_spread_gives_every_class_some(self) -> None:
        plan = plan_epoch(range(200), {"a": [0], "b": [1], "c": [2]}, Mix({"a": 5}, 0.5, 0.3, seed=0), 0, 100, 0)
        assert Counter(plan.values()) == {0: 80, 1: 10, 2: 10}

    def test_deal_sums_and_is_fair(self) -> None:
        assert deal(np.array([1, 1, 1]) / 3, 10) == [4, 3, 3]
        assert sum(deal(np.random.default_rng(0).dirichlet(np.ones(7)), 1000)) == 1000

    def test_receiving_classes_are_never_replaced(self) -> None:
        assert replaceable(6, [0, 1, 0, 2, 1, 0], {0, 2}) == [1, 4]
        assert replaceable(3, [0, 0, 0], {0}) == [0, 1, 2]
        assert replaceable(2, None, {0}) == [0, 1]


class Arrays(Dataset):
    """Dict samples of float tensors in [0, 1], with a key more."""

    def __init__(self, count: int = 20, side: int = 64, top: float = 1.0) -> None:
        self.images, self.targets = torch.rand(count, 3, side, side) * top, [i % 2 for i in range(count)]
        self.classes = ["good", "spot"]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int):
        return {"pixels": self.images[index], "diagnosis": torch.tensor(self.targets[index]), "place": index}


class TestSamples:
    def test_dicts_keep_their_other_keys(self, renders, composition) -> None:
        data = Arrays()
        keys = Options(image_key="pixels", label_key="diagnosis")
        source = RenderedSource(only(renders, "spot"), {"spot": 1}, 0)
        mixed = MixedDataset(data, source, data.targets, Mix({"spot": 9}, 0.25, 0.0, 0), keys)
        made = [mixed[i] for i in mixed.plan()]
        assert len(made) == 5
        for sample in made:
            assert sample["pixels"].shape == (3, 64, 64)
            assert sample["pixels"].dtype == torch.float32
            assert sample["pixels"].min() >= 0
            assert sample["pixels"].max() <= 1
            assert sample["diagnosis"] == torch.tensor(1)
            assert "place" in sample
        real = next(i for i in range(20) if i not in mixed.plan())
        assert torch.equal(mixed[real]["pixels"], data.images[real])

    def test_unknown_keys_are_asked_for(self) -> None:
        with pytest.raises(UsageError, match="name the image and the label with image_key="):
            Layout.of({"pixels": 1, "diagnosis": 2})
        with pytest.raises(UsageError, match=r"must be \(image, label\), dicts or dataclasses"):
            Layout.of(3)

    @pytest.mark.parametrize(
        "image",
        [
            torch.rand(3, 64, 64),
            (torch.rand(1, 64, 64) * 255).to(torch.uint8),
            torch.rand(3, 64, 64, dtype=torch.float64) * 255,
            np.random.default_rng(0).random((64, 64, 3)).astype(np.float32),
            (np.random.default_rng(0).random((64, 64)) * 255).astype(np.uint8),
            (np.random.default_rng(0).random((64, 64, 1)) * 65535).astype(np.uint16),
        ],
    )
    def test_adapter_gives_the_same_kind_as_the_real_one(self, image) -> None:
        made = Adapter.like(image)(np.full((64, 64, 1), 255, np.uint8))
        assert type(made) is type(image)
        assert made.dtype == image.dtype
        assert (
            made.shape[: 2 if image.ndim == 2 else 3]
            == (image.shape if image.ndim == 3 else (*image.shape,))[: made.ndim]
        )
        top = 1.0 if image.dtype in (torch.float32, np.float32) else 65535 if image.dtype == np.uint16 else 255
        assert float(made.max()) == pytest.approx(top)

    def test_adapter_refuses_to_guess_or_squash(self) -> None:
        with pytest.raises(UsageError, match="were normalised in a way that cannot be guessed"):
            Adapter.like(torch.randn(3, 8, 8))
        with pytest.raises(UsageError, match="would squash them"):
            Adapter.like(torch.rand(3, 8, 16))(np.zeros((8, 8, 1), np.uint8))
        with pytest.raises(UsageError, match="rendered images have 4 channels"):
            Adapter.like(torch.rand(1, 8, 8))(np.zeros((8, 8, 4), np.uint8))
        with pytest.raises(UsageError, match="must be PIL images, tensors or arrays"):
            Adapter.like("image.png")

    @pytest.mark.parametrize(
        "label", [1, np.int64(1), torch.tensor(1), torch.tensor([0.0, 1.0, 0.0]), np.array([0, 1, 0])]
    )
    def test_labels_keep_their_type(self, label) -> None:
        made = label_like(label, 2)
        assert type(made) is type(label)
        assert (np.argmax(np.asarray(made)) if np.ndim(made) else int(made)) == 2


class TestLabels:
    def loader(self, train, renders, dataset, **options):
        import pytorch_lightning

        class Module(pytorch_lightning.LightningDataModule):
            def train_dataloader(self):
                return DataLoader(dataset, 4, collate_fn=list)

        return visynth.WithSynthetic(Module(), renders.folder, **{**EXACT, **options}).train_dataloader()

    def test_a_target_transform_is_applied_to_synthetic_labels_too(self, train, renders) -> None:
        steps = transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()])
        spot = ImageFolder(train).class_to_idx["spot"]
        dataset = ImageFolder(train, steps, target_transform=lambda label: torch.tensor([float(label == spot)]))
        loader = self.loader(train, renders, dataset, balance={"spot": 10})
        made = [loader.dataset[i][1] for i in loader.dataset.plan()]
        assert all(label.shape == (1,) for label in made)
        assert 0 < sum(float(label) for label in made) <= len(made)

    def test_labels_that_do_not_agree_with_the_samples_are_refused(self, train, renders) -> None:
        class Moved(ImageFolder):
            def __getitem__(self, index):
                image, label = super().__getitem__(index)
                return image, label + 1

        with pytest.raises(UsageError, match="training sample 0 has the label 1, but"):
            self.loader(train, renders, Moved(train, transforms.ToTensor()))

    def test_text_is_refused(self) -> None:
        with pytest.raises(UsageError, match="makes class labels, masks and"):
            label_like("crack", 1)

    def test_samples_with_another_picture_beside_the_label_are_refused(self) -> None:
        sample = {"image": torch.zeros(3, 8, 8), "label": 1, "depth": torch.zeros(8, 8), "id": 7}
        with pytest.raises(UsageError, match="samples carry 'depth' beside"):
            Layout.of(sample).check_extras(sample)

    def test_ragged_targets_ask_for_labels(self, renders) -> None:
        from visynth.data.labels import find_labels

        data = Arrays()
        data.targets = [[0], [1, 2]] * 10
        assert find_labels(data) is None


def only(renders, *names: str):
    from dataclasses import replace

    return replace(renders, records=tuple(r for r in renders.records if r.label in names))


class TestRefusals:
    def wrap(self, train, source, **options):
        wrapped = visynth.WithSynthetic(folder_module("pytorch_lightning", train), source, **options)
        wrapped.setup("fit")
        return wrapped.train_dataloader()

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"share": 1.5}, r"share must be in \[0, 1\)"),
            ({"share": -0.1}, r"share must be in \[0, 1\)"),
            ({"spread": 2}, r"spread must be in \[0, 1\]"),
            ({"balance": "minorty"}, "balance must be one of 'minority'"),
            ({"classes": {"dent": 0}}, "are not among the dataset's 'dent'"),
            ({"labels": [1, 2]}, "labels has 2 entries, the training dataset 48 samples"),
        ],
    )
    def test_wrong_options(self, train, renders, options, told: str) -> None:
        with pytest.raises(UsageError, match=told):
            self.wrap(train, renders.folder, leak_guard=False, **options)

    def test_missing_renders_are_told_at_setup(self, train, tmp_path) -> None:
        with pytest.raises(IntegrityError, match="there is no folder"):
            self.wrap(train, tmp_path / "nothing")

    def test_not_a_datamodule(self, renders) -> None:
        with pytest.raises(UsageError, match="wraps a LightningDataModule, but got dict"):
            visynth.WithSynthetic({}, renders.folder)

    def test_other_loaders_say_what_would_work(self, renders) -> None:
        import pytorch_lightning

        class Odd(pytorch_lightning.LightningDataModule):
            def train_dataloader(self):
                return [1, 2]

        with pytest.raises(UsageError, match="is a int, no torch DataLoader"):
            visynth.WithSynthetic(Odd(), renders.folder, backend="samples").train_dataloader()
        with pytest.raises(UsageError, match="has no train_dataloader"):
            visynth.WithSynthetic(pytorch_lightning.LightningDataModule(), renders.folder)

    def test_sets_for_looking_are_refused(self, train, composition, tmp_path) -> None:
        from visynth.render.run import make_plan, render_set

        generator, _ = composition
        made = render_set(generator, make_plan(generator, per_class=2, purpose="looking"), tmp_path / "r")
        with pytest.raises(UsageError, match="is for looking at: no class of it was shown to help"):
            self.wrap(train, made.folder, leak_guard=False)

    def test_a_share_above_the_room_is_capped_with_a_warning(self, train, renders) -> None:
        with pytest.warns(UserWarning, match="only 24 of 48 positions"):
            loader = self.wrap(train, renders.folder, share=0.9, leak_guard=False)
        assert len(loader.dataset.plan()) == 24


class TestLoaders:
    def test_workers_persistent_ones_too_follow_the_epoch(self, train, renders) -> None:
        wrapped = visynth.WithSynthetic(
            folder_module("pytorch_lightning", train, num_workers=1, persistent_workers=True, shuffle=False),
            renders.folder,
            **EXACT,
        )
        wrapped.setup("fit")
        loader = wrapped.train_dataloader()
        epochs = [torch.cat([labels for _, labels in loader]).tolist() for _ in range(2)]
        real = ImageFolder(train).targets
        changed = [{i for i, (a, b) in enumerate(zip(e, real, strict=True)) if a != b} for e in epochs]
        assert changed[0] != changed[1]
        for epoch, own in enumerate(changed):
            loader.dataset.begin(epoch)
            assert own <= set(loader.dataset.plan())

    def test_samplers_batch_samplers_and_collation_are_kept(self, train, renders) -> None:
        dataset = ImageFolder(train, transforms.ToTensor())
        sampler = WeightedRandomSampler([1.0] * 48, 10, generator=torch.Generator().manual_seed(0))
        wrapped = visynth.WithSynthetic(
            folder_module("pytorch_lightning", train, shuffle=None, sampler=sampler),
            renders.folder,
            **EXACT,
            backend="samples",
        )
        wrapped.setup("fit")
        loader = wrapped.train_dataloader()
        assert loader.sampler is sampler
        assert len(loader) == 3
        assert len(dataset) == len(loader.dataset) == 48

    def test_a_users_own_loader_class_is_kept(self, train, renders) -> None:
        import pytorch_lightning

        class Own(DataLoader):
            def __init__(self, root, flavour: str) -> None:
                super().__init__(
                    ImageFolder(root, transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()])), 4
                )
                self.flavour = flavour

        class Module(pytorch_lightning.LightningDataModule):
            def train_dataloader(self):
                return Own(train, "salty")

        loader = visynth.WithSynthetic(Module(), renders.folder, **EXACT).train_dataloader()
        assert isinstance(loader, Own)
        assert loader.flavour == "salty"
        assert isinstance(loader.dataset, MixedDataset)
        assert sum(len(labels) for _, labels in loader) == 48

    def test_subsets_find_labels_transforms_and_classes(self, train, renders) -> None:
        import pytorch_lightning

        class Module(pytorch_lightning.LightningDataModule):
            def train_dataloader(self):
                whole = ImageFolder(train, transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()]))
                return DataLoader(Subset(whole, list(range(0, 48, 2))), 4)

        loader = visynth.WithSynthetic(Module(), renders.folder, **EXACT).train_dataloader()
        assert len(loader.dataset) == 24
        assert all(images.shape[1:] == (3, 8, 8) for images, _ in loader)

    def test_the_quick_way_gives_the_same_pictures(self, train, renders) -> None:
        from visynth.core.codec import decode

        dataset = ImageFolder(train, transforms.Compose([transforms.Resize((16, 16)), transforms.ToTensor()]))
        source = RenderedSource(renders, dataset.class_to_idx, 0)
        mixed = MixedDataset(dataset, source, dataset.targets, Mix({"spot": 5}, 0.1, 0.0, 0), Options())
        assert mixed.convert.through.short
        for index, row in mixed.plan().items():
            record = renders.records[row]
            slow = mixed.convert(decode(renders.folder / record.file_name), truth_of(record, source.indices))
            assert torch.equal(mixed[index][0], slow[0])

    def test_mixed_datasets_pickle(self, train, renders) -> None:
        wrapped = visynth.WithSynthetic(folder_module("pytorch_lightning", train), renders.folder, **EXACT)
        wrapped.setup("fit")
        dataset = wrapped.train_dataloader().dataset
        again = pickle.loads(pickle.dumps(dataset))
        assert again.plan() == dataset.plan()


def test_synthetic_dataset(renders) -> None:
    dataset = visynth.SyntheticDataset(renders.folder, transforms.ToTensor())
    image, label = dataset[0]
    assert image.shape[0] == 1
    assert renders.classes[label] == dataset.record(0).label
    with pytest.raises(UsageError, match="must give a label to"):
        visynth.SyntheticDataset(renders.folder, classes={"spot": 0})


def test_the_readmes_drop_in_example_runs(train, renders, tmp_path, monkeypatch) -> None:
    import re
    import shutil

    readme = Path(__file__).resolve().parents[2] / "README.md"
    example, *_ = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    shutil.copytree(renders.folder, tmp_path / "trial" / "renders")
    recipe = Recipe({"spot": ClassRecipe(0.5)}, renders.plan["generator"], "renders")
    (tmp_path / "trial" / "recipe.yaml").write_text(recipe.to_yaml())
    monkeypatch.chdir(tmp_path)
    import pytorch_lightning

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    names = {
        "visynth": visynth,
        "MyDataModule": lambda: folder_module("pytorch_lightning", train),
        "my_model": net("pytorch_lightning"),
        "trainer": pytorch_lightning.Trainer(max_epochs=1, accelerator="cpu", **quiet),
    }
    exec(example, names)
    assert len(names["my_model"].losses) == 12
    assert set(names["trainer"].train_dataloader.dataset.counts()) == {"spot"}
