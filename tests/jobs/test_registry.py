"""The registry: immutable versions, a log that only grows, aliases that one of many moves."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from visynth.cli import main
from visynth.core.errors import ConflictError, IntegrityError, UsageError
from visynth.generators.base import load_generator
from visynth.jobs.registry import Registry


@pytest.fixture(scope="module")
def folders(composition, tmp_path_factory) -> list[Path]:
    """Three generators' folders with different cards."""
    root = tmp_path_factory.mktemp("three")
    generator, folder = composition
    made = []
    for number in range(3):
        other = load_generator(folder)
        other.card = {**generator.card, "number": number}
        made.append(other.save(root / str(number)))
    return made


@pytest.fixture
def registry(tmp_path) -> Registry:
    return Registry(tmp_path / "registry")


class TestVersions:
    def test_a_version_is_its_content(self, registry, folders) -> None:
        first = registry.add(folders[0], evidence={"report.json": b"{}"}, actor="anna", reason="a first one")
        assert registry.add(folders[0], evidence={"report.json": b"{}"}) == first
        other = registry.add(folders[1])
        assert registry.versions() == [first, other]
        assert load_generator(registry.path(first)).digest == load_generator(folders[0]).digest
        assert registry.path(first[:9]) == registry.path(first)
        assert registry.evidence(first)["report.json"].read_bytes() == b"{}"
        assert next((e.op, e.actor, e.reason) for e in registry.events()) == ("add", "anna", "a first one")
        # From a version again, with other evidence: another version.
        assert registry.add(registry.path(first), evidence={"report.json": b"[]"}) not in (first, other)

    @pytest.mark.parametrize("damage", ["altered", "missing", "more", "sums"])
    def test_what_was_altered_is_not_given_out(self, damage: str, registry, folders) -> None:
        version = registry.add(folders[0])
        folder = registry.path(version)
        victim = folder / ("SHA256SUMS" if damage == "sums" else "README.md")
        victim.chmod(0o644)
        if damage == "missing":
            victim.unlink()
        elif damage == "more":
            (folder / "more.bin").write_bytes(b"")
        else:
            victim.write_text(victim.read_text() + "x")
        with pytest.raises(IntegrityError, match="is not what was added"):
            registry.path(version)
        with pytest.raises(IntegrityError):
            registry.promote(version, expect=0)
        assert registry.alias("champion") is None
        assert main(["registry", "verify", str(registry.root)]) == 65

    def test_an_altered_generator_is_no_version(self, registry, folders, tmp_path) -> None:
        shutil.copytree(folders[0], tmp_path / "bad")
        data = bytearray((tmp_path / "bad" / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (tmp_path / "bad" / "model.safetensors").write_bytes(data)
        with pytest.raises(IntegrityError, match="was altered"):
            registry.add(tmp_path / "bad")
        assert registry.versions() == []

    def test_names_that_mean_nothing(self, registry, folders) -> None:
        version = registry.add(folders[0])
        for name in ("champion", "zzzzzz", version[:5]):
            with pytest.raises(UsageError, match="no version and no alias"):
                registry.path(name)


class TestAliases:
    def test_moves_and_back(self, registry, folders) -> None:
        a, b, c = (registry.add(folder) for folder in folders)
        for gen, version in enumerate((a, b, c)):
            registry.promote(version, expect=gen, reason=f"number {gen}")
        started = time.monotonic()
        assert registry.rollback(reason="canary").new == b
        assert time.monotonic() - started < 1.0
        assert registry.alias("champion").gen == 4
        assert registry.rollback().new == a
        with pytest.raises(UsageError, match="nothing before"):
            registry.rollback()
        registry.promote(c, expect=5)
        assert registry.rollback().new == a
        assert [e.op for e in registry.events()] == ["add"] * 3 + ["promote"] * 3 + ["rollback"] * 2 + [
            "promote",
            "rollback",
        ]

    def test_who_comes_late_is_told(self, registry, folders) -> None:
        a, b, _ = (registry.add(folder) for folder in folders)
        registry.promote(a, expect=0)
        with pytest.raises(ConflictError, match="moved meanwhile"):
            registry.promote(b, expect=0)
        assert registry.alias("champion").version == a
        assert main(["registry", "promote", str(registry.root), "--version", b, "--expect", "0"]) == 78

    def test_of_eight_promoters_one_wins_each_time(self, registry, folders) -> None:
        versions = [registry.add(folder) for folder in folders]
        registry.promote(versions[0], expect=0)
        context = multiprocessing.get_context("spawn")
        results, ready = context.Queue(), context.Barrier(8)
        workers = [
            context.Process(target=promoters, args=(str(registry.root), versions[k % 3], k, 25, ready, results))
            for k in range(8)
        ]
        for worker in workers:
            worker.start()
        won = [pair for _ in workers for pair in results.get(timeout=120)]
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
        moves = [e for e in registry.events() if e.op == "promote"]  # which checks the chain
        assert [e.gen for e in moves] == list(range(1, len(moves) + 1))
        assert sorted(gen for gen, _ in won) == list(range(2, len(moves) + 1))
        assert {(e.gen, e.actor) for e in moves[1:]} == set(won)
        assert all(now.old == before.new for before, now in itertools.pairwise(moves))

    def test_the_log_cannot_be_rewritten_unseen(self, registry, folders) -> None:
        registry.add(folders[0])
        registry.add(folders[1])
        db = sqlite3.connect(registry.root / "registry.db")
        with pytest.raises(sqlite3.IntegrityError, match="events are kept"):
            db.execute("UPDATE event SET actor = 'eve'")
        with pytest.raises(sqlite3.IntegrityError, match="events are kept"):
            db.execute("DELETE FROM event")
        db.execute("DROP TRIGGER event_is_so")
        db.execute("UPDATE event SET actor = 'eve' WHERE seq = 1")
        db.commit()
        db.close()
        with pytest.raises(IntegrityError, match="event 1 is not what was logged"):
            registry.events()

    def test_a_kill_in_a_transaction_leaves_the_old_state(self, registry, folders, monkeypatch) -> None:
        from visynth.jobs import registry as module

        a, b, _ = (registry.add(folder) for folder in folders)
        registry.promote(a, expect=0)

        def killed(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(module, "_log", killed)
        with pytest.raises(KeyboardInterrupt):
            registry.promote(b, expect=1)
        monkeypatch.undo()
        assert registry.alias("champion") == module.Alias(a, 1)
        assert len(registry.events()) == 4


def promoters(root: str, version: str, number: int, times: int, ready, results) -> None:
    """Try to move the champion again and again, from wherever it was seen."""
    registry, won = Registry(root), []
    ready.wait()
    for _ in range(times):
        seen = registry.alias("champion").gen
        with contextlib.suppress(ConflictError):
            won.append((registry.promote(version, expect=seen, actor=f"p{number}").gen, f"p{number}"))
    results.put(won)


def test_the_commands(folders, tmp_path, capsys) -> None:
    root = str(tmp_path / "registry")
    (tmp_path / "report.json").write_text("{}")
    versions = []
    for folder in folders[:2]:
        assert (
            main(["registry", "add", root, "--generator", str(folder), "--evidence", str(tmp_path / "report.json")])
            == 0
        )
        versions.append(capsys.readouterr().out.split()[-1])
        assert main(["registry", "promote", root, "--version", versions[-1][:10], "--reason", "better"]) == 0
    capsys.readouterr()
    assert main(["registry", "path", root]) == 0
    assert capsys.readouterr().out.strip().endswith(versions[1])
    assert main(["registry", "rollback", root]) == 0
    assert main(["registry", "list", root]) == 0
    assert f"{versions[0]} <- champion" in capsys.readouterr().out
    assert main(["registry", "list", root, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["aliases"]["champion"]["gen"] == 3
    assert main(["registry", "log", root]) == 0
    assert "promote champion: nothing ->" in capsys.readouterr().out
    assert main(["registry", "verify", root]) == 0
    assert main(["registry", "add", root, "--generator", str(tmp_path)]) == 65
    assert main(["registry", "add", root, "--generator", str(folders[0]), "--evidence", "no"]) == 64
    assert main(["registry", "rollback", root]) == 64


def test_rolling_back_always_goes_further_back(registry, folders) -> None:
    """Promoting what is champion already, or what was once before, makes no circle."""
    a, b, _ = (registry.add(folder) for folder in folders)
    for gen, version in enumerate((a, a, b, b, a)):
        registry.promote(version, expect=gen)
    assert [registry.rollback().new, registry.rollback().new] == [b, a]
    with pytest.raises(UsageError, match="nothing before"):
        registry.rollback()
