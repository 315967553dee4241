"""Replies that were paid for, on disk before they are used: a killed run goes on with the same command.

One line a reply, appended and synced, with a hash of its own; a line that a kill tore is left out when they are read again.
Failures are not kept: the next run asks again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from visynth.core.errors import OutputError
from visynth.core.files import canonical_json, hash_json
from visynth.tabular.text.backends import Reply, Request


def file_name(identity: Mapping[str, Any]) -> str:
    """Name of the file of one backend's and generator's replies: those of others are not touched."""
    return f"replies-{hash_json(dict(identity))[:16]}.jsonl"


class Replies:
    """Replies by (record, prompt, model, parameters).

    Args:
        folder: of the work; made when it is not there.
        identity: of the backend.

    Example:
        >>> import tempfile
        >>> folder, request = tempfile.mkdtemp(), Request(({"role": "user", "content": "?"},), 1)
        >>> Replies(folder, {"model": "m"}).put([7], [request], [Reply("Yes")])
        >>> Replies(folder, {"model": "m"}).get([7], [request])[0].text, Replies(folder, {"model": "n"}).get([7], [request])
        ('Yes', None)
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any]) -> None:
        self.identity = canonical_json(dict(identity))
        self.path = Path(folder) / file_name(identity)
        self.kept: dict[str, Reply] = {}
        self.torn = 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._read()

    def get(self, records: Sequence[int], requests: Sequence[Request]) -> list[Reply] | None:
        """The replies to requests of some records that are answered together, where all of them are kept."""
        keys = list(map(self._key, records, requests))
        return [self.kept[key] for key in keys] if all(key in self.kept for key in keys) else None

    def put(self, records: Sequence[int], requests: Sequence[Request], replies: Sequence[Reply]) -> None:
        """Keep replies; they are on disk when it returns.

        Raises:
            OutputError: they cannot be written.
        """
        new = dict(zip(map(self._key, records, requests), replies, strict=True))
        lines = "".join(_line(key, reply) for key, reply in new.items())
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written: {error.strerror}. What was kept before is there."
            ) from error
        self.kept |= new

    def _key(self, record: int, request: Request) -> str:
        asked = [record, [dict(m) for m in request.messages], request.seed, request.schema, dict(request.attributes)]
        text = f"{self.identity}\n{canonical_json(asked)}"
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()

    def _read(self) -> None:
        if not self.path.is_file():
            return
        data = self.path.read_bytes()
        for line in data.split(b"\n"):
            kept = _parsed(line)
            if kept is not None:
                self.kept[kept[0]] = kept[1]
            elif line.strip():
                self.torn += 1
        if data and not data.endswith(b"\n"):  # the next line must not be written into what a kill left
            with self.path.open("ab") as file:
                file.write(b"\n")


def _line(key: str, reply: Reply) -> str:
    said = json.dumps(reply.to_json(), sort_keys=True)
    return f"{key} {_mark(key, said)} {said}\n"


def _mark(key: str, said: str) -> str:
    return blake2b(f"{key}{said}".encode(), digest_size=8).hexdigest()


def _parsed(line: bytes) -> tuple[str, Reply] | None:
    """Key and reply of a line that is whole."""
    try:
        key, mark, said = line.decode("ascii").split(" ", 2)
        return (key, Reply(**json.loads(said))) if mark == _mark(key, said) else None
    except (ValueError, TypeError):
        return None
