"""Files that are on the disk when we say so."""

from __future__ import annotations

import os
import platform

import pytest

from visynth.core import files
from visynth.core.errors import IntegrityError, OutputError


@pytest.fixture
def synced(monkeypatch) -> list[str]:
    """What is asked to be on the disk: files, folders, or the whole filesystem."""
    seen: list[str] = []
    real, whole = os.fsync, files._sync_filesystem
    monkeypatch.setattr(os, "fsync", lambda handle: (seen.append(os.readlink(f"/proc/self/fd/{handle}")), real(handle)))
    monkeypatch.setattr(files, "_sync_filesystem", lambda handle: (seen.append("all"), whole(handle)))
    return seen


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
class TestManyFiles:
    @pytest.mark.parametrize("together", [True, False])
    def test_all_are_asked_for(self, together: bool, synced, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(files, "_can_sync_filesystem", lambda: together)
        many = {f"{'ab'[k % 2]}/{k}.png": bytes([k]) * 9 for k in range(20)}
        files.write_all_synced(tmp_path / "f", many)
        assert {name: (tmp_path / "f" / name).read_bytes() for name in many} == many
        if together:
            assert synced == ["all"]
        else:
            assert set(synced) == {str(tmp_path / "f" / name) for name in (*many, "a", "b", "")}

    def test_a_few_are_synced_one_by_one(self, synced, tmp_path) -> None:
        files.write_all_synced(tmp_path / "f", {"a": b"1", "b": b"2"})
        assert sorted(synced) == [str(tmp_path / "f"), str(tmp_path / "f/a"), str(tmp_path / "f/b")]

    @pytest.mark.parametrize(("release", "can"), [("5.7.19", False), ("5.8.0-generic", True), ("6.1", True)])
    def test_kernels_that_tell_errors(self, release: str, can: bool, monkeypatch) -> None:
        monkeypatch.setattr(platform, "release", lambda: release)
        files._can_sync_filesystem.cache_clear()
        assert files._can_sync_filesystem() is can
        files._can_sync_filesystem.cache_clear()

    def test_a_failed_sync_is_an_error(self) -> None:
        with pytest.raises(OSError, match="Bad file descriptor"):
            files._sync_filesystem(-1)


class TestPieces:
    def test_the_old_content_stays_until_the_last(self, tmp_path) -> None:
        path = tmp_path / "a"
        path.write_bytes(b"old")

        def pieces():
            yield b"ne"
            assert path.read_bytes() == b"old"
            yield b"w"

        files.write_chunks(path, pieces())
        assert path.read_bytes() == b"new"

    @pytest.mark.parametrize("error", [IntegrityError("altered"), OutputError("in the way"), KeyError("bug")])
    def test_what_goes_wrong_in_the_pieces_is_told_as_it_is(self, error: Exception, tmp_path) -> None:
        def pieces():
            yield b"ne"
            raise error

        (tmp_path / "a").write_bytes(b"old")
        with pytest.raises(type(error), match=str(error).strip("'")):
            files.write_chunks(tmp_path / "a", pieces())
        assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]
