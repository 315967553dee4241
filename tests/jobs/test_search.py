"""Choosing on validation: none is legal, the test stays closed until the choice is made, and is looked at once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from visynth.cli import main
from visynth.core.errors import DataError, UsageError
from visynth.core.recipe import read_recipe
from visynth.jobs import search
from visynth.jobs.search import search_renders
from visynth.verdict.cells import Cell, Extra


def cell_of(gain: float, seed: int = 0) -> tuple[Cell, dict]:
    """Six groups of the class and six others, and synthetic images of the class that lie well (gain 1) or at random."""
    rng = np.random.default_rng(seed)
    groups = [f"g{k // 4}" for k in range(48)]
    positive = np.arange(48) < 24
    features = rng.normal(0, 1, (48 + 30, 80)).astype(np.float32)
    features[:24, :4] += 0.8
    features[48:, :4] += 0.8 * gain
    features[48:, 4:] *= 0.3 if gain else 3.0
    parents = [frozenset({f"g{k % 6}"}) for k in range(30)]
    cell = Cell(
        0, 0, np.arange(48), np.array([], np.int64), np.arange(1), positive, groups,
        synthetic=Extra(np.arange(48, 78), parents),
    )  # fmt: skip
    return cell, {(0, "max"): features, (0, "mean"): features}


class TestChoice:
    def choose(self, gain: float, seed: int = 0) -> search.Found:
        from visynth.verdict.frozen import FrozenLearner

        cell, tables = cell_of(gain, seed)
        folded = search._on_folds(cell, tables, FrozenLearner())
        assert folded is not None
        return search._choose(cell, tables, *folded)

    def test_noise_is_not_taken(self) -> None:
        taken = [self.choose(0.0, seed).amount is not None for seed in range(4)]
        assert sum(taken) <= 1

    def test_what_helps_in_every_repeat_is(self) -> None:
        found = [self.choose(1.0, seed) for seed in (1, 4)]
        helped = [one for one in found if one.amount is not None]
        assert helped
        for one in helped:
            name = max((k for k in one.tried if k.startswith("synthetic")), key=lambda k: np.mean(one.tried[k]))
            assert all(a > b for a, b in zip(one.tried[name], one.tried[one.without], strict=True))
            assert one.how.startswith("5 deals of 3 inner folds of 12 training groups")

    def test_a_generator_that_saw_all_has_nothing_to_choose_on(self) -> None:
        from visynth.verdict.frozen import FrozenLearner

        cell, tables = cell_of(1.0)
        every = frozenset(cell.groups)
        blind = replace(cell, synthetic=Extra(cell.synthetic.rows, [every] * 30))
        assert search._on_folds(blind, tables, FrozenLearner()) is None


def test_the_test_stays_closed_while_the_choice_is_made(made, tmp_path: Path, monkeypatch) -> None:
    """Whatever the search is given, no test row is in it; and where nothing wins, none is ever scored."""
    images, renders = made
    opened: list[str] = []
    choose = search._choose

    def watched(cell, tables, score, how):
        assert len(cell.test) == 1
        assert cell.test[0] in cell.train
        return replace(choose(cell, tables, score, how), amount=None)

    monkeypatch.setattr(search, "_choose", watched)
    monkeypatch.setattr(search, "_tested", lambda *a: opened.append("test"))
    report = search_renders(images, renders, tmp_path / "out", count=8, classes=["spot"])
    assert opened == []
    (verdict,) = [v for v in report.verdicts if v.label == "spot"]
    assert verdict.answer == "not measured"
    assert "the test stayed closed" in verdict.reason
    recipe = read_recipe(tmp_path / "out/recipe.yaml")
    assert recipe.classes["spot"].share == 0
    assert recipe.generator is None


def test_one_recipe_meets_one_arm_and_both_are_told(made, tmp_path: Path, monkeypatch) -> None:
    images, renders = made
    choose = search._choose

    def always(cell, tables, score, how):
        return replace(choose(cell, tables, score, how), amount=search.Amount(0.25))

    monkeypatch.setattr(search, "_choose", always)
    report = search_renders(images, renders, tmp_path / "out", count=8, draws=4, classes=["spot"])
    (verdict,) = [v for v in report.verdicts if v.label == "spot"]
    arms = verdict.numbers["arms"]
    assert {"real", "synthetic"} <= set(arms)
    assert len(arms) <= 3
    assert verdict.numbers["draws"] == 4
    assert verdict.answer in ("helps", "cannot tell", "does not")
    page = (tmp_path / "out/report.html").read_text()
    assert "The test, opened once" in page
    written = yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())
    assert written["classes"]["spot"]["answer"] == verdict.answer


def test_every_class_is_searched_before_the_test_is_opened_for_any(made, tmp_path: Path, monkeypatch) -> None:
    images, renders = made
    order: list[str] = []
    searched, tested, choose = search._searched, search._tested, search._choose
    real = search.open_rendered

    def opened(*args, **options):
        setting = real(*args, **options)
        setting.wanted = ["spot", "good"]
        return setting

    def watched(setting, name, limit, progress):
        order.append(f"search {name}")
        if name == "good":
            raise DataError("good: nothing to choose on.")
        return replace(searched(setting, name, limit, progress), amount=search.Amount(0.25))

    monkeypatch.setattr(search, "open_rendered", opened)
    monkeypatch.setattr(search, "_searched", watched)
    monkeypatch.setattr(search, "_tested", lambda s, name, *a: order.append(f"test {name}") or tested(s, name, *a))
    report = search_renders(images, renders, tmp_path / "out", count=8, draws=3)
    assert order == ["search spot", "search good", "test spot"]
    answers = {v.label: (v.answer, v.reason) for v in report.verdicts}
    assert answers["good"] == ("not measured", "good: nothing to choose on")
    assert choose is search._choose


def test_the_recipe_says_what_was_measured(made, tmp_path: Path, monkeypatch) -> None:
    images, renders = made
    choose = search._choose
    monkeypatch.setattr(search, "_choose", lambda *a: replace(choose(*a), amount=search.Amount(0.25)))
    monkeypatch.setattr(search, "HELPS", "cannot tell")  # whatever the test says, the recipe is written as if it helped
    summarised = search.class_verdict
    monkeypatch.setattr(search, "class_verdict", lambda *a: replace(summarised(*a), answer="cannot tell"))
    out = tmp_path / "results" / "out"
    search_renders(images, renders, out, count=8, draws=3, classes=["spot"])
    written = yaml.safe_load((out / "recipe.yaml").read_text())
    assert written["classes"]["spot"]["images"] == 8
    assert (out / written["renders"]).resolve() == renders.folder.resolve()


def test_validation_of_the_datas_own(made, tmp_path: Path, monkeypatch) -> None:
    """Groups of the split named val choose; one that trains is not among them."""
    images, renders = made
    trained = {member.path for member in renders.members}
    groups = sorted({i.group for i in images.items if i.name not in trained})
    items = tuple(replace(i, split="val") if i.group in groups[::2] else i for i in images.items)
    seen: list[str] = []
    choose = search._choose

    def watched(cell, tables, score, how):
        seen.append(how)
        assert not set(cell.test.tolist()) & set(cell.train.tolist())
        assert {cell.groups[row] for row in cell.test}.isdisjoint({cell.groups[row] for row in cell.train})
        assert cell.anomaly is None or np.isfinite(cell.anomaly[cell.test]).all()
        return replace(choose(cell, tables, score, how), amount=None)

    monkeypatch.setattr(search, "_choose", watched)
    search_renders(replace(images, items=items), renders, tmp_path / "out", count=8, classes=["spot"])
    assert seen
    assert "validation split" in seen[0]


def test_by_the_command(made, medium, tmp_path: Path, capsys) -> None:
    _, renders = made
    data = ["--data", str(medium / "images"), "--masks", str(medium / "masks"), "--groups", str(medium / "groups.csv")]
    told = ["--classes", "spot", "--count", "8", "--draws", "3", "--json", "--quiet", "--out", str(tmp_path / "out")]
    assert main(["search", str(renders.folder), *data, *told]) == 0
    assert "spot" in json.dumps(json.loads(capsys.readouterr().out))
    assert (tmp_path / "out/recipe.yaml").is_file()
    code = main(["search", str(renders.folder), *data, "--metric", "accuracy", "--out", str(tmp_path / "no")])
    assert code == 64
    assert not (tmp_path / "no").exists()


def test_a_learner_without_choices_is_refused(made, tmp_path: Path, monkeypatch) -> None:
    images, renders = made
    from visynth.lightning_modules.classifier import FinetuneLearner

    monkeypatch.setattr(FinetuneLearner, "chooses", False, raising=False)
    with pytest.raises(UsageError, match="makes no choices on inner folds"):
        search_renders(images, renders, tmp_path / "out", learner="finetune", classes=["spot"])
