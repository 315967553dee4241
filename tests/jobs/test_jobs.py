"""Preflight, trial, evaluate, gate, reports and the command line, on tiny sets and on the real one."""

from __future__ import annotations

import csv
import re
import shutil
import time
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from visynth.cli import main
from visynth.core.codec import encode_png
from visynth.core.errors import DataError, IntegrityError, UsageError
from visynth.core.folders import strangers
from visynth.core.manifest import read_renders, write_reviews
from visynth.core.recipe import read_recipe
from visynth.core.report import ClassVerdict, Report, arms, bullets, gallery, read_report, table, text
from visynth.data.parts import find_same_parts
from visynth.data.reading import read_groups, read_images
from visynth.data.unpack import is_packed, unpack
from visynth.generators.base import load_generator
from visynth.jobs.evaluate import evaluate_renders
from visynth.jobs.gate import check_renders, decide
from visynth.jobs.held_out import assign_splits
from visynth.jobs.make import fit_compose
from visynth.jobs.planning import plan_lines
from visynth.jobs.preflight import preflight
from visynth.jobs.trial.flow import PARTS, run_trial
from visynth.jobs.trial.options import TrialOptions
from visynth.networks.unet import Denoiser, recipe
from visynth.render.run import make_plan, render_set
from visynth.verdict.cells import Cell, Extra
from visynth.verdict.comparison import run_cells
from visynth.verdict.planning import error, groups_for, smallest_effect
from visynth.verdict.summary import summarise

QUICK = TrialOptions(rare_groups=2, draws=2, folds=2, synthetic=12, workers=0, others=False, learned="none")


def read(folder: Path):
    return read_images(folder / "images", masks=folder / "masks", groups=folder / "groups.csv")


