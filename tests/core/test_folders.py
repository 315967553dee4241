"""Nothing that visynth did not write is removed or written over, and a kill leaves the old folder or the new one."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.contracts.test_generators import make_gan
from visynth.cli import main
from visynth.core import folders
from visynth.core.errors import OutputError
from visynth.core.files import host
from visynth.core.folders import check_apart, claim, new_folder, put_files, restore, strangers
from visynth.core.report import Report
from visynth.data.reading import read_images
from visynth.generators.base import load_generator
from visynth.jobs.evaluate import evaluate_renders
from visynth.jobs.explore import explore
from visynth.jobs.make import fit_compose
from visynth.jobs.preflight import preflight, write_groups
from visynth.jobs.scores import score_renders
from visynth.jobs.trial.flow import PARTS
from visynth.render.exports import export
from visynth.render.run import make_plan, render_set


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def make(path: Path, text: str) -> None:
    with new_folder(path) as folder:
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "deep" / "a.txt").write_text(text)


class TestReplacing:
    def test_ours_is_replaced_whole(self, tmp_path) -> None:
        make(tmp_path / "out", "one")
        make(tmp_path / "out", "two")
        assert (tmp_path / "out/deep/a.txt").read_text() == "two"
        assert [p.name for p in tmp_path.iterdir()] == ["out"]

    @pytest.mark.parametrize("name", ["mine.txt", "deep/mine.txt", ".hidden", "deep/link"])
    def test_what_is_not_ours_stays(self, tmp_path, name) -> None:
        make(tmp_path / "out", "one")
        if name == "deep/link":
            (tmp_path / "out" / name).symlink_to(tmp_path)
        else:
            (tmp_path / "out" / name).write_text("precious")
        with pytest.raises(OutputError, match=f"holds 1 files that visynth did not write.*\n  - {name}"):
            make(tmp_path / "out", "two")
        assert (tmp_path / "out/deep/a.txt").read_text() == "one"
        assert name in {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*")}

    def test_what_was_changed_since_is_not_ours_any_more(self, tmp_path) -> None:
        make(tmp_path / "out", "one")
        (tmp_path / "out/deep/a.txt").write_text("edited")
        with pytest.raises(OutputError, match=r"deep/a.txt \(changed since visynth wrote it\)"):
            make(tmp_path / "out", "two")

    def test_what_came_while_we_worked_stays(self, tmp_path) -> None:
        make(tmp_path / "out", "one")
        with pytest.raises(OutputError, match=r"late\.txt"), new_folder(tmp_path / "out"):
            (tmp_path / "out/late.txt").write_text("precious")
        assert (tmp_path / "out/late.txt").read_text() == "precious"

    def test_an_error_leaves_the_old_one(self, tmp_path) -> None:
        make(tmp_path / "out", "one")
        with pytest.raises(KeyError), new_folder(tmp_path / "out"):
            raise KeyError
        assert tree(tmp_path / "out")["deep/a.txt"] == b"one"

    def test_a_file_of_that_name_stays(self, tmp_path) -> None:
        (tmp_path / "out").write_text("precious")
        with pytest.raises(OutputError, match="did not write"):
            make(tmp_path / "out", "two")

    def test_dots_and_links_mean_the_folder_that_they_name(self, tmp_path, monkeypatch) -> None:
        make(tmp_path / "out", "one")
        (tmp_path / "link").symlink_to(tmp_path / "out")
        make(tmp_path / "link", "two")
        assert (tmp_path / "link").is_symlink()
        monkeypatch.chdir(tmp_path / "out")
        make(Path("."), "three")
        assert (tmp_path / "out/deep/a.txt").read_text() == "three"

    def test_another_machines_work_is_not_swept(self, tmp_path) -> None:
        theirs = tmp_path / ".out.0123abcd.999999999.tmp"
        ours = tmp_path / f".out.{folders.host()}.999999999.tmp"
        theirs.mkdir()
        ours.mkdir()
        make(tmp_path / "out", "one")
        assert theirs.is_dir()
        assert not ours.exists()

    def test_without_an_exchange_of_names_the_old_one_can_be_brought_back(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(folders, "_exchange", lambda first, second: False)
        make(tmp_path / "out", "one")
        make(tmp_path / "out", "two")
        assert (tmp_path / "out/deep/a.txt").read_text() == "two"
        (tmp_path / "out").rename(tmp_path / ".out.visynth-old")  # killed between the two renames
        restore(tmp_path / "out")
        assert (tmp_path / "out/deep/a.txt").read_text() == "two"

    @pytest.mark.parametrize("exchange", [True, False])
    def test_a_kill_at_any_call_leaves_the_old_one_or_the_new_one(self, tmp_path, exchange) -> None:
        """SIGKILL before the n-th call that touches the disk, for every n until the replacement is through."""
        for count in range(1, 100):
            out = tmp_path / str(count) / "out"
            out.parent.mkdir()
            make(out, "one")
            killed = killed_at(count, out, exchange)
            restore(out)
            assert (out / "deep/a.txt").read_text() in ("one", "two"), count
            assert strangers(out) == []
            if not killed:
                return
            make(out, "three")
            assert (out / "deep/a.txt").read_text() == "three"
            assert [p.name for p in out.parent.iterdir()] == ["out"]
        raise AssertionError("the replacement never came to its end")


def killed_at(count: int, out: Path, exchange: bool) -> bool:
    """Replace a folder in a child that kills itself before its ``count``-th call; whether it was killed."""
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)
    left = [count]

    def counted(real):
        def call(*args, **kwargs):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in ("rename", "replace", "unlink", "rmdir", "mkdir", "open", "fsync"):
        setattr(os, name, counted(getattr(os, name)))
    folders._exchange = counted(folders._exchange) if exchange else lambda first, second: False
    code = 1
    try:
        make(out, "two")
        code = 0
    finally:
        os._exit(code)


class TestFiles:
    def test_own_files_are_written_over_and_others_left_alone(self, tmp_path) -> None:
        (tmp_path / "notes.txt").write_text("precious")
        put_files(tmp_path, {"report.json": b"1"})
        put_files(tmp_path, {"report.json": b"2", "report.html": b"3"})
        assert tree(tmp_path)["report.json"] == b"2"
        assert strangers(tmp_path) == ["notes.txt"]

    def test_a_users_file_of_that_name_stays(self, tmp_path) -> None:
        (tmp_path / "report.json").write_text("precious")
        with pytest.raises(OutputError, match=r"holds report.json, which visynth did not write"):
            Report("trial", "x").write(tmp_path)
        assert tree(tmp_path) == {"report.json": b"precious"}

    def test_between_record_and_file_both_contents_are_ours(self, tmp_path, monkeypatch) -> None:
        put_files(tmp_path, {"a": b"old"})
        real = folders.write_bytes

        def die(path: Path, data: bytes) -> None:
            raise OSError("killed") if path.name == "a" else real(path, data)

        monkeypatch.setattr(folders, "write_bytes", die)
        with pytest.raises(OSError, match="killed"):
            put_files(tmp_path, {"a": b"new"})
        assert strangers(tmp_path) == []
        (tmp_path / "a").write_bytes(b"new")
        assert strangers(tmp_path) == []


class TestCommands:
    """Every command that writes a folder, into one with a user's file in it."""

    def refused(self, capsys, words: list[str], out: Path) -> None:
        before = tree(out)
        assert main(words) == 73
        said = capsys.readouterr().err
        assert "visynth did not write" in said
        assert "mine.txt" in said
        assert tree(out) == before

    @pytest.fixture
    def out(self, tmp_path) -> Path:
        (tmp_path / "results").mkdir()
        (tmp_path / "results/mine.txt").write_text("precious")
        return tmp_path / "results"

    def test_fit_compose(self, samples, out, capsys) -> None:
        words = ["fit", "compose", "--data", str(samples / "images"), "--masks", str(samples / "masks")]
        self.refused(capsys, [*words, "--out", str(out)], out)

    def test_trial(self, samples, out, capsys) -> None:
        words = ["trial", "--data", str(samples / "images"), "--rare", "spot", "--out", str(out), "--quiet"]
        self.refused(capsys, words, out)

    def test_quickstart(self, out, capsys) -> None:
        for part in ("data", "trial"):
            (out / part).mkdir()
            (out / part / "mine.txt").write_text("precious")
            self.refused(capsys, ["quickstart", "--out", str(out), "--quiet"], out)
            (out / part / "mine.txt").unlink()

    def test_import(self, out, capsys) -> None:
        self.refused(capsys, ["import-stylegan2", "no.pkl", "--out", str(out)], out)

    def test_project(self, composition, class_folders, out, capsys, tmp_path) -> None:
        make_gan("stylegan2", base=64, most=8, z_dim=8, w_dim=8)(composition).save(tmp_path / "gan")
        words = ["project", str(tmp_path / "gan"), "--data", str(class_folders({"a": 2, "b": 2})), "--steps", "1"]
        self.refused(capsys, [*words, "--out", str(out)], out)

    def test_render(self, samples, out, capsys, tmp_path) -> None:
        images = read_images(samples / "images", masks=samples / "masks")
        fit_compose(images, tmp_path / "generator")
        assert main(["render", str(tmp_path / "generator"), "--out", str(out), "--per-class", "2", "--quiet"]) == 73
        assert tree(out) == {"mine.txt": b"precious"}

    @pytest.mark.parametrize("where", [".", "good", "new"])
    def test_out_among_the_data(self, samples, where, capsys) -> None:
        out = samples / "images" / where
        for words in (
            ["trial", "--rare", "spot"],
            ["fit", "compose", "--masks", str(samples / "masks")],
            ["preflight", "--rare", "spot"],
        ):
            assert main([*words, "--data", str(samples / "images"), "--out", str(out)]) == 73
            assert "data are read from" in capsys.readouterr().err
        assert not (samples / "images/new").exists()


