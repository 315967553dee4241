"""One job at a time."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from visynth.core.errors import LockedError
from visynth.core.lock import only_one


class TestLock:
    @pytest.mark.injected
    def test_a_holder_that_was_killed_frees_it(self, tmp_path) -> None:
        code = (
            "import sys, time; from visynth.core.lock import only_one\n"
            "with only_one(sys.argv[1], 'x'): print(1, flush=True); time.sleep(60)"
        )
        holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "lock")], stdout=subprocess.PIPE)
        holder.stdout.readline()
        with pytest.raises(LockedError, match=f"process {holder.pid} of machine"), only_one(tmp_path / "lock", "x"):
            pass
        holder.kill()
        holder.wait()
        holder.stdout.close()
        with only_one(tmp_path / "lock", "x"):
            pass

    @pytest.mark.injected
    @pytest.mark.parametrize(
        ("holder", "free"), [("dead", True), ("other boot", True), ("alive", False), ("other machine", False)]
    )
    def test_without_locks_a_record_stands_in(self, holder: str, free: bool, tmp_path, monkeypatch) -> None:
        import os

        from visynth.core import lock

        monkeypatch.setattr(lock, "_lock", lambda handle: None)
        who = lock._who()
        record = {
            "dead": {**who, "process": 999_999_999},
            "other boot": {**who, "boot": "before", "process": os.getpid()},
            "alive": who,
            "other machine": {**who, "host": "0123abcd", "process": 999_999_999},
        }[holder]
        (tmp_path / "lock.held").write_text(json.dumps(record))
        if free:
            with only_one(tmp_path / "lock", "x"):
                assert json.loads((tmp_path / "lock.held").read_text())["process"] == os.getpid()
            assert not (tmp_path / "lock.held").exists()
        else:
            with pytest.raises(LockedError, match="delete"), only_one(tmp_path / "lock", "x"):
                pass
