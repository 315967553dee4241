"""Trainings whose loader workers or ranks are killed; run with 'scripts/faults'."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests.jobs.test_fit import SMALL

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def write(tmp_path: Path, steps: int, workers: int = 0, **trainer) -> list[str]:
    """The command of a small training in ``tmp_path/run``."""
    told = {
        **SMALL,
        "trainer": {**SMALL["trainer"], "default_root_dir": str(tmp_path / "run"), "max_steps": steps, **trainer},
        "checkpoint": {"every_n_steps": 20},
        "data": {**SMALL["data"], "init_args": {**SMALL["data"]["init_args"], "num_workers": workers}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(told))
    return ["-m", "visynth", "fit", "-c", str(tmp_path / "config.yaml")]


def reached(tmp_path: Path) -> int:
    last = tmp_path / "run/checkpoints/last.ckpt"
    return int(torch.load(last, weights_only=True)["global_step"]) if last.is_file() else 0


def wait_for(tmp_path: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while reached(tmp_path) < step:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)


def family(parent: int, depth: int = 1) -> list[int]:
    """Child processes, and theirs."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()[1:]]
    own = [pid for pid, ppid in pairs if ppid == parent]
    return own + [child for pid in own for child in family(pid, depth - 1)] if depth else own


def test_a_loader_worker_that_is_killed(tmp_path) -> None:
    """An error that names the worker, not a hang; the same command goes on from the last checkpoint."""
    words = [sys.executable, *write(tmp_path, 100_000, workers=1)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE)
    wait_for(tmp_path, 20, process)
    workers = [pid for pid in family(process.pid) if "resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(workers[-1], signal.SIGKILL)
    _, told = process.communicate(timeout=120)
    assert process.returncode not in (0, 143)
    assert b"DataLoader worker" in told
    before = reached(tmp_path)
    subprocess.run(
        [sys.executable, *write(tmp_path, before + 10, workers=1)], check=True, capture_output=True, timeout=300
    )
    assert reached(tmp_path) == before + 10


def test_a_rank_that_is_killed_under_torchrun(tmp_path) -> None:
    """torchrun starts the group again, and the training goes on from its checkpoint to the end. Gloo sometimes hangs when
    such a group finds together; then the time limit ends it, and torchrun starts it once more."""
    ddp = {"class_path": "pytorch_lightning.strategies.DDPStrategy", "init_args": {"timeout": "0:01:00"}}
    words = write(tmp_path, 400, devices=2, strategy=ddp, accelerator="cpu")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
    errors = tmp_path / "errors"  # a pipe that nobody reads would stop the ranks when it is full
    with errors.open("wb") as stream:
        process = subprocess.Popen([*launcher, *words], stderr=stream, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for(tmp_path, 40, process)
    at = reached(tmp_path)
    ranks = [pid for pid in family(process.pid) if b"visynth" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(ranks[-1], signal.SIGKILL)
    assert process.wait(600) == 0, errors.read_text()[-6000:]
    assert at < 400
    assert reached(tmp_path) == 400
    assert (tmp_path / "run/generator/generator.json").is_file()