def test_reports_and_exports_do_not_go_into_a_rendered_set(sample_set, renders) -> None:
    for out in (renders.folder, renders.folder / "report"):
        with pytest.raises(OutputError, match="data are read from"):
            evaluate_renders(sample_set, renders, out)
        with pytest.raises(OutputError, match="data are read from"):
            export(renders, "coco", out)


def test_a_run_does_not_go_into_its_data(class_folders) -> None:
    root = class_folders({"a": 2, "b": 2})
    words = [
        "--data.class_path",
        "visynth.lightning_modules.data.GeneratorData",
        "--data.init_args.data",
        str(root),
        "--data.init_args.size",
        "8",
    ]
    words += [
        "--model.class_path",
        "visynth.lightning_modules.Diffusion",
        "--trainer.default_root_dir",
        str(root / "run"),
    ]
    assert main(["fit", *words]) == 73
    assert not (root / "run").exists()


def test_generators_reports_groups_and_sheets_write_over_their_own_only(samples, tmp_path) -> None:
    images = read_images(samples / "images", masks=samples / "masks", groups=samples / "groups.csv")
    generator = fit_compose(images, tmp_path / "generator").generator
    fit_compose(images, tmp_path / "generator")  # ours: replaced
    (tmp_path / "generator/README.md").write_text("my own words about it")
    with pytest.raises(OutputError, match=r"README.md \(changed"):
        fit_compose(images, tmp_path / "generator")
    assert load_generator(tmp_path / "generator").digest == generator.digest
    found = preflight(images, ["spot"], grouped=True)
    write_groups(tmp_path, found)
    write_groups(tmp_path, found)
    (tmp_path / "groups.csv").write_text("file,group\n")
    with pytest.raises(OutputError, match=r"groups.csv"):
        write_groups(tmp_path, found)
    explore(generator, tmp_path / "look", seeds=range(2), side=32)
    explore(generator, tmp_path / "look", seeds=range(3), side=32)
    (tmp_path / "look/seeds.png").write_bytes(b"a drawing")
    with pytest.raises(OutputError, match=r"seeds.png"):
        explore(generator, tmp_path / "look", seeds=range(2), side=32)


