"""Audits: a generator that knows its images by heart is flagged, one that does not is not, and controls say which to believe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import pytorch_lightning
import yaml

from visynth.cli import main
from visynth.core.errors import UsageError
from visynth.core.report import ClassVerdict, Report, read_report
from visynth.data.reading import read_images
from visynth.generators.base import load_generator
from visynth.jobs.audit import audit_images, split_sides
from visynth.jobs.gate import INSUFFICIENT, PROMOTE, REJECT, Decision, with_audit
from visynth.lightning_modules import Diffusion, GeneratorData
from visynth.privacy.audit import Attacked, bound_by_scores, epsilon_bound
from visynth.privacy.membership import membership

MEMBERS, SIZE = 48, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 images of two classes, each unlike the others."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(2 * MEMBERS):
        name = root / ("a" if number % 2 else "b") / f"{number:03d}.png"
        name.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(name), rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8))
    return root


def fitted(folder: Path, steps: int, out: Path) -> Path:
    """A diffusion generator of the first half of the images, after some steps."""
    images = read_images(str(folder))
    own = tuple(
        replace(item, split="train" if int(Path(item.name).stem) < MEMBERS else "test") for item in images.items
    )
    data = GeneratorData.of(replace(images, items=own), SIZE, batch_size=48, channels=1, temper=1.0)
    module = Diffusion(
        width=16,
        multipliers=[1, 2],
        attention=[],
        snapshots=False,
        warmup=0,
        augment=0.0,
        dropout=0.0,
        ema=0.02,
        lr=3e-3,
    )
    trainer = pytorch_lightning.Trainer(
        max_epochs=-1, max_steps=steps, logger=False, enable_checkpointing=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    return module.export(out)


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("visynth.jobs.audit.HEART_STEPS", 150)
        yield


@pytest.fixture(scope="module")
def report(by_heart: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the generator that knows its images by heart."""
    out = tmp_path_factory.mktemp("audit") / "report"
    audited(by_heart, folder, out)
    return out


@pytest.fixture(scope="module")
def by_heart(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted(folder, 150, tmp_path_factory.mktemp("heart") / "generator")


@pytest.fixture(scope="module")
def fresh(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted(folder, 2, tmp_path_factory.mktemp("fresh") / "generator")


def audited(generator: Path, folder: Path, out: Path, *words: str) -> dict[str, Any]:
    code = main(
        ["audit", str(generator), "--data", str(folder), "--out", str(out), "--images", "100", "--quiet", *words]
    )
    assert code == 0
    found: dict[str, Any] = read_report(out).conditions["audit"]
    return found


def test_images_known_by_heart_are_found_and_the_others_controls_hold(report: Path) -> None:
    found: dict[str, Any] = read_report(report).conditions["audit"]
    attacks = {one["found"]["attack"]: one for one in found["attacks"]}
    assert "loss at fixed noise" in found["leaks"]
    assert attacks["loss at fixed noise"]["found"]["auc"] > 0.9
    for one in attacks.values():
        assert one["finding"] != "sides differ"
    assert attacks["loss at fixed noise"]["positive"]["leaks"]
    assert attacks["nearest generated image, by pixels"]["positive"]["auc"] > 0.95
    page = (report / "report.html").read_text()
    assert "Leaks, shown by" in page
    assert page.count("<figure") >= 24  # members beside their nearest generated images


def test_a_generator_that_learned_nothing_is_not_flagged(fresh: Path, folder: Path, tmp_path: Path) -> None:
    found = audited(fresh, folder, tmp_path / "report", "--no-gallery")
    assert found["leaks"] == []
    assert {one["finding"] for one in found["attacks"]} <= {"nothing found", "cannot see"}
    assert "Real images are shown" not in (tmp_path / "report" / "report.html").read_text()


def test_no_distance_of_a_single_image_is_written(report: Path) -> None:
    said = json.loads((report / "report.json").read_text())

    def longest(value: Any) -> int:
        if isinstance(value, dict):
            return max([longest(v) for v in value.values()], default=0)
        if isinstance(value, list):
            own = len(value) if value and all(isinstance(v, float) for v in value) else 0
            return max([own, *(longest(v) for v in value)])
        return 0

    assert longest(said["conditions"]) <= 3  # intervals


def test_members_by_name_where_there_are_no_fingerprints(by_heart: Path, folder: Path, tmp_path: Path) -> None:
    generator = load_generator(by_heart)
    private = type(generator)(generator.spec, generator.network, card=generator.card)  # type: ignore[call-arg, attr-defined]
    private.save(tmp_path / "private")
    assert main(["audit", str(tmp_path / "private"), "--data", str(folder), "--out", str(tmp_path / "no")]) == 64
    names = [f"{'a' if n % 2 else 'b'}/{n:03d}.png" for n in range(MEMBERS)]
    own, others, _ = split_sides(load_generator(tmp_path / "private"), read_images(str(folder)), names, None)
    assert sorted(item.name for item in own[1]) == sorted(names)
    assert len(others[1]) == MEMBERS
    (tmp_path / "wrong.txt").write_text("a/none.png")
    words = ["audit", str(tmp_path / "private"), "--data", str(folder), "--out", str(tmp_path / "no2")]
    assert main([*words, "--members", str(tmp_path / "wrong.txt")]) == 65
    assert main([*words, "--members", str(tmp_path / "nowhere.txt")]) == 65
    assert not (tmp_path / "no2" / "report.json").exists()


def test_other_or_altered_data_and_no_holdout_are_refused(by_heart: Path, folder: Path, tmp_path: Path) -> None:
    generator = load_generator(by_heart)
    images = read_images(str(folder))
    own = images.select(lambda item: int(Path(item.name).stem) < MEMBERS)
    with pytest.raises(UsageError, match="an audit needs records that were not trained on"):
        audit_images(generator, own)
    rng = np.random.default_rng(9)
    for number in range(50):
        (tmp_path / "other" / "a").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "other" / "a" / f"{number}.png"), rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8))
    with pytest.raises(ValueError, match="is one of the 48 that the generator was trained on"):
        audit_images(generator, read_images(str(tmp_path / "other")))