@pytest.fixture(scope="module")
def finished(medium: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("trial") / "out"
    return run_trial(read(medium), ["spot"], out, options=QUICK, grouped=True, render=5), out


class TestTrial:
    def test_it_writes_what_it_promises(self, finished) -> None:
        report, out = finished
        assert sorted(p.name for p in out.iterdir()) == [
            ".visynth.json",
            "generator",
            "groups.csv",
            "recipe.yaml",
            "renders",
            "report.html",
            "report.json",
        ]
        assert [v.label for v in report.verdicts] == ["spot", "scratch"]
        spot = report.verdicts[0]
        assert spot.answer in ("helps", "does not", "cannot tell")
        assert re.search(r"AP [+-]0\.\d+ \(95 % CI", spot.reason)
        assert spot.next
        assert report.verdicts[1].answer == "not measured"

    def test_every_arm_is_there_with_its_interval(self, finished) -> None:
        numbers = finished[0].verdicts[0].numbers
        assert {
            "real",
            "duplicate",
            "balanced",
            "logit adjusted",
            "smote",
            "focal",
            "ldam",
            "augment",
            "synthetic",
            "no control",
            "dense",
            "dense+synthetic",
            "oracle",
        } == set(numbers["arms"])
        for row in numbers["arms"].values():
            assert 0 <= row["low"] <= row["high"] <= 1
        assert set(numbers["means"]["macro-f1"]) >= {"real", "balanced", "synthetic", "logit adjusted"}
        assert set(numbers["curve"]) >= {"none", "classic", "0.05", "0.1", "0.25", "0.5"}
        assert numbers["train_groups_per_cell"] == 2

    def test_the_report_reads_back_and_its_page_needs_no_network(self, finished) -> None:
        report, out = finished
        again = read_report(out)
        assert [v.headline for v in again.verdicts] == [v.headline for v in report.verdicts]
        page = (out / "report.html").read_text()
        assert not re.search(r"(src|href)=[\"']?(http|//)", page)
        assert page.count("data:image/png") >= 18
        assert "nearest real" in page
        assert "parent: spot/" in page

    def test_only_safe_classes_are_rendered_beside_controls(self, finished) -> None:
        from visynth.core.manifest import read_renders

        counts = read_renders(finished[1] / "renders", verify=True).counts()
        assert counts == {"scratch": 0, "spot": 5, "good": 5}

    @pytest.mark.slow
    def test_the_same_seed_gives_the_same_numbers(self, finished, medium, tmp_path) -> None:
        again = run_trial(read(medium), ["spot"], tmp_path, options=QUICK, grouped=True, render=5)
        assert again.verdicts == finished[0].verdicts

    def test_groups_are_proposed_where_none_are_given(self, medium, tmp_path) -> None:
        images = read_images(medium / "images", masks=medium / "masks")
        found = preflight(images, ["spot"])
        assert found.group_source.startswith("every image on its own") or "as proposed" in found.group_source
        assert all(item.group for item in found.images.items)

    def test_given_splits_are_kept(self, medium, tmp_path) -> None:
        rows = list(csv.DictReader((medium / "groups.csv").read_text().splitlines()))
        regions = sorted({row["group"] for row in rows})
        with open(medium / "images" / "list.csv", "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["file", "label", "group", "split"])
            for row in rows:
                writer.writerow(
                    [row["file"], row["class"], row["group"], "test" if regions.index(row["group"]) % 2 else "train"]
                )
        images = read_images(medium / "images" / "list.csv")
        options = TrialOptions(draws=2, synthetic=6, workers=0, others=False, learned="none")
        report = run_trial(images, ["spot"], tmp_path / "out", options=options, good="good", grouped=True)
        # Without masks nothing can be composed, and the trial says so instead of inventing something.
        assert report.verdicts[0].answer == "not measured"
        assert "no masks" in report.verdicts[0].reason
        (medium / "images" / "list.csv").unlink()

    def test_a_second_trial_leaves_nothing_of_the_first(self, finished, medium, tmp_path) -> None:
        out = tmp_path / "out"
        shutil.copytree(finished[1], out)
        assert (out / "renders").is_dir()
        images = read_images(medium / "images", groups=medium / "groups.csv")  # without masks nothing is composed
        options = TrialOptions(draws=1, folds=2, synthetic=6, workers=0, others=False, learned="none")
        report = run_trial(images, ["spot"], out, options=options, good="good", grouped=True)
        assert report.verdicts[0].answer == "not measured"
        assert sorted(p.name for p in out.iterdir()) == [
            ".visynth.json",
            "groups.csv",
            "recipe.yaml",
            "report.html",
            "report.json",
        ]
        assert read_recipe(out).shares == {}
        assert strangers(out, PARTS) == []

    @pytest.mark.parametrize(
        ("rare", "error", "told"),
        [
            ([], UsageError, "name the class that matters"),
            (["rust"], UsageError, "no class 'rust'"),
            (
                ["good", "spot"],
                UsageError,
                "'good' is named as a class that matters, but it is the defect-free one too",
            ),
            (["tiny"], DataError, "at least 3 groups are needed"),
        ],
    )
    def test_what_cannot_be_tried_is_told_early(self, class_folders, rare, error, told: str, tmp_path) -> None:
        images = read_images(class_folders({"good": 8, "tiny": 1, "spot": 4}))
        with pytest.raises(error, match=told):
            run_trial(images, rare, tmp_path / "out")

    def test_one_class_or_one_group_is_not_enough(self, class_folders, tmp_path) -> None:
        with pytest.raises(DataError, match="one class only"):
            run_trial(read_images(class_folders({"spot": 5})), ["spot"], tmp_path / "out")
        images = read_images(class_folders({"good": 5, "spot": 5}, root="two"), group_pattern=r"^(\w+)/")
        with pytest.raises(DataError, match=r"spot has 5 images in 1 group"):
            run_trial(images, ["spot"], tmp_path / "out", grouped=True)

    def test_large_images_are_told_what_is_done_to_them(self, class_folders) -> None:
        images = read_images(class_folders({"good": 3, "spot": 3}, height=1100, width=300))
        notes = preflight(images, ["spot"]).warnings
        assert any("6 images are larger than 512x512" in note for note in notes)
        assert any("6 images are longer than 1024 pixels" in note for note in notes)

    def test_mixed_modes_are_named(self, medium, tmp_path, picture) -> None:
        images = read(medium)
        path = images.items[0].path
        before = path.read_bytes()
        path.write_bytes(encode_png(picture(80, 80, 3)))
        try:
            found = preflight(read(medium), ["spot"], grouped=True)
            assert any("1 channel(s) of uint8, 3 channel(s) of uint8" in warning for warning in found.warnings)
        finally:
            path.write_bytes(before)


class TestComparison:
    """The engine on made-up features, where the right answer is known."""

    def results(self, quality: float, seed: int = 0):
        rng = np.random.default_rng(seed)
        count, width = 240, 12
        groups = [f"g{i // 4}" for i in range(count)]
        positive = np.arange(count) < 80
        real = rng.normal(size=(count, width))
        # The class lies along its own direction in each group: few groups do not show where the others are.
        directions = {f"g{g}": rng.normal(size=width) for g in range(20)}
        for row in np.flatnonzero(positive):
            real[row] += 2.0 * directions[groups[row]]
        made = rng.normal(size=(60, width)) + quality * 2.0 * np.stack(
            [directions[f"g{rng.integers(20)}"] for _ in range(60)]
        )
        table = {(0, "max"): np.concatenate([real, made]).astype(np.float32)}
        cells = []
        for draw in range(5):
            order = np.random.default_rng(draw).permutation(60)
            tested = {f"g{g}" for g in order[:30]}
            test = np.array([r for r in range(count) if groups[r] in tested])
            train = np.array([r for r in range(count) if groups[r] not in tested])
            few = {groups[r] for r in train if positive[r]}
            few = set(sorted(few)[:3])
            base = np.array([r for r in train if not positive[r] or groups[r] in few])
            more = np.array([r for r in train if positive[r] and groups[r] not in few])
            extra = Extra(np.arange(count, count + 60), [frozenset({sorted(few)[0]})] * 60)
            cells.append(Cell(draw, 0, base, more, test, positive, groups, synthetic=extra, has_oracle=True))
        return run_cells("c", cells, table, workers=0)

    def test_useful_images_help_and_useless_ones_do_not(self) -> None:
        useful, useless = (summarise({"c": self.results(quality)})["c"] for quality in (1.0, -2.0))
        assert useful.verdict.answer == "helps"
        assert useful.headroom is not None
        assert useful.headroom.mean > 0
        assert (useful.gap is not None) == (
            useful.headroom.low > 0
        )  # a share of a gap that may be nothing is no number
        assert useless.verdict.answer == "does not"

    def test_processes_do_not_change_the_scores(self) -> None:
        rng = np.random.default_rng(0)
        positive = np.arange(60) < 20
        groups = [str(i // 2) for i in range(60)]
        table = {(0, "max"): rng.normal(size=(70, 8)).astype(np.float32)}
        cells = [
            Cell(
                d,
                0,
                np.arange(0, 60, 2),
                np.zeros(0, int),
                np.arange(1, 60, 2),
                positive,
                groups,
                synthetic=Extra(np.arange(60, 70), [frozenset({"0"})] * 10),
            )
            for d in range(4)
        ]
        one, two = run_cells("c", cells, table, workers=0), run_cells("c", cells, table, workers=2)
        for arm in one.tested:
            for a, b in zip(one.tested[arm], two.tested[arm], strict=True):
                np.testing.assert_allclose(a.scores, b.scores, atol=1e-9)


class TestEvaluate:
    @staticmethod
    def split_set(folder: Path):
        """Half of the regions train, half test."""
        images = read(folder)
        groups = sorted({item.group for item in images.items})
        from dataclasses import replace

        return replace(
            images,
            items=tuple(replace(i, split="test" if groups.index(i.group) % 2 else "train") for i in images.items),
        )

    @pytest.fixture(scope="class")
    @classmethod
    def rendered(cls, medium, tmp_path_factory):
        images = cls.split_set(medium)
        folder = tmp_path_factory.mktemp("evaluate")
        fitted = fit_compose(images, folder / "generator")
        assert {m.split for m in fitted.generator.members} == {"train", "test"}
        return images, render_set(fitted.generator, make_plan(fitted.generator, per_class=10), folder / "renders")

    def test_a_report_with_verdicts(self, rendered, tmp_path) -> None:
        images, renders = rendered
        report = evaluate_renders(images, renders.folder, tmp_path / "report", seeds=2, workers=0)
        assert [v.label for v in report.verdicts] == ["scratch", "spot"]
        assert {"real", "duplicate", "balanced", "augment", "synthetic"} <= set(report.verdicts[0].numbers["arms"])
        assert read_report(tmp_path / "report").verdicts[0].answer == report.verdicts[0].answer

    def test_what_reviewers_rejected_is_not_measured(self, rendered, tmp_path) -> None:
        images, renders = rendered
        shutil.copytree(renders.folder, tmp_path / "set")
        own = read_renders(tmp_path / "set")
        rejected = [r.file_name for r in own.records if r.label == "spot"][1:]
        write_reviews(own, dict.fromkeys(rejected, "reject"), "anna")
        report = evaluate_renders(images, own.folder, tmp_path / "report", seeds=1, workers=0, classes=["spot"])
        counts = next(s for s in report.sections if s["title"] == "Images")["blocks"][0]["rows"]
        assert next(row for row in counts if row[0] == "spot")[3] == 1
        assert report.verdicts[0].numbers["synthetic_per_cell"] == 1
        assert {v.label: v.reason for v in report.verdicts[1:]} == {"scratch": "it was not asked for"}
        assert (
            f"{len(rejected)} of {len(own.records)} rendered images do not count"
            in (tmp_path / "report/report.html").read_text()
        )

    def test_splits_come_from_the_members(self, rendered, medium) -> None:
        images, renders = rendered
        told = {i.name: i.split for i in images.items}
        assigned, group_of = assign_splits(read(medium), renders.members)
        assert group_of == {m.path: m.group for m in renders.members}
        assert {i.name: i.split for i in assigned.items} == told

    def test_test_images_that_were_trained_on_are_refused(self, rendered) -> None:
        from dataclasses import replace

        images, renders = rendered
        turned = replace(images, items=tuple(replace(i, split="test") for i in images.items))
        with pytest.raises(DataError, match=r"test images were used to fit the generator(.|\n)*was the training image"):
            assign_splits(turned, renders.members)

    def test_nothing_held_out(self, sample_set, renders, tmp_path) -> None:
        with pytest.raises(DataError, match="fitted on all 48 images, so there is nothing to test on"):
            evaluate_renders(sample_set, renders, tmp_path)

    def test_other_data(self, renders, class_folders, tmp_path) -> None:
        with pytest.raises(DataError, match="none of the images was used to fit"):
            evaluate_renders(read_images(class_folders({"good": 3, "spot": 3})), renders, tmp_path)

    def test_classes_that_cannot_be_measured(self, rendered, tmp_path) -> None:
        with pytest.raises(UsageError, match="'rust' cannot be measured"):
            evaluate_renders(*rendered, tmp_path, classes=["rust"])


class TestReport:
    def test_every_block_is_drawn_and_escaped(self, tmp_path, picture) -> None:
        report = Report("trial", "<script>", [ClassVerdict("a<b", "helps", "because")], conditions={"x": {"y": 1.0}})
        row = {"name": "real", "mean": 0.5, "low": None, "high": None, "more": {"n": 3}}
        pixels = np.repeat(picture(20, 20, 1), 3, axis=2)
        report.section(
            "S",
            text("t&t"),
            bullets(["one"]),
            table(["a"], [[1.23456]]),
            arms("A", [row, {**row, "low": 0.1, "high": 0.9, "highlight": True}]),
            gallery(["c"], [pixels], 1),
        )
        report.write(tmp_path)
        page = (tmp_path / "report.html").read_text()
        assert "<script>" not in page
        assert "a&lt;b: yes, synthesis helps" in page
        assert "1.235" in page
        assert page.count("<svg") == 3  # two estimates and the axis
        assert "pictures" not in (tmp_path / "report.json").read_text()

    def test_a_report_of_another_schema_is_refused(self, tmp_path) -> None:
        (tmp_path / "report.json").write_text('{"schema": "visynth.report/0"}')
        with pytest.raises(IntegrityError, match="this version reads"):
            read_report(tmp_path)
        with pytest.raises(IntegrityError, match="cannot be read as a report"):
            read_report(tmp_path / "nothing.json")

    @pytest.mark.parametrize(
        ("answers", "outcome"),
        [
            (["helps", "helps"], "promote"),
            (["helps", "does not"], "reject"),
            (["helps", "cannot tell"], "insufficient evidence"),
            (["not measured"], "insufficient evidence"),
        ],
    )
    def test_gate(self, answers, outcome: str) -> None:
        report = Report(
            "trial", "x", [ClassVerdict(str(i), a, "r", "", {"adjusted": 0.001}) for i, a in enumerate(answers)]
        )
        assert decide(report).outcome == outcome
        weak = Report(
            "trial", "x", [ClassVerdict(str(i), a, "r", "", {"adjusted": 0.02}) for i, a in enumerate(answers)]
        )
        assert decide(weak).outcome == ("insufficient evidence" if outcome == "promote" else outcome)
        assert decide(weak, level=0.025).outcome == outcome
        with pytest.raises(UsageError, match="level must be in"):
            decide(report, level=0.7)
        with pytest.raises(UsageError, match="no verdict on 'rust'"):
            decide(report, ["rust"])


def test_the_gate_wants_no_copies_and_leaves_what_nobody_named() -> None:
    numbers = {"adjusted": 0.001, "copies": {"found": 20, "of": 60, "high": 0.46, "flagged": True}}
    copied = ClassVerdict("crack", "helps", "r", "", numbers)
    fine = {**numbers, "copies": {"found": 0, "of": 60, "high": 0.06, "flagged": False}}
    good = ClassVerdict("hole", "helps", "r", "", fine)
    aside = ClassVerdict("stain", "does not", "r", "", {"adjusted": 1.0}, aside=True)
    decision = decide(Report("utility", "x", [copied, good, aside]))
    assert decision.classes == {"crack": "reject", "hole": "promote"}
    assert decision.outcome == "reject"
    assert "20 of 60 synthetic images are copies" in decision.reasons[0]
    assert decide(Report("utility", "x", [good, aside])).outcome == "promote"
    assert decide(Report("utility", "x", [good, aside]), ["stain"]).outcome == "reject"


def test_a_report_decides_on_the_renders_that_it_speaks_of(renders) -> None:
    own = Report("utility", "x", [], conditions={"generator": renders.plan["generator"]})
    check_renders(own, renders.folder)
    with pytest.raises(UsageError, match="the report is about generator ffff"):
        check_renders(Report("utility", "x", [], conditions={"generator": "f" * 64}), renders.folder)
    with pytest.raises(UsageError, match="names no generator"):
        check_renders(Report("trial", "x", []), renders.folder)


def test_a_plan_says_what_a_test_will_see(sample_set) -> None:
    lines = plan_lines(sample_set, ["spot"], grouped=True)
    groups = len({item.group for item in sample_set.items if "spot" in item.labels})
    assert lines[1].startswith(f"spot: {sample_set.counts()['spot']} images of {groups} groups: ")
    seen = smallest_effect(groups)
    assert (f"sees gains from {seen:.2f} AP on" if seen <= 1 else "no effect can be shown") in lines[1]
    assert "+0.1 AP needs 25 groups" in lines[1]
    with pytest.raises(UsageError, match="there is no class 'rust'"):
        plan_lines(sample_set, ["rust"], grouped=True)


@pytest.mark.parametrize("groups", [2, 5, 8, 20, 100])
def test_the_planned_effect_is_found_four_times_of_five(groups: int) -> None:
    """By drawing: a normal mean with an estimated error, tested by t at a one-sided 2.5 %."""
    rng = np.random.default_rng(groups)
    effect = smallest_effect(groups)
    values = rng.normal(effect, error(groups) * groups**0.5, (4000, groups))
    t = values.mean(axis=1) / (values.std(axis=1, ddof=1) / groups**0.5)
    power = float((t > stats.t.ppf(0.975, groups - 1)).mean())
    assert power == pytest.approx(0.8, abs=0.1 if groups > 2 else 0.25)  # shifted t, not noncentral: a plan
    needed = groups_for(effect)
    assert needed is not None
    assert needed <= groups


def config_files() -> list[Path]:
    """Configurations of ours; those of Kubernetes are tested in ``test_deploy.py``."""
    found = sorted(Path(str(resources.files("visynth.configs"))).rglob("*.yaml"))
    others = ("kubernetes", "nvflare")  # of other programs; they have tests of their own
    return [path for path in found if not path.name.startswith(others) and path.parent.name not in others]


def trains(path: Path) -> bool:
    return path.read_text().startswith("# visynth fit -c ")


@pytest.mark.parametrize("path", config_files(), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_config_parses(path: Path, capsys) -> None:
    if trains(path):
        from visynth.jobs.configured import configured

        cli = configured(
            ["-c", str(path)], logger=False
        )  # modules, data and callbacks are made, and refuse what is wrong
        assert path.read_text().startswith(f"# visynth fit -c configs/{path.parent.name}/{path.name}\n")
        assert hasattr(cli.model, "export")
        return
    verb = path.read_text().splitlines()[0].removeprefix("# visynth ").split(" --config")[0].split()
    assert main([*verb, "--config", str(path), "--print_config"]) == 0


def test_the_smoke_configs_run_in_order(samples, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiles").symlink_to(samples)
    for name in ("fit", "render", "preflight"):
        path = next(p for p in config_files() if p.parent.name == "smoke" and p.stem == name)
        verb = path.read_text().splitlines()[0].removeprefix("# visynth ").split(" --config")[0].split()
        assert main([*verb, "--config", str(path)]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "path", [p for p in config_files() if p.parent.name == "smoke" and trains(p)], ids=lambda p: p.stem
)
def test_smoke_configs_train_export_render_and_evaluate(path: Path, samples, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiles").symlink_to(samples)
    assert main(["fit", "-c", str(path)]) == 0, capsys.readouterr().err
    run = next(tmp_path.glob("run_*"))
    assert list((run / "log" / "version_0" / "samples").glob("*.png"))
    data = yaml.safe_load(path.read_text())["data"]["init_args"]
    members = load_generator(run / "generator").members
    classes = sorted({m.label for m in members if m.split == "test"} & {"3", "8", "scratch", "stain"})
    root = unpack(data["data"]) if is_packed(data["data"]) else Path(data["data"])
    for member in members:  # enough of the set to measure one class on: some images of either side
        if member.label in (*classes, "good") and len(list(Path("some").glob(f"{member.label}/{member.split}_*"))) < 8:
            target = Path("some", member.label, f"{member.split}_{Path(member.path).name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / member.path, target)
    words = f"render --generator {run}/generator --out renders --per-class 20 --workers 0 --quiet".split()
    assert main([*words, *(w for name in classes for w in ("--classes", name))]) == 0, capsys.readouterr().err
    words = f"evaluate --data some --renders renders --out report --seeds 2 --workers 0 --quiet --classes {classes[0]}"
    assert main(words.split()) == 0, capsys.readouterr().err
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Likeness and near-duplicates" in page
    assert "held-out real images" in page


@pytest.mark.data
@pytest.mark.slow
def test_preflight_of_magnetic_tile_is_quick_and_finds_the_leak(real_data) -> None:
    root = real_data("magnetic_tile")
    started = time.process_time()  # of this process alone: a busy machine is no fault
    found = preflight(read_images(root / "images", masks=root / "masks"), ["blowhole", "crack"])
    assert time.process_time() - started < 90
    assert found.random_leak > 0.8
    assert 180 <= len(set(found.proposal.groups)) <= 260
    assert found.good == "free"
    assert found.suits["blowhole"].kind == "composition"
    assert "at the image's border in" in str(found.suits["blowhole"])
    assert sum(name.startswith("fray/") for name in found.bad_masks) == 17
    assert all(why for why in found.bad_masks.values())
    assert str(found.suits["fray"]).startswith("none: 17 of 32 masks are unreliable")
    assert any("a random split leaks" in line for line in found.leak_lines())


@pytest.mark.slow
@pytest.mark.data
def test_preflight_names_the_groups_that_are_one_tile(real_data) -> None:
    """The first grouping of magnetic_tile parted twenty tiles into several groups; the second one is right."""
    root = real_data("magnetic_tile")
    truth = read_groups(root / "groups.csv")
    wrong = find_same_parts(read_images(root / "images", groups=root / "groups_v1.csv"))
    assert not [pair for pair in wrong.pairs if truth[pair.images[0]] != truth[pair.images[1]]]
    assert len({truth[pair.images[0]] for pair in wrong.pairs}) >= 18
    assert not wrong.one_design
    assert find_same_parts(read_images(root / "images", groups=root / "groups.csv")).pairs == ()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"folds": 1}, "folds must be at least 2, but got 1"),
        ({"rare_groups": 0}, "rare_groups must be at least 1, or not given for all there are, but got 0"),
        ({"draws": 0, "minutes": 0}, "draws must be at least 1, but got 0; minutes must be above 0"),
        ({"learn_size": 20}, "learn_size must be a multiple of 8"),
        ({"learner": "resnet"}, "learner must be one of 'finetune', 'frozen'"),
    ],
)
def test_trial_options_check_themselves(wrong, told) -> None:
    with pytest.raises(UsageError, match=re.escape(told)):
        TrialOptions(**wrong)


def test_sizes_that_cannot_be_halved_often_have_fewer_levels() -> None:
    for size in ((128, 72), (72, 128), (96, 40), (128, 128), (64, 64)):
        Denoiser(1, 2, size, width=8, **recipe(size))
    assert len(recipe((128, 72))["multipliers"]) == 4
    assert len(recipe((128, 128))["multipliers"]) == 5


def test_masks_without_a_defect_free_class_are_told_as_they_are(class_folders, tmp_path) -> None:
    root = class_folders({"crack": 6, "dent": 6}, height=32, width=32)
    for item in read_images(root).items:
        target = tmp_path / "masks" / item.name
        target.parent.mkdir(parents=True, exist_ok=True)
        mask = np.zeros((32, 32, 1), np.uint8)
        mask[8:14, 8:14] = 255
        target.write_bytes(encode_png(mask))
    found = preflight(read_images(root, masks=tmp_path / "masks"), ["crack"])
    assert found.good is None
    assert str(found.suits["crack"]).startswith("none: it has masks, but there is no defect-free class to compose onto")


def test_a_share_is_chosen_only_where_it_can_be_tried() -> None:
    """Images of a trained generator have all groups behind them, so that no inner fold may train on one: then they have
    the default share, and so with one group, which makes no folds. Composites are tried, none of them among the choices."""
    from visynth.verdict.cells import LITTLE, SHARES, Cell, Extra
    from visynth.verdict.comparison import fit_cells

    rng = np.random.default_rng(0)
    groups = [f"p{k // 3}" for k in range(12)] + [f"n{k}" for k in range(60)] + [f"t{k}" for k in range(40)]
    positive = np.array([k < 12 or 72 <= k < 82 for k in range(112)])
    table = rng.normal(0, 1, (132, 6)).astype(np.float32)
    table[:112][positive] += 0.6
    table[112:] += 0.6
    everybody = frozenset(f"p{k}" for k in range(4))

    def share(parents, own=12) -> float:
        train = np.concatenate([np.arange(own), np.arange(12, 72)])
        made = Extra(np.arange(112, 132), parents)
        cell = Cell(0, 0, train, np.array([], int), np.arange(72, 112), positive, groups, synthetic=made)
        (outcome,) = fit_cells([cell], {(0, "max"): table}, workers=0)
        return outcome["synthetic"].chosen["share"]

    assert share([everybody] * 20) == LITTLE
    assert share([frozenset({"p0"})] * 20, own=3) == LITTLE
    assert share([frozenset({f"p{k % 4}"}) for k in range(20)]) in (0.0, *SHARES)
