"""The registry: immutable versions, a log that only grows, aliases that one of many moves."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.promoting import promote, promote_when_all_are_ready
from tests.servers import Server, mlflow
from visynth.cli import main
from visynth.core.errors import ConflictError, IntegrityError, UsageError
from visynth.generators.base import load_generator
from visynth.jobs.registry import local as local_module
from visynth.jobs.registry.base import Registry
from visynth.jobs.registry.events import Alias
from visynth.jobs.registry.local import LocalRegistry
from visynth.jobs.registry.opening import open_registry
from visynth.jobs.registry.server import MLflowRegistry


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


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    one = mlflow(tmp_path_factory.mktemp("mlflow"))
    yield one
    one.stop()


@pytest.fixture(params=["folder", "mlflow"])
def registry(request, tmp_path) -> Registry:
    """A registry of each kind: they keep the same promises."""
    if request.param == "folder":
        return open_registry(tmp_path / "registry")
    port = request.getfixturevalue("server").port
    return open_registry(f"mlflow+http://127.0.0.1:{port}/{uuid.uuid4().hex}")


@pytest.fixture
def local(tmp_path) -> LocalRegistry:
    return LocalRegistry(tmp_path / "registry")


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

    @pytest.mark.injected
    @pytest.mark.parametrize("damage", ["altered", "missing", "more", "sums"])
    def test_what_was_altered_is_not_given_out(self, damage: str, local, folders) -> None:
        version = local.add(folders[0])
        folder = local.path(version)
        victim = folder / ("SHA256SUMS" if damage == "sums" else "README.md")
        victim.chmod(0o644)
        if damage == "missing":
            victim.unlink()
        elif damage == "more":
            (folder / "more.bin").write_bytes(b"")
        else:
            victim.write_text(victim.read_text() + "x")
        with pytest.raises(IntegrityError, match="is not what was added"):
            local.path(version)
        with pytest.raises(IntegrityError):
            local.promote(version, expect=0)
        assert local.alias("champion") is None
        assert main(["registry", "verify", str(local.root)]) == 65

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
        assert main(["registry", "promote", registry.where, "--version", b, "--expect", "0"]) == 78

    @pytest.mark.injected
    def test_of_eight_promoters_one_wins_each_time(self, local, folders) -> None:
        versions = [local.add(folder) for folder in folders]
        local.promote(versions[0], expect=0)
        context = multiprocessing.get_context("spawn")
        results, ready = context.Queue(), context.Barrier(8)
        workers = [
            context.Process(
                target=promote_when_all_are_ready, args=(ready, results, local.where, versions[k % 3], k, 25)
            )
            for k in range(8)
        ]
        for worker in workers:
            worker.start()
        won = [pair for _ in workers for pair in results.get(timeout=120)]
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
        check_moves(local, won)

    @pytest.mark.injected
    def test_the_log_cannot_be_rewritten_unseen(self, local, folders) -> None:
        local.add(folders[0])
        local.add(folders[1])
        db = sqlite3.connect(local.root / "registry.db")
        with pytest.raises(sqlite3.IntegrityError, match="events are kept"):
            db.execute("UPDATE event SET actor = 'eve'")
        with pytest.raises(sqlite3.IntegrityError, match="events are kept"):
            db.execute("DELETE FROM event")
        db.execute("DROP TRIGGER event_is_so")
        db.execute("UPDATE event SET actor = 'eve' WHERE seq = 1")
        db.commit()
        db.close()
        with pytest.raises(IntegrityError, match="event 1 is not what was logged"):
            local.events()

    @pytest.mark.injected
    def test_a_kill_in_a_transaction_leaves_the_old_state(self, local, folders, monkeypatch) -> None:
        a, b, _ = (local.add(folder) for folder in folders)
        local.promote(a, expect=0)

        def killed(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(local_module, "astuple", killed)
        with pytest.raises(KeyboardInterrupt):
            local.promote(b, expect=1)
        monkeypatch.undo()
        assert local.alias("champion") == Alias(a, 1)
        assert len(local.events()) == 4


def check_moves(registry: Registry, won: list[tuple[int, str]]) -> None:
    """What the promoters were told is what the log says, in one line without gaps."""
    moves = [e for e in registry.events() if e.op == "promote"]  # which checks the chain
    assert [e.gen for e in moves] == list(range(1, len(moves) + 1))
    assert sorted(gen for gen, _ in won) == list(range(2, len(moves) + 1))
    assert {(e.gen, e.actor) for e in moves[1:]} == set(won)
    assert all(now.old == before.new for before, now in itertools.pairwise(moves))


@pytest.mark.parametrize("name", ["latest", "v2", "two words", "", "a/b", "1st"])
def test_names_that_no_alias_can_have(name: str, registry, folders) -> None:
    """Refused before anything is logged: MLflow would refuse them after it."""
    version = registry.add(folders[0])
    with pytest.raises(UsageError, match="an alias must be letters"):
        registry.promote(version, name, expect=0)
    assert [event.op for event in registry.events()] == ["add"]


class TestOnMLflow:
    """What MLflow's own ways, and people who use them, make possible."""

    @pytest.fixture
    def registry(self, server) -> MLflowRegistry:
        return MLflowRegistry(f"mlflow+http://127.0.0.1:{server.port}/{uuid.uuid4().hex}")

    @pytest.fixture
    def client(self, server) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(f"http://127.0.0.1:{server.port}")

    def test_mlflows_own_users_find_the_champion(self, registry, client, folders, tmp_path) -> None:
        a, b, _ = (registry.add(folder) for folder in folders)
        registry.promote(a, expect=0)
        registry.promote(b, expect=1)
        own = client.get_model_version_by_alias(registry.name, "champion")
        assert own.tags["visynth.version"] == b
        found = client.download_artifacts(own.run_id, "generator", str(tmp_path))
        assert load_generator(found).digest == load_generator(folders[1]).digest

    def test_an_alias_that_a_person_moved_is_a_contradiction(self, registry, client, folders) -> None:
        a, b, _ = (registry.add(folder) for folder in folders)
        registry.promote(a, expect=0)
        client.set_registered_model_alias(registry.name, "champion", "2")
        with pytest.raises(
            ConflictError, match=f"MLflow's alias names {b[:12]}, the log of visynth {a[:12]}.*--expect 1"
        ):
            registry.path("champion")
        assert main(["registry", "promote", registry.where, "--version", b, "--expect", "1"]) == 0
        assert registry.alias("champion") == Alias(b, 2)

    @pytest.mark.injected
    def test_a_kill_between_log_and_alias_is_mended(self, registry, client, folders, monkeypatch) -> None:
        a, b, _ = (registry.add(folder) for folder in folders)
        registry.promote(a, expect=0)
        monkeypatch.setattr(registry, "_follow", lambda name: None)
        registry.promote(b, expect=1)
        monkeypatch.undo()
        assert client.get_model_version_by_alias(registry.name, "champion").tags["visynth.version"] == a
        assert registry.alias("champion") == Alias(b, 2)
        assert client.get_model_version_by_alias(registry.name, "champion").tags["visynth.version"] == b

    def test_who_was_overtaken_has_logged_nothing(self, registry, folders, monkeypatch) -> None:
        """Between reading the log and writing to it, another writes."""
        a, b, c = (registry.add(folder) for folder in folders)
        registry.promote(a, expect=0)
        write, other = registry._create, MLflowRegistry(registry.where)

        def late(*args) -> None:
            monkeypatch.undo()
            other.promote(b, expect=1)
            write(*args)

        monkeypatch.setattr(registry, "_create", late)
        with pytest.raises(ConflictError, match="moved meanwhile"):
            registry.promote(c, expect=1)
        assert registry.alias("champion") == Alias(b, 2)
        assert [e.new for e in registry.events() if e.alias] == [a, b]
        assert registry.promote(c, expect=2).seq == 6

    @pytest.mark.injected
    def test_of_eight_promoters_one_wins_each_time(self, registry, client, folders) -> None:
        versions = [registry.add(folder) for folder in folders]
        registry.promote(versions[0], expect=0)
        with ThreadPoolExecutor(8) as pool:
            tasks = [pool.submit(promote, registry.where, versions[k % 3], k, 3) for k in range(8)]
        check_moves(registry, [pair for task in tasks for pair in task.result()])
        shown = client.get_model_version_by_alias(registry.name, "champion").tags["visynth.version"]
        assert shown == registry.alias("champion").version

    @pytest.mark.injected
    @pytest.mark.parametrize("damage", ["deleted", "rewritten", "emptied"])
    def test_the_log_cannot_be_rewritten_unseen(self, damage: str, registry, client, folders) -> None:
        for folder in folders:
            registry.add(folder)
        if damage == "deleted":
            client.delete_model_version(registry.log, "2")
        elif damage == "rewritten":
            text = client.get_model_version(registry.log, "2").tags["visynth.event"]
            client.set_model_version_tag(registry.log, "2", "visynth.event", text.replace('"add"', '"abd"'))
        else:
            client.delete_model_version_tag(registry.log, "2", "visynth.event")
        with pytest.raises(IntegrityError, match="was altered"):
            registry.events()
        assert main(["registry", "log", registry.where]) == 65

    def test_a_version_that_was_altered_on_the_server_is_not_given_out(
        self, registry, client, folders, tmp_path, monkeypatch
    ) -> None:
        version = registry.add(folders[0])
        run = client.search_model_versions(f"name='{registry.name}'")[0].run_id
        (tmp_path / "README.md").write_text("other")
        client.log_artifact(run, str(tmp_path / "README.md"), "generator")
        assert main(["registry", "verify", registry.where]) == 65  # this machine's copy is whole
        monkeypatch.setenv("VISYNTH_CACHE", str(tmp_path / "cache"))
        with pytest.raises(IntegrityError, match=r"README\.md was altered"):
            registry.path(version)
        assert not list((tmp_path / "cache" / "registry").glob("*"))

    def test_a_damaged_copy_is_fetched_anew(self, registry, folders) -> None:
        """It says nothing of the version: nobody is rolled back for it."""
        version = registry.add(folders[0])
        victim = registry.path(version) / "README.md"
        victim.chmod(0o644)
        victim.write_text("torn")
        assert load_generator(registry.path(version)).digest == load_generator(folders[0]).digest

    def test_no_server(self, monkeypatch) -> None:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        assert main(["registry", "list", "mlflow+http://127.0.0.1:9/defects"]) == 75

    @pytest.mark.parametrize("address", ["mlflow+http://host:5000", "mlflow+ftp://host/a", "s3://bucket/a"])
    def test_addresses_that_are_none(self, address: str) -> None:
        with pytest.raises(UsageError, match="like mlflow"):
            open_registry(address)


def test_the_commands(registry, folders, tmp_path, capsys) -> None:
    root = registry.where
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
