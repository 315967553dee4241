"""Plans of any size, formats that read back, images that cannot be used, workers that share a set, torn commits."""

from __future__ import annotations

import json
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.forked import Forked
from tests.render.generators import Faulty
from visynth.cli import main
from visynth.core import plugins
from visynth.core.codec import decode_bytes
from visynth.core.errors import ConflictError, DataError, IntegrityError, UsageError, VisynthError
from visynth.core.folders import strangers
from visynth.core.manifest import read_renders
from visynth.render.exports import export
from visynth.render.filters import NearDuplicates
from visynth.render.finish import finish, state_of
from visynth.render.images import ImageMaker
from visynth.render.plan import RenderPlan, residue, shard_of, shard_places
from visynth.render.run import Here, Slice, make_plan, render, render_set, retry_failed
from visynth.render.stage import DiskStage


@pytest.fixture(autouse=True)
def _faulty(monkeypatch) -> None:
    monkeypatch.setitem(plugins.BUILT_IN["generators"], "faulty", "tests.render.generators:Faulty")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def plan_of(sizes: list[int], shard_size: int) -> RenderPlan:
    names = tuple(f"class {k}" for k in range(len(sizes)))
    return RenderPlan(
        "d", "trained", names, dict(zip(names, sizes, strict=True)), 0, {}, "png", 16, shard_size=shard_size
    )


class TestPlan:
    @pytest.mark.parametrize(
        ("sizes", "size"), [([60, 30, 10], 7), ([1, 0, 500], 64), ([3], 64), ([5, 5], 1), ([997] * 9, 100)]
    )
    def test_shards_hold_every_image_once_and_each_class_to_within_one(self, sizes: list[int], size: int) -> None:
        plan = plan_of(sizes, size)
        seen: Counter[tuple[int, int]] = Counter()
        for number in range(plan.shards):
            images = plan.shard(number)
            seen.update((image.label, image.number) for image in images)
            counts = Counter(image.label for image in images)
            assert len(images) == plan.count(number) <= size
            assert plan.counts(number) == {name: counts[k] for k, name in enumerate(plan.classes)}
            assert all(abs(counts[k] - n / plan.shards) < 1 for k, n in enumerate(sizes))
            for image in images:
                assert plan.shard_of(f"{plan.classes[image.label]}/{image.number:08d}.png") == number
        assert seen == Counter({(label, k): 1 for label, n in enumerate(sizes) for k in range(n)})

    def test_a_run_that_was_stopped_is_balanced(self) -> None:
        """Of a class with fewer images than shards, too: any run of shards holds its share to within three images."""
        sizes, shards = [50, 5000, 950], 100
        done = Counter(dict.fromkeys(range(3), 0))
        for number in range(shards):
            done.update({k: len(own) for k, own in enumerate(shard_places(sizes, shards, number))})
            assert all(abs(done[k] - n * (number + 1) / shards) <= 3 for k, n in enumerate(sizes))

    def test_shards_of_a_hundred_million_images_need_no_memory(self) -> None:
        plan = plan_of([99_999_000, 1_000], 64)
        tracemalloc.start()
        images = [plan.shard(number) for number in (0, 777_777, plan.shards - 1)]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000
        assert len({image.seed for own in images for image in own}) == sum(map(len, images))

    def test_dealing_is_undone(self) -> None:
        for shards in (1, 2, 3, 5, 8, 100, 1024, 999):
            assert sorted(residue(s, shards) for s in range(shards)) == list(range(shards))
            assert [shard_of(residue(s, shards), shards) for s in range(shards)] == list(range(shards))

    def test_more_images_keep_those_that_were_there(self, composition) -> None:
        generator, _ = composition
        few, many = (make_plan(generator, per_class=n) for n in (3, 9))
        seeds = {(i.label, i.number): i.seed for i in many.shard(0)}
        assert all(seeds[i.label, i.number] == i.seed for i in few.shard(0))

    def test_what_is_stored_is_the_plan_again(self, composition) -> None:
        plan = make_plan(
            composition[0], per_class=3, options={"poisson_limit": (1, 2)}, format="webdataset", attempts=2
        )
        assert RenderPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan

    @pytest.mark.parametrize(
        ("asked", "told"),
        [
            ({"format": "zip"}, "format must be one of 'folders', 'webdataset', 'parquet'"),
            ({"attempts": 0}, "attempts must be at least 1"),
            ({"filters": ["beauty"]}, "filters has no 'beauty'"),
        ],
    )
    def test_wrong_plans(self, composition, asked, told: str) -> None:
        with pytest.raises(UsageError, match=told):
            make_plan(composition[0], per_class=1, **asked)


