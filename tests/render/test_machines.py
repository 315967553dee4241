"""Machines whose clocks are wrong, and whose memory runs out; run with 'scripts/faults'."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from visynth.core.errors import OutOfMemory
from visynth.core.memory import memory_errors
from visynth.render.run import make_plan, render_set
from visynth.render.stage import DiskStage

MAIN = "from visynth.cli import main; raise SystemExit(main())"
# A clock that is years off, and runs backwards a second at each look.
CLOCK = """
import os, time
off, looks, real, gmtime = float(os.environ["CLOCK"]), [0], time.time, time.gmtime
def wrong():
    looks[0] += 1
    return real() + off - looks[0]
time.time = wrong
time.time_ns = lambda: int(wrong() * 1e9)
time.gmtime = lambda seconds=None: gmtime(wrong() if seconds is None else seconds)
"""


def render(
    folder: Path, out: Path, *more: str, code: str = MAIN, **environment: str
) -> subprocess.CompletedProcess[str]:
    words = ["render", str(folder), "--out", str(out), "--per-class", "60", "--shard-size", "8", "--quiet", *more]
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=280,
        env=os.environ | environment,
        check=False,
    )


@pytest.mark.injected
@pytest.mark.slow
def test_clocks_that_are_wrong(composition, tmp_path) -> None:
    """Two machines, one ten years behind and one ten years ahead, both backwards: the same bytes, each shard once."""
    generator, folder = composition
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(CLOCK)
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    for index, off in enumerate(("-315360000", "315360000")):
        share = ("--shard-index", str(index), "--shard-count", "2")
        ran = render(folder, tmp_path / "r", *share, CLOCK=off, PYTHONPATH=path)
        assert ran.returncode == 0, ran.stderr
    reference = render_set(generator, make_plan(generator, per_class=60, shard_size=8), tmp_path / "whole")
    again = render_set(generator, make_plan(generator, per_class=60, shard_size=8), tmp_path / "r")
    assert again.root() == reference.root()


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("workers", ["0", "1"])
def test_memory_that_runs_out(workers: str, composition, tmp_path) -> None:
    """The address space of the process is limited to a little more than it has after some shards: an error that says what
    to do, what is committed is kept, and with memory the same command goes on to the same bytes."""
    generator, folder = composition
    limited = (
        "import resource, sys; from visynth.render import images\n"
        "draw, seen = images.ImageMaker._draw, []\n"
        "def less(self, *args):\n"
        "    seen.append(1)\n"
        "    if len(seen) == 20:\n"
        "        now = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "        resource.setrlimit(resource.RLIMIT_AS, (now + 2**20, now + 2**20))\n"
        "        hold.append(bytearray(2**30))\n"
        "    return draw(self, *args)\n"
        "hold = []\n"
        "images.ImageMaker._draw = less\n"
    )
    if workers == "0":
        ran = render(folder, tmp_path / "r", "--workers", workers, code=limited + MAIN)
    else:
        site = tmp_path / "site"
        site.mkdir()
        hook = "import sys\nif 'visynth.render.worker' in ' '.join(sys.orig_argv):\n"
        late = "".join(
            f"    {line}\n" for line in limited.replace("import resource, sys; ", "import resource\n").splitlines()
        )
        (site / "sitecustomize.py").write_text(hook + late)
        ran = render(folder, tmp_path / "r", "--workers", workers, PYTHONPATH=str(site))
    assert ran.returncode == 70, ran.stderr
    assert "memory ran out" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert DiskStage(tmp_path / "r").rounds()
    assert render(folder, tmp_path / "r", "--workers", workers).returncode == 0
    plan = make_plan(generator, per_class=60, shard_size=8)
    assert render_set(generator, plan, tmp_path / "r").root() == render_set(generator, plan, tmp_path / "w").root()


@pytest.mark.parametrize(
    ("error", "memory"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("not enough memory cards"), False),
    ],
)
def test_which_errors_are_of_memory(error: Exception, memory: bool) -> None:
    with pytest.raises(OutOfMemory if memory else type(error)), memory_errors("Take less."):
        raise error


def test_libraries_that_ask_for_too_much() -> None:
    import cv2
    import numpy as np
    import torch

    small = np.zeros((2, 2, 4))
    for ask in (
        lambda: torch.empty(2**50),
        lambda: cv2.resize(small, (2**15 - 1, 2**20)),
        lambda: np.empty(2**50),
        lambda: bytearray(2**60),
    ):
        with pytest.raises(OutOfMemory, match="Take less"), memory_errors("Take less."):
            ask()
