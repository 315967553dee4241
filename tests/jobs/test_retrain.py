"""Retraining: triggers, the gate, the canary, rollback, races and kills, telling; with a subject whose answers are set."""

from __future__ import annotations

import json
import shutil
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from visynth.cli import main
from visynth.core.errors import ConflictError, LockedError
from visynth.core.lock import only_one
from visynth.core.report import ClassVerdict, Report
from visynth.jobs.registry.local import LocalRegistry
from visynth.jobs.retrain import flow
from visynth.jobs.retrain.flow import retrain
from visynth.jobs.retrain.images import decide
from visynth.jobs.retrain.options import Job, Policy, Triggers
from visynth.jobs.retrain.telling import call_heartbeat, last_success, write_metrics
from visynth.verdict.challenge import Fingerprint, Judgement, Pair


class Fake:
    """A subject whose answers are set by hand."""

    def __init__(self, folder: Path, root: str = "data 1", items: dict[str, set[str]] | None = None) -> None:
        self.folder, self.root = folder, root
        self.items = items or {"crack": {"a", "b"}}
        self.outcome, self.moved, self.problems, self.fits = "promote", {}, {}, 0
        self.module: Pair | None = None

    def fingerprint(self) -> Fingerprint:
        return Fingerprint(
            self.root, {n: len(own) for n, own in self.items.items()}, {n: frozenset(o) for n, o in self.items.items()}
        )

    def known(self, champion: Path) -> Fingerprint:
        return Fingerprint("data 1", {"crack": 2}, {"crack": frozenset({"a", "b"})})

    def drift(self, champion: Path, alpha: float) -> dict[str, float]:
        return self.moved

    def fit(self, folder: Path) -> Path:
        self.fits += 1
        return self.folder

    def evaluate(self, challenger: Path, champion: Path | None, folder: Path) -> Judgement:
        return Judgement(self.outcome, ["as it was set"], {"compared": champion is not None})

    def check(self, folder: Path) -> None: ...

    def pair(self, champion: Path | None, folder: Path) -> Pair | None:
        return self.module

    def canary(self, generator: Path, folder: Path) -> list[str]:
        return self.problems.get(load(generator), [])


def load(folder: Path) -> str:
    from visynth.generators.base import load_generator

    return str(load_generator(folder).card["number"])


@pytest.fixture(scope="module")
def folders(composition, tmp_path_factory) -> list[Path]:
    from visynth.generators.base import load_generator

    root, made = tmp_path_factory.mktemp("four"), []
    for number in range(4):
        other = load_generator(composition[1])
        other.card = {**other.card, "number": number}
        made.append(other.save(root / str(number)))
    return made


JOB = Job({"compose": {}}, ("crack",))


