"""A trial that trains: the learned generator beside composition on the same cells, or in its place."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from visynth.core.errors import DataError, UsageError
from visynth.core.report import read_report
from visynth.data.reading import read_images
from visynth.jobs.gate import decide
from visynth.jobs.trial import flow, measuring, training
from visynth.jobs.trial.flow import run_trial
from visynth.jobs.trial.options import TrialOptions
from visynth.jobs.trial.plan import Cost, plan_trial
from visynth.jobs.trial.training import TrainingPlan
from visynth.verdict.rule import DOES_NOT


@pytest.fixture
def seconds(monkeypatch):
    """Two seconds of training for each generator, which are enough."""
    monkeypatch.setattr(measuring, "LEAST", 0.0)
    monkeypatch.setattr(training, "ENOUGH", dict.fromkeys(training.ENOUGH, 1))
    monkeypatch.setattr(measuring, "plan_training", lambda s, *args: TrainingPlan(s.kind, 2 / 60, 100, 10.0))


def options(**kwargs) -> TrialOptions:
    return TrialOptions(
        **{
            "rare_groups": 2,
            "draws": 1,
            "folds": 2,
            "synthetic": 6,
            "workers": 0,
            "others": False,
            "dense": False,
            **kwargs,
        }
    )


def read(samples: Path, masks: bool = True):
    return read_images(samples / "images", masks=samples / "masks" if masks else None, groups=samples / "groups.csv")


def test_inpainting_stands_beside_composition_on_the_same_cells(seconds, samples: Path, tmp_path: Path) -> None:
    said: list[str] = []
    report = run_trial(
        read(samples),
        ["spot"],
        tmp_path,
        options=options(learned="inpaint", learn_size=32),
        grouped=True,
        progress=said.append,
    )
    verdict = next(v for v in report.verdicts if v.label == "spot")
    assert {"synthetic", "inpainting"} <= set(verdict.numbers["arms"])
    assert "inpainting against composition" in verdict.reason
    assert verdict.numbers["adjusted"] >= min(1.0, 2 * verdict.numbers["p"]) - 1e-4  # two synthesizers were compared
    assert set(verdict.numbers["others"]) | {verdict.numbers["synthesizer"]} & {"inpainting"}
    assert verdict.numbers["duel"]["low"] <= verdict.numbers["duel"]["mean"] <= verdict.numbers["duel"]["high"]
    assert sum("min left" in line for line in said) == 2
    assert (tmp_path / "generator" / "generator.json").is_file()


@pytest.mark.slow
def test_projections_stand_beside_composition_on_the_same_cells(seconds, samples: Path, tmp_path: Path) -> None:
    said: list[str] = []
    report = run_trial(
        read(samples),
        ["spot"],
        tmp_path,
        options=options(learned="projection", learn_size=16),
        grouped=True,
        progress=said.append,
    )
    verdict = next(v for v in report.verdicts if v.label == "spot")
    assert {"synthetic", "projection"} <= set(verdict.numbers["arms"])
    assert "projection against composition" in verdict.reason
    assert sum("projected" in line for line in said) >= 2


def test_a_class_without_masks_is_measured_with_diffusion(seconds, samples: Path, tmp_path: Path) -> None:
    report = run_trial(
        read(samples, masks=False),
        ["spot"],
        tmp_path,
        options=options(learned="diffusion", learn_size=16),
        grouped=True,
    )
    verdict = next(v for v in report.verdicts if v.label == "spot")
    assert verdict.answer in ("helps", "does not", "cannot tell")
    assert verdict.numbers["synthesizer"] == "diffusion"
    assert "by diffusion" in (tmp_path / "report.html").read_text()
    if verdict.answer == DOES_NOT:
        assert not (tmp_path / "generator").exists()


def test_without_time_nothing_is_trained_and_the_report_says_how_much_it_takes(samples: Path, tmp_path: Path) -> None:
    report = run_trial(read(samples), ["spot"], tmp_path, options=options(learned="inpaint", minutes=1.0), grouped=True)
    verdict = next(v for v in report.verdicts if v.label == "spot")
    assert "inpainting" not in verdict.numbers["arms"]
    assert "inpainting was not trained: 2 generators" in (tmp_path / "report.html").read_text()


def test_a_word_that_is_no_kind_is_told(samples: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="learned must be one of 'auto', 'none', 'inpaint', 'diffusion', 'projection'"):
        run_trial(read(samples), ["spot"], tmp_path, options=options(learned="gan"), grouped=True)


def test_a_generator_that_saw_too_little_is_not_judged(samples: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(training, "PILOT", 1 / 60)
    monkeypatch.setattr(measuring, "PILOT", 1 / 60)
    said: list[str] = []
    told = options(learned="diffusion", learn_size=16, minutes=0.5)
    report = run_trial(
        read(samples, masks=False), ["spot"], tmp_path / "t", options=told, grouped=True, progress=said.append
    )
    verdict = next(v for v in report.verdicts if v.label == "spot")
    assert verdict.answer == "undertrained"
    assert "needs about 20000 before it can be judged: give about" in verdict.reason
    assert "best without synthesis was" in verdict.next
    (section,) = (s for s in read_report(tmp_path / "t").sections if s["title"].startswith("Undertrained: diffusion"))
    assert any(block["kind"] == "gallery" for block in section["blocks"])
    assert not (tmp_path / "t" / "generator").exists()
    assert decide(report).outcome == "insufficient evidence"
    assert sum("to see how fast it is" in line for line in said) == 1


@pytest.mark.slow
def test_a_training_that_fell_short_of_its_plan_is_not_judged(
    seconds, samples: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(training, "ENOUGH", dict.fromkeys(training.ENOUGH, 10**6))
    monkeypatch.setattr(measuring, "plan_training", lambda s, *args: TrainingPlan(s.kind, 2 / 60, 10**6, 10.0))
    told = options(learned="diffusion", learn_size=16)
    report = run_trial(read(samples, masks=False), ["spot"], tmp_path / "t", options=told, grouped=True)
    verdict = next(v for v in report.verdicts if v.label == "spot")
    assert verdict.answer in ("undertrained", "helps")
    assert verdict.answer == "helps" or "as it is: AP" in verdict.reason


def test_a_trial_that_was_killed_after_its_trainings_goes_on_without_training(
    seconds, samples: Path, tmp_path: Path, monkeypatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*args) -> None:
        raise Killed

    told = options(learned="diffusion", learn_size=16)
    with monkeypatch.context() as patch:
        patch.setattr(flow, "write_outputs", killed)
        with pytest.raises(Killed):
            run_trial(read(samples, masks=False), ["spot"], tmp_path / "t", options=told, grouped=True)
    first = read_report(tmp_path / "t").verdicts
    monkeypatch.setattr(training.TrainedSynthesizer, "train", killed)
    monkeypatch.setattr(flow, "write_outputs", lambda *args: None)
    again = run_trial(read(samples, masks=False), ["spot"], tmp_path / "t", options=told, grouped=True)
    assert [(v.label, v.answer, v.reason) for v in again.verdicts] == [(v.label, v.answer, v.reason) for v in first]


def test_a_trainer_that_fails_costs_nothing_that_was_measured(samples: Path, tmp_path: Path, monkeypatch) -> None:
    def fails(*args) -> None:
        raise DataError("the diffusion generator takes 1 to 4 channels")

    monkeypatch.setattr(measuring, "LEAST", 0.0)
    monkeypatch.setattr(measuring, "plan_training", fails)
    told = options(learned="inpaint", learn_size=32)
    report = run_trial(read(samples), ["spot"], tmp_path / "t", options=told, grouped=True)
    verdict = next(v for v in report.verdicts if v.label == "spot")
    assert "synthetic" in verdict.numbers["arms"]
    assert "inpaint could not be trained: the diffusion generator takes" in (tmp_path / "t" / "report.html").read_text()


@pytest.mark.slow
def test_nothing_is_trained_for_a_class_that_the_kind_cannot_make(samples: Path, tmp_path: Path) -> None:
    """Of two rare classes one has masks: inpainting serves that one alone."""
    shutil.copytree(samples, tmp_path / "s")
    shutil.rmtree(tmp_path / "s" / "masks" / "stain")
    images = read(tmp_path / "s")
    said: list[str] = []
    told = options(draws=2)
    report = run_trial(images, ["spot", "stain"], tmp_path / "t", options=told, grouped=True, progress=said.append)
    by_class = {v.label: v for v in report.verdicts}
    assert by_class["spot"].answer in ("helps", "does not", "cannot tell")
    assert by_class["stain"].answer == "not measured"
    assert not any("to see how fast" in line for line in said)


def test_who_follows_the_advice_on_minutes_has_enough() -> None:
    class Fake:
        kind, seed, cells = "diffusion", 0, 0

        def progress(self, line: str) -> None: ...

        def train(self, sources, seed, minutes, pilot):
            return SimpleNamespace(card={training.SEEN: 60, training.SECONDS: 12.0})

    def plans(minutes: float):
        cost, asked = Cost(60, 10, 12), {"draws": 5, "folds": 3, "seconds": 60 * minutes, "trains": True}
        plan = plan_trial(cost, ("a",), (), **asked)
        fake = Fake()
        fake.cells = plan.draws * 3
        data = SimpleNamespace(training_sources=list)
        return training.plan_training(fake, data, plan.left, 15, plan.needed)

    for minutes in (5, 20, 60):
        first = plans(minutes)
        assert not first.enough
        assert plans(first.needed + 0.1).enough
