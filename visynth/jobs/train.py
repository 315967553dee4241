"""``visynth fit``: LightningCLI in subclass mode, one folder a run, and the same command to go on after any stop.

A run folder (``trainer.default_root_dir``) holds ``config.yaml``, ``checkpoints/last.ckpt``, ``log/`` with metrics and
sheets, ``ema/`` with stored weight averages, and at the end ``generator/`` and ``finished.json``. The module and the
data are named by ``class_path``, yours or visynth's.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visynth.core.errors import ConflictError, UsageError, listing
from visynth.core.files import hash_json, readable_json
from visynth.core.folders import check_apart, claim, claim_files, put_files
from visynth.core.memory import memory_errors
from visynth.core.quiet import quiet_lightning
from visynth.jobs.configured import configured, connect

if TYPE_CHECKING:
    from collections.abc import Iterator

# What may change between the starts of one run; anything else would make it another one.
FREE = {
    "model": {"lr", "lr_g", "lr_d", "gamma", "chosen_by", "warmup", "kimg", "sampler", "micro_batch", "snapshots"},
    "data": {"num_workers", "epoch_images"},
}
INTERRUPTED, STOPPED = 130, 143
FINISHED = "finished.json"
LESS = (
    "Take a smaller batch, with --trainer.accumulate_grad_batches for the same sum, a smaller network, or bf16. The same command "
    "goes on from the last checkpoint."
)


@quiet_lightning()
def fit(words: Sequence[str]) -> int:
    """Train, or go on training, and export the generator. Takes LightningCLI's flags and files (``-c config.yaml``).

    Returns:
        0, or 130 after Ctrl-C and 143 after SIGTERM: then the same command goes on.

    Raises:
        UsageError: wrong flags or configuration.
        ConflictError: the run folder holds a run of another model or other data.
        Diverged: the loss became infinite or not a number.
    """
    return train(configured(words))


def train(cli: Any, exchange: Any = None) -> int:
    """Train what is configured; ``exchange`` carries messages to the sites of a federated training."""
    from visynth.callbacks.checkpoint import ExportFirst

    root = Path(cli.trainer.default_root_dir)
    read = [getattr(cli.datamodule, name, None) for name in ("data", "masks")]
    folders = [Path(folder) for folder in read if isinstance(folder, str) and Path(folder).is_dir()]
    federated, simulated = cli.config_init["federated"], False
    if federated is not None:
        from visynth.jobs.federated import become_server, site_folders

        folders = site_folders(federated)
        simulated = federated.engine == "nvflare" and exchange is None
        if simulated:  # its processes work elsewhere
            cli.config["trainer"]["default_root_dir"] = str(root.resolve())
        become_server(cli, federated, exchange)
    check_apart(root, folders)
    claim_files(root, ["config.yaml", FINISHED])
    text = cli.parser.dump(cli.config, skip_none=False)
    checkpoint = _resume_from(root, text)
    if checkpoint is not None and _finished(root) == _identity(cli, text):
        print(f"{root / 'generator'} is finished; change the configuration or the run folder to train another.")
        return 0
    for name in ("generator", "lora"):  # now, not after hours of training
        claim(root / name)
    if cli.trainer.is_global_zero:
        put_files(root, {"config.yaml": text.encode()})
    if simulated:
        from visynth.jobs.flare_job import simulate

        simulate(root.resolve(), text, federated)
        print(f"{root / 'generator'}: trained by NVFlare's simulator")
        return 0
    first = ExportFirst(lambda: _export(cli, root))
    cli.trainer.callbacks.insert(0, first)
    with _gentle_interrupt(cli.trainer.callbacks, first) as interrupted:
        try:
            # A local file that we wrote ourselves: plain tensors and plain values.
            with memory_errors(LESS):
                cli.trainer.fit(
                    cli.model,
                    cli.datamodule,
                    ckpt_path=None if checkpoint is None else str(checkpoint),
                    weights_only=True,
                )
        except (SystemExit, KeyboardInterrupt):  # of a signal after the export, or of Lightning between two steps
            if not (cli.trainer.received_sigterm or ((interrupted or _terminated(cli.trainer)) and first.done)):
                raise
    terminated = cli.trainer.received_sigterm or _terminated(cli.trainer)
    code = INTERRUPTED if interrupted else STOPPED if terminated else 0
    if code and not first.done:
        print(f"stopped after {cli.trainer.global_step} steps; the same command goes on", file=sys.stderr)
        return code
    if code:
        print("the generator is exported; the last measurement was left out", file=sys.stderr)
    if not first.done:  # nothing was left to train: the run had been killed before its export
        _export(cli, root)
    if cli.trainer.is_global_zero:
        put_files(root, {FINISHED: readable_json({"configuration": _identity(cli, text)})})
    return code


def _terminated(trainer: Any) -> bool:
    """Whether SIGTERM ended a training, on any rank."""
    from visynth.callbacks.checkpoint import KeepLast

    return any(callback.terminated for callback in trainer.callbacks if isinstance(callback, KeepLast))


@quiet_lightning()
def export(run: str | Path, out: str | Path, ema: float | None = None) -> Path:
    """The generator of a run at its last checkpoint, with any width of the weight average.

    Args:
        run: the run folder.
        out: the generator folder.
        ema: relative width in (0, 0.28]; by default the configured one. Other widths than 0.05, 0.10 and that are made
            of snapshots.

    Raises:
        UsageError: no run there, or a module that does not export.
    """
    return Path(last_state(run).export(out, ema))


def last_state(run: str | Path) -> Any:
    """The module of a run as its last checkpoint has it, connected with its data.

    Raises:
        UsageError: no run there.
    """
    run = Path(run)
    from visynth.callbacks.checkpoint import KeepLast, verified

    if not _has_checkpoint(run) or not (run / "config.yaml").is_file():
        raise UsageError(f"{run} holds no run with a checkpoint: train one with 'visynth fit -c ...'.")
    import torch

    cli = configured(["--config", str(run / "config.yaml"), "--trainer.default_root_dir", str(run)], logger=False)
    if cli.config_init["federated"] is not None:
        from visynth.jobs.federated import become_server

        become_server(cli, cli.config_init["federated"])
    stored = torch.load(verified(KeepLast.path(run)), map_location="cpu", weights_only=True)
    connect(cli)
    cli.model.on_load_checkpoint(stored)
    cli.model.load_state_dict(stored["state_dict"], strict=cli.model.strict_loading)
    return cli.model


def _identity(cli: Any, text: str) -> str:
    """Identity of a run: its configuration and its data."""
    data = cli.datamodule
    private = any(getattr(part, "pays_for_privacy", False) for part in (cli.model, *cli.trainer.callbacks))
    if private or not hasattr(data, "state"):  # of private images no hash is kept
        return hash_json(text)
    data.setup("fit")
    return hash_json([text, data.state()])


def _finished(root: Path) -> str | None:
    """The hash of the configuration that the run's generator was finished with."""
    if not (root / FINISHED).is_file() or not (root / "generator").is_dir():
        return None
    return str(json.loads((root / FINISHED).read_text(encoding="utf-8"))["configuration"])