class TestFlow:
    def test_reasons(self, folders, tmp_path) -> None:
        fake = Fake(folders[0])
        where = (tmp_path / "job", tmp_path / "registry")
        first = retrain(fake, JOB, *where)
        assert (first.outcome, fake.fits) == ("promoted", 1)
        assert retrain(fake, JOB, *where).outcome == "skipped"
        assert fake.fits == 1
        fake.folder = folders[1]
        # Enough new images of the class; fewer are no reason.
        fake.items, fake.root = {"crack": {"a", "b", "c"}}, "data 2"
        assert retrain(fake, JOB, *where, triggers=Triggers(new_images=2)).outcome == "skipped"
        second = retrain(fake, JOB, *where, triggers=Triggers(new_images=1))
        assert second.reasons[0] == "1 new of crack"
        assert second.numbers == {"compared": True}
        # Drift, class counts, age.
        fake.folder, fake.root, fake.moved = folders[2], "data 3", {"crack": 0.001}
        assert "crack looks different: p = 0.0010" in retrain(fake, JOB, *where, triggers=Triggers(0)).reasons
        fake.folder, fake.root, fake.moved = folders[3], "data 4", {}
        fake.items = {"crack": {"a"}, "rust": {str(k) for k in range(50)}}
        assert "the class counts moved" in retrain(fake, JOB, *where, triggers=Triggers(0)).reasons[0]
        fake.root = "data 5"
        assert "days old" in retrain(fake, JOB, *where, triggers=Triggers(0, 0, "0.000001m")).reasons[0]
        assert retrain(fake, JOB, *where, triggers=Triggers(0, 0, "")).outcome == "skipped"

    @pytest.mark.parametrize(
        ("said", "outcome"), [("reject", "rejected"), ("insufficient evidence", "insufficient evidence")]
    )
    def test_the_champion_stays(self, said: str, outcome: str, folders, tmp_path) -> None:
        fake, where = Fake(folders[0]), (tmp_path / "job", tmp_path / "registry")
        champion = retrain(fake, JOB, *where).champion
        fake.folder, fake.root, fake.outcome, fake.items = (
            folders[1],
            "data 2",
            said,
            {"crack": set(map(str, range(40)))},
        )
        now = retrain(fake, JOB, *where)
        assert (now.outcome, now.champion) == (outcome, champion)
        registry = LocalRegistry(where[1])
        assert registry.alias("challenger").version == now.challenger != champion
        assert registry.evidence(now.challenger)["blessing.json"].read_bytes()

    def test_generator_and_module_are_a_pair(self, folders, tmp_path) -> None:
        fake, where = Fake(folders[0]), (tmp_path / "job", tmp_path / "registry")
        (tmp_path / "model.ckpt").write_bytes(b"weights")
        fake.module = Pair(True, ["as good"], {"scores": {}}, {"model.ckpt": tmp_path / "model.ckpt"})
        first = retrain(fake, JOB, *where)
        registry = LocalRegistry(where[1])
        assert (registry.path("champion") / "downstream/model.ckpt").read_bytes() == b"weights"
        fake.folder, fake.root, fake.items = folders[1], "data 2", {"crack": set(map(str, range(40)))}
        fake.module = replace(fake.module, better=False, reasons=["worse than the champion's"])
        second = retrain(fake, JOB, *where)
        assert (second.outcome, second.champion) == ("rejected", first.champion)
        assert "worse than the champion's" in second.reasons
        assert "downstream" in second.numbers
        # A version from a version: another's module does not come with it.
        assert not (registry.path(registry.add(registry.path("champion"))) / "downstream").exists()

    def test_a_challenger_that_fails_the_canary(self, folders, tmp_path) -> None:
        fake, where = Fake(folders[0]), (tmp_path / "job", tmp_path / "registry")
        fake.problems = {"0": ["crack: images are blank"]}
        now = retrain(fake, JOB, *where)
        assert (now.outcome, now.champion) == ("rejected", "")
        assert "canary: crack: images are blank" in now.reasons

    def test_a_person_approves(self, folders, tmp_path, capsys) -> None:
        fake, where = Fake(folders[0]), (tmp_path / "job", tmp_path / "registry")
        now = retrain(fake, replace(JOB, policy=Policy(require_approval=True)), *where)
        assert (now.outcome, now.champion) == ("awaiting approval", "")
        command = now.reasons[-1].partition("visynth ")[2].split()
        assert main(command) == 0
        assert LocalRegistry(where[1]).alias("champion").version == now.challenger

    @pytest.mark.injected
    def test_bad_champions_are_rolled_back_one_after_the_other(self, folders, tmp_path) -> None:
        fake, where = Fake(folders[0]), (tmp_path / "job", tmp_path / "registry")
        good = retrain(fake, JOB, *where).champion
        registry = LocalRegistry(where[1])
        for number in (1, 2):
            registry.promote(registry.add(folders[number]), expect=number)
        fake.problems = {"1": ["wrong"], "2": ["wrong too"]}
        started = time.monotonic()
        now = retrain(fake, JOB, *where)
        assert time.monotonic() - started < 5
        assert (now.outcome, now.champion) == ("rolled back", good)
        assert [e.op for e in registry.events()][-2:] == ["rollback", "rollback"]

    @pytest.mark.injected
    def test_an_altered_champion_is_rolled_back_and_an_only_one_replaced(self, folders, tmp_path) -> None:
        fake, where = Fake(folders[0]), (tmp_path / "job", tmp_path / "registry")
        first = retrain(fake, JOB, *where).champion
        registry = LocalRegistry(where[1])
        victim = registry.path(first) / "README.md"
        victim.chmod(0o644)
        victim.write_text("altered")
        fake.folder, fake.root = folders[1], "data 2"
        now = retrain(fake, JOB, *where)
        assert now.outcome == "promoted"
        assert now.champion != first
        assert "no champion is left that can be used" in now.reasons
        assert now.numbers == {"compared": False}

    @pytest.mark.injected
    def test_a_kill_after_the_promotion_is_told_by_the_next_run(self, folders, tmp_path, monkeypatch) -> None:
        fake, where = Fake(folders[0]), (tmp_path / "job", tmp_path / "registry")

        def killed(folder, files):
            if flow.OUTCOME in files:
                raise KeyboardInterrupt
            real(folder, files)

        real = flow.put_files
        monkeypatch.setattr(flow, "put_files", killed)
        with pytest.raises(KeyboardInterrupt):
            retrain(fake, JOB, *where)
        monkeypatch.undo()
        assert LocalRegistry(where[1]).alias("champion") is not None
        now = retrain(fake, JOB, *where)
        assert (now.outcome, now.champion) == ("promoted", LocalRegistry(where[1]).alias("champion").version)
        assert "stopped after the promotion" in now.reasons[0]
        assert retrain(fake, JOB, *where).outcome == "skipped"

    def test_champions_that_all_fail_end_the_run(self, folders, tmp_path) -> None:
        fake, where = Fake(folders[0]), (tmp_path / "job", tmp_path / "registry")
        retrain(fake, JOB, *where)
        registry = LocalRegistry(where[1])
        for gen, number in enumerate((0, 1, 0, 1), 1):
            registry.promote(registry.add(folders[number]), expect=gen)
        fake.problems = {"0": ["wrong"], "1": ["wrong"]}
        shutil.rmtree(where[0] / "canary")
        fake.folder, fake.root = folders[2], "data 2"
        now = retrain(fake, JOB, *where)
        assert now.outcome == "promoted"
        assert load(registry.path("champion")) == "2"

    def test_a_promotion_during_the_canary_is_not_overtaken(self, folders, tmp_path) -> None:
        fake, where = Fake(folders[0]), (tmp_path / "job", tmp_path / "registry")
        retrain(fake, JOB, *where)
        registry = LocalRegistry(where[1])
        shutil.rmtree(where[0] / "canary")
        fake.folder, fake.root, fake.items = folders[1], "data 2", {"crack": set(map(str, range(40)))}
        real, done = fake.canary, []

        def slow(*args):
            if not done:
                done.append(registry.promote(registry.add(folders[2]), expect=1, actor="a person"))
            return real(*args)

        fake.canary = slow
        with pytest.raises(ConflictError, match="moved meanwhile"):
            retrain(fake, JOB, *where)
        assert load(registry.path("champion")) == "2"

    def test_an_edited_configuration_is_another_run(self, tmp_path) -> None:
        from visynth.jobs.retrain.flow import run_name

        data = Fingerprint("d", {})
        names = []
        for text in ("a: 1", "a: 2"):
            (tmp_path / "c.yaml").write_text(text)
            names.append(run_name(data, Job({"config": str(tmp_path / "c.yaml")}, ("crack",))))
        assert names[0] != names[1]

    @pytest.mark.injected
    def test_who_lost_the_race_cannot_promote(self, folders, tmp_path) -> None:
        """A holder that slept through its lock's end: the champion's count is the fencing token."""
        fake, where = Fake(folders[0]), (tmp_path / "job", tmp_path / "registry")
        retrain(fake, JOB, *where)
        registry = LocalRegistry(where[1])
        fake.folder, fake.root, fake.items = folders[1], "data 2", {"crack": set(map(str, range(40)))}
        real = fake.evaluate

        def slow(*args):
            registry.promote(registry.add(folders[2]), expect=1, actor="another")
            return real(*args)

        fake.evaluate = slow
        with pytest.raises(ConflictError, match="moved meanwhile"):
            retrain(fake, JOB, *where)
        assert registry.alias("champion").gen == 2

    @pytest.mark.injected
    def test_one_at_a_time(self, folders, tmp_path) -> None:
        fake, where = Fake(folders[0]), (tmp_path / "job", tmp_path / "registry")
        with only_one(where[0] / flow.LOCK, "a retraining"), pytest.raises(LockedError, match="is at work already"):
            retrain(fake, JOB, *where)
        assert retrain(fake, JOB, *where).outcome == "promoted"

    def test_an_interrupted_run_goes_on(self, folders, tmp_path) -> None:
        fake, where = Fake(folders[0]), (tmp_path / "job", tmp_path / "registry")

        def killed(*args):
            raise KeyboardInterrupt

        real, fake.evaluate = fake.evaluate, killed
        with pytest.raises(KeyboardInterrupt):
            retrain(fake, JOB, *where)
        fake.evaluate = real
        assert retrain(fake, JOB, *where).outcome == "promoted"
        assert len(list((where[0] / "runs").iterdir())) == 1


