"""Kills, full disks and torn networks at full size; run with 'scripts/faults'."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.render.killing import assassin, workers_of
from tests.servers import s3
from visynth.core.manifest import read_renders
from visynth.render.run import make_plan, render_set
from visynth.render.workers import Workers

pytestmark = [pytest.mark.faults, pytest.mark.timeout(3600)]

COUNT, SHARD = 20_000, 40


@pytest.fixture(scope="module")
def whole(composition, tmp_path_factory):
    """20,000 small images, undisturbed."""
    generator, _ = composition
    plan = make_plan(generator, per_class=COUNT // len(generator.classes), shard_size=SHARD)
    begun = time.monotonic()
    made = render_set(generator, plan, tmp_path_factory.mktemp("whole") / "r")
    print(f"undisturbed: {COUNT / (time.monotonic() - begun):.0f} images/s")
    return plan, made.root()


def test_180_workers_killed_under_a_living_parent(composition, whole, tmp_path) -> None:
    """SIGKILL one of two workers every few seconds; as many renders as it takes."""
    generator, folder = composition
    plan, root = whole
    renders = 0
    with assassin(lambda: workers_of(os.getpid()), kills=180, pause=(0.5, 5.0)) as killed:
        while len(killed) < 180:
            out = tmp_path / f"r{renders}"
            render_set(generator, plan, out, engine=Workers(folder, 2))
            made = read_renders(out, verify=True)
            assert made.root() == root
            assert len({record.file_name for record in made.records}) == COUNT
            assert not out.with_name(out.name + ".work").exists()
            shutil.rmtree(out)
            renders += 1
    print(
        f"{len(killed)} workers killed in {renders} renders of {COUNT} images: 0 lost, 0 doubled, 0 torn, equal roots"
    )


def test_20_parents_killed(composition, whole, tmp_path) -> None:
    """SIGKILL the parent of two workers 20 times in one render; the same command goes on."""
    _, folder = composition
    _plan, root = whole
    out, numbers = tmp_path / "r", random.Random(time.time())
    command = [sys.executable, "-c", "from visynth.cli import main; raise SystemExit(main())", "render", str(folder)]
    command += [
        "--out",
        str(out),
        "--per-class",
        str(COUNT // 4),
        "--shard-size",
        str(SHARD),
        "--workers",
        "2",
        "--quiet",
    ]
    killed = 0
    while killed < 20:
        parent = subprocess.Popen(command)
        try:
            parent.wait(numbers.uniform(4.0, 9.0))
        except subprocess.TimeoutExpired:
            parent.kill()
            parent.wait()
            killed += 1
            continue
        shutil.rmtree(out)  # it had finished: once more from the beginning
    subprocess.run(command, check=True)
    made = read_renders(out, verify=True)
    assert made.root() == root
    assert len({record.file_name for record in made.records}) == COUNT
    assert not out.with_name("r.work").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A filesystem of 3 MB, where this process may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("no right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def command_to(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-c", "from visynth.cli import main; raise SystemExit(main())", "render", str(folder),
        "--out", str(out), "--per-class", "400", "--shard-size", "16", "--quiet", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_full_disk(workers: str, composition, small_disk, tmp_path) -> None:
    """Exit 73 with the reason, nothing torn, and the same command goes on when there is room."""
    _, folder = composition
    command = command_to(folder, small_disk / "r", "--workers", workers)
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 73, ran.stderr
    assert "No space left on device" in ran.stderr
    from visynth.render.stage import DiskStage

    stage = DiskStage(small_disk / "r")
    assert stage.rounds()
    assert stage.torn(stage.rounds()) == {}
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    subprocess.run(command, check=True, timeout=300)
    subprocess.run(command_to(folder, tmp_path / "whole"), check=True, timeout=300)
    assert read_renders(small_disk / "r", verify=True).root() == read_renders(tmp_path / "whole").root()


def test_a_full_disk_under_a_checkpoint(small_disk) -> None:
    import torch

    from visynth.callbacks.checkpoint import AtomicCheckpointIO
    from visynth.core.errors import OutputError

    saver, path = AtomicCheckpointIO(), small_disk / "last.ckpt"
    saver.save_checkpoint({"value": 1, "weights": torch.zeros(250_000)}, path)
    for number in (2, 3):
        with pytest.raises(OutputError, match="No space left on device"):
            saver.save_checkpoint({"value": number, "weights": torch.zeros(600_000)}, path)
        assert saver.load_checkpoint(path, weights_only=True)["value"] == 1


def test_a_read_only_folder_is_refused_before_the_model_is_loaded(composition, small_disk) -> None:
    _, folder = composition
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    ran = subprocess.run(command_to(folder, small_disk / "r"), capture_output=True, text=True, timeout=120)
    assert ran.returncode == 73
    assert "Read-only file system" in ran.stderr


def test_a_folder_that_vanishes(composition, tmp_path) -> None:
    """Somebody removes the work while it is done: an error, not a hang, and no half set."""
    _, folder = composition
    out = tmp_path / "r"
    process = subprocess.Popen(command_to(folder, out, "--per-class", "3000"), stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("r.work/shard.*")):
        assert process.poll() is None
        time.sleep(0.05)
    shutil.rmtree(tmp_path / "r.work", ignore_errors=True)
    shutil.rmtree(tmp_path / "r", ignore_errors=True)
    _, told = process.communicate(timeout=120)
    assert process.returncode in (65, 73), told
    assert not (out / "summary.json").exists()


def test_a_store_that_is_stopped_ten_times(composition, tmp_path, monkeypatch) -> None:
    from tests.render import test_store

    server = s3()
    try:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT": f"http://127.0.0.1:{server.port}", "AWS_ALLOW_HTTP": "true",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        from urllib.request import Request, urlopen

        urlopen(Request(f"http://127.0.0.1:{server.port}/faults", method="PUT"), timeout=20).close()
        test_store.interrupt(server, "s3://faults", composition, tmp_path, times=10, per_class=300)
    finally:
        server.stop()


def test_two_ranks_whose_network_breaks(tmp_path) -> None:
    """Two gloo ranks in network namespaces of their own; the wire is cut in the middle of a training: both end with an
    error within the timeout, and the same command goes on from the checkpoint."""
    names = ("visynth-a", "visynth-b")

    def ip(*words: str) -> int:
        return subprocess.run(["ip", *words], capture_output=True, check=False).returncode

    for name in names:
        ip("netns", "del", name)
    if any(ip("netns", "add", name) for name in names):
        pytest.skip("no right to make network namespaces")
    try:
        assert ip("link", "add", "va", "netns", names[0], "type", "veth", "peer", "name", "vb", "netns", names[1]) == 0
        for name, link, address in ((names[0], "va", "10.77.0.1"), (names[1], "vb", "10.77.0.2")):
            for words in (
                ("addr", "add", f"{address}/24", "dev", link),
                ("link", "set", link, "up"),
                ("link", "set", "lo", "up"),
            ):
                assert ip("-n", name, *words) == 0

        def start(steps: int) -> list[subprocess.Popen[bytes]]:
            code = "import sys; from tests.render.test_faults import rank; rank(*sys.argv[1:])"
            ranks = []
            for number, (name, link) in enumerate(zip(names, ("va", "vb"), strict=True)):
                environment = {
                    **os.environ, "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29577", "WORLD_SIZE": "2", "RANK": str(number),
                    "LOCAL_RANK": "0", "NODE_RANK": str(number), "GLOO_SOCKET_IFNAME": link,
                }  # fmt: skip
                words = [
                    "ip",
                    "netns",
                    "exec",
                    name,
                    sys.executable,
                    "-W",
                    "ignore",
                    "-c",
                    code,
                    str(tmp_path),
                    str(steps),
                ]
                ranks.append(
                    subprocess.Popen(words, env=environment, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
                )
            return ranks

        ranks = start(100_000)
        deadline = time.monotonic() + 120
        while not (tmp_path / "run/checkpoints/last.ckpt").is_file():
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in ranks)
            time.sleep(0.1)
        assert ip("-n", names[0], "link", "set", "va", "down") == 0
        begun = time.monotonic()
        codes = [process.wait(90) for process in ranks]
        assert all(code != 0 for code in codes), codes
        print(f"both ranks ended {time.monotonic() - begun:.0f} s after the wire was cut")
        import torch

        reached = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"]
        assert ip("-n", names[0], "link", "set", "va", "up") == 0
        ip("-n", names[0], "addr", "add", "10.77.0.1/24", "dev", "va")
        assert [process.wait(120) for process in start(reached + 20)] == [0, 0]
        again = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"]
        assert again == reached + 20
    finally:
        for name in names:
            ip("netns", "del", name)


def rank(root: str, steps: str) -> None:
    """One of two ranks of a small training, with a short patience for the other."""
    from datetime import timedelta

    from pytorch_lightning.strategies import DDPStrategy

    from tests.callbacks.test_checkpoint import run

    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=20))
    run(
        Path(root, "run"), steps=int(steps), val_check_interval=10_000_000, num_sanity_val_steps=0, limit_val_batches=0,
        devices=1, num_nodes=2, strategy=strategy, keep=20,
    )  # fmt: skip
