"""Retraining: whole stories on real images and on a table, the fingerprint, triggers, drift, gate, canary, telling."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml

from visynth.cli import main
from visynth.core.errors import ConflictError, DataError, LockedError, UsageError
from visynth.core.lock import only_one
from visynth.core.report import ClassVerdict, Report
from visynth.data.reading import read_images
from visynth.jobs.registry import Registry
from visynth.jobs.retrain import flow
from visynth.jobs.retrain.flow import retrain
from visynth.jobs.retrain.images import ImageSubject, decide, frozen_split
from visynth.jobs.retrain.options import Job, Policy, Triggers
from visynth.jobs.retrain.telling import call_heartbeat, last_success, write_metrics
from visynth.verdict.challenge import Fingerprint, Judgement
from visynth.verdict.drift import drifted, mmd_p_value, stability_index

TINY = {
    "trainer": {"max_steps": 150, "accelerator": "cpu"},
    "model": {
        "class_path": "visynth.lightning_modules.Diffusion",
        "init_args": {
            "width": 16,
            "multipliers": [1, 2],
            "attention": [],
            "warmup": 500,
            "lr": 2e-3,
            "sampler": {"steps": 8},
        },
    },
    "data": {
        "class_path": "visynth.lightning_modules.GeneratorData",
        "init_args": {"data": "none", "size": 16, "batch_size": 32, "temper": 0.0},
    },
}


def ran(words: list[str], capsys) -> dict:
    """Outcome of the command, which must end well."""
    capsys.readouterr()
    code = main(words)
    told = capsys.readouterr()
    assert code == 0, told.err
    return json.loads(told.out.splitlines()[-1])


class TestStories:
    @pytest.mark.slow
    @pytest.mark.timeout(900)
    def test_blood_cells(self, real_data, tmp_path, capsys) -> None:
        """First a champion; then nothing new; then sabotaged data; then a bad champion by hand. A diffusion model is
        trained each time."""
        import cv2

        from visynth.core.codec import decode, encode_png

        cells, data = sorted(real_data("bccd_cells").rglob("*.jpg")), tmp_path / "cells"
        for name in ("Platelets", "RBC", "WBC"):
            (data / name).mkdir(parents=True)
            for path in [p for p in cells if p.parent.name == name][:60]:
                small = cv2.resize(decode(path), (16, 16), interpolation=cv2.INTER_AREA)
                (data / name / f"{path.stem}.png").write_bytes(encode_png(small))
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
        words = [
            "retrain", str(data), "--classes", "Platelets", "--generator", f"{{config: {tmp_path / 'tiny.yaml'}}}",
            "--registry", str(tmp_path / "registry"), "--out", str(tmp_path / "job"), "--group-pattern", "(BloodImage_[0-9]+)",
            "--require", "no harm", "--count", "24", "--seeds", "2", "--canary", "12", "--new-images", "10",
            "--quiet", "--json", "--metrics", str(tmp_path / "cells.prom"),
        ]  # fmt: skip
        registry = Registry(tmp_path / "registry")

        first = ran(words, capsys)
        assert first["outcome"] == "promoted", first["reasons"]
        assert registry.alias("champion").version == first["challenger"]
        assert 'outcome="promoted"} 1' in (tmp_path / "cells.prom").read_text()

        started = time.monotonic()
        second = ran(words, capsys)
        assert (second["outcome"], second["champion"]) == ("skipped", first["champion"])
        assert time.monotonic() - started < 20

        # Sabotage: most images that are trained on as platelets are noise, as a broken camera gives them.
        noise = np.random.default_rng(0)
        for path in list((data / "Platelets").glob("*.png")):
            if frozen_split(_item(path)) == "train":
                path.write_bytes(encode_png(noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)))
        third = ran(words, capsys)
        assert third["outcome"] == "rejected", third["reasons"]
        assert registry.alias("champion").version == first["champion"]
        assert third["challenger"] in registry.versions()
        fourth = ran(words, capsys)
        assert fourth["outcome"] == "skipped"
        assert "were judged already: rejected" in fourth["reasons"][-1]

        # The data are mended, and somebody promotes the bad one nevertheless: the next run looks, and goes back.
        for path in [p for p in cells if p.parent.name == "Platelets"][:60]:
            small = cv2.resize(decode(path), (16, 16), interpolation=cv2.INTER_AREA)
            (data / "Platelets" / f"{path.stem}.png").write_bytes(encode_png(small))
        registry.promote(third["challenger"], expect=registry.alias("champion").gen, actor="somebody")
        fifth = ran(words, capsys)
        assert fifth["champion"] == first["champion"], fifth
        assert fifth["outcome"] == "rolled back"
        assert registry.events()[-1].op == "rollback"
        assert main(["doctor", "--retrain", str(tmp_path / "job"), "--max-age", "1h"]) == 0

    def test_a_table(self, tmp_path, capsys) -> None:
        from tests.tabular.test_jobs import dependent
        from visynth.tabular import IndependentMarginals

        frame = dependent(900)
        frame.iloc[:600].to_csv(tmp_path / "rows.csv", index=False)
        words = [
            "retrain", str(tmp_path / "rows.csv"), "--target", "kind", "--classes", "c",
            "--generator", "{synthesizer: masked, arguments: {steps: 60, width: 48, depth: 1}}",
            "--registry", str(tmp_path / "registry"), "--out", str(tmp_path / "job"), "--require", "no harm",
            "--seeds", "2", "--canary", "8", "--new-images", "3", "--quiet", "--json",
        ]  # fmt: skip
        registry = Registry(tmp_path / "registry")

        first = ran(words, capsys)
        assert first["outcome"] == "promoted", first["reasons"]
        assert ran(words, capsys)["outcome"] == "skipped"
        # More rows of the class: another run, judged against the champion on the same frozen rows.
        frame.to_csv(tmp_path / "rows.csv", index=False)
        second = ran(words, capsys)
        assert "new of c" in " ".join(second["reasons"])
        assert "against" in second["numbers"]["c"]
        # Sabotage: the columns of the rows that are trained on are shuffled among themselves.
        spoilt = frame.copy()
        numbers = np.random.default_rng(1)
        for name in spoilt.columns:
            spoilt[name] = spoilt[name].to_numpy()[numbers.permutation(len(spoilt))]
        more = _joined(frame, spoilt)
        more.to_csv(tmp_path / "rows.csv", index=False)
        third = ran(words, capsys)
        assert third["outcome"] in ("rejected", "promoted", "insufficient evidence")
        champion = registry.alias("champion").version
        # A bad champion by hand: columns that know nothing of one another, and another table's values.
        bad = IndependentMarginals().fit(
            frame.assign(**{n: frame[n].iloc[0] for n in frame.columns if n != "kind"}), target="kind"
        )
        bad.save(tmp_path / "bad")
        version = registry.add(tmp_path / "bad")
        registry.promote(version, expect=registry.alias("champion").gen, actor="somebody")
        fourth = ran(words, capsys)
        assert fourth["champion"] == champion
        assert "the champion was rolled back" in fourth["reasons"][0]


def _joined(*frames):
    import pandas as pd

    return pd.concat(frames, ignore_index=True)


def _item(path: Path):
    from visynth.data.imageset import Item

    return Item(path, path.name, (path.parent.name,), group="_".join(path.stem.split("_")[:2]))


class Fake:
    """A subject whose answers are set by hand."""

    def __init__(self, folder: Path, root: str = "data 1", items: dict[str, set[str]] | None = None) -> None:
        self.folder, self.root = folder, root
        self.items = items or {"crack": {"a", "b"}}
        self.outcome, self.moved, self.problems, self.fits = "promote", {}, {}, 0

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

    def judge(self, challenger: Path, champion: Path | None, folder: Path) -> Judgement:
        return Judgement(self.outcome, ["as it was set"], {"compared": champion is not None})

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
        registry = Registry(where[1])
        assert registry.alias("challenger").version == now.challenger != champion
        assert registry.evidence(now.challenger)["blessing.json"].read_bytes()

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
        assert Registry(where[1]).alias("champion").version == now.challenger

    def test_bad_champions_are_rolled_back_one_after_the_other(self, folders, tmp_path) -> None:
        fake, where = Fake(folders[0]), (tmp_path / "job", tmp_path / "registry")
        good = retrain(fake, JOB, *where).champion
        registry = Registry(where[1])
        for number in (1, 2):
            registry.promote(registry.add(folders[number]), expect=number)
        fake.problems = {"1": ["wrong"], "2": ["wrong too"]}
        started = time.monotonic()
        now = retrain(fake, JOB, *where)
        assert time.monotonic() - started < 5
        assert (now.outcome, now.champion) == ("rolled back", good)
        assert [e.op for e in registry.events()][-2:] == ["rollback", "rollback"]

    def test_an_altered_champion_is_rolled_back_and_an_only_one_replaced(self, folders, tmp_path) -> None:
        fake, where = Fake(folders[0]), (tmp_path / "job", tmp_path / "registry")
        first = retrain(fake, JOB, *where).champion
        registry = Registry(where[1])
        victim = registry.path(first) / "README.md"
        victim.chmod(0o644)
        victim.write_text("altered")
        fake.folder, fake.root = folders[1], "data 2"
        now = retrain(fake, JOB, *where)
        assert now.outcome == "promoted"
        assert now.champion != first
        assert "no champion is left that can be used" in now.reasons
        assert now.numbers == {"compared": False}

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
        assert Registry(where[1]).alias("champion") is not None
        now = retrain(fake, JOB, *where)
        assert (now.outcome, now.champion) == ("promoted", Registry(where[1]).alias("champion").version)
        assert "stopped after the promotion" in now.reasons[0]
        assert retrain(fake, JOB, *where).outcome == "skipped"

    def test_champions_that_all_fail_end_the_run(self, folders, tmp_path) -> None:
        fake, where = Fake(folders[0]), (tmp_path / "job", tmp_path / "registry")
        retrain(fake, JOB, *where)
        registry = Registry(where[1])
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
        registry = Registry(where[1])
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

    def test_who_lost_the_race_cannot_promote(self, folders, tmp_path) -> None:
        """A holder that slept through its lock's end: the champion's count is the fencing token."""
        fake, where = Fake(folders[0]), (tmp_path / "job", tmp_path / "registry")
        retrain(fake, JOB, *where)
        registry = Registry(where[1])
        fake.folder, fake.root, fake.items = folders[1], "data 2", {"crack": set(map(str, range(40)))}
        real = fake.judge

        def slow(*args):
            registry.promote(registry.add(folders[2]), expect=1, actor="another")
            return real(*args)

        fake.judge = slow
        with pytest.raises(ConflictError, match="moved meanwhile"):
            retrain(fake, JOB, *where)
        assert registry.alias("champion").gen == 2

    def test_one_at_a_time(self, folders, tmp_path) -> None:
        fake, where = Fake(folders[0]), (tmp_path / "job", tmp_path / "registry")
        with only_one(where[0] / flow.LOCK, "a retraining"), pytest.raises(LockedError, match="is at work already"):
            retrain(fake, JOB, *where)
        assert retrain(fake, JOB, *where).outcome == "promoted"

    def test_an_interrupted_run_goes_on(self, folders, tmp_path) -> None:
        fake, where = Fake(folders[0]), (tmp_path / "job", tmp_path / "registry")

        def killed(*args):
            raise KeyboardInterrupt

        real, fake.judge = fake.judge, killed
        with pytest.raises(KeyboardInterrupt):
            retrain(fake, JOB, *where)
        fake.judge = real
        assert retrain(fake, JOB, *where).outcome == "promoted"
        assert len(list((where[0] / "runs").iterdir())) == 1


def test_the_frozen_rows_are_the_same_whatever_types_and_rows_come() -> None:
    from tests.tabular.test_jobs import dependent
    from visynth.tabular.retraining import stable_hashes

    frame = dependent(60)
    numbers = frame.select_dtypes("number").columns
    assert len(numbers)
    assert stable_hashes(frame.astype(dict.fromkeys(numbers, float))) == stable_hashes(frame)
    more = frame.reindex([*range(60), 60])  # a row of missing values turns whole numbers into floats
    assert stable_hashes(more)[:60] == stable_hashes(frame)


class TestLock:
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


class TestDrift:
    def test_false_alarms(self) -> None:
        """Over 1,000 resamplings of one distribution the trigger fires in at most its level, within its own error."""
        pool = np.random.default_rng(0).standard_t(4, size=(4000, 12)) @ np.random.default_rng(1).normal(size=(12, 12))
        fired = 0
        for seed in range(1000):
            numbers = np.random.default_rng(1000 + seed)
            rows = pool[numbers.permutation(len(pool))[:90]]
            before = {"a": rows[:30], "b": rows[30:50]}
            fired += bool(drifted(before, {"a": rows[50:75], "b": rows[75:]}, 0.05, seed))
        assert fired <= 50

    def test_power(self) -> None:
        numbers = np.random.default_rng(0)
        x = numbers.normal(size=(40, 12))
        assert drifted(
            {"a": x, "b": x}, {"a": x + numbers.normal(0, 0.01, x.shape), "b": numbers.normal(0.8, 1, x.shape)}, 0.05
        ).keys() == {"b"}
        assert mmd_p_value(x, numbers.normal(size=(40, 12)) * 2) < 0.01
        assert drifted({"a": x}, {"a": x[:5] + 9}, 0.05) == {}  # too few to say
        assert drifted({"a": x}, {"a": x + 9}, 0.0) == {}

    def test_stability(self) -> None:
        assert stability_index({"a": 80, "b": 20}, {"a": 800, "b": 200}) < 0.01
        assert stability_index({"a": 80, "b": 20}, {"a": 80, "b": 20, "c": 100}) > 0.25
        p, q = np.array([80.5, 20.5]) / 101, np.array([40.5, 60.5]) / 101
        assert stability_index({"a": 80, "b": 20}, {"a": 40, "b": 60}) == pytest.approx(((q - p) * np.log(q / p)).sum())


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


class TestSubject:
    def test_the_frozen_part_is_the_same_whatever_comes(self, samples) -> None:
        images = read_images(samples / "images", masks=samples / "masks", groups=samples / "groups.csv")
        job = Job({"compose": {"good": "good"}}, ("spot",))
        whole = ImageSubject(images, job).images
        part = ImageSubject(images.select(lambda item: hash(item.name) % 3 > 0 or item.label == "spot"), job).images
        splits = {item.name: item.split for item in whole.items}
        assert all(splits[item.name] == item.split for item in part.items)
        assert {"train", "test"} == set(splits.values())
        groups = {item.group: item.split for item in whole.items}
        assert all(groups[item.group] == item.split for item in whole.items)

    def test_new_images_and_changed_ones_change_the_fingerprint(self, samples, tmp_path) -> None:
        shutil.copytree(samples, tmp_path / "set")
        job = Job({"compose": {}}, ("spot",))

        def finger() -> Fingerprint:
            images = read_images(
                tmp_path / "set/images", masks=tmp_path / "set/masks", groups=tmp_path / "set/groups.csv"
            )
            return ImageSubject(images, job).fingerprint()

        first = finger()
        assert finger() == first
        victim = next((tmp_path / "set/masks/spot").glob("*"))
        victim.write_bytes(victim.read_bytes() + b"x")
        assert finger().root != first.root

    @pytest.mark.parametrize(
        ("wrong", "told"), [(("rust",), "'rust' are not in the data"), ((), "are not in the data")]
    )
    def test_wrong_classes(self, wrong, told: str, samples) -> None:
        with pytest.raises(UsageError, match=told):
            ImageSubject(read_images(samples / "images"), Job({"compose": {}}, wrong))

    def test_a_composition_from_data_to_judgement(self, samples, tmp_path) -> None:
        """Fit, judge against a champion, canary: on the built-in samples, as the command runs them."""
        images = read_images(samples / "images", masks=samples / "masks", groups=samples / "groups.csv")
        job = Job({"compose": {"good": "good"}}, ("stain",), count=6, seeds=2, canary=4, policy=Policy("no harm"))
        subject = ImageSubject(images, job)
        generator = subject.fit(tmp_path / "run")
        stamp = (generator / "generator.json").stat().st_mtime_ns
        assert subject.fit(tmp_path / "run") == generator
        assert (generator / "generator.json").stat().st_mtime_ns == stamp
        judged = subject.judge(generator, generator, tmp_path / "run")
        assert judged.numbers["stain"]["against"]["mean"] == 0  # against itself
        assert (tmp_path / "run/report/report.html").is_file()
        assert subject.canary(generator, tmp_path / "canary") == []
        assert subject.known(generator).items["stain"] == subject.fingerprint().items["stain"]
        assert subject.drift(generator, 0.05) == {}

    def test_too_few_to_judge(self, samples) -> None:
        images = read_images(samples / "images")
        one = next(item.name for item in images.items if item.label == "spot")
        with pytest.raises(DataError, match="spot has"):
            ImageSubject(images.select(lambda i: i.label != "spot" or i.name == one), Job({"compose": {}}, ("spot",)))


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