def verdicts(**answers: tuple[str, float, float | None]) -> Report:
    rows = []
    for name, (answer, high, duel) in answers.items():
        numbers = {"difference": {"mean": high - 0.1, "low": high - 0.2, "high": high}}
        numbers |= {} if duel is None else {"against": {"mean": duel - 0.1, "low": duel - 0.2, "high": duel}}
        rows.append(ClassVerdict(name, answer, "x", numbers=numbers))
    return Report("utility", "x", rows)


@pytest.mark.parametrize(
    ("require", "answers", "outcome"),
    [
        ("helps", {"a": ("helps", 0.3, None), "b": ("helps", 0.3, 0.1)}, "promote"),
        ("helps", {"a": ("helps", 0.3, None), "b": ("cannot tell", 0.3, None)}, "insufficient evidence"),
        ("helps", {"a": ("helps", 0.3, None), "b": ("does not", -0.1, None)}, "reject"),
        ("helps", {"a": ("helps", 0.3, -0.01)}, "reject"),
        ("no harm", {"a": ("does not", 0.01, None), "b": ("cannot tell", 0.2, 0.2)}, "promote"),
        ("no harm", {"a": ("does not", -0.01, None)}, "reject"),
        ("no harm", {"a": ("helps", 0.3, -0.01)}, "reject"),
    ],
)
def test_the_policy(require, answers, outcome: str) -> None:
    job = Job({"compose": {}}, tuple(answers), policy=Policy(require))
    assert decide(verdicts(**answers), job)[0] == outcome


