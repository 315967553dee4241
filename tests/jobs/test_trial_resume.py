"""A trial that is killed goes on; what fits into its minutes is settled before it starts; every named class gets an
answer."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from visynth.core.errors import DataError
from visynth.core.stage import Stage
from visynth.data.reading import read_images
from visynth.jobs.trial import measuring, ready, synthesis
from visynth.jobs.trial.flow import run_trial
from visynth.jobs.trial.options import TrialOptions
from visynth.jobs.trial.plan import Cost, TrialPlan, plan_trial

FEW = {"rare_groups": 2, "draws": 2, "folds": 2, "synthetic": 6, "workers": 0, "dense": False, "learned": "none"}


class Killed(BaseException):
    pass


def read(samples: Path, masks: bool = True):
    return read_images(samples / "images", masks=samples / "masks" if masks else None, groups=samples / "groups.csv")


def trial(samples: Path, out: Path, said: list[str] | None = None, **options):
    told = TrialOptions(**{**FEW, "others": False, **options})
    progress = (lambda words: None) if said is None else said.append
    return run_trial(read(samples), ["spot"], out, options=told, grouped=True, render=2, progress=progress)


@pytest.fixture
def syntheses(monkeypatch) -> list[tuple[int, int]]:
    """(draw, fold) of each synthesis; the fixture's user may make one of them the last."""
    seen: list[tuple[int, int]] = []
    before = ready.sampled

    def counted(data, synthesizer, name, split, options):
        seen.append((split.draw, split.fold))
        return before(data, synthesizer, name, split, options)

    monkeypatch.setattr(ready, "sampled", counted)
    return seen


def test_a_killed_trial_goes_on_to_the_same_report(samples, tmp_path, syntheses, monkeypatch) -> None:
    whole = trial(samples, tmp_path / "whole")
    alone = list(syntheses)
    assert sorted(set(alone)) == [(0, 0), (0, 1), (1, 0), (1, 1)]

    put = Stage.put
    for cells in (0, 1):  # killed after so many further cells, twice
        left = [cells]

        def killing(self, value, left=left, **key) -> None:
            put(self, value, **key)
            left[0] -= "place" in key
            if left[0] < 0:
                raise Killed

        monkeypatch.setattr(Stage, "put", killing)
        with pytest.raises(Killed):
            trial(samples, tmp_path / "cut")
        assert (tmp_path / "cut.work").is_dir()
        assert not (tmp_path / "cut").exists() or not any((tmp_path / "cut").iterdir())
    monkeypatch.setattr(Stage, "put", put)
    syntheses.clear()
    resumed = trial(samples, tmp_path / "cut")
    assert len(syntheses) == 1  # 1 + 2 cells were done
    assert resumed.verdicts == whole.verdicts
    assert not (tmp_path / "cut.work").exists()


def test_other_data_or_options_start_anew(samples, tmp_path, syntheses, monkeypatch) -> None:
    def killed(*args) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "gather", killed)
        with pytest.raises(Killed):
            trial(samples, tmp_path / "t")
    done = len(syntheses)
    syntheses.clear()
    trial(samples, tmp_path / "t", synthetic=7)
    assert len(syntheses) == done
    syntheses.clear()
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "gather", killed)
        with pytest.raises(Killed):
            trial(samples, tmp_path / "u")
    syntheses.clear()
    told = TrialOptions(**FEW, others=False)
    run_trial(read(samples), ["spot", "stain"], tmp_path / "u", options=told, grouped=True, render=2)
    assert len(set(syntheses)) == 4  # other named classes leave other groups to the oracle


def test_what_is_kept_is_exact_and_what_is_damaged_is_made_again(tmp_path) -> None:
    stage = Stage(tmp_path / "w", {"a": 1})
    value = {"arm": [[0.1 + 0.2, float("inf"), 1e-300], 3, "why"]}
    stage.put(value, cell=[0, 1])
    assert stage.get(cell=[0, 1]) == value
    assert stage.get(cell=(0, 1)) == value  # JSON knows lists alone
    (file,) = (p for p in (tmp_path / "w").glob("*.json") if not p.name.startswith("."))
    file.write_text(file.read_text()[:20])
    assert stage.get(cell=[0, 1]) is None
    (tmp_path / "w" / "notes.txt").write_text("mine")
    Stage(tmp_path / "w", {"a": 2}).clear()
    assert (tmp_path / "w" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1000, TrialPlan(5, ("a", "b", "c"), 1000 * 0.9 - 630, 11.7)),
        (640, TrialPlan(5, ("a", "b"), 640 * 0.9 - 440, 11.7)),
        (400, TrialPlan(3, ("a", "b"), 400 * 0.9 - 296, 11.7)),
        (10, TrialPlan(1, ("a", "b"), 0.0, 11.7)),  # a named class is measured, whatever it takes
    ],
)
def test_named_classes_come_first_and_others_whole_or_not_at_all(seconds: float, expected: TrialPlan) -> None:
    found = plan_trial(Cost(60, 10, 12), ("a", "b"), ("c",), draws=5, folds=3, seconds=seconds)
    assert (found.draws, found.classes, found.needed) == (expected.draws, expected.classes, expected.needed)
    assert found.left == pytest.approx(expected.left)


