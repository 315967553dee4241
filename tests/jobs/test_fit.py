"""'visynth fit': one folder a run, the same command after any stop, and every shipped configuration."""

from __future__ import annotations

import logging
import os
import signal
import time
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from tests.forked import forked, run_forked
from visynth.cli import main
from visynth.core.errors import ConflictError, Diverged, UsageError
from visynth.generators.base import load_generator
from visynth.jobs.train import export, fit
from visynth.lightning_modules import Diffusion
from visynth.lightning_modules.data_checks import check_same_data

SMALL = {
    "trainer": {"max_steps": 6, "accelerator": "cpu", "log_every_n_steps": 1},
    "checkpoint": {"every_n_steps": 2},
    "model": {
        "class_path": "visynth.lightning_modules.Diffusion",
        "init_args": {"width": 8, "multipliers": [1, 1], "attention": [], "warmup": 8, "sampler": {"steps": 2}},
    },
    "data": {
        "class_path": "visynth.lightning_modules.data.GeneratorData",
        "init_args": {"data": "sklearn:digits", "size": 8, "batch_size": 4},
    },
}


@pytest.fixture
def config(tmp_path: Path):
    """``config(max_steps=9)`` writes a configuration of a run in ``tmp_path/run``."""

    def write(**trainer) -> str:
        told = {**SMALL, "trainer": {**SMALL["trainer"], "default_root_dir": str(tmp_path / "run"), **trainer}}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(told))
        return str(tmp_path / "config.yaml")

    return write


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_it_trains_exports_and_knows_when_it_is_done(config, tmp_path: Path, capsys) -> None:
    assert main(["fit", "-c", config()]) == 0
    run = tmp_path / "run"
    assert {p.name for p in run.iterdir()} == {
        ".visynth.json",
        "config.yaml",
        "checkpoints",
        "finished.json",
        "generator",
        "log",
    }
    assert load_generator(run / "generator").classes == tuple("0123456789")
    assert (run / "log" / "version_0" / "metrics.csv").read_text().count("\n") >= 6
    before = (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert main(["fit", "-c", config()]) == 0
    assert "is finished" in capsys.readouterr().out
    assert (run / "checkpoints" / "last.ckpt").stat().st_mtime_ns == before


def test_a_longer_run_that_was_stopped_is_not_taken_for_finished(config, tmp_path: Path, capsys, monkeypatch) -> None:
    fit(["-c", config(max_steps=3)])
    from visynth.callbacks.checkpoint import KeepLast

    started = KeepLast.on_train_start

    def interrupted(self, trainer, pl_module) -> None:
        started(self, trainer, pl_module)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(KeepLast, "on_train_start", interrupted)
    assert fit(["-c", config(max_steps=9)]) == 130
    monkeypatch.undo()
    reached = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 3 < reached < 9
    assert fit(["-c", config(max_steps=9)]) == 0
    assert "is finished" not in capsys.readouterr().out
    assert int(weights(tmp_path / "run")["images_seen"]) == 36


def test_the_generator_is_exported_before_it_is_measured(config, tmp_path: Path, capsys, monkeypatch) -> None:
    """Ctrl-C during the last measurement ends it at once; the generator is there, and the run is finished."""
    from visynth.callbacks.quality import QualityCallback

    def measuring(self, trainer, pl_module):
        assert (tmp_path / "run" / "generator" / "generator.json").is_file()
        assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()  # it would be trained again without
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("went on measuring")

    monkeypatch.setattr(QualityCallback, "evaluate", measuring)
    callback = {"class_path": "visynth.callbacks.KIDCallback", "init_args": {"count": 8, "every_n_steps": 100}}
    path = config(max_steps=3)
    told = yaml.safe_load(Path(path).read_text())
    told["trainer"]["callbacks"] = [callback]
    told.pop("checkpoint", None)
    Path(path).write_text(yaml.safe_dump(told))
    assert fit(["-c", path]) == 130
    assert "the generator is exported; the last measurement was left out" in capsys.readouterr().err
    monkeypatch.undo()
    assert fit(["-c", path]) == 0
    assert "is finished" in capsys.readouterr().out


def test_an_export_that_a_kill_prevented_is_made_by_the_same_command(config, tmp_path: Path, monkeypatch) -> None:
    from visynth.jobs import train

    class Killed(BaseException):
        pass

    def killed(cli, root) -> None:
        raise Killed

    path = config(max_steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(train, "_export", killed)
        with pytest.raises(Killed):
            fit(["-c", path])
    assert not (tmp_path / "run" / "generator").exists()
    assert fit(["-c", path]) == 0
    assert (tmp_path / "run" / "generator" / "generator.json").is_file()


def test_a_longer_run_goes_on_and_equals_a_straight_one(config, tmp_path: Path) -> None:
    fit(["-c", config(max_steps=3)])
    fit(["-c", config(max_steps=6)])
    fit(["-c", config(), "--trainer.default_root_dir", str(tmp_path / "straight")])
    first, second = weights(tmp_path / "run"), weights(tmp_path / "straight")
    assert all(torch.equal(first[name], second[name]) for name in second)


@pytest.mark.injected
def test_a_kill_at_any_time_is_made_good_by_the_same_command(config, tmp_path: Path) -> None:
    path = config(max_steps=400)
    environment = {"CUDA_VISIBLE_DEVICES": ""}
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with forked(main, ["fit", "-c", path], log=tmp_path / "log", env=environment) as process:
        until = time.monotonic() + 120
        while not last.is_file() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.7)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    reached = torch.load(last, weights_only=True)["global_step"]
    assert 0 < reached < 400
    config(max_steps=reached + 4)
    run_forked(main, ["fit", "-c", path], log=tmp_path / "log", env=environment)
    fit(["-c", path, "--trainer.default_root_dir", str(tmp_path / "straight")])
    first, second = weights(tmp_path / "run"), weights(tmp_path / "straight")
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_sigterm_saves_and_ends_with_143(config, tmp_path: Path) -> None:
    path = config(max_steps=100_000)
    metrics = tmp_path / "run" / "log" / "version_0" / "metrics.csv"
    words = ["fit", "-c", path, "--checkpoint.every_n_steps", "null"]
    with forked(main, words, log=tmp_path / "log") as process:
        until = time.monotonic() + 120
        while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 143, process.output()
    assert "the same command goes on" in process.output()
    assert int(weights(tmp_path / "run")["images_seen"]) > 0


def test_another_model_or_other_data_are_a_conflict(config, tmp_path: Path, capsys) -> None:
    fit(["-c", config()])
    with pytest.raises(ConflictError, match=r"model.init_args.width: 8 there, 16 here"):
        fit(["-c", config(), "--model.init_args.width", "16"])
    assert main(["fit", "-c", config(), "--data.init_args.temper", "0"]) == 78
    assert "data.init_args.temper: 0.5 there, 0" in capsys.readouterr().err
    assert fit(["-c", config(max_steps=7), "--model.init_args.lr", "1e-4"]) == 0  # a rate may be lowered on the way


@pytest.mark.injected
def test_divergence_keeps_the_last_finite_state_and_says_what_to_do(config, tmp_path: Path, monkeypatch) -> None:
    from visynth.lightning_modules import losses

    calls = [0]
    before = losses.denoising

    def spoilt(*args, **kwargs):
        calls[0] += 1
        return before(*args, **kwargs) * (float("nan") if calls[0] == 4 else 1.0)

    monkeypatch.setattr("visynth.lightning_modules.diffusion.denoising", spoilt)
    with pytest.raises(Diverged, match="Lower the learning rate"):
        fit(["-c", config(), "--checkpoint.every_n_steps", "null"])
    assert int(weights(tmp_path / "run")["images_seen"]) == 12
    assert all(torch.isfinite(t).all() for t in weights(tmp_path / "run").values())
    assert not (tmp_path / "run" / "generator").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.init_args.width", "many"], "width"),
        (["--model", "Nothing"], "Nothing"),
        (["--data.init_args.size", "9"], "must be multiples of 2. Choose 8 or 10"),
        (["--sparkle"], "sparkle"),
    ],
)
def test_wrong_configurations_are_usage_errors(config, words, told: str, capsys) -> None:
    assert main(["fit", "-c", config(), *words]) == 64
    assert told in capsys.readouterr().err


