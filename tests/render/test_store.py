"""Renders on an object store: generator read from it, shards committed to it, by a real S3 server (moto)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.render.generators import Faulty
from tests.servers import Server, s3
from visynth.cli import main
from visynth.core import loading
from visynth.core.errors import ConflictError, IntegrityError, OutputError, UsageError
from visynth.core.store import Store, is_url
from visynth.render.images import ImageMaker
from visynth.render.run import Here, Slice, make_plan, render, render_set
from visynth.render.stages import open_stage
from visynth.render.workers import Workers

pytest.importorskip("obstore")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    one = s3()
    yield one
    one.stop()


@pytest.fixture
def bucket(server, monkeypatch) -> str:
    from urllib.request import Request, urlopen

    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT": f"http://127.0.0.1:{server.port}",
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"bucket{time.time_ns()}"
    urlopen(Request(f"http://127.0.0.1:{server.port}/{name}", method="PUT"), timeout=20).close()
    return f"s3://{name}"


def upload(folder: Path, url: str) -> None:
    store = Store(url)
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(folder).as_posix(), path.read_bytes())


def download(url: str) -> dict[str, bytes]:
    store = Store(url)
    return {name: store.get(name) or b"" for name in store.names()}


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".visynth.json")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def test_addresses() -> None:
    assert [is_url(w) for w in ("s3://b/x", "gs://b", "az://c", "r", "/r", "user/model", Path("s3:/x"))] == [
        True, True, True, False, False, False, False,
    ]  # fmt: skip
    with pytest.raises(UsageError, match="must name a prefix in a bucket"):
        open_stage("s3://bucket")


def test_the_first_of_two_puts_wins(bucket) -> None:
    store = Store(f"{bucket}/a")
    assert store.put_new("x", b"one")
    assert not store.put_new("x", b"two")
    assert store.put_new("x", b"one")  # an answer that was lost, asked for again
    assert store.get("x") == b"one"
    assert store.get("y") is None
    assert store.has("x")
    assert not store.has("y")
    assert list(store.names()) == ["x"]
    store.delete(["x"])
    assert not store.has("x")


def test_no_bucket_no_keys(bucket, monkeypatch) -> None:
    with pytest.raises(OutputError, match=r"cannot reach|cannot write"):
        Store("s3://no-such-bucket-here/a").put_new("x", b"")
    with pytest.raises(IntegrityError, match="no generator folder at"):
        loading.load_generator(f"{bucket}/nothing")


@pytest.mark.parametrize("form", ["folders", "webdataset", "parquet"])
def test_a_set_on_a_store_is_that_of_a_disk(form: str, composition, bucket, tmp_path, capsys) -> None:
    generator, folder = composition
    upload(folder, f"{bucket}/generator")
    assert loading.load_generator(f"{bucket}/generator").digest == generator.digest
    here = render_set(generator, make_plan(generator, per_class=6, format=form, shard_size=7), tmp_path / "r")
    words = ["render", f"{bucket}/generator", "--out", f"{bucket}/sets/r", "--per-class", "6", "--format", form]
    assert main([*words, "--shard-size", "7", "--quiet"]) == 0
    assert here.root() in capsys.readouterr().out
    assert download(f"{bucket}/sets/r") == contents(here.folder)
    assert list(Store(f"{bucket}/sets/r.work").names()) == []
    for verb in ("status", "verify", "sweep", "finalize"):
        assert main(["renders", verb, f"{bucket}/sets/r"]) == 0
    assert main([*words, "--shard-size", "7", "--quiet"]) == 0  # again: nothing to do
    assert main([*words, "--shard-size", "8", "--quiet"]) == 78


def test_worker_processes_and_slices_write_to_a_store(composition, bucket, tmp_path) -> None:
    generator, folder = composition
    plan = make_plan(generator, per_class=10, shard_size=5)
    stage = open_stage(f"{bucket}/r")
    state = render(ImageMaker(generator, plan), stage, engine=Workers(folder, 2), part=Slice(0, 2))
    assert (state.finished, state.missing) == (False, 4)
    assert render(ImageMaker(generator, plan), stage, engine=Here(0), part=Slice(1, 2)).finished
    assert (stage.finished() or {})["root"] == render_set(generator, plan, tmp_path / "r").root()


def test_what_a_killed_worker_of_another_machine_left(bucket) -> None:
    """A file without a record does not exist: other content under its name neither is taken nor stays."""
    generator = Faulty()
    plan = make_plan(generator, per_class=10, format="webdataset", shard_size=5)
    maker, stage = ImageMaker(generator, plan), open_stage(f"{bucket}/r")
    stage.claim(maker)
    Store(f"{bucket}/r").put("shard-000001.tar", b"half of one")
    assert render(maker, stage).finished
    names = sorted(Store(f"{bucket}/r").names())
    own = [name for name in names if name.startswith("shard-000001")]
    assert len(own) == 1  # what no record names is gone, or a reader of all tars would count it
    listed = [json.loads(line)["name"] for line in (Store(f"{bucket}/r").get("shards.jsonl") or b"").splitlines()]
    assert [name for name in listed if name.startswith("shard-000001")] == own
    assert stage.damaged(dict(stage.files())) == []


def test_strangers_and_other_plans_are_refused(bucket) -> None:
    generator = Faulty()
    Store(f"{bucket}/r").put("thesis.tex", b"mine")
    with pytest.raises(OutputError, match=r"holds 1 objects that visynth did not write(.|\n)*thesis\.tex"):
        render(ImageMaker(generator, make_plan(generator, per_class=2)), open_stage(f"{bucket}/r"))
    stage = open_stage(f"{bucket}/q")
    stage.claim(ImageMaker(generator, make_plan(generator, per_class=2)))
    with pytest.raises(ConflictError, match="another plan's images"):
        stage.claim(ImageMaker(generator, make_plan(generator, per_class=3)))


def test_altered_objects_are_found_and_torn_commits_made_again(bucket, tmp_path) -> None:
    generator = Faulty()
    plan = make_plan(generator, per_class=20, shard_size=10)
    stage = open_stage(f"{bucket}/r")
    render(ImageMaker(generator, plan), stage, part=Slice(0, 2))
    name = stage.record(0, 0)["files"][0]["name"]
    Store(f"{bucket}/r").put(name, b"other")
    assert main(["renders", "verify", f"{bucket}/r"]) == 65
    with pytest.warns(UserWarning, match="1 committed shards had missing or altered files"):
        assert render(ImageMaker(generator, plan), stage).finished
    assert stage.damaged(dict(stage.files())) == []
    name = next(iter(dict(stage.files())))
    Store(f"{bucket}/r").put(name, b"other")
    assert main(["renders", "verify", f"{bucket}/r"]) == 65


def test_a_table_on_a_store(bucket, tmp_path) -> None:
    from tests.tabular.test_jobs import dependent
    from visynth.tabular import IndependentMarginals
    from visynth.tabular.render import make_table_plan, render_table

    model = IndependentMarginals().fit(dependent(300), target="kind")
    plan = make_table_plan(model, per_class=900, shard_size=1024)
    assert render_table(model, plan, f"{bucket}/rows").finished
    render_table(model, plan, tmp_path / "rows")
    assert download(f"{bucket}/rows") == contents(tmp_path / "rows")


def interrupt(server: Server, bucket: str, composition, tmp_path: Path, times: int, per_class: int = 60) -> None:
    """Stop the server for a moment while a set is rendered to it."""
    generator, folder = composition
    plan = make_plan(generator, per_class=per_class, shard_size=4)
    command = [sys.executable, "-c", "from visynth.cli import main; raise SystemExit(main())", "render", str(folder)]
    command += ["--out", f"{bucket}/r", "--per-class", str(per_class), "--shard-size", "4", "--workers", "2", "--quiet"]
    process = subprocess.Popen(command, env=dict(os.environ))
    stage, paused = open_stage(f"{bucket}/r"), 0
    while process.poll() is None and paused < times:
        time.sleep(1.0)
        server.pause()
        time.sleep(1.5)
        server.go_on()
        paused += 1
    if process.wait(300) != 0:
        subprocess.run(command, check=True)
    assert paused == times
    assert (stage.finished() or {})["root"] == render_set(generator, plan, tmp_path / "r").root()
    assert stage.damaged(dict(stage.files())) == []


@pytest.mark.slow
def test_a_store_that_is_away_for_a_moment(server, bucket, composition, tmp_path) -> None:
    interrupt(server, bucket, composition, tmp_path, times=3)
