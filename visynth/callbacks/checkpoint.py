"""One checkpoint that is always whole: ``<run>/checkpoints/last.ckpt``, from which the same command goes on."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, cast

import torch
from pytorch_lightning.callbacks import Callback, Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from visynth.core import distributed
from visynth.core.errors import Diverged, IntegrityError, OutputError, listing
from visynth.core.files import hash_file, sync_folder, temporary_name, write_text
from visynth.core.folders import is_dead
from visynth.core.store import is_url

PREVIOUS, SIDECAR = ".previous", ".sha256"
SAVE, INTERRUPT, TERMINATE = 1.0, 2.0, 3.0  # wishes, weakest first


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that a kill, a full disk or a flipped bit cannot take away.

    A checkpoint is written to a temporary sibling (never to ``$TMPDIR``, from which a move to another filesystem can be
    killed half way), synced, and given its name by one rename. Its sha256 lies beside it (``last.ckpt.sha256``, as
    ``sha256sum -c`` reads it), the one before it is kept (``last.ckpt.previous``), and where a checkpoint is not what its
    sha256 says the previous one is loaded, with a warning. Checkpoints at addresses of object stores are Lightning's own
    business.

    Example:
        >>> import pytorch_lightning
        >>> trainer = pytorch_lightning.Trainer(
        ...     plugins=[AtomicCheckpointIO()], logger=False, accelerator="cpu", enable_progress_bar=False)
    """

    def __init__(self) -> None:
        super().__init__()
        self._written: dict[Path, tuple[int, int]] = {}  # size and time of what this process wrote

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint and keep the one before it.

        Raises:
            OutputError: it cannot be written; what was there is kept.
        """
        if is_url(str(path)):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        temporary = temporary_name(path)
        try:
            with open(temporary, "wb") as stream:
                hashing = _Hashing(stream)
                try:
                    torch.save(checkpoint, cast(IO[bytes], hashing))
                except RuntimeError:
                    if hashing.failure is not None:  # torch's writer tells of a full disk as of a wrong position
                        raise hashing.failure from None
                    raise
                stream.flush()
                os.fsync(stream.fileno())
            digest = hashing.digest.hexdigest()
            _keep_previous(path, known=self._written.get(path))
            # Both hashes stand there while the file is exchanged: killed in between, the old and the new one verify.
            before = _noted(path)[-1:] or ([hash_file(path)] if path.is_file() else [])  # another writer's has no note
            _note(path, [*before, digest])
            os.replace(temporary, path)
            sync_folder(path.parent)
            _note(path, [digest])
            self._written[path] = _stamp(path)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(
                f"cannot write {path}: {error.strerror or error}. The checkpoint before it is kept: free space and run the "
                "same command again."
            ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoint, or the one before it where that is not whole.

        Raises:
            IntegrityError: neither is.
        """
        place = path if is_url(str(path)) else verified(path)
        loaded: dict[str, Any] = super().load_checkpoint(place, map_location, weights_only)
        return loaded

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint with its sha256 and the one before it."""
        super().remove_checkpoint(path)
        if not is_url(str(path)):
            for file in (_sidecar(Path(path)), previous(path), _sidecar(previous(path))):
                file.unlink(missing_ok=True)


def verified(path: str | Path) -> Path:
    """A checkpoint's path, or that of the one before it where it is missing or not what its sha256 says.

    A checkpoint without a sha256 beside it (of another writer) is taken as it is.

    Raises:
        IntegrityError: neither is whole.
    """
    path, problems = Path(path), []
    for candidate in (path, previous(path)):
        noted = _noted(candidate)
        if not candidate.is_file():
            problems.append(f"{candidate} is missing")
        elif noted and hash_file(candidate) not in noted:
            problems.append(f"{candidate} was cut short or altered: it is not what {_sidecar(candidate).name} says")
        else:
            if problems:
                warnings.warn(f"{problems[0]}; going on from the checkpoint before it, {candidate.name}", stacklevel=2)
            return candidate
    raise IntegrityError(f"there is no whole checkpoint:\n{listing(problems)}")


def previous(path: str | Path) -> Path:
    """Path of the checkpoint before the last."""
    return Path(path).with_name(Path(path).name + PREVIOUS)


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _keep_previous(path: Path, known: tuple[int, int] | None) -> None:
    """The checkpoint that is about to be replaced, if it is whole, becomes the previous one; it stays in place.

    Args:
        path: of it.
        known: its stamp where this process wrote it; then it is not read again.
    """
    noted = _noted(path)
    if not path.is_file() or not noted:
        return
    if _stamp(path) != known and hash_file(path) not in noted:
        return
    kept = previous(path)
    link = temporary_name(kept)
    link.unlink(missing_ok=True)
    try:
        try:
            os.link(path, link)
        except OSError:  # a filesystem without hard links
            shutil.copyfile(path, link)
        _note(kept, [*_noted(kept)[-1:], *noted])
        os.replace(link, kept)
        _note(kept, noted)
    finally:
        link.unlink(missing_ok=True)


def _sweep(path: Path) -> None:
    """Remove what killed processes of this machine left half written of this checkpoint."""
    for left in path.parent.glob(f".{path.name}*.tmp"):
        if is_dead(left.name):
            left.unlink(missing_ok=True)


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + SIDECAR)


def _noted(path: Path) -> list[str]:
    """Hashes that a checkpoint may have."""
    try:
        return [line.split()[0] for line in _sidecar(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError:
        return []


def _note(path: Path, hashes: list[str]) -> None:
    write_text(_sidecar(path), "".join(f"{digest}  {path.name}\n" for digest in dict.fromkeys(hashes)))


class _Hashing:
    """A stream that hashes what is written to it; a checkpoint is never in memory twice."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.digest = stream, sha256()
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            return self.stream.write(data)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self.stream.flush()


