"""How much, when and of what: schedules, the real-only end, flags, weights, mixup, in every backend alike."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import pytorch_lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import visynth
from tests.mixing.kinds import CLASSES, Rows, pictures
from tests.mixing.white import White, white_set
from tests.ranks import DDP, TRAINER, run_ranks
from visynth.core.errors import UsageError
from visynth.mixing.options import Options, share_at
from visynth.mixing.plan import Mix, Slots, SlotStream

BACKENDS = ["samples", "batches", "online"]
SPOT = {"balance": {"spot": 12}, "spread": 0.0, "classes": CLASSES}


class Tensors(pytorch_lightning.LightningDataModule):
    def __init__(self, form=None, batch: int = 8) -> None:
        super().__init__()
        self.form, self.batch = form, batch

    def train_dataloader(self):
        data = TensorDataset(*pictures()) if self.form is None else Rows(self.form)
        return DataLoader(data, self.batch, shuffle=True)


class Watch(pytorch_lightning.LightningModule):
    """Keeps what it sees: the white rows are the synthetic ones."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 4)
        self.batches: list = []
        self.white: list[int] = []

    def training_step(self, batch, index):
        images = batch["image"] if isinstance(batch, dict) else batch[0]
        self.batches.append(batch)
        self.white.append(int((images.flatten(1).amin(1) > 0.99).sum()))
        return self.layer(images.mean((1, 2, 3))[:, None]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def train(source, backend: str, form=None, trainer=None, batch: int = 8, **options):
    pytorch_lightning.seed_everything(1, verbose=False)
    data = visynth.WithSynthetic(Tensors(form, batch), source(backend), backend=backend, **{**SPOT, **options})
    module = Watch()
    told = {"max_epochs": 10, **TRAINER, **(trainer or {})}
    pytorch_lightning.Trainer(**told).fit(module, data)
    return module


class TestShare:
    def test_schedules_in_closed_form(self) -> None:
        cosine = {"start": 0.6, "end": 0.2, "shape": "cosine", "until": 0.5}
        assert [share_at(cosine, p) for p in (0, 0.25, 0.5, 1)] == pytest.approx([0.6, 0.4, 0.2, 0.2])
        assert share_at(cosine, 0.125) == pytest.approx(0.2 + 0.4 * (1 + np.cos(np.pi / 4)) / 2)
        assert share_at({"start": 0.0, "end": 0.4}, 0.75) == pytest.approx(0.3)
        assert [share_at({"steps": {"0": 0.1, "0.5": 0.3}}, p) for p in (0.49, 0.5)] == [0.1, 0.3]

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_linear_over_the_training(self, backend: str, source) -> None:
        module = train(source, backend, share={"start": 0.5, "end": 0.0})
        by_epoch = [sum(module.white[6 * e : 6 * e + 6]) / 48 for e in range(10)]
        told = [0.5 * (1 - e / 10) - (0.0 if backend == "samples" else 0.02) for e in range(10)]
        assert by_epoch == pytest.approx(told, abs=0.05)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_the_end_is_real(self, backend: str, source) -> None:
        module = train(source, backend, share=0.25, finish=0.3)
        assert sum(module.white[:42]) == pytest.approx(0.25 * 48 * 7, abs=1)
        assert module.white[42:] == [0] * 18

    @pytest.mark.parametrize("backend", ["batches", "online"])
    def test_within_one_epoch_too(self, backend: str, source) -> None:
        module = train(source, backend, trainer={"max_epochs": 1}, share={"steps": {0: 0.5, 0.5: 0.0}})
        assert module.white == [4, 4, 4, 0, 0, 0]
        with pytest.raises(UsageError, match="by epochs under backend='samples', but max_epochs is 1"):
            train(source, "samples", trainer={"max_epochs": 1}, finish=0.5)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_steps_tell_how_far_a_training_is(self, backend: str, source) -> None:
        module = train(source, backend, trainer={"max_epochs": -1, "max_steps": 24}, share=0.25, finish=0.5)
        assert sum(module.white[:12]) == pytest.approx(24, abs=1)
        assert module.white[12:] == [0] * 12

    @pytest.mark.parametrize("backend", ["batches", "online"])
    def test_the_share_is_exact_over_batches(self, backend: str, source) -> None:
        module = train(source, backend, share=0.3, batch=5, trainer={"max_epochs": 1})
        # 9 batches of 5 rows: floor(13.5) slots in all; the last one has 3 rows, and 0.9 slots by chance.
        assert sum(module.white[:9]) == 13
        assert module.white[9] in (0, 1)
        assert set(module.white[:9]) == {1, 2}


class TestSlots:
    def test_ranks_share_them_out(self) -> None:
        whole, parts = Slots(lambda batch: 0.3, 8), [Slots(lambda batch: 0.3, 4, rank, 2) for rank in range(2)]
        for batch in (0, 1, 2, 7, 3, 1000):
            assert sorted(n for part in parts for n in part.of(batch)) == list(whole.of(batch))

    def test_a_resumed_training_meets_the_same(self) -> None:
        def share(batch: int) -> float:
            return 0.1 + 0.4 * (batch % 7) / 7

        straight = Slots(share, 5)
        told = [straight.of(batch) for batch in range(50)]
        assert Slots(share, 5).of(37) == told[37]
        assert [n for slots in told for n in slots] == list(range(told[-1].stop))

    def test_classes_come_by_their_counts_and_pictures_in_turn(self) -> None:
        stream = SlotStream(["a", "b", "c"], Mix({"a": 3, "b": 1}, 0.3, 0.2, 0), seed=5)
        drawn = [stream.at(n) for n in range(3 * stream.block)]
        shares = {name: count / len(drawn) for name, count in Counter(name for name, _ in drawn).items()}
        third = 0.2 / 3
        assert shares == pytest.approx({"a": 0.6 + third, "b": 0.2 + third, "c": third}, abs=1e-3)
        for name in "abc":
            assert sorted(n for c, n in drawn if c == name) == list(range(sum(c == name for c, _ in drawn)))


class TestFields:
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_flag_and_weight_in_dicts(self, backend: str, source) -> None:
        def form(image, label, _):
            return {"image": image, "label": label}

        module = train(source, backend, form, share=0.25, is_synthetic=True, weight=0.5, trainer={"max_epochs": 2})
        for batch, white in zip(module.batches, module.white, strict=True):
            assert batch["is_synthetic"].dtype == torch.bool
            assert int(batch["is_synthetic"].sum()) == white
            assert torch.equal(batch["is_synthetic"], batch["image"].flatten(1).amin(1) > 0.99)
            expected = torch.where(batch["is_synthetic"], 0.5, 1.0)
            assert torch.equal(batch["weight"].float(), expected)
        assert sum(module.white) > 10

    @pytest.mark.parametrize("share", [0, 0.25])
    @pytest.mark.parametrize("backend", BACKENDS)
    def test_at_the_end_of_tuples_and_without_any_synthetic_sample(self, backend: str, share, source) -> None:
        module = train(source, backend, share=share, is_synthetic=True, trainer={"max_epochs": 2})
        for images, _, flags in module.batches:
            assert torch.equal(flags, images.flatten(1).amin(1) > 0.99)
        assert bool(sum(module.white)) == bool(share)

    def test_containers_that_cannot_grow_say_so(self, source) -> None:
        from tests.mixing.kinds import Sample

        for backend in BACKENDS:
            with pytest.raises(UsageError, match=r"added to dicts .* but samples are Sample"):
                train(source, backend, lambda image, label, _: Sample(image, label), share=0.2, is_synthetic=True)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_labels_as_probabilities(self, backend: str, source) -> None:
        module = train(source, backend, share=0.25, num_classes=4, trainer={"max_epochs": 1})
        for images, labels in module.batches:
            assert labels.shape == (len(images), 4)
            assert torch.equal(labels.sum(1), torch.ones(len(images)))
            assert set(labels[images.flatten(1).amin(1) > 0.99].argmax(1).tolist()) <= {CLASSES["spot"]}

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_mixup_blends_image_and_label_alike(self, backend: str, source) -> None:
        module = train(
            source, backend, share=0.5, mixup=1.0, num_classes=4, is_synthetic=True, trainer={"max_epochs": 4}
        )
        originals = {tuple(image.flatten()[:3].tolist()): image for image in pictures()[0]}
        weights = []
        for images, labels, flags in module.batches:
            for image, label, synthetic in zip(images, labels, flags, strict=True):
                if not synthetic:
                    assert tuple(image.flatten()[:3].tolist()) in originals
                    continue
                lam = float(label[CLASSES["spot"]])  # the real half is of another class
                weights.append(lam)
                real = (image - lam) / (1 - lam) if lam < 0.95 else None
                if real is not None:
                    distances = [float((real - other).abs().max()) for other in originals.values()]
                    assert min(distances) < 1e-3
        assert 0.3 < np.mean(weights) < 0.7
        assert np.std(weights) > 0.2, "Beta(1, 1) is uniform: its deviation is 0.29"

    def test_mixup_of_other_images_says_so(self, source) -> None:
        def whole(image, label, _):
            return (image * 255).to(torch.uint8), label

        with pytest.raises(UsageError, match="mixup needs floating-point images"):
            train(source, "samples", whole, share=0.5, mixup=1.0, num_classes=4)
        with pytest.raises(UsageError, match=r"num_classes is 2, but there is a label [23]"):
            train(source, "batches", share=0.5, num_classes=2)

    def test_every_class_gets_some(self, tmp_path) -> None:
        folder = white_set(tmp_path / "w", {"spot": 5, "good": 5, "stain": 5}, tuple(CLASSES)).folder
        for backend in ("samples", "batches"):
            module = train(lambda _: folder, backend, share=0.5, spread=0.3, trainer={"max_epochs": 8})
            labels = [
                int(y) for images, ys in module.batches for x, y in zip(images, ys, strict=True) if x.amin() > 0.99
            ]
            counts = Counter(labels)
            assert counts[CLASSES["spot"]] / len(labels) == pytest.approx(0.8, abs=0.06)
            assert counts[CLASSES["good"]] > 0
            assert counts[CLASSES["stain"]] > 0

    def test_labels_told_for_data_without_places(self, white) -> None:
        from tests.mixing.kinds import Stream

        class Data(pytorch_lightning.LightningDataModule):
            def train_dataloader(self):
                return DataLoader(Stream(), 8)

        told = {"balance": "not majority", "classes": CLASSES, "spread": 0.0, "labels": pictures()[1].tolist()}
        module = Watch()
        data = visynth.WithSynthetic(Data(), white.folder, **told)
        pytorch_lightning.Trainer(max_epochs=2, **TRAINER).fit(module, data)
        # spot is filled from 8 up to the majority's 24: 16 of 48 + 16 samples.
        assert sum(module.white) == pytest.approx(2 * 48 * 16 / 64, abs=1)

    def test_a_cap_on_what_a_word_asks_for(self, white, tmp_path) -> None:
        loader = visynth.WithSynthetic(
            Tensors(), white.folder, balance="not majority", classes=CLASSES, spread=0.0, leak_guard=False, cap=1
        )
        with pytest.warns(UserWarning, match="capped at 1 synthetic images per real one"):
            dataset = loader.train_dataloader().dataset
        assert len(dataset.plan()) == round(48 * 8 / (48 + 8))


class TestOnline:
    def test_made_outside_autograd_and_the_users_autocast(self) -> None:
        generators = []

        def source(_):
            generators.append(White())
            return generators[-1]

        module = train(source, "online", share=0.25, trainer={"precision": "bf16-mixed", "max_epochs": 1})
        assert sum(module.white) == 12
        calls = generators[0].calls
        assert not any(call["grad"] or call["inference"] or call["autocast"] for call in calls)
        train(source, "online", share=0.25, autocast="bfloat16", trainer={"max_epochs": 1})
        assert all(call["autocast"] is torch.bfloat16 for call in generators[1].calls)
        seeds = [seed for call in calls[1:] for seed in call["seeds"]]
        assert len(seeds) == len(set(seeds)) == 12

    def test_rows_go_through_the_users_own_transform(self, samples, composition) -> None:
        from torchvision import transforms
        from torchvision.datasets import ImageFolder

        _, folder = composition
        steps = transforms.Compose([transforms.Resize((16, 16)), transforms.ToTensor(), transforms.Normalize(0.5, 0.2)])

        class Data(pytorch_lightning.LightningDataModule):
            def train_dataloader(self):
                return DataLoader(ImageFolder(samples / "images", steps), 8, shuffle=True)

        data = visynth.WithSynthetic(Data(), folder, share=0.5, balance={"spot": 8}, spread=0.0, is_synthetic=True)
        module = Watch()
        pytorch_lightning.Trainer(max_epochs=1, **TRAINER).fit(module, data)
        made = torch.cat([batch[0][batch[2]] for batch in module.batches])
        real = torch.cat([batch[0][~batch[2]] for batch in module.batches])
        assert len(made) >= 20
        assert made.mean() == pytest.approx(float(real.mean()), abs=0.5)
        assert made.std() == pytest.approx(float(real.std()), rel=0.5)
        assert float(made.min()) < 0 < float(made.max())

    def test_a_generator_folder_is_enough(self, composition) -> None:
        _, folder = composition
        data = visynth.WithSynthetic(Tensors(), folder, share=0.25, classes=CLASSES, sampler={"nonsense": 1})
        with pytest.raises(UsageError, match="sampler= has unknown options 'nonsense'"):
            pytorch_lightning.Trainer(max_epochs=1, **TRAINER).fit(Watch(), data)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"share": {"start": 0.5}}, "or a schedule such as"),
            ({"share": {"start": 0.5, "end": 0.1, "shape": "cubic"}}, "shapes: 'linear', 'cosine'"),
            ({"share": {"steps": {0.2: 0.5}}}, "the first step at 0"),
            ({"share": {"steps": {0: 1.0}}}, r"share must be in \[0, 1\)"),
            ({"share": "half"}, r"share must be in \[0, 1\)"),
            ({"share": True}, r"share must be in \[0, 1\)"),
            ({"finish": 1.2}, r"finish must be in \[0, 1\]"),
            ({"backend": "sample"}, "backend must be one of 'auto', 'samples', 'batches', 'online'"),
            ({"mixup": 0.2}, "say num_classes="),
            ({"weight": -1}, "weight must be at least 0"),
            ({"keep": {"agreemnt": 0.5}}, "keep has unknown filters 'agreemnt'"),
            ({"keep": {"review": "good"}}, "keep's review must be one of 'not rejected', 'accepted', 'any'"),
            ({"keep": {"agreement": 2}}, r"keep's agreement must be in \[0, 1\]"),
            ({"autocast": "half"}, "autocast must be None, 'bfloat16' or 'float16'"),
            ({"balance": "not majorty"}, "balance must be one of 'minority'"),
        ],
    )
    def test_what_cannot_be_right(self, options, told: str) -> None:
        with pytest.raises(UsageError, match=told):
            Options(**options)

    def test_all_problems_are_told_at_once(self) -> None:
        with pytest.raises(UsageError, match=r"share must(.|\n)*spread must(.|\n)*backend must"):
            Options(share=2, spread=3, backend="no")


