"""Rendering: fixed plans, shards, kills at any moment, exports that read back, marks in every file."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visynth.core.codec import decode
from visynth.core.errors import ConflictError, IntegrityError, OutputError, UsageError
from visynth.core.files import host
from visynth.core.manifest import Record, decode_mask, encode_mask, read_renders, read_reviews, write_reviews
from visynth.data.reading import read_images
from visynth.render.images import file_name
from visynth.render.plan import balanced_order
from visynth.render.run import Here, make_plan, render_set
from visynth.render.stage import DiskStage
from visynth.render.workers import Workers


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class TestPlan:
    def test_every_stretch_is_balanced(self) -> None:
        order = balanced_order([60, 30, 10])
        assert Counter(order) == {0: 60, 1: 30, 2: 10}
        for stop in range(1, 101):
            part = Counter(order[:stop])
            assert all(abs(part[label] - stop * share) <= 1 for label, share in ((0, 0.6), (1, 0.3), (2, 0.1)))

    def test_the_hash_names_everything_that_decides_bytes(self, composition) -> None:
        generator, _ = composition
        plans = [
            make_plan(generator, per_class=4),
            make_plan(generator, per_class=5),
            make_plan(generator, per_class=4, seed=1),
            make_plan(generator, per_class=4, encoding="tiff"),
            make_plan(generator, per_class=4, options={"poisson_limit": 10}),
            make_plan(generator, per_class=4, shard_size=3),
        ]
        assert len({plan.hash for plan in plans}) == len(plans)

    def test_shards_count_what_they_hold(self, composition) -> None:
        plan = make_plan(composition[0], per_class=5, shard_size=7)
        assert (
            [plan.count(s) for s in range(plan.shards)] == [len(plan.shard(s)) for s in range(plan.shards)] == [7, 6, 7]
        )

    def test_a_plan_of_a_million_images_is_quick(self, composition) -> None:
        plan = make_plan(composition[0], per_class=250_000)
        started = time.monotonic()
        for shard in range(0, plan.shards, 100):
            plan.shard(shard)
        assert time.monotonic() - started < 20

    def test_balance_counts_the_reals_of_the_members(self, composition) -> None:
        generator, _ = composition
        assert make_plan(generator).targets == {"scratch": 16, "spot": 16, "stain": 16, "good": 0}
        assert make_plan(generator, balance="all", to=30).targets == {"scratch": 22, "spot": 22, "stain": 22, "good": 6}
        assert make_plan(generator, balance="all", to=30, classes=["spot"]).targets["stain"] == 0

    @pytest.mark.parametrize(
        ("asked", "told"),
        [
            ({"classes": ["rust"]}, "'rust' are not in the generator; it makes 'scratch'"),
            ({"per_class": {"rust": 3}}, "unknown classes 'rust'"),
            ({"per_class": 0}, "nothing to render"),
            ({"balance": "everything"}, "balance must be one of"),
            ({"encoding": "gif"}, "must be 'png' or 'tiff'"),
            ({"seed": -1, "per_class": 1}, "seed must be in"),
            ({"balance": "all", "to": 0}, "to must be at least 1"),
        ],
    )
    def test_wrong_plans(self, composition, asked, told: str) -> None:
        with pytest.raises(UsageError, match=told):
            make_plan(composition[0], **asked)


class TestRender:
    @pytest.mark.parametrize(("engine", "ahead"), [("none", 1), ("threads", 1), ("threads", 8), ("processes", 4)])
    def test_engines_and_queues_do_not_change_a_byte(self, composition, renders, tmp_path, engine, ahead) -> None:
        generator, folder = composition
        engines = {"none": Here(0), "threads": Here(2), "processes": Workers(folder, 2)}
        made = render_set(
            generator, make_plan(generator, per_class=12), tmp_path / "r", engine=engines[engine], ahead=ahead
        )
        assert snapshot(tmp_path / "r") == snapshot(renders.folder)
        assert made.root() == renders.root()

    def test_a_script_needs_no_main_guard(self, composition, tmp_path) -> None:
        """What a first script looks like: processes that ran it again would end in an endless tale or none."""
        composition[0].save(tmp_path / "generator")
        script = tmp_path / "script.py"
        script.write_text(
            """