def _resume_from(root: Path, text: str) -> Path | None:
    """The checkpoint to go on from, or None for a new run.

    Raises:
        ConflictError: the folder's run has another model or other data.
    """
    from visynth.callbacks.checkpoint import KeepLast

    checkpoint, config = KeepLast.path(root), root / "config.yaml"
    if not _has_checkpoint(root) or not config.is_file():
        return None
    import yaml

    before, now = yaml.safe_load(config.read_text(encoding="utf-8")), yaml.safe_load(text)
    differ = [
        line for part in ("model", "data") for line in _differences(before.get(part), now.get(part), part, FREE[part])
    ]
    there, here = (part.get("federated") is not None for part in (before, now))
    if there != here:
        differ.append(f"federated: {'named' if there else 'not named'} there, {'named' if here else 'not named'} here")
    if differ:
        raise ConflictError(
            f"{root} holds a run with another configuration:\n{listing(differ)}\nChoose another "
            "trainer.default_root_dir, or delete this one."
        )
    return checkpoint


def _has_checkpoint(root: Path) -> bool:
    """Whether a run has a checkpoint, or the one before it."""
    from visynth.callbacks.checkpoint import KeepLast, previous

    return KeepLast.path(root).is_file() or previous(KeepLast.path(root)).is_file()


def _differences(before: Any, now: Any, path: str, free: set[str]) -> list[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = sorted({*before, *now} - free)
        return [line for key in keys for line in _differences(before.get(key), now.get(key), f"{path}.{key}", free)]
    return [] if before == now else [f"{path}: {before!r} there, {now!r} here"]


@contextmanager
def _gentle_interrupt(callbacks: Sequence[Any], first: Any) -> Iterator[list[bool]]:
    """The first Ctrl-C asks ``KeepLast`` to end training after the step at hand. It listens to SIGTERM itself."""
    said: list[bool] = []
    from visynth.callbacks.checkpoint import KeepLast

    if threading.current_thread() is not threading.main_thread():
        yield said
        return

    def stop(number: int, frame: Any) -> None:
        again = bool(said)
        said.append(True)
        if again or first.done:  # after the export only a measurement is left
            raise KeyboardInterrupt
        for callback in callbacks:
            if isinstance(callback, KeepLast):
                callback.interrupt()
        print("stopping after this step; Ctrl-C again ends at once", file=sys.stderr)

    before = signal.signal(signal.SIGINT, stop), signal.getsignal(signal.SIGTERM)
    try:
        yield said
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1] or signal.SIG_DFL)


def _export(cli: Any, root: Path) -> None:
    if not hasattr(cli.model, "export"):
        print(f"{type(cli.model).__name__} has no export(folder): its checkpoint is {root / 'checkpoints'}")
        return
    if cli.trainer.is_global_zero:
        folder = cli.model.export(root / "generator")
        print(f"{folder}: after {int(getattr(cli.model, 'images_seen', 0))} images")
