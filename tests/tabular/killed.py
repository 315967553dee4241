"""A fit that is killed after one of its steps, its checkpoint just saved."""

from __future__ import annotations

from typing import Any

import pytest

from visynth.cli import main


def killed_at(step: int, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command whose training is interrupted after a step."""
    from visynth.callbacks.checkpoint import KeepLast

    class Killed(KeepLast):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if int(pl_module.steps_done) == step:
                self._save(trainer)
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("visynth.callbacks.checkpoint.KeepLast", Killed)
        main(words)