class TestFormats:
    @pytest.mark.filterwarnings(
        "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
    )  # its readers
    def test_webdataset_reads_the_tars(self, composition, renders, tmp_path) -> None:
        import webdataset

        generator, _ = composition
        plan = make_plan(generator, per_class=12, format="webdataset", shard_size=20)
        made = render_set(generator, plan, tmp_path / "w")
        again = render_set(generator, plan, tmp_path / "v", engine=Here(0))
        assert snapshot(made.folder) == snapshot(again.folder)
        tars = sorted(made.folder.glob("*.tar"))
        assert [p.name for p in tars] == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
        dataset = webdataset.WebDataset([str(p) for p in tars], shardshuffle=False).decode("pil")
        by_seed = {r.seed: renders.folder / r.file_name for r in renders.records}
        read = list(dataset)
        assert Counter(sample["cls"] for sample in read) == {0: 12, 1: 12, 2: 12, 3: 12}
        for sample, record in zip(read, made.records, strict=True):
            assert sample["json"]["seed"] == record.seed
            assert sample["json"]["label"] == generator.classes[sample["cls"]] == record.label
            with Image.open(by_seed[record.seed]) as image:  # the same image as in class folders
                assert (np.asarray(image) == np.asarray(sample["png"].convert(image.mode))).all()
        with tarfile.open(tars[0]) as tar:
            assert {(m.mtime, m.uid, m.uname) for m in tar} == {(0, 0, "")}

    def test_hugging_face_reads_the_parquet_files(self, composition, renders, tmp_path, monkeypatch) -> None:
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        generator, _ = composition
        made = render_set(
            generator, make_plan(generator, per_class=12, format="parquet", shard_size=20), tmp_path / "p"
        )
        read = datasets.load_dataset(str(made.folder), split="train", cache_dir=str(tmp_path / "cache"))
        assert read.features["label"].names == list(generator.classes)
        by_seed = {r.seed: r for r in renders.records}
        assert len(read) == 48
        for row in read:
            record = by_seed[row["seed"]]
            assert read.features["label"].int2str(row["label"]) == record.label
            own = decode_bytes((renders.folder / record.file_name).read_bytes())
            assert (np.asarray(row["image"]).reshape(own.shape) == own).all()

    def test_hugging_face_reads_class_folders(self, renders, tmp_path) -> None:
        import datasets

        read = datasets.load_dataset(
            "imagefolder", data_dir=str(renders.folder), split="train", cache_dir=str(tmp_path)
        )
        assert Counter(read["label"]) == dict.fromkeys(renders.classes, 12)  # as the manifest says

    def test_archives_are_verified_repaired_and_refused_where_folders_are_needed(self, composition, tmp_path) -> None:
        generator, _ = composition
        plan = make_plan(generator, per_class=4, format="webdataset", shard_size=6)
        made = render_set(generator, plan, tmp_path / "w")
        before = snapshot(made.folder)
        victim = made.folder / "shard-000001.tar"
        data = bytearray(victim.read_bytes())
        data[700] ^= 1
        victim.write_bytes(data)
        assert main(["renders", "verify", str(made.folder)]) == 65
        with pytest.warns(UserWarning, match="1 files were missing or altered"):
            render_set(generator, plan, tmp_path / "w")
        assert snapshot(made.folder) == before
        assert main(["renders", "verify", str(made.folder)]) == 0
        with pytest.raises(UsageError, match="webdataset shards, for other tools"):
            export(made, "coco", tmp_path / "x")

    def test_a_finished_set_describes_itself(self, renders) -> None:
        card = (renders.folder / "README.md").read_text()
        assert card.startswith("---\n")
        assert renders.root() in card
        assert "| scratch | 12 |" in card
        meta = json.loads((renders.folder / "croissant.json").read_text())
        assert meta["conformsTo"] == "http://mlcommons.org/croissant/1.0"
        assert meta["distribution"][0]["name"] == "metadata.jsonl"
        assert strangers(renders.folder) == []

    def test_a_card_that_someone_wrote_in_is_theirs(self, composition, renders, tmp_path) -> None:
        import shutil

        shutil.copytree(renders.folder, tmp_path / "set")
        with (tmp_path / "set" / "README.md").open("a") as stream:
            stream.write("my notes")
        assert strangers(tmp_path / "set") == ["README.md (changed since visynth wrote it)"]

    def test_the_manifest_is_in_parts_where_it_is_long(self, composition, tmp_path, monkeypatch) -> None:
        from visynth.render import finish as finishing

        generator, _ = composition
        plan = make_plan(generator, per_class=5, shard_size=3)
        whole = render_set(generator, plan, tmp_path / "whole")
        monkeypatch.setattr(finishing, "PART", 8)
        parts = render_set(generator, plan, tmp_path / "parts")
        assert [p.name for p in sorted(parts.folder.glob("metadata*"))] == [
            f"metadata-0000{k}-of-00003.jsonl" for k in range(3)
        ]
        assert list(parts.records) == list(whole.records)
        assert parts.records[17] == whole.records[17] == parts.records[-3]
        assert parts.records[7:10] == whole.records[7:10]
        assert parts.root() == whole.root()
        assert strangers(parts.folder) == []