def test_reviewers_decisions_are_not_ours_to_remove(samples, tmp_path) -> None:
    images = read_images(samples / "images", masks=samples / "masks")
    generator = fit_compose(images, tmp_path / "generator").generator
    with new_folder(tmp_path / "trial") as folder:
        (folder / "report.json").write_text("{}")
    render_set(generator, make_plan(generator, per_class=2), tmp_path / "trial/renders")
    assert strangers(tmp_path / "trial", ("renders*",)) == []
    assert len(strangers(tmp_path / "trial")) > 3, "another command's results are not part of it"
    (tmp_path / "trial/renders/review.jsonl").write_text("")
    with pytest.raises(OutputError, match=r"renders/review.jsonl"):
        claim(tmp_path / "trial", ("renders*",))


def test_apart() -> None:
    check_apart("somewhere/else", [Path("somewhere/data")])
    with pytest.raises(OutputError, match="lies in"):
        check_apart("somewhere/data/deep/out", [Path("somewhere/data")])


def test_unwritable_places_are_told(tmp_path) -> None:
    if os.geteuid() == 0:
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError):
            claim(tmp_path / "file" / "out")


def test_a_trial_replaces_its_own_results_and_no_other_commands(samples, tmp_path) -> None:
    images = read_images(samples / "images", masks=samples / "masks")
    generator = fit_compose(images, tmp_path / "first").generator
    out = tmp_path / "trial"
    with new_folder(out, parts=PARTS) as folder:
        Report("trial", "x").write(folder)
    generator.save(out / "generator")
    claim(out, PARTS)
    (out / "mydir").mkdir()
    assert strangers(out, PARTS) == ["mydir/"]
    (out / "mydir").rmdir()
    render_set(generator, make_plan(generator, per_class=1), out / "more")
    with pytest.raises(OutputError, match=r"more/good/"):
        claim(out, PARTS)


