"""Renders killed at any moment lose and tear nothing."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.forked import forked, run_forked
from tests.render.test_render import snapshot
from visynth.cli import main
from visynth.core.manifest import read_renders
from visynth.render.run import make_plan, render_set

# -- kills -----------------------------------------------------------------------------------------------------------


def words(generator: Path, out: Path) -> list[str]:
    return [
        "render",
        "--generator",
        str(generator),
        "--out",
        str(out),
        "--per-class",
        "60",
        "--workers",
        "2",
        "--quiet",
    ]


def command(generator: Path, out: Path) -> list[str]:
    return [sys.executable, "-c", "from visynth.cli import main; raise SystemExit(main())", *words(generator, out)]


def kill_at_random(folder: Path, out: Path, rng: random.Random, longest: float) -> bool:
    """Start the command and SIGKILL it (the parent alone: its workers must notice) after a random time."""
    process = subprocess.Popen(command(folder, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(timeout=rng.uniform(0.3, 1.0) * longest)
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def survive(composition, tmp_path: Path, kills: int, seed: int) -> None:
    _, folder = composition
    started = time.monotonic()
    subprocess.run(command(folder, tmp_path / "whole"), check=True, capture_output=True)
    undisturbed = time.monotonic() - started
    rng, killed = random.Random(seed), 0
    for attempt in range(20 * kills):
        if killed == kills:
            break
        out = tmp_path / f"killed{attempt}"
        killed += kill_at_random(folder, out, rng, undisturbed)
        if (out / "summary.json").is_file():  # it is only there with every file that the manifest names
            read_renders(out, verify=True)
        subprocess.run(command(folder, out), check=True, capture_output=True)
        assert snapshot(out) == snapshot(tmp_path / "whole")
        assert not out.with_name(out.name + ".work").exists()
        shutil.rmtree(out)
    assert killed == kills


def test_sigterm_ends_with_143_and_the_work_goes_on(composition, tmp_path) -> None:
    _, folder = composition
    out = tmp_path / "stopped"
    with forked(main, words(folder, out), log=tmp_path / "log") as process:
        while not list(out.with_name("stopped.work").glob("shard.*")) and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(30) in (143, 0)  # 0: it had finished before the signal came
    run_forked(main, words(folder, out), log=tmp_path / "log")
    assert len(read_renders(out, verify=True).records) == 240


@pytest.mark.slow
def test_three_random_kills_lose_and_tear_nothing(composition, tmp_path) -> None:
    survive(composition, tmp_path, kills=3, seed=int(time.time()))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_random_kills_lose_and_tear_nothing(composition, tmp_path) -> None:
    survive(composition, tmp_path, kills=20, seed=int(time.time()))


def test_a_finish_cut_short_is_finished(composition, tmp_path, monkeypatch) -> None:
    from visynth.render import stage

    generator, _ = composition
    plan = make_plan(generator, per_class=5, shard_size=7)
    whole = render_set(generator, plan, tmp_path / "whole")

    class Stop(Exception):
        pass

    moved = []

    def stop_after_nine(self, number, round_, names):
        for name in names:
            if len(moved) == 9:
                raise Stop
            moved.append(name)
            real(self, number, round_, [name])

    real = stage.DiskStage.place
    monkeypatch.setattr(stage.DiskStage, "place", stop_after_nine)
    with pytest.raises(Stop):
        render_set(generator, plan, tmp_path / "cut")
    monkeypatch.undo()
    assert render_set(generator, plan, tmp_path / "cut").root() == whole.root()
    assert snapshot(tmp_path / "cut") == snapshot(tmp_path / "whole")
