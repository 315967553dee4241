"""Checkpoints that survive kills, full disks and flipped bits; SIGTERM in every phase, to any rank."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import pytorch_lightning
import torch
from torch.utils.data import DataLoader, Dataset

from tests.forked import forked
from tests.ranks import DDP, TRAINER, run_ranks
from visynth.callbacks import checkpoint as checkpoints
from visynth.callbacks.checkpoint import AtomicCheckpointIO, KeepLast, ignore_signals, previous, verified
from visynth.core.errors import IntegrityError, OutputError
from visynth.lightning_modules.data import StreamLoader
from visynth.lightning_modules.samplers import Stream


def value(path: Path) -> int:
    return int(AtomicCheckpointIO().load_checkpoint(path, weights_only=True)["value"])


def save(path: Path, number: int) -> None:
    AtomicCheckpointIO().save_checkpoint({"value": number, "weights": torch.full((1000,), float(number))}, path)


class TestFiles:
    def test_a_checkpoint_comes_back_with_its_hash_beside_it_and_the_one_before(self, tmp_path) -> None:
        path = tmp_path / "last.ckpt"
        for number in (1, 2, 3):
            save(path, number)
        assert value(path) == 3
        assert value(previous(path)) == 2
        if shutil.which("sha256sum"):
            for name in ("last.ckpt", "last.ckpt.previous"):
                subprocess.run(["sha256sum", "--quiet", "-c", f"{name}.sha256"], cwd=tmp_path, check=True)
        assert {p.name for p in tmp_path.iterdir()} == {
            "last.ckpt", "last.ckpt.sha256", "last.ckpt.previous", "last.ckpt.previous.sha256",
        }  # fmt: skip
        AtomicCheckpointIO().remove_checkpoint(path)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("damage", ["cut", "empty", "bit", "gone"])
    def test_the_one_before_is_loaded_where_the_last_is_not_whole(self, damage: str, tmp_path) -> None:
        path = tmp_path / "last.ckpt"
        save(path, 1)
        save(path, 2)
        data = bytearray(path.read_bytes())
        if damage == "gone":
            path.unlink()
        else:
            data[len(data) // 2] ^= 1
            path.write_bytes({"cut": bytes(data[:500]), "empty": b"", "bit": bytes(data)}[damage])
        with pytest.warns(UserWarning, match="going on from the checkpoint before it"):
            assert value(path) == 1
        previous(path).write_bytes(b"also")
        with pytest.raises(IntegrityError, match="there is no whole checkpoint"):
            value(path)

    def test_a_damaged_one_never_becomes_the_one_before(self, tmp_path) -> None:
        path = tmp_path / "last.ckpt"
        save(path, 1)
        save(path, 2)
        path.write_bytes(b"torn")
        save(path, 3)
        path.write_bytes(b"torn again")
        with pytest.warns(UserWarning, match="going on from"):
            assert value(path) == 1

    def test_another_writers_checkpoint_is_taken_as_it_is(self, tmp_path) -> None:
        torch.save({"value": 7}, tmp_path / "theirs.ckpt")
        assert value(tmp_path / "theirs.ckpt") == 7
        with pytest.raises(IntegrityError, match=r"none\.ckpt is missing"):
            verified(tmp_path / "none.ckpt")

    def test_a_full_disk_keeps_what_was_there(self, tmp_path, monkeypatch) -> None:
        path = tmp_path / "last.ckpt"
        save(path, 1)

        def full(handle: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(checkpoints.os, "fsync", full)
        with pytest.raises(OutputError, match=r"No space left on device.*run the same command again"):
            save(path, 2)
        monkeypatch.undo()
        assert value(path) == 1
        assert not list(tmp_path.glob("*.tmp"))

    @pytest.mark.injected
    @pytest.mark.parametrize("moment", range(8))
    def test_killed_between_any_two_steps(self, moment: int, tmp_path, monkeypatch) -> None:
        """Whichever rename or note comes last, a whole checkpoint is found: the old or the new one."""
        path = tmp_path / "last.ckpt"
        save(path, 1)
        save(path, 2)

        class Killed(BaseException):
            pass

        steps = []
        for name in ("_note", "_keep_previous"):
            real = getattr(checkpoints, name)
            monkeypatch.setattr(checkpoints, name, _counted(real, steps, moment, Killed))
        for name in ("replace", "link"):
            monkeypatch.setattr(checkpoints.os, name, _counted(getattr(os, name), steps, moment, Killed))
        try:
            save(path, 3)
        except Killed:
            pass
        else:
            pytest.fail(f"the save has only {len(steps)} steps")
        monkeypatch.undo()
        assert value(path) in (2, 3)
        save(path, 4)
        assert value(path) == 4


def _counted(real, steps: list[int], moment: int, kill: type[BaseException]):
    def call(*args, **kwargs):
        if len(steps) == moment:
            raise kill
        steps.append(1)
        return real(*args, **kwargs)

    return call


def save_on(path: str, on: bool, size: int) -> None:
    """Save without end, and say after each save which it was."""
    io, weights = AtomicCheckpointIO(), torch.zeros(size)
    start = io.load_checkpoint(path, weights_only=True)["value"] if on else 0
    for number in range(start + 1, 100000):
        io.save_checkpoint({"value": number, "weights": weights}, path)
        print(number, flush=True)


def kill_saves(tmp_path: Path, kills: int, size: int = 4_000_000) -> None:
    """SIGKILL a process that saves all the time, at random; TMPDIR is another filesystem, as on every mounted volume."""
    path, numbers, last = tmp_path / "last.ckpt", random.Random(time.time()), 0
    other = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    for _ in range(kills):
        log = tmp_path.with_name(tmp_path.name + ".log")
        with forked(save_on, str(path), bool(last), size, log=log, env={"TMPDIR": str(other)}) as process:
            while not process.output().endswith("\n"):  # until it is at work
                assert process.poll() is None, process.output()
                time.sleep(0.01)
            time.sleep(numbers.uniform(0, 0.4))
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        told = [int(line) for line in process.output().split()]
        reached = value(path)  # warnings are errors: the last one itself is whole
        assert reached >= max([last, *told])
        last = reached
        # Of this kill alone (the checkpoint, the link to the one before, a note): the next save removes them.
        assert {left.name.split(".")[-2] for left in tmp_path.glob(".*.tmp")} <= {str(process.pid)}
    save(path, 0)
    assert not list(tmp_path.glob(".*.tmp"))


def test_kills_during_saves(tmp_path) -> None:
    kill_saves(tmp_path, 3)


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_fifty_kills_during_saves(tmp_path) -> None:
    kill_saves(tmp_path, 50)


class Numbers(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([float(index % 97)])


class Slow(pytorch_lightning.LightningModule):
    """A training whose every phase takes a while and says so in a file."""

    def __init__(self, said: str = "", steps: int = 40) -> None:
        super().__init__()
        self.weight = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(self.weight.weight, 0.5)
        torch.nn.init.zeros_(self.weight.bias)
        self.said, self.steps = said, steps
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def tell(self, phase: str) -> None:
        if self.said and not Path(self.said, phase).exists():
            Path(self.said, phase).touch()
        if self.said:
            time.sleep(0.05)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.tell("training")
        self.seen += len(batch) * self.trainer.world_size
        return (self.weight(batch / 97) - torch.sin(batch)).square().mean()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.tell("warm-up" if self.trainer.sanity_checking else "validation")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def run(root: Path, said: str = "", workers: int = 0, steps: int = 40, keep: int | None = None, **options) -> KeepLast:
    """Train ``Slow``, or go on training it."""
    last = KeepLast.path(root)
    keeper = KeepLast(every_n_steps=keep)
    base = {**TRAINER, "enable_checkpointing": True, "num_sanity_val_steps": 4, "val_check_interval": 10}
    trainer = pytorch_lightning.Trainer(
        **{**base, "default_root_dir": root, "max_steps": steps, "limit_val_batches": 6, **options},
        callbacks=[keeper],
        plugins=[AtomicCheckpointIO()],
    )
    pytorch_lightning.seed_everything(0)
    module = Slow(said)
    stream = StreamLoader(
        Numbers(), 4, sampler=Stream(lambda: int(module.seen), 100_000), num_workers=workers,
        worker_init_fn=ignore_signals, persistent_workers=workers > 0,
    )  # fmt: skip
    trainer.fit(
        module, stream, DataLoader(Numbers(), 4), ckpt_path=str(last) if last.is_file() else None, weights_only=True
    )
    return keeper


def reached(root: Path) -> tuple[int, dict[str, torch.Tensor]]:
    stored = torch.load(KeepLast.path(root), weights_only=True)
    return stored["global_step"], stored["state_dict"]


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*trailing.*", "ignore:.*mid-epoch.*")
class TestSignals:
    @pytest.mark.injected
    @pytest.mark.parametrize(
        ("phase", "workers"), [("warm-up", 0), pytest.param("validation", 0, marks=pytest.mark.slow), ("training", 1)]
    )
    def test_sigterm_in_any_phase(self, phase: str, workers: int, tmp_path) -> None:
        """One consistent checkpoint, and the resumed run ends where the undisturbed one does, to the last bit."""
        (tmp_path / "said").mkdir()
        with forked(child, str(tmp_path / "run"), str(tmp_path / "said"), workers, log=tmp_path / "log") as process:
            deadline = time.monotonic() + 90
            while not (tmp_path / "said" / phase).exists():
                assert process.poll() is None, process.output()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            # It has a session of its own: the signal goes to the whole group, as schedulers send it.
            os.killpg(process.pid, signal.SIGTERM)
            time.sleep(0.1)
            os.killpg(process.pid, signal.SIGTERM)  # an impatient scheduler
            assert process.wait(60) == 143, process.output()
        step, _ = reached(tmp_path / "run")
        assert 0 < step < 40
        run(tmp_path / "run")
        run(tmp_path / "whole")
        (at, stopped), (end, whole) = reached(tmp_path / "run"), reached(tmp_path / "whole")
        assert at == end == 40
        assert all(torch.equal(stopped[name], whole[name]) for name in whole)

    @pytest.mark.injected
    @pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
    def test_sigterm_to_any_one_rank(self, rank: int, tmp_path) -> None:
        run_ranks(one_is_asked, str(tmp_path), rank)
        step, _ = reached(tmp_path / "run")
        assert 0 < step < 4000
        assert step % 20 == 0  # a step that they agreed on


def child(root: str, said: str, workers: int) -> int:
    keep = run(Path(root), said, workers)
    return 143 if keep.terminated else 0


def one_is_asked(rank: int, root: str, asked: int) -> None:
    import threading
    import warnings

    warnings.simplefilter("ignore")
    if rank == asked:
        threading.Timer(6.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    Path(root, "said").mkdir(exist_ok=True)
    keep = run(Path(root, "run"), str(Path(root, "said")), steps=4000, val_check_interval=2000, num_sanity_val_steps=0, **{
        k: v for k, v in DDP.items() if k in ("devices", "strategy")
    })  # fmt: skip
    assert keep.terminated
