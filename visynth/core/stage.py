"""Results of a long job so far, kept under a hash of their inputs: a killed job resumes, changed inputs start anew."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visynth.core.files import hash_json
from visynth.core.folders import forget_files, put_files, strangers

NAME = re.compile(r"[0-9a-f]{32}(\.json)?")


class Stage:
    """Results as JSON files in a folder of ours, beside the job's output.

    Args:
        folder: made when the first result is kept; it must hold nothing that visynth did not write.
        inputs: all that every result depends on, as plain JSON: data, options, versions.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "out.work"
        >>> Stage(folder, {"data": "a"}).put([1.5], cell=3)
        >>> Stage(folder, {"data": "a"}).get(cell=3), Stage(folder, {"data": "b"}).get(cell=3)
        ([1.5], None)
        >>> Stage(folder, {}).clear()
        >>> folder.exists()
        False
    """

    def __init__(self, folder: str | Path, inputs: Mapping[str, Any]) -> None:
        self.folder, self.inputs = Path(folder), hash_json(dict(inputs))

    def get(self, **key: Any) -> Any:
        """The value kept under a key, or None where there is none for these inputs."""
        try:
            kept = json.loads((self.folder / self._name(key)).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return kept["value"]

    def put(self, value: Any, **key: Any) -> None:
        """Keep a value of plain JSON (numbers come back as they are, to the last bit).

        Raises:
            OutputError: the folder cannot be written.
        """
        put_files(self.folder, {self._name(key): json.dumps({"key": key, "value": value}).encode()})

    def path(self, **key: Any) -> Path:
        """Path for a folder of ours (an artifact) under a key."""
        return self.folder / self._name(key).removesuffix(".json")

    def clear(self) -> None:
        """The job is done: remove what was kept, for whatever inputs. Anything else stays."""
        if not self.folder.is_dir():
            return
        for path in self.folder.iterdir():
            if NAME.fullmatch(path.name) and path.is_dir() and not strangers(path):
                shutil.rmtree(path)
        forget_files(self.folder, NAME)

    def _name(self, key: Mapping[str, Any]) -> str:
        return f"{hash_json({'inputs': self.inputs, **key})[:32]}.json"
