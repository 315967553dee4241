"""What a trial measured reaches the training: a recipe's share of each class, in every backend, or none."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import visynth
from tests.mixing.kinds import CLASSES, pictures
from tests.mixing.test_policies import BACKENDS, Tensors, train
from visynth.core.errors import DataError, UsageError
from visynth.core.recipe import SCHEMA, ClassRecipe, Recipe, read_recipe
from visynth.mixing.backends import plan_mix
from visynth.mixing.options import Options
from visynth.mixing.plan import Mix, replaceable, within_share

NO_BALANCE = {"balance": None, "spread": 0.1}


def recipe(share: float = 0.5, **more) -> dict:
    return {"schema": SCHEMA, "classes": {"spot": {"share": share}, "stain": {"share": 0.0}}, **more}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_class_gets_its_share(backend: str, source) -> None:
    labels = pictures()[1]
    spots = int((labels == CLASSES["spot"]).sum())
    module = train(source, backend, recipe=recipe(0.5), trainer={"max_epochs": 20}, **NO_BALANCE)
    wanted = (
        spots / (len(labels) + spots) * len(labels)
    )  # as many as there are real ones, in an epoch of the same length
    assert sum(module.white) / 20 == pytest.approx(wanted, abs=1.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_none_is_the_plain_training(backend: str, source) -> None:
    with_recipe = train(source, backend, recipe=recipe(0.0), **NO_BALANCE)
    plain = train(source, backend, share=0, **NO_BALANCE)
    assert not any(with_recipe.white)
    for one, other in zip(with_recipe.batches, plain.batches, strict=True):
        torch.testing.assert_close(one, other)


class Balanced(Tensors):
    def train_dataloader(self):
        data = TensorDataset(*pictures())
        weights = [5.0 if int(label) == CLASSES["spot"] else 1.0 for label in pictures()[1]]
        return DataLoader(data, 8, sampler=WeightedRandomSampler(weights, 4000))


@pytest.mark.parametrize("backend", ["samples", "batches"])
def test_with_a_sampler_it_is_the_part_of_the_class(backend: str, source) -> None:
    data = visynth.WithSynthetic(Balanced(), source(backend), backend=backend, classes=CLASSES, recipe=recipe(0.25))
    loader = data.train_dataloader()
    if backend == "batches":
        mixed = data._visynth_mixed
        batches = [mixed.join(batch, k) for k, batch in enumerate(loader)]
    else:
        batches = list(loader)
    images, labels = (torch.cat([batch[k] for batch in batches]) for k in (0, 1))
    made = images.flatten(1).amin(1) > 0.99
    spots = labels == CLASSES["spot"]
    assert not made[~spots].any()
    assert float(made[spots].float().mean()) == pytest.approx(0.25, abs=0.1)


def test_real_samples_of_rare_classes_stay(source) -> None:
    """The defect-free class has a share too (controls): it alone makes room, and what no synthesis helps keeps its samples."""
    both = {"schema": SCHEMA, "classes": {"spot": {"share": 0.5}, "stain": {"share": 0.0}}}
    data = visynth.WithSynthetic(Tensors(), source("samples"), backend="samples", classes=CLASSES, recipe=both)
    dataset = data.train_dataloader().dataset
    labels = pictures()[1]
    assert dataset.allowed == [k for k, label in enumerate(labels.tolist()) if label == CLASSES["good"]]
    assert replaceable(5, [0, 0, 0, 1, 2], {0, 1}, room=0) == [0, 1, 2]
    options = Options(recipe={"schema": SCHEMA, "classes": {"good": {"share": 0.1}, "spot": {"share": 0.1}}})
    mix = plan_mix(["good", "spot"], {"good": 0, "spot": 1}, options, [0] * 320 + [1] * 4 + [2] * 30, None, None)
    assert mix.counts == {"good": 36, "spot": 1}  # a class of four images gets one, not none
    assert mix.room == 0
    shared = {"schema": SCHEMA, "classes": {"scratch": {"share": 0.5}, "spot": {"share": 0.5}}}
    one = plan_mix(
        ["scratch", "spot"], {"scratch": 1, "spot": 1}, Options(recipe=shared), [0] * 50 + [1] * 20, None, None
    )
    assert one.counts == {"scratch": 10, "spot": 10}  # both have the label's twenty samples: as many again, not twice


def test_shares_of_classes_in_closed_form() -> None:
    mix = Mix({"scratch": 3}, 0.5, 0.1, seed=0, of_class={"scratch": 0.25})
    assert within_share(["scratch"], mix, 0.5) == 0.25
    assert within_share(["spot"], mix, 0.5) == 0.0
    assert within_share(["scratch", "spot"], mix, 0.5) == 0.125


def test_it_reads_back_as_it_was_written(tmp_path) -> None:
    whole = Recipe(
        {"crack": ClassRecipe(0.25, 60, "synthetic", "elastic", "helps"), "no": ClassRecipe()},
        "ab12",
        "renders",
        {"seed": 1},
    )
    (tmp_path / "recipe.yaml").write_text(whole.to_yaml())
    assert read_recipe(tmp_path) == whole
    assert read_recipe(tmp_path / "recipe.yaml").shares == {"crack": 0.25}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"schema": "visynth.recipe/9", "classes": {}}, "has schema 'visynth.recipe/9'; this version reads"),
        (recipe(1.0), "spot's share must be in \\[0, 1\\), but is 1.0"),
        ({"schema": SCHEMA, "classes": {"spot": {"amount": 1}}}, "spot has 'amount'; a class takes 'answer', 'arm'"),
    ],
)
def test_wrong_recipes_are_told(given: dict, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_recipe(given)


def test_contradictions_are_told(source, tmp_path) -> None:
    with pytest.raises(UsageError, match="cannot be given with 'balance', 'share'"):
        Options(recipe=recipe(), balance="all", share=0.2)
    with pytest.raises(DataError, match="cannot be read"):
        Options(recipe=tmp_path / "none.yaml")
    other = visynth.WithSynthetic(Tensors(), source("samples"), classes=CLASSES, recipe=recipe(generator="f" * 64))
    with pytest.raises(UsageError, match="measured with generator ffffffffffffffff, but these images are of None"):
        other.train_dataloader()
    unmade = {"schema": SCHEMA, "classes": {"rust": {"share": 0.2}}}
    with pytest.raises(UsageError, match="synthetic images of 'rust', but there are only those of"):
        visynth.WithSynthetic(Tensors(), source("samples"), classes=CLASSES, recipe=unmade).train_dataloader()