def test_it_leaves_logs_and_warnings_of_its_process_as_they_were(config) -> None:
    lightning = logging.getLogger("pytorch_lightning")
    before = lightning.level, list(warnings.filters)
    assert main(["fit", "-c", config(), "--trainer.max_steps", "1"]) == 0
    assert main(["fit", "-c", config(), "--sparkle"]) == 64
    assert (lightning.level, list(warnings.filters)) == before


def test_help_and_print_config(capsys, config) -> None:
    assert main(["fit"]) == 64
    assert "visynth fit -c" in capsys.readouterr().out
    assert main(["fit", "--print_config"]) == 0
    assert "default_root_dir" in capsys.readouterr().out


@pytest.mark.slow
def test_export_with_another_width(config, tmp_path: Path) -> None:
    fit(["-c", config(max_steps=40)])
    run = tmp_path / "run"
    same = load_generator(export(run, tmp_path / "same"))
    assert same.digest == load_generator(run / "generator").digest
    assert same.members == load_generator(run / "generator").members
    assert main(["fit", "export", "--run", str(run), "--out", str(tmp_path / "wide"), "--ema", "0.2"]) == 0
    assert load_generator(tmp_path / "wide").digest != same.digest
    with pytest.raises(UsageError, match="holds no run with a checkpoint"):
        export(tmp_path / "nothing", tmp_path / "x")