class TestTelling:
    def test_prometheus_reads_the_metrics(self, tmp_path) -> None:
        write_metrics(tmp_path / "a.prom", flow.Outcome("rejected", [], seconds=3.25), 'job "x"')
        text = (tmp_path / "a.prom").read_text()
        assert 'visynth_retrain_outcome{job="job \\"x\\"",outcome="rejected"} 1' in text
        assert 'outcome="promoted"} 0' in text
        for line in text.splitlines():
            assert line.startswith("# ") or len(line.rsplit(" ", 1)) == 2

    def test_the_heartbeat(self) -> None:
        heard = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        outcome = flow.Outcome("promoted", [], "run", "abc")
        assert call_heartbeat(f"http://127.0.0.1:{server.server_port}/ping", outcome) == ""
        thread.join()
        server.server_close()
        assert heard == [{"outcome": "promoted", "run": "run", "champion": "abc"}]
        assert "could not be reached" in call_heartbeat(f"http://127.0.0.1:{server.server_port}/ping", outcome, 1)

    def test_the_dead_mans_alarm(self, tmp_path, capsys) -> None:
        assert main(["doctor", "--retrain", str(tmp_path), "--max-age", "8d"]) == 75
        state = {
            "outcome": "skipped",
            "reasons": ["nothing new"],
            "champion": "",
            "last success": time.time() - 9 * 86400,
        }
        (tmp_path / "state.json").write_text(json.dumps(state))
        assert main(["doctor", "--retrain", str(tmp_path), "--max-age", "8d"]) == 75
        assert "is the scheduler alive" in capsys.readouterr().err
        assert main(["doctor", "--retrain", str(tmp_path), "--max-age", "10d"]) == 0
        assert main(["doctor", "--max-age", "8d"]) == 64
        assert main(["doctor", "--retrain", str(tmp_path), "--max-age", "soon"]) == 64
        assert last_success(tmp_path)[0] == pytest.approx(9 * 86400, rel=0.01)
        state["last success"] = time.time() + 86400.0  # written when a clock was a day ahead
        (tmp_path / "state.json").write_text(json.dumps(state))
        assert main(["doctor", "--retrain", str(tmp_path), "--max-age", "10d"]) == 75
        assert "24.0 h in the future" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--generator", "{magic: {}}"], "generator must be one of"),
        (["--max-age", "soon"], "max_age must be like 30d"),
        (["--drift", "2"], "drift must be in"),
        (["--count", "0"], "must be at least 1"),
        (["--heartbeat", "file:///etc/passwd"], "http or https"),
        (["--metrics", "x.txt"], "must end with .prom"),
    ],
)
def test_wrong_arguments(wrong, told: str, samples, tmp_path, capsys) -> None:
    words = [
        "retrain",
        str(samples / "images"),
        "--classes",
        "spot",
        "--registry",
        str(tmp_path / "r"),
        "--out",
        str(tmp_path / "o"),
    ]
    words += [] if "--generator" in wrong else ["--generator", "{compose: {}}"]
    assert main([*words, *wrong]) == 64
    assert told in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