def test_near_duplicates_of_members_are_on_neither_side(by_heart: Path, folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / "twice")
    twin = cv2.imread(str(folder / "a" / "001.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "twice" / "a" / "999.png"), np.clip(twin.astype(int) + 1, 0, 255).astype(np.uint8))
    _, others, notes = split_sides(load_generator(by_heart), read_images(str(tmp_path / "twice")), None, None)
    assert "a/999.png" not in [item.name for item in others[1]]
    assert any("near-duplicates of members" in note for note in notes)


def test_the_bound_on_epsilon() -> None:
    """Ceilings of an audit in one run where every guess is right: 30 records 2.25, 100 3.49, 300 4.6, 1000 5.81."""
    for records, ceiling in ((30, 2.25), (100, 3.49), (300, 4.6), (1000, 5.81)):
        assert epsilon_bound(records, records, records) == pytest.approx(ceiling, abs=0.01)
    assert epsilon_bound(60, 100, 100, delta=1e-5) <= epsilon_bound(60, 100, 100)
    assert epsilon_bound(55, 100, 100) == 0.0
    sure, none = np.linspace(1, 2, 200), np.linspace(0, 0.5, 200)
    assert bound_by_scores(sure, none) == (pytest.approx(epsilon_bound(80, 80, 400)), 80, 80)


def test_a_holdout_of_another_kind_is_noticed(fresh: Path, folder: Path, tmp_path: Path) -> None:
    """Darker images tell themselves apart without any generator: nothing is said to leak, and nothing to be safe."""
    for number in range(60):
        name = tmp_path / "dark" / ("a" if number % 2 else "b") / f"{number}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(100 + number).integers(0, 60, (SIZE, SIZE), dtype=np.uint8)
        cv2.imwrite(str(name), image)
    found = audited(fresh, folder, tmp_path / "report", "--holdout", str(tmp_path / "dark"), "--no-gallery")
    assert {one["finding"] for one in found["attacks"]} == {"sides differ"}
    assert found["leaks"] == []


def test_equal_scores_are_no_guess() -> None:
    bound, right, guesses = bound_by_scores(np.zeros(500), np.zeros(500))
    assert bound == 0.0
    assert abs(right - guesses / 2) < 30


def test_randomised_response_is_not_refuted_at_its_epsilon_and_is_below_it() -> None:
    """A mechanism of known epsilon: each record's bit is told truly with probability e^eps / (1 + e^eps)."""
    refuted = {1.0: 0, 0.3: 0}
    rng = np.random.default_rng(4)
    for _ in range(200):
        truth = rng.random(400) < 0.5
        replies = np.where(rng.random(400) < np.e / (1 + np.e), truth, ~truth)
        bound = epsilon_bound(int((replies == truth).sum()), 400, 400)
        for claim in refuted:
            refuted[claim] += bound > claim
    assert refuted[1.0] <= 20  # 5 % of error
    assert refuted[0.3] >= 190


def test_the_gate_takes_an_audit() -> None:
    def attacked(
        shift: float, sure: float = 5.0, n: int = 1000, blind: float = 0.0, white: bool = True
    ) -> dict[str, Any]:
        rng = np.random.default_rng(1)
        sides = [membership("loss", rng.standard_normal(n) + s, rng.standard_normal(n)) for s in (shift, sure, blind)]
        return Attacked(*sides, white).to_json()

    def audit(*attacks: dict[str, Any], refuted: tuple[str, ...] = (), leaks: tuple[str, ...] = ()) -> Report:
        report = Report("privacy audit", "x")
        said = {"attacks": list(attacks), "refuted": list(refuted), "leaks": list(leaks)}
        report.conditions |= {"generator": "g", "audit": said}
        return report

    report = Report("evaluation", "x", [ClassVerdict("a", "helps", "")])
    report.conditions["generator"] = "g"
    promoted = Decision(PROMOTE, ["a: promote"], {"a": PROMOTE})
    assert with_audit(promoted, report, audit(attacked(0.0))).outcome == PROMOTE
    assert with_audit(promoted, report, audit(attacked(1.0))).outcome == REJECT
    assert with_audit(promoted, report, audit(attacked(0.0), attacked(1.0))).outcome == REJECT
    assert with_audit(promoted, report, audit(attacked(0.0, n=30))).outcome == INSUFFICIENT
    assert with_audit(promoted, report, audit(attacked(0.0, sure=0.0))).outcome == INSUFFICIENT
    assert with_audit(promoted, report, audit(attacked(0.0), refuted=("loss",))).outcome == REJECT
    assert with_audit(promoted, report, audit(attacked(0.0), leaks=("attribute inference of 'x'",))).outcome == REJECT
    assert with_audit(promoted, report, audit(attacked(1.0, blind=1.0))).outcome == INSUFFICIENT  # the sides differ
    distance = attacked(0.0, white=False)
    assert with_audit(promoted, report, audit(distance)).outcome == PROMOTE  # there was no network to look into
    assert with_audit(promoted, report, audit(distance, attacked(0.0, sure=0.0))).outcome == INSUFFICIENT
    few = membership("loss", np.r_[np.full(80, 9.0), np.linspace(-2, 2, 920)], np.linspace(-2, 2, 1000))
    by_heart = Attacked(few, few, membership("blind", np.linspace(0, 1, 900), np.linspace(0, 1, 900)), True)
    assert by_heart.advantage[2] < 0.2
    assert with_audit(promoted, report, audit(by_heart.to_json())).outcome == REJECT  # 8 % of the members, for certain
    assert with_audit(Decision(REJECT, []), report, audit(attacked(0.0))).outcome == REJECT
    with pytest.raises(UsageError, match="no audit"):
        with_audit(promoted, report, report)
    other = audit(attacked(0.0))
    other.conditions["generator"] = "h"
    with pytest.raises(UsageError, match="about its own generator alone"):
        with_audit(promoted, report, other)


def test_a_gan_is_attacked_by_its_discriminator_and_by_inversion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(5)
    for part, first in (("own", 0), ("other", 100)):
        for number in range(first, first + 60):
            name = Path(part) / ("a" if number % 2 else "b") / f"{number:03d}.png"
            name.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(name), rng.integers(0, 256, (16, 16), dtype=np.uint8))
    config = {
        "trainer": {"default_root_dir": "run", "max_steps": 8, "accelerator": "cpu"},
        "model": {"class_path": "visynth.lightning_modules.CGAN", "init_args": {"width": 8, "width_d": 8, "z_dim": 8}},
        "data": {"class_path": "visynth.lightning_modules.GeneratorData",
                 "init_args": {"data": "own", "size": 16, "batch_size": 16, "channels": 1}},
    }  # fmt: skip
    Path("gan.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "-c", "gan.yaml"]) == 0, capsys.readouterr().err
    words = ["audit", "run/generator", "--data", "own", "--holdout", "other", "--images", "60", "--quiet"]
    assert main([*words, "--out", "with", "--run", "run", "--invert", "20"]) == 0
    report = read_report("with")
    attacks = {one["found"]["attack"]: one for one in report.conditions["audit"]["attacks"]}
    for name in ("the discriminator's score", "reconstruction by inverting the generator"):
        assert attacks[name]["found"]["auc"] == pytest.approx(0.5, abs=0.35)
        assert attacks[name]["positive"]["auc"] > 0.8, name
    assert "(--run)" not in Path("with/report.html").read_text()
    assert main([*words, "--out", "without"]) == 0
    assert "checkpoint has (--run)" in Path("without/report.html").read_text()
    config["trainer"]["default_root_dir"] = "other_run"
    config["model"]["init_args"]["seed"] = 1
    Path("gan.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "-c", "gan.yaml"]) == 0
    capsys.readouterr()
    assert main([*words, "--out", "wrong", "--run", "other_run"]) == 65
    assert "trained another generator" in capsys.readouterr().err


def test_what_is_not_inverted(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = fitted(folder, 1, tmp_path / "generator")
    assert main(["audit", str(out), "--data", str(folder), "--out", str(tmp_path / "report"), "--invert", "20"]) == 64
    assert "is not inverted" in capsys.readouterr().err
    assert main(["audit", str(out), "--data", str(folder), "--out", str(tmp_path / "report"), "--invert", "5"]) == 64
    assert "says nothing" in capsys.readouterr().err