def test_what_killed_processes_left_half_written_is_ours(tmp_path) -> None:
    put_files(tmp_path / "out", {"a": b"1"})
    dead = 999_999_999
    for name in (f".b.{host()}.{dead}.tmp", f".generator.{host()}.{dead}.tmp/model.safetensors", ".c.visynth-old/x"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("half")
    assert strangers(tmp_path / "out") == []
    (tmp_path / "out/.b.0123abcd.7.tmp").write_text("another machine's")
    assert strangers(tmp_path / "out") == [".b.0123abcd.7.tmp"]


def test_images_that_moved_before_a_kill_are_known(composition, tmp_path, monkeypatch) -> None:
    from visynth.render import stage

    generator, _ = composition
    moved = []
    replace = os.replace

    def die(source, target):
        if str(target).endswith(".png"):
            moved.append(target)
            if len(moved) == 4:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(stage.os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        render_set(generator, make_plan(generator, per_class=3), tmp_path / "trial/renders")
    monkeypatch.undo()
    assert len(list((tmp_path / "trial/renders").rglob("*.png"))) == 3
    assert strangers(tmp_path / "trial/renders") == []
    assert len(render_set(generator, make_plan(generator, per_class=3), tmp_path / "trial/renders").records) == 12


def test_scores_are_not_written_over_something_else(composition, sample_set, renders, tmp_path) -> None:
    shutil.copytree(renders.folder, tmp_path / "set")
    (tmp_path / "set/scores.jsonl").write_text("my notes")
    with pytest.raises(OutputError, match="holds something else than scores"):
        score_renders(sample_set, tmp_path / "set")
    assert (tmp_path / "set/scores.jsonl").read_text() == "my notes"
