"""Retraining on data: whole stories on real images and on a table, the fingerprint, the frozen part, the canary."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.render.killing import processes
from visynth.cli import main
from visynth.core.errors import DataError, UsageError
from visynth.data.reading import read_images
from visynth.jobs.registry.local import LocalRegistry
from visynth.jobs.retrain.images import ImageSubject, frozen_split
from visynth.jobs.retrain.options import Job, Policy
from visynth.verdict.challenge import Fingerprint

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
        registry = LocalRegistry(tmp_path / "registry")

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
        registry = LocalRegistry(tmp_path / "registry")

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
        judged = subject.evaluate(generator, generator, tmp_path / "run")
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


def test_the_frozen_rows_are_the_same_whatever_types_and_rows_come() -> None:
    from tests.tabular.test_jobs import dependent
    from visynth.tabular.retraining import stable_hashes

    frame = dependent(60)
    numbers = frame.select_dtypes("number").columns
    assert len(numbers)
    assert stable_hashes(frame.astype(dict.fromkeys(numbers, float))) == stable_hashes(frame)
    more = frame.reindex([*range(60), 60])  # a row of missing values turns whole numbers into floats
    assert stable_hashes(more)[:60] == stable_hashes(frame)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_on_two_devices_is_stopped_and_goes_on(samples, tmp_path) -> None:
    """Lightning starts the second rank by running the command again. SIGTERM to the retraining alone ends both ranks;
    killed, it leaves them at work, and nobody trains beside them."""
    trainer = {"max_steps": 300, "accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    data = {**TINY["data"], "init_args": {**TINY["data"]["init_args"], "batch_size": 4}}
    two = {**TINY, "data": data, "trainer": trainer, "checkpoint": {"every_n_steps": 5}}
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(two))
    words = [
        sys.executable, "-m", "visynth", "retrain", str(samples / "images"), "--classes", "spot",
        "--generator", f"{{config: {tmp_path / 'two.yaml'}}}", "--registry", str(tmp_path / "registry"),
        "--out", str(tmp_path / "job"), "--require", "no harm", "--count", "4", "--seeds", "1", "--canary", "4", "--json",
    ]  # fmt: skip

    def started(steps: int) -> subprocess.Popen[bytes]:
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(words, stdout=log, stderr=log)
        deadline = time.monotonic() + 180
        while reached(tmp_path) < steps:
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        return process

    def ranks() -> list[int]:
        return [pid for pid, _, line in processes() if str(tmp_path) in line and " fit -c " in line]

    process = started(5)
    assert len(ranks()) == 2
    process.terminate()
    assert process.wait(60) == 143
    assert ranks() == []
    stopped = reached(tmp_path)

    process = started(stopped + 5)
    process.kill()
    process.wait(60)
    assert len(ranks()) == 2
    assert subprocess.run(words, stdout=subprocess.DEVNULL).returncode == 75
    deadline = time.monotonic() + 120
    while ranks():
        assert time.monotonic() < deadline
        time.sleep(0.2)

    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    outcome = json.loads(ended.stdout)
    assert outcome["outcome"] in ("promoted", "rejected")
    assert (next((tmp_path / "job/runs").iterdir()) / "training/finished.json").is_file()


def reached(tmp_path: Path) -> int:
    """Step of the last checkpoint of the only run."""
    found = list((tmp_path / "job/runs").glob("*/training/checkpoints/last.ckpt"))
    return int(torch.load(found[0], weights_only=True)["global_step"]) if found else 0
