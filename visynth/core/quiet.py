"""Lightning's logs and warnings that do not fit our trainings, silenced while one runs and left as they were after it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_lightning(level: int = logging.WARNING) -> Iterator[None]:
    """No greetings, and no hints that do not fit: images lie in memory, not behind workers.

    Args:
        level: below which ``pytorch_lightning`` and ``lightning.pytorch`` log nothing; a trial, which has many short fits,
            takes ``logging.ERROR``.
    """
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            hints = (
                ".*does not have many workers",
                ".*isinstance.treespec, LeafSpec",
                ".*in eval mode at the start of training",
            )
            for words in hints:
                warnings.filterwarnings("ignore", message=words)
            yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.setLevel(old)