class KeepLast(Checkpoint):
    """Saves ``last.ckpt`` every few minutes or steps, at the end, on SIGTERM, and when a loss leaves the finite
    numbers.

    What it saves on divergence is the state of the last finite step: :class:`visynth.core.errors.Diverged` is raised
    before a bad one. SIGTERM, to whichever rank, only leaves a note; all ranks stop together after a step that they agree
    on, and save what they all have.

    Args:
        minutes: between checkpoints.
        every_n_steps: optimiser steps between checkpoints, besides.

    Attributes:
        wish: what a signal asked for, until every rank has stopped: 0, or how to stop.
        exported: whether the generator is on disk, so that a signal has nothing more to wait for.
    """

    def __init__(self, minutes: float = 5.0, every_n_steps: int | None = None) -> None:
        super().__init__()
        self.minutes, self.every_n_steps = minutes, every_n_steps
        self.wish, self.exported = 0.0, False
        self._saved_at, self._saved_step, self._seen_step = time.monotonic(), -1, -1

    @staticmethod
    def path(root: str | Path) -> Path:
        """Path of a run's checkpoint."""
        return Path(root) / "checkpoints" / "last.ckpt"

    @property
    def stop_requested(self) -> bool:
        """Whether training is to end after the step at hand."""
        return self.wish >= INTERRUPT

    @property
    def terminated(self) -> bool:
        """Whether it was SIGTERM that ended it, on any rank."""
        return self.wish == TERMINATE

    def interrupt(self) -> None:
        """Ask every rank to stop after the step at hand."""
        self.wish = max(self.wish, INTERRUPT)

    def on_sanity_check_start(self, trainer: Any, pl_module: Any) -> None:
        self._listen()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._listen()
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        self._seen_step = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step == self._seen_step:  # within an accumulation: half a step must be neither saved nor stopped at
            return
        self._seen_step = step
        due = SAVE if time.monotonic() - self._saved_at > 60 * self.minutes else 0.0
        wish = _strongest(max(self.wish, due), step)
        if wish or (self.every_n_steps is not None and step % self.every_n_steps == 0):
            self._save(trainer)
        if wish >= INTERRUPT:
            self.wish = wish
            trainer.should_stop = True  # on every rank, whichever was asked

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.wish = _agreed(
            self.wish
        )  # asked after the last look at it, a rank must not end in another way than the rest
        if trainer.global_step != self._saved_step:
            self._save(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        # Only errors that all ranks raise together, between steps: any other moment may be the middle of one.
        together = isinstance(exception, Diverged) or type(exception).__name__ == "SIGTERMException"
        if together and trainer.global_step and trainer.global_step != self._saved_step:
            self._save(trainer)

    def _listen(self) -> None:
        """Take SIGTERM over from Lightning, whose handler waits for rank 0 wherever it is: asked alone, another rank
        would wait for ever."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, number: int, frame: Any) -> None:
        self.wish = TERMINATE
        if self.exported:  # only a measurement is left
            raise SystemExit(143)

    def _save(self, trainer: Any) -> None:
        trainer.save_checkpoint(self.path(trainer.default_root_dir))
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step


class ExportFirst(Callback):
    """Exports the generator as soon as the training is over, before anything more is measured, and after the last
    checkpoint is on disk. A training that was asked to stop exports nothing.

    Args:
        export: what the first rank calls.
    """

    def __init__(self, export: Callable[[], None]) -> None:
        super().__init__()
        self.export, self.done = export, False

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        keepers = [callback for callback in trainer.callbacks if isinstance(callback, KeepLast)]
        for keeper in keepers:
            keeper.on_train_end(trainer, pl_module)
        if trainer.received_sigterm or any(keeper.stop_requested for keeper in keepers):
            return
        distributed.on_main(self.export)  # an error of the first rank is one of all
        self.done = True
        for keeper in keepers:
            keeper.exported = True


def ignore_signals(worker: int = 0) -> None:
    """For loader workers: signals to the whole process group (Ctrl-C, a scheduler's SIGTERM) are their parent's to
    answer. Workers that died first would end its step, and with it the checkpoint."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _strongest(own: float, step: int) -> float:
    """The strongest wish of any rank, asked every 20 steps: a collective at each step would cost what it saves."""
    if distributed.world_size() == 1:
        return own
    return 0.0 if step % 20 else _agreed(own)


def _agreed(own: float) -> float:
    """The strongest wish of any rank; every rank must ask."""
    if distributed.world_size() == 1 or not torch.distributed.is_initialized():
        return own
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    wish = torch.tensor(own, device=device)
    torch.distributed.all_reduce(wish, torch.distributed.ReduceOp.MAX)
    return float(wish)
