"""Input of reports, gates and comparisons that must be refused, each with what came and what to do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from visynth.cli import main
from visynth.core.errors import DataError, IntegrityError, UsageError
from visynth.core.report import ClassVerdict, Report, read_report
from visynth.jobs.evaluate import evaluate_renders
from visynth.metrics.bank import FeatureBank
from visynth.metrics.extractor import Extractor
from visynth.verdict.bootstrap import Bootstrap, Scored
from visynth.verdict.rule import Comparison


class TestReports:
    def test_of_another_schema_version(self, tmp_path: Path, capsys) -> None:
        Report("trial", "x", [ClassVerdict("crack", "helps", "AP +0.2")]).write(tmp_path)
        file = tmp_path / "report.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "schema": "visynth.report/0"}))
        with pytest.raises(
            IntegrityError, match=r"has schema 'visynth.report/0'; this version reads 'visynth.report/1'"
        ):
            read_report(tmp_path)
        assert main(["gate", str(tmp_path)]) == IntegrityError.exit_code
        assert "visynth.report/0" in capsys.readouterr().err

    def test_torn(self, tmp_path: Path) -> None:
        (tmp_path / "report.json").write_text('{"schema": "visynth.rep')
        with pytest.raises(IntegrityError, match="cannot be read as a report"):
            read_report(tmp_path)


def cells(draws: list[int], seed: int = 0) -> list[Scored]:
    rng = np.random.default_rng(seed)
    truth = np.arange(12) < 4
    return [Scored(draw, truth, rng.normal(size=12) + truth, [f"g{k // 2}" for k in range(12)]) for draw in draws]


class TestArms:
    def test_with_unequal_draws_are_not_paired(self) -> None:
        tested = {"real": cells([0, 1, 2]), "synthetic": cells([0, 1], 1)}
        with pytest.raises(DataError, match=r"arm synthetic was tested on the draws \[0, 1\], but real on \[0, 1, 2\]"):
            Comparison(tested, Bootstrap(tested["real"])).evidence("synthetic", ["real"], "real")

    def test_scores_that_are_not_finite_rank_nothing(self) -> None:
        one = cells([0])[0]
        with pytest.raises(DataError, match="1 of 12 scores are not finite"):
            replace(one, scores=np.where(np.arange(12) == 3, np.nan, one.scores))


def network(fill: float) -> Extractor:
    layer = nn.Conv2d(3, 4, 32, 32, bias=False)
    nn.init.constant_(layer.weight, fill)
    return Extractor("toy", layer.eval().requires_grad_(False), 4)


class TestCache:
    def test_features_of_other_weights_under_the_same_name_are_not_taken(self, tmp_path: Path) -> None:
        image = np.full((32, 32, 1), 200, np.uint8)
        values = {}
        for fill in (1.0, 2.0, 1.0):
            bank = FeatureBank(network(fill), resolutions=(32,), cache=tmp_path)
            bank.add([image])
            values.setdefault(fill, []).append((bank.get(32, "max").copy(), bank.computed))
        np.testing.assert_allclose(values[2.0][0][0], 2 * values[1.0][0][0], rtol=1e-5)
        assert [computed for _, computed in values[1.0]] == [1, 0]  # its own were kept, and are found again
        np.testing.assert_array_equal(values[1.0][0][0], values[1.0][1][0])

    def test_the_fingerprint_sees_every_weight(self) -> None:
        one, other = network(1.0), network(1.0)
        assert one.fingerprint == other.fingerprint
        last = other.network.weight
        with torch.no_grad():
            last[-1, -1, -1, -1] += 1e-6
        assert replace(other, network=other.network).fingerprint != one.fingerprint


def test_a_class_without_test_images(medium, tmp_path: Path) -> None:
    from visynth.data.reading import read_images
    from visynth.generators.base import load_generator
    from visynth.jobs.make import fit_compose
    from visynth.render.run import make_plan, render_set

    images = read_images(medium / "images", masks=medium / "masks", groups=medium / "groups.csv")
    groups = sorted({item.group for item in images.items})
    train = images.select(lambda item: item.group in groups[::2] or item.labels == ("spot",))
    fit_compose(train, tmp_path / "generator", classes=["spot"])
    generator = load_generator(tmp_path / "generator")
    renders = render_set(generator, make_plan(generator, per_class=4), tmp_path / "renders")
    with pytest.raises(UsageError, match=r"classes 'spot' cannot be measured: .*real test images"):
        evaluate_renders(images, renders, tmp_path / "report", classes=["spot"])
    assert not (tmp_path / "report").exists()  # an empty folder would be half a report