def test_time_is_left_for_training_and_for_the_other_classes() -> None:
    ask = {"draws": 5, "folds": 2, "seconds": 600}
    free, trains = (plan_trial(Cost(60, 10, 12), ("a",), ("c",), trains=t, **ask) for t in (False, True))
    assert (free.classes, trains.classes) == (("a", "c"), ("a",))
    assert trains.left >= 0.5 * (0.9 * 600 - 60)


def test_a_trial_says_what_fits_and_what_would_be_needed(samples, tmp_path) -> None:
    said: list[str] = []
    report = trial(samples, tmp_path / "t", said, minutes=0.01, others=True)
    assert any("plan: spot with 1 of 2 draws" in line for line in said)
    by_class = {v.label: v for v in report.verdicts}
    assert by_class["spot"].answer in ("helps", "does not", "cannot tell")
    assert by_class["stain"].answer == "not measured"
    assert "does not fit into 0.01 minutes" in by_class["stain"].reason
    assert "minutes are needed (--minutes)" in by_class["stain"].reason


def test_without_masks_a_named_class_still_gets_baselines_and_a_recipe(samples, tmp_path) -> None:
    options = TrialOptions(**FEW)
    report = run_trial(read(samples, masks=False), ["spot"], tmp_path / "t", options=options, good="good", grouped=True)
    verdict = next(v for v in report.verdicts if v.label == "spot")
    assert verdict.answer == "not measured"
    assert "no masks" in verdict.reason
    assert "best without synthesis was" in verdict.next
    assert "AP 0." in verdict.next or "AP 1." in verdict.next
    page = (tmp_path / "t" / "report.html").read_text()
    assert "Nothing was synthesised for this class." in page


def test_workers_end_when_their_parent_was_killed(tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import os, time
import joblib
from visynth.core.processes import end_with_parent

def work(number, parent):
    end_with_parent(parent, 0.1)
    open(f"{number}.pid", "w").write(str(os.getpid()))
    time.sleep(120)

joblib.Parallel(2)(joblib.delayed(work)(k, os.getpid()) for k in range(2))
"""
    )
    parent = subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, stderr=subprocess.DEVNULL)
    pids = [tmp_path / f"{k}.pid" for k in range(2)]
    deadline = time.monotonic() + 60
    while not all(p.is_file() and p.read_text() for p in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{p.read_text()}").exists() for p in pids):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.1)


def test_cells_side_by_side_are_the_same_as_one_after_the_other(samples, tmp_path, monkeypatch) -> None:
    """Also where one of two has nothing to compose with."""
    fit = synthesis.CompositionSynthesizer.fit

    def some(self, data, name, split):
        if (split.draw, split.fold) == (0, 1):
            raise DataError("no mask on this side")
        return fit(self, data, name, split)

    monkeypatch.setattr(synthesis.CompositionSynthesizer, "fit", some)
    reports, lines = [], []
    for workers in (0, 2):
        said: list[str] = []
        report = trial(samples, tmp_path / f"{workers}", said, workers=workers, dense=True)
        reports.append(report)
        lines.append([line for line in said if "has no synthesis" in line])
    one, two = ({v.label: v.numbers for v in report.verdicts} for report in reports)
    assert one == two
    assert one["spot"]["arms"]["synthetic"]
    assert lines[0] == lines[1] == ["  spot: draw 1, fold 2 has no synthesis: no mask on this side"]


def test_a_training_with_fewer_groups_than_asked_for_is_told(samples, tmp_path) -> None:
    trial(samples, tmp_path / "out", rare_groups=9, draws=1, folds=2)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "trainings have fewer than the 9 groups that were asked for" in page
