"""The key of a private fit: whoever has it can take the noise off again.

It is drawn by the operating system. Samples and noise are functions of (key, use), so that a training that was killed goes on
as it would have; so the key stands in checkpoints, and never in a generator.
"""

from __future__ import annotations

import os
import secrets
from hashlib import blake2b
from pathlib import Path

import numpy as np

from visynth.core import seeds as seeding
from visynth.core.errors import IntegrityError

HALF = 15  # hexadecimal digits that fit into a seed


def new_key() -> str:
    """256 random bits of the operating system, in hexadecimal."""
    return secrets.token_hex(32)


def key_of(file: str | Path | None) -> str:
    """The key in a file, which is written, for the owner alone, where there is none; without a file a new key."""
    if file is None:
        return new_key()
    path = Path(file)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.touch(mode=0o600)
        part.write_text(new_key(), encoding="ascii")
        os.replace(part, path)
    key = path.read_text(encoding="ascii").strip()
    if len(key) != 64 or set(key) - set("0123456789abcdef"):
        raise IntegrityError(f"{path} holds no key (64 hexadecimal digits): remove it to begin anew.")
    return key


def key_for(key: str, *purpose: object) -> str:
    """The key of one purpose: other data or options have another, so that the noise of two fits never cancels out.

    Example:
        >>> key_for("0" * 64, "a", 1.0) == key_for("0" * 64, "a", 1.0), key_for("0" * 64, "a") == key_for("0" * 64, "b")
        (True, False)
    """
    return blake2b("\x1f".join([key, *map(str, purpose)]).encode(), digest_size=32).hexdigest()


def secret_rng(key: str, use: str) -> np.random.Generator:
    """The generator of one use of a key: numpy's Philox, keyed by 126 bits of both.

    Example:
        >>> key = new_key()
        >>> float(secret_rng(key, "a").random()) == float(secret_rng(key, "a").random())
        True
    """
    return seeding.rng(int(key[:HALF], 16), f"dp/{key[HALF:]}/{use}")