import numpy as np
import visynth
from visynth.verdict.comparison import run_cells
from visynth.verdict.cells import Cell
from visynth.render.run import make_plan, render_set
from visynth.render.workers import Workers

print("once")
generator = visynth.load_generator("generator")
print(len(render_set(generator, make_plan(generator, per_class=3), "renders", engine=Workers("generator", 2)).records))
positive = np.arange(60) < 20
table = {(0, "max"): np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)}
rows = np.arange(0, 60, 2), np.zeros(0, int), np.arange(1, 60, 2)
cells = [Cell(draw, 0, *rows, positive, [str(i // 2) for i in range(60)]) for draw in range(4)]
print(len(run_cells("c", cells, table, workers=2).rows))
"""
        )
        ran = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert ran.stdout.split() == ["once", "12", "4"], ran.stderr

    def test_the_folder_reads_as_an_image_folder(self, renders) -> None:
        from torchvision.datasets import ImageFolder

        dataset = ImageFolder(renders.folder)
        assert dataset.classes == ["good", "scratch", "spot", "stain"]
        assert len(dataset) == 48
        assert read_images(renders.folder, max_bad_fraction=0).counts() == {
            "good": 12,
            "scratch": 12,
            "spot": 12,
            "stain": 12,
        }

    def test_records_tell_where_an_image_came_from(self, renders, composition, sample_set) -> None:
        generator, _ = composition
        names = {item.name for item in sample_set.items}
        for record in renders.records[::5]:
            again = generator.sample([record.seed], [generator.classes.index(record.label)])
            assert (again.crop(0).permute(1, 2, 0).numpy() == decode(renders.folder / record.file_name)).all()
            assert set(record.parents) <= names
            assert record.generator == generator.digest

    def test_every_file_is_marked_as_a_composite(self, renders) -> None:
        for record in renders.records[::7]:
            with Image.open(renders.folder / record.file_name) as image:
                xmp = image.getxmp()
            assert "compositeWithTrainedAlgorithmicMedia" in json.dumps(xmp)

    def test_running_it_again_changes_nothing(self, composition, tmp_path) -> None:
        generator, _ = composition
        plan = make_plan(generator, per_class=3)
        render_set(generator, plan, tmp_path / "r")
        before = {p: p.stat().st_mtime_ns for p in (tmp_path / "r").rglob("*")}
        render_set(generator, plan, tmp_path / "r")
        assert {p: p.stat().st_mtime_ns for p in (tmp_path / "r").rglob("*")} == before
        assert not (tmp_path / "r.work").exists()

    def test_progress_counts_what_is_done(self, composition, tmp_path) -> None:
        generator, _ = composition
        told: list[dict] = []
        plan = make_plan(generator, per_class=5, shard_size=7)
        render_set(generator, plan, tmp_path / "r", progress=lambda state: told.append(dict(state)))
        assert [state["done"] for state in told] == [7, 13, 20]
        assert told[-1]["counts"] == {"scratch": 5, "spot": 5, "stain": 5, "good": 5}
        assert sum(told[0]["counts"].values()) == 7
        assert told[-1]["seconds left"] == 0

    def test_another_plan_in_the_same_folder_is_refused(self, composition, tmp_path) -> None:
        generator, _ = composition
        render_set(generator, make_plan(generator, per_class=3), tmp_path / "r")
        with pytest.raises(ConflictError, match=r"another plan's images .*targets"):
            render_set(generator, make_plan(generator, per_class=4), tmp_path / "r")

    def test_a_folder_with_strangers_is_refused(self, composition, tmp_path) -> None:
        (tmp_path / "r").mkdir()
        (tmp_path / "r" / "thesis.tex").write_text("")
        with pytest.raises(OutputError, match=r"holds 1 files that visynth did not write(.|\n)*thesis\.tex"):
            render_set(composition[0], make_plan(composition[0], per_class=3), tmp_path / "r")

    def test_unwritable_output(self, composition, tmp_path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError):
            render_set(composition[0], make_plan(composition[0], per_class=3), tmp_path / "file" / "r")

    def test_a_full_disk_tears_nothing_and_goes_on(self, composition, tmp_path, monkeypatch) -> None:
        from visynth.core import files

        generator, _ = composition
        plan = make_plan(generator, per_class=6, shard_size=5)
        calls = []

        def full(*args):
            calls.append(1)
            if len(calls) > 16:  # five images and two records a shard
                raise OSError(28, "No space left on device")
            return real(*args)

        real = files.write_synced
        monkeypatch.setattr(files, "write_synced", full)
        with pytest.raises(OutputError, match="run the same command again"):
            render_set(generator, plan, tmp_path / "r")
        assert len(list((tmp_path / "r.work").glob("shard.*"))) == 2
        monkeypatch.setattr(files, "write_synced", real)
        done = render_set(generator, plan, tmp_path / "r")
        reference = render_set(generator, plan, tmp_path / "q")
        assert done.root() == reference.root()

    def test_sixteen_bits_and_many_channels_go_to_tiff(self, tmp_path) -> None:
        from tests.generators.test_compose import sources
        from visynth.generators.compose_fit import fit_composition

        generator = fit_composition(sources(5, "uint16"), good="good").generator
        made = render_set(generator, make_plan(generator, per_class=2), tmp_path / "r")
        image = decode(made.folder / made.records[0].file_name)
        assert made.records[0].file_name.endswith(".tif")
        assert image.dtype == np.uint16
        assert image.shape[2] == 5
        with pytest.raises(UsageError, match="use tiff"):
            make_plan(generator, per_class=2, encoding="png")


class TestManifest:
    def test_unfinished_and_altered_folders_are_refused(self, renders, tmp_path) -> None:
        folder = tmp_path / "copy"
        shutil.copytree(renders.folder, folder)
        victim = folder / renders.records[0].file_name
        victim.write_bytes(victim.read_bytes() + b"x")
        read_renders(folder)
        with pytest.raises(IntegrityError, match="was altered"):
            read_renders(folder, verify=True)
        victim.unlink()
        with pytest.raises(IntegrityError, match="is missing"):
            read_renders(folder)
        plan = json.loads((folder / "plan.json").read_text())
        (folder / "plan.json").write_text(json.dumps({**plan, "schema": "visynth.renders/0"}))
        with pytest.raises(IntegrityError, match="this version reads"):
            read_renders(folder)
        (folder / "summary.json").unlink()
        with pytest.raises(IntegrityError, match="did not finish"):
            read_renders(folder)

    def test_torn_line(self, renders, tmp_path) -> None:
        folder = tmp_path / "copy"
        shutil.copytree(renders.folder, folder)
        file = folder / "metadata.jsonl"
        file.write_text(file.read_text()[:-40])
        with pytest.raises(IntegrityError, match="line 48 is not an image record"):
            read_renders(folder)

    def test_run_lengths_are_cocos(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(20):
            mask = rng.random((7, 5)) < 0.4
            runs = encode_mask(mask)
            assert (decode_mask(runs) == mask).all()
            assert sum(runs["counts"]) == 35
        assert encode_mask(np.zeros((2, 3), bool))["counts"] == [6]

    def test_records_stand_in_the_plans_order_and_round_trip(self, renders, composition) -> None:
        plan = make_plan(composition[0], per_class=12)
        assert [r.file_name for r in renders.records] == [file_name(plan, image) for image in plan.shard(0)]
        assert Record.from_json(json.loads(renders.records[3].to_line())) == renders.records[3]


class TestOthersFiles:
    def test_a_users_folder_of_the_works_name_stays(self, composition, tmp_path) -> None:
        generator, _ = composition
        plan = make_plan(generator, per_class=1)
        (tmp_path / "set.work" / "sub").mkdir(parents=True)
        (tmp_path / "set.work/sub/x.txt").write_text("precious")
        with pytest.raises(OutputError, match=r"sub/x\.txt"):
            render_set(generator, plan, tmp_path / "set")
        shutil.move(tmp_path / "set.work", tmp_path / "aside")
        render_set(generator, plan, tmp_path / "set")
        shutil.move(tmp_path / "aside", tmp_path / "set.work")
        render_set(generator, plan, tmp_path / "set")
        assert (tmp_path / "set.work/sub/x.txt").read_text() == "precious"

    def test_what_was_set_aside_stays_when_more_is(self, composition, renders, tmp_path) -> None:
        shutil.copytree(renders.folder, tmp_path / "set")
        generator, _ = composition
        name = renders.records[0].file_name
        for text in ("one", "two"):
            (tmp_path / "set" / name).write_text(text)
            with pytest.warns(UserWarning, match="1 files were missing or altered"):
                render_set(generator, make_plan(generator, per_class=12), tmp_path / "set")
        assert sorted(p.read_text() for p in (tmp_path / "set.damaged").rglob("*") if p.is_file()) == ["one", "two"]


class TestRepair:
    @pytest.fixture
    def copy(self, renders, tmp_path) -> Path:
        shutil.copytree(renders.folder, tmp_path / "set")
        return tmp_path / "set"

    def test_a_damaged_set_is_repaired_and_what_was_altered_is_kept(self, composition, renders, copy) -> None:
        names = [r.file_name for r in renders.records]
        (copy / names[3]).unlink()
        (copy / names[40]).write_bytes(b"altered by hand")
        generator, _ = composition
        with pytest.warns(UserWarning, match="2 files were missing or altered and are rendered again"):
            found = render_set(generator, make_plan(generator, per_class=12), copy)
        assert found.root() == renders.root()
        assert snapshot(copy) == snapshot(renders.folder)
        aside = copy.with_name("set.damaged")
        assert {p.relative_to(aside).as_posix() for p in aside.rglob("*") if p.is_file()} == {names[40]}
        assert (aside / names[40]).read_bytes() == b"altered by hand"
        assert not copy.with_name("set.work").exists()

    def test_a_whole_set_is_left_as_it_is(self, composition, copy) -> None:
        generator, _ = composition
        before = {p: p.stat().st_mtime_ns for p in copy.rglob("*.png")}
        render_set(generator, make_plan(generator, per_class=12), copy)
        assert before == {p: p.stat().st_mtime_ns for p in copy.rglob("*.png")}

    def test_options_that_are_tuples_survive_the_plan(self, composition, tmp_path) -> None:
        generator, _ = composition
        plan = make_plan(generator, per_class=1, options={"poisson_limit": (1, 2)})
        assert plan.to_json() == json.loads(json.dumps(plan.to_json()))
        assert plan.options == {"poisson_limit": [1, 2]}

    def test_another_machines_unfinished_shard_is_left_to_it(self, tmp_path) -> None:
        work = tmp_path / "set.work"
        theirs, ours = work / "tmp/000000.0123abcd.999999999", work / f"tmp/000000.{host()}.999999999"
        theirs.mkdir(parents=True)
        ours.mkdir()
        DiskStage(tmp_path / "set").sweep()
        assert theirs.is_dir()
        assert not ours.exists()


def decide(folder: str, reviewer: str, names: list[str]) -> None:
    for name in names:
        write_reviews(read_renders(folder), {name: "reject"}, reviewer)


def test_reviewers_at_one_time_keep_each_others_decisions(renders, tmp_path) -> None:
    shutil.copytree(renders.folder, tmp_path / "set")
    names = [r.file_name for r in renders.records]
    context = multiprocessing.get_context("spawn")
    people = [
        context.Process(target=decide, args=(str(tmp_path / "set"), who, names[k::3][:8]))
        for k, who in enumerate("abc")
    ]
    for person in people:
        person.start()
    for person in people:
        person.join()
        assert person.exitcode == 0
    assert len(read_reviews(tmp_path / "set")) == 24