# -- data that changed, errors that are the user's own ---------------------------------------------------------------------


@pytest.fixture
def on_files(class_folders, tmp_path: Path):
    """A configuration over files that a test may change; gives it and the folder."""
    folder = class_folders({"a": 5, "b": 5}, height=8, width=8)
    told = {**SMALL, "trainer": {**SMALL["trainer"], "default_root_dir": str(tmp_path / "run"), "max_steps": 2}}
    told["data"] = {**SMALL["data"], "init_args": {"data": str(folder), "size": 8, "batch_size": 4}}
    (tmp_path / "files.yaml").write_text(yaml.safe_dump(told))
    return ["-c", str(tmp_path / "files.yaml")], folder


@pytest.mark.filterwarnings("ignore:.*images:UserWarning")
@pytest.mark.parametrize("finished", [True, False])
def test_a_run_does_not_go_on_on_other_data(on_files, finished: bool) -> None:
    words, folder = on_files
    assert fit(words) == 0
    more = [] if finished else ["--trainer.max_steps", "4"]
    (folder / "a" / "a_0.png").rename(folder / "b" / "a_0.png")  # relabelled
    (folder / "a" / "a_1.png").write_bytes((folder / "b" / "b_1.png").read_bytes())
    (folder / "b" / "b_2.png").unlink()
    with pytest.raises(ConflictError) as told:
        fit([*words, *more])
    lines = str(told.value).splitlines()
    assert "the data changed since the training began (4 images)" in lines[0]
    assert lines[1:5] == [
        "  - b/a_0.png was added",
        "  - a/a_0.png is gone",
        "  - b/b_2.png is gone",
        "  - a/a_1.png: other content",
    ]
    assert "start anew: choose another trainer.default_root_dir" in lines[-1]


@pytest.mark.filterwarnings("ignore:.*images:UserWarning")
def test_the_same_data_go_on(on_files, capsys) -> None:
    words, _ = on_files
    assert fit(words) == 0
    assert fit([*words, "--trainer.max_steps", "4"]) == 0
    capsys.readouterr()
    assert fit([*words, "--trainer.max_steps", "4"]) == 0
    assert "is finished" in capsys.readouterr().out


def test_a_class_or_split_that_changed_is_named() -> None:
    before = {"x": ["a", "train", "1"], "y": ["a", "train", "2"]}
    with pytest.raises(ConflictError, match="x: class 'a' is now 'b', split 'train' is now 'test'"):
        check_same_data(before, before | {"x": ["b", "test", "1"]})
    with pytest.raises(ConflictError, match="x: group 'g' is now 'h', other mask"):
        check_same_data({"x": ["a", "train", "1", "g", "m"]}, {"x": ["a", "train", "1", "h", "n"]})
    check_same_data({}, before)
    check_same_data(before, dict(before))


class Mistaken(Diffusion):
    """A user's module with a mistake of its own."""

    def training_step(self, batch, index):
        raise ValueError("my own mistake")


def test_a_users_own_error_keeps_its_traceback(config, tmp_path: Path) -> None:
    told = yaml.safe_load(Path(config()).read_text())
    told["model"]["class_path"] = "tests.jobs.test_fit.Mistaken"
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(told))
    with pytest.raises(ValueError, match=r"^my own mistake$") as raised:
        main(["fit", "-c", str(tmp_path / "own.yaml")])
    assert not isinstance(raised.value, UsageError)
    assert main(["fit", "-c", str(tmp_path / "own.yaml"), "--trainer.max_stepz", "3"]) == 64