def ddp_worker(rank: int, folder: str, out: str) -> None:
    found = {}
    for backend in ("samples", "batches"):
        pytorch_lightning.seed_everything(1, verbose=False)
        names: list[str] = []
        from visynth.mixing.convert import Converter

        own = Converter.from_file

        def keep(self, path, truth, own=own, names=names):
            names.append(path.name)
            return own(self, path, truth)

        Converter.from_file = keep
        data = visynth.WithSynthetic(Tensors(), folder, backend=backend, share={"start": 0.5, "end": 0.1}, **SPOT)
        module = Watch()
        pytorch_lightning.Trainer(max_epochs=4, **DDP).fit(module, data)
        Converter.from_file = own
        found[backend] = {"white": module.white, "names": names, "sizes": [len(b[0]) for b in module.batches]}
    torch.save(found, f"{out}/{rank}.pt")


def test_two_processes_draw_disjoint_pictures_on_one_schedule(tmp_path) -> None:
    renders = white_set(tmp_path / "white", {"spot": 80}, tuple(CLASSES))
    run_ranks(ddp_worker, str(renders.folder), str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for backend in ("samples", "batches"):
        first, second = (rank[backend] for rank in ranks)
        assert first["sizes"] == second["sizes"] == [8, 8, 8] * 4
        both = np.array(first["white"]) + np.array(second["white"])
        by_epoch = both.reshape(4, 3).sum(1) / 48
        assert by_epoch == pytest.approx([0.5, 0.4, 0.3, 0.2], abs=0.06)
        names = [rank[backend]["names"] for rank in ranks]
        assert sum(map(len, names)) >= 60
        if backend == "batches":  # what a batch has no room for is drawn, and not used
            assert not set(names[0][1:60]) & set(names[1][1:30]) or len(set(names[0]) | set(names[1])) == 80
        counts = Counter(names[0] + names[1])
        assert max(counts.values()) - min(counts.values()) <= 2
