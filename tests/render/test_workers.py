"""Rendering in worker processes: they may die, hang or break, and the set is the same."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.render.generators import Faulty
from tests.render.killing import assassin, workers_of
from visynth.core.errors import ConflictError, OutputError, UsageError, VisynthError
from visynth.core.manifest import read_renders
from visynth.render.images import ImageMaker
from visynth.render.run import make_plan, render, render_set
from visynth.render.stage import DiskStage
from visynth.render.workers import Workers


@pytest.fixture
def plugin(tmp_path, monkeypatch) -> Path:
    """A package of someone else's with an entry point, which worker processes find as they find any other."""
    info = tmp_path / "site" / "faulty-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[visynth.generators]\nfaulty = tests.render.generators:Faulty\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(info.parent), str(ROOT)]))
    monkeypatch.syspath_prepend(str(info.parent))
    return tmp_path


def reference(generator: Faulty, plan, folder: Path) -> str:
    """The set that a generator without faults makes of the same plan."""
    good = Faulty()
    good._digest = generator.digest
    return render_set(good, plan, folder).root()


@pytest.mark.injected
@pytest.mark.parametrize("fault", [pytest.param("exit", marks=pytest.mark.slow), "hang"])
def test_workers_that_end_or_hang_are_started_again(fault: str, plugin) -> None:
    (plugin / "once").mkdir()
    generator = Faulty(bad=0.04, fault=fault, once=str(plugin / "once"))
    folder = generator.save(plugin / "generator") if fault != "hang" else _saved(generator, plugin / "generator")
    plan = make_plan(generator, per_class=40, shard_size=10)
    engine = Workers(folder, 2, patience=8 if fault == "hang" else 600)
    render(ImageMaker(generator, plan), DiskStage(plugin / "r"), engine=engine)
    assert list((plugin / "once").iterdir())  # it happened
    assert read_renders(plugin / "r", verify=True).root() == reference(generator, plan, plugin / "whole")
    assert not (plugin / "r.work").exists()


def _saved(generator: Faulty, folder: Path) -> Path:
    """Its folder, without the preview that would meet the fault."""
    generator._preview = dict  # type: ignore[method-assign]
    return generator.save(folder)


@pytest.mark.parametrize(
    ("fault", "told"),
    [pytest.param("exit", "ended with code 3", marks=pytest.mark.slow), ("raise", "the sampler broke")],
)
def test_a_shard_that_keeps_ending_workers_is_set_aside(fault: str, told: str, plugin, monkeypatch) -> None:
    monkeypatch.setattr("visynth.render.workers.DEATHS", 2)
    generator = Faulty(bad=0.02, fault=fault)
    folder = _saved(generator, plugin / "generator")
    for seed in range(50):  # one where some shards meet the fault, and some do not
        plan = make_plan(generator, per_class=20, shard_size=10, seed=seed)
        bad = [n for n in range(plan.shards) if any(generator.fails(i.seed, i.label) for i in plan.shard(n))]
        if 0 < len(bad) < plan.shards:
            break
    stage = DiskStage(plugin / "r")
    with pytest.raises(VisynthError, match=rf"{len(bad)} shards ended their worker .*{told}") as error:
        render(ImageMaker(generator, plan), stage, engine=Workers(folder, 2))
    assert error.value.exit_code == 70
    assert sorted(stage.rounds()) == [n for n in range(plan.shards) if n not in bad]


def test_workers_of_another_plan_say_so(composition, tmp_path) -> None:
    generator, folder = composition
    other = Faulty()
    _saved(other, tmp_path / "other")
    plan = make_plan(generator, per_class=3)
    with pytest.raises((ConflictError, UsageError)):
        render(ImageMaker(generator, plan), DiskStage(tmp_path / "r"), engine=Workers(tmp_path / "other", 1))
    assert folder.is_dir()


@pytest.mark.parametrize("wrong", [{"count": 0}, {"encoders": -1}, {"patience": 0}])
def test_wrong_settings(wrong) -> None:
    with pytest.raises(UsageError, match="workers must be at least 1"):
        Workers("generator", **wrong)


def test_a_full_disk_stops_everybody(composition, tmp_path, monkeypatch) -> None:
    """The first worker that cannot write tells why; nothing is retried for ever."""
    _, folder = composition
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import os, pathlib, sys\n"
        "if 'visynth.render.worker' in ' '.join(sys.orig_argv):\n"
        "    def full(*args):\n"
        "        raise OSError(28, 'No space left on device')\n"
        "    os.fsync = pathlib.Path.write_bytes = full\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(site))
    generator, _ = composition
    with pytest.raises(OutputError, match="No space left on device"):
        render_set(generator, make_plan(generator, per_class=6), tmp_path / "r", engine=Workers(folder, 2))


def test_workers_that_are_killed_under_a_living_parent(composition, tmp_path) -> None:
    """SIGKILL random workers while their parent lives; nothing is lost, doubled or torn."""
    generator, folder = composition
    plan = make_plan(generator, per_class=100, shard_size=8)
    whole = render_set(generator, plan, tmp_path / "whole")
    with assassin(lambda: workers_of(os.getpid()), kills=4, pause=(0.3, 1.5)) as killed:
        for number in range(100):
            render_set(generator, plan, tmp_path / f"r{number}", engine=Workers(folder, 2))
            made = read_renders(tmp_path / f"r{number}", verify=True)
            assert made.root() == whole.root()
            assert len({record.file_name for record in made.records}) == plan.total
            if len(killed) >= 4:
                break
    assert len(killed) == 4


def test_workers_end_with_their_parent(composition, tmp_path) -> None:
    _, folder = composition
    command = [sys.executable, "-c", "from visynth.cli import main; raise SystemExit(main())", "render", str(folder)]
    command += ["--out", str(tmp_path / "r"), "--per-class", "400", "--workers", "2", "--quiet"]
    parent = subprocess.Popen(command)
    try:
        while len(workers := workers_of(parent.pid)) < 2 or not list((tmp_path / "r.work").glob("shard.*")):
            assert parent.poll() is None
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