class TestFailures:
    @pytest.mark.parametrize("fault", ["nan", "constant"])
    def test_images_that_cannot_be_used_are_drawn_again(self, fault: str, tmp_path) -> None:
        generator = Faulty(bad=0.3, fault=fault)
        plan = make_plan(generator, per_class=40, attempts=12)
        made = render_set(generator, plan, tmp_path / "r")
        assert made.counts() == {"crack": 40, "spot": 40}
        first = {(i.label, i.number): i.seed for i in plan.shard(0)} | {
            (i.label, i.number): i.seed for i in plan.shard(1)
        }
        redrawn = [r for r in made.records if r.seed not in first.values()]
        assert 10 < len(redrawn) < 40
        labels = {name: k for k, name in enumerate(made.classes)}
        assert not any(generator.fails(r.seed, labels[r.label]) for r in made.records)
        again = render_set(generator, plan, tmp_path / "q", engine=Here(0))
        assert snapshot(made.folder) == snapshot(again.folder)

    def test_what_never_comes_is_failed_and_never_done(self, tmp_path, capsys) -> None:
        generator = Faulty(bad=0.4)
        folder, out = generator.save(tmp_path / "generator"), tmp_path / "r"
        words = ["render", str(folder), "--out", str(out), "--per-class", "30", "--attempts", "2", "--quiet"]
        assert main(words) == 65
        told = capsys.readouterr().err
        assert "images could not be made" in told
        assert "not a finite image" in told
        assert "retry-failed" in told
        assert not (out / "summary.json").exists()
        assert main(words) == 65  # still: the same draws
        capsys.readouterr()
        assert main(["renders", "status", str(out), "--json"]) == 0
        before = json.loads(capsys.readouterr().out)
        assert before["failed"] > 0
        assert before["finished"] is False
        assert main(["renders", "finalize", str(out)]) == 65
        code = main(["renders", "retry-failed", str(out), "--generator", str(folder), "--quiet"])
        capsys.readouterr()
        assert main(["renders", "status", str(out), "--json"]) == 0
        after = json.loads(capsys.readouterr().out)
        assert after["failed"] < before["failed"]
        for _ in range(20):
            if code == 0:
                break
            code = main(["renders", "retry-failed", str(out), "--generator", str(folder), "--quiet"])
        assert code == 0
        assert read_renders(out, verify=True).counts() == {"crack": 30, "spot": 30}
        assert main(words) == 0  # a finished set stays as it is
        assert main(["renders", "retry-failed", str(out), "--generator", str(folder)]) == 64

    def test_finished_without_what_failed(self, tmp_path) -> None:
        generator = Faulty(never="spot")
        plan = make_plan(generator, per_class=6, shard_size=5)
        with pytest.raises(DataError, match=r"6 images could not be made \(6 spot; not a finite image: 6\)"):
            render_set(generator, plan, tmp_path / "r")
        stage = DiskStage(tmp_path / "r")
        with pytest.raises(DataError, match="6 images could not be made"):
            finish(stage, plan)
        summary = finish(stage, plan, allow_failed=True)
        assert summary["total"] == 6
        assert len(summary["failed"]) == 6
        assert "6 images of the plan could not be made" in (tmp_path / "r" / "README.md").read_text()
        assert read_renders(tmp_path / "r", verify=True).counts() == {"crack": 6, "spot": 0}

    def test_near_duplicates_of_training_images_are_refused(self, tmp_path) -> None:
        from visynth.core.members import Member, fine_hash, perceptual_hash, pixel_hash

        generator = Faulty(side=40)
        plain = render_set(generator, make_plan(generator, per_class=10), tmp_path / "r")
        image = decode_bytes((plain.folder / plain.records[3].file_name).read_bytes())
        lighter = (image // 2 + 20).astype(np.uint8)
        copied = Member(
            "a.png", "crack", "g", "train", "", pixel_hash(lighter), perceptual_hash(lighter), fine_hash(lighter)
        )
        generator.members = (copied,)
        plan = make_plan(generator, per_class=10, filters=["near_duplicates"])
        made = render_set(generator, plan, tmp_path / "q")
        changed = {r.file_name for r in made.records} - {
            r.file_name for r, o in zip(made.records, plain.records, strict=True) if r.seed == o.seed
        }
        assert changed == {plain.records[3].file_name}
        assert NearDuplicates(generator).refusal(image, "crack") == "a near-duplicate of a training image"
        generator.members = ()
        with pytest.raises(UsageError, match=r"filters .* differ"):
            ImageMaker(generator, plan)


def command(folder: Path, out: Path, per_class: int, shard_size: int) -> list[str]:
    words = ["render", str(folder), "--out", str(out), "--quiet"]
    return [*words, "--per-class", str(per_class), "--shard-size", str(shard_size)]


class TestSharing:
    def test_workers_that_know_nothing_of_one_another(self, composition, renders, tmp_path, capsys) -> None:
        _, folder = composition
        words = command(folder, tmp_path / "r", 12, 7)
        for index in (2, 0):
            assert main([*words, "--shard-index", str(index), "--shard-count", "3"]) == 0
            assert "whoever commits the last one finishes" in capsys.readouterr().out
        assert main(["renders", "status", str(tmp_path / "r")]) == 0
        assert "not finished; 5 of 7 shards" in capsys.readouterr().out
        assert main(["renders", "finalize", str(tmp_path / "r")]) == 65
        assert "2 of 7 shards are not rendered yet" in capsys.readouterr().err
        assert main([*words, "--shard-index", "1", "--shard-count", "3"]) == 0
        assert "root" in capsys.readouterr().out
        made = read_renders(tmp_path / "r", verify=True)
        assert {r.seed: r.sha256 for r in made.records} == {r.seed: r.sha256 for r in renders.records}

    def test_torchruns_ranks_are_slices(self, composition, tmp_path, monkeypatch) -> None:
        _, folder = composition
        words = command(folder, tmp_path / "r", 6, 5)
        monkeypatch.setenv("WORLD_SIZE", "2")
        for rank in (1, 0):
            monkeypatch.setenv("RANK", str(rank))
            assert main(words) == 0
        assert len(read_renders(tmp_path / "r", verify=True).records) == 24

    @pytest.mark.parametrize(("index", "count"), [(3, 3), (-1, 2), (1, None)])
    def test_wrong_slices(self, composition, index, count, tmp_path, capsys) -> None:
        words = ["render", str(composition[1]), "--out", str(tmp_path / "r"), "--shard-index", str(index)]
        assert main([*words, *(["--shard-count", str(count)] if count else [])]) == 64
        assert "shard_index" in capsys.readouterr().err

    def test_of_two_that_make_one_shard_the_first_wins(self, tmp_path) -> None:
        generator = Faulty()
        plan = make_plan(generator, per_class=10)
        maker, stage = ImageMaker(generator, plan), DiskStage(tmp_path / "r")
        stage.claim(maker)
        shard = maker.make(0, 0, None)()
        assert stage.commit(shard, shard.record(plan))
        assert not stage.commit(shard, shard.record(plan))
        assert [p.name for p in (tmp_path / "r.work").glob("tmp/*")] == []

    def test_two_whole_renders_at_once_both_finish(self, composition, tmp_path) -> None:
        _, folder = composition
        words = [
            "render",
            str(folder),
            "--out",
            str(tmp_path / "r"),
            "--per-class",
            "40",
            "--shard-size",
            "16",
            "--quiet",
        ]
        both = [Forked(main, words, log=tmp_path / f"log{place}") for place in range(2)]
        for process in both:
            assert process.wait(120) == 0, process.output()
            assert "root" in process.output()
        assert len(read_renders(tmp_path / "r", verify=True).records) == 160
        assert not (tmp_path / "r.work").exists()

    def test_another_plan_while_one_is_at_work(self, tmp_path) -> None:
        generator = Faulty()
        stage = DiskStage(tmp_path / "r")
        stage.claim(ImageMaker(generator, make_plan(generator, per_class=10)))
        with pytest.raises(ConflictError, match="targets"):
            stage.claim(ImageMaker(generator, make_plan(generator, per_class=11)))


class TestTorn:
    @pytest.mark.injected
    @pytest.mark.parametrize("how", ["image flipped", "image cut", "record cut", "lines cut", "image gone"])
    def test_commits_that_were_altered_are_rendered_again(self, how: str, tmp_path) -> None:
        generator = Faulty()
        plan = make_plan(generator, per_class=20, shard_size=10)
        whole = render_set(generator, plan, tmp_path / "whole")
        stage = DiskStage(tmp_path / "r")
        render(ImageMaker(generator, plan), stage, part=Slice(0, 2))
        shard = tmp_path / "r.work" / "shard.000002"
        image = next(shard.rglob("*.png"))
        if how == "image flipped":
            data = bytearray(image.read_bytes())
            data[-20] ^= 1
            image.write_bytes(data)
        elif how == "image gone":
            image.unlink()
        else:
            file = {"image cut": image, "record cut": shard / "record.json", "lines cut": shard / "records.jsonl"}[how]
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        assert main(["renders", "verify", str(tmp_path / "r")]) == 65
        with pytest.warns(UserWarning, match="1 committed shards had missing or altered files"):
            made = render_set(generator, plan, tmp_path / "r")
        assert made.root() == whole.root()
        assert snapshot(tmp_path / "r") == snapshot(tmp_path / "whole")

    @pytest.mark.injected
    def test_a_file_that_is_altered_before_the_end_is_found(self, tmp_path) -> None:
        generator = Faulty()
        plan = make_plan(generator, per_class=20, shard_size=10)
        stage = DiskStage(tmp_path / "r")
        for index in (0, 1):
            for number in range(plan.shards):
                if number % 2 == index and not stage.has(number, 0):
                    maker = ImageMaker(generator, plan)
                    stage.claim(maker)
                    shard = maker.make(number, 0, None)()
                    stage.commit(shard, shard.record(plan))
        victim = next((tmp_path / "r.work/shard.000001").rglob("*.png"))
        victim.write_bytes(victim.read_bytes()[:-1])
        assert main(["renders", "finalize", str(tmp_path / "r")]) == 65
        assert not (tmp_path / "r/summary.json").exists()
        with pytest.warns(UserWarning, match="1 committed shards"):
            render_set(generator, plan, tmp_path / "r")

    def test_an_altered_label_is_found(self, renders, tmp_path) -> None:
        import shutil

        shutil.copytree(renders.folder, tmp_path / "set")
        file = tmp_path / "set/metadata.jsonl"
        file.write_text(file.read_text().replace('"label":"spot"', '"label":"stain"', 1))
        with pytest.raises(IntegrityError, match=r"metadata\.jsonl was altered"):
            read_renders(tmp_path / "set", verify=True)
        assert main(["renders", "verify", str(tmp_path / "set")]) == 65

    def test_sweep_removes_what_is_half_made_and_nothing_else(self, tmp_path, capsys) -> None:
        from visynth.core.files import host

        generator = Faulty()
        plan = make_plan(generator, per_class=20, shard_size=10)
        render(ImageMaker(generator, plan), DiskStage(tmp_path / "r"), part=Slice(0, 2))
        (tmp_path / "r.work" / f"tmp/000001.{host()}.999999999").mkdir(parents=True)
        assert main(["renders", "sweep", str(tmp_path / "r")]) == 0
        assert "1 unfinished shards removed" in capsys.readouterr().out
        assert state_of(DiskStage(tmp_path / "r"), plan).to_json()["committed"] == 2

    def test_no_set_there(self, tmp_path, capsys) -> None:
        assert main(["renders", "status", str(tmp_path / "r")]) == 65
        assert "holds no rendered set" in capsys.readouterr().err


def test_nothing_is_failed_in_a_whole_set(tmp_path) -> None:
    generator = Faulty()
    plan = make_plan(generator, per_class=3)
    render_set(generator, plan, tmp_path / "r")
    with pytest.raises(UsageError, match="no failed images"):
        retry_failed(ImageMaker(generator, plan), DiskStage(tmp_path / "r"))


def test_errors_of_encoders_are_errors_of_the_render(tmp_path, monkeypatch) -> None:
    from visynth.render import images

    def broken(*args):
        raise VisynthError("the encoder broke")

    monkeypatch.setattr(images, "encode", broken)
    generator = Faulty()
    with pytest.raises(VisynthError, match="the encoder broke"):
        render_set(generator, make_plan(generator, per_class=3), tmp_path / "r")
