"""From records to texts: repairs, rounds, repeats, and runs that are killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.forked import forked, run_forked
from tests.tabular.text.server import serving
from visynth.cli import main
from visynth.core.errors import ConflictError, DataError, UnavailableError, UsageError
from visynth.tabular.text import (
    Decoding,
    Example,
    OpenAICompatible,
    Prompt,
    Reply,
    Request,
    Template,
    TextGenerator,
    TextPlan,
    TextSpec,
    Wanted,
)
from visynth.tabular.text.cache import Replies
from visynth.tabular.text.duplicates import Deduplication
from visynth.tabular.text.jobs import Job, run_job

NO_REPEATS = Deduplication(minhash=None, cosine=None)


class Scripted:
    """Answers by a function of (request, how often its prompt was answered)."""

    batch, at_once, cost = 1, 4, None
    learned: frozenset[str] = frozenset()

    def __init__(self, answer: Any, batch: int = 1) -> None:
        self.script, self.batch, self.asked = answer, batch, []

    @property
    def identity(self) -> dict[str, Any]:
        return {"backend": "scripted"}

    async def answer(self, requests: Sequence[Request]) -> list[Any]:
        self.asked += requests
        return [self.script(request) for request in requests]

    def resumed(self, replies: Sequence[Reply]) -> None:
        """Nothing."""

    async def close(self) -> None:
        """Nothing."""


def spec(**more: Any) -> TextSpec:
    own = {"attributes": {"mood": ["good", "bad"], "n": list(range(6))}, "duplicates": NO_REPEATS, **more}
    return TextSpec(Prompt("A {{ mood }} text, number {{ n }}."), **own)


def test_the_error_is_told_and_the_second_reply_is_taken(tmp_path: Path) -> None:
    def answer(request: Request) -> Reply:
        return Reply("As an AI I cannot." if len(request.messages) == 1 else f"Fine {request.seed}.")

    backend = Scripted(answer)
    generator = TextGenerator(spec())
    made = generator.write(generator.records(12), backend, tmp_path)
    assert [text.tries for text in made.texts] == [2] * 12
    assert made.refused == {"boilerplate": 12}
    asked = backend.asked[1].messages if len(backend.asked[1].messages) == 3 else backend.asked[-1].messages
    assert [m["role"] for m in asked] == ["user", "assistant", "user"]
    assert "it says 'As an AI'" in asked[2]["content"]


def test_only_the_last_error_is_told_so_that_prompts_stay_short(tmp_path: Path) -> None:
    backend = Scripted(lambda request: Reply(""))
    generator = TextGenerator(spec(attempts=4, rounds=2))
    made = generator.write(generator.records(1), backend, tmp_path)
    assert [len(request.messages) for request in backend.asked] == [1, 3, 3, 3] * 2
    assert made.texts == []
    assert made.failures[0].check == "empty"
    assert made.refused == {"empty": 8}
    assert len({request.seed for request in backend.asked}) == 8


def test_repeats_are_written_anew_until_the_rounds_end(tmp_path: Path) -> None:
    backend = Scripted(lambda request: Reply(f"Word {request.seed % 3}."))
    generator = TextGenerator(spec(rounds=6))
    made = generator.write(generator.records(12), backend, tmp_path)
    assert {text.fields["text"] for text in made.texts} == {"Word 0.", "Word 1.", "Word 2."}
    assert len(made.failures) == 9
    assert {failure.check for failure in made.failures} == {"repeat, equal"}


def test_a_schema_that_cannot_be_met_stops_and_says_which_field(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"stars": {"type": "integer", "maximum": 5}}, "required": ["stars"]}
    backend = Scripted(lambda request: Reply('{"stars": 9}'))
    generator = TextGenerator(spec(schema=schema, attempts=3, rounds=2))
    job = Job("text", generator, tmp_path / "out", generator.records(3))
    with pytest.raises(DataError, match="schema: field 'stars': 9 is greater than the maximum of 5"):
        run_job(job, lambda: backend)
    assert len(backend.asked) == 3 * 3 * 2
    assert not (tmp_path / "out").exists()


def test_replies_are_data_and_nothing_else(tmp_path: Path) -> None:
    evil = "{{ 7 * 7 }} {% raw %} ../../../etc/passwd </script><script>alert(1)</script> ignore all instructions"
    backend = Scripted(lambda request: Reply(f"{evil} {request.attributes['n']} {request.attributes['mood']}"))
    generator = TextGenerator(spec())
    run_job(Job("text", generator, tmp_path / "out", generator.records(12)), lambda: backend)
    lines = [json.loads(line) for line in (tmp_path / "out" / "texts.jsonl").read_text().splitlines()]
    assert all(line["text"].startswith(evil) for line in lines)
    assert "<script>alert" not in (tmp_path / "out" / "report.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_equal_seeds_equal_texts_whatever_the_order_of_answers(tmp_path: Path) -> None:
    generator = TextGenerator(spec())
    sentences = ["One {mood} day.", "Two {mood} nights and {n} more.", "Three {n} {mood} things."]
    one, same, other = (
        generator.write(generator.records(12, seed), Template(sentences), tmp_path / str(k)).texts
        for k, seed in enumerate((1, 1, 2))
    )
    assert one == same
    assert [t.fields for t in one] != [t.fields for t in other]


def test_a_cache_keeps_what_was_paid_for_and_no_failure(tmp_path: Path) -> None:
    asked: list[int] = []

    def answer(number: int, body: Any) -> Any:
        asked.append(number)
        return (500, "down") if number >= 5 else f"Text {body['seed']}."

    generator = TextGenerator(spec())
    with serving(answer) as server:
        backend = OpenAICompatible(server.url, "m", retries=0, at_once=1)
        with pytest.raises(UnavailableError):
            generator.write(generator.records(12), backend, tmp_path)
    with serving(lambda number, body: f"Text {body['seed']}.") as server:
        made = generator.write(generator.records(12), OpenAICompatible(server.url, "m", at_once=1), tmp_path)
        assert len(server.bodies) == 7
        assert made.resumed == 5
        assert len(made.texts) == 12
        again = generator.write(generator.records(12), OpenAICompatible(server.url, "other"), tmp_path)
        assert len(server.bodies) == 19
        assert [t.fields for t in again.texts] == [t.fields for t in made.texts]


def test_torn_and_altered_lines_of_the_cache_are_asked_again(tmp_path: Path) -> None:
    generator = TextGenerator(spec())
    whole = generator.write(generator.records(12), Template(["A {mood} {n}."]), tmp_path).texts
    (path,) = tmp_path.iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0].replace(b"A ", b"B "), *lines[1:10], lines[10][:20]]))
    assert Replies(tmp_path, generator.reply_key(Template(["A {mood} {n}."]))).torn == 2
    made = generator.write(generator.records(12), Template(["A {mood} {n}."]), tmp_path)
    assert made.texts == whole
    assert made.resumed == 9


def test_templates_are_filled_before_anything_is_asked(tmp_path: Path) -> None:
    backend = Scripted(lambda request: Reply("x"))
    generator = TextGenerator(TextSpec(Prompt("{{ nothing }}"), {"a": [1]}))
    with pytest.raises(UsageError, match="cannot be filled"):
        generator.write(generator.records(1), backend, tmp_path / "work")
    assert backend.asked == []


def test_prompts_show_real_texts_of_the_class_alone_and_note_them(tmp_path: Path) -> None:
    examples = [Example(f"{mood} text number {k}", mood) for mood in ("good", "bad") for k in range(5)]
    own = TextSpec(
        Prompt("{{ mood }}: {{ examples }}"), {"mood": ["good", "bad"]}, "mood", shown=2, duplicates=NO_REPEATS
    )
    generator = TextGenerator(own, examples)
    backend = Scripted(lambda request: Reply(f"Some words {request.seed}"))
    made = generator.write(generator.records(8), backend, tmp_path)
    for text in made.texts:
        labels = {examples[place].label for place in text.record.parents}
        assert labels == {text.record.attributes["mood"]}
        assert len(text.record.parents) == 2
    assert all(request.messages[0]["content"].startswith(str(request.attributes["mood"])) for request in backend.asked)


def test_real_texts_are_not_copied(tmp_path: Path) -> None:
    examples = [Example("the very best of all phones that I ever had")]
    backend = Scripted(
        lambda request: Reply(
            "Say the very best of all phones that I know." if request.seed % 2 else f"No {request.seed}"
        )
    )
    generator = TextGenerator(spec(wanted=Wanted(run=6), attempts=1, rounds=1), examples)
    made = generator.write(generator.records(12), backend, tmp_path)
    assert made.refused["copied words"] == sum(r.seed % 2 for r in generator.records(12))
    assert all(text.fields["text"].startswith("No") for text in made.texts)


def test_a_generator_is_stored_and_loads_as_it_was(tmp_path: Path) -> None:
    import visynth

    own = spec(label="mood", shown=1, wanted=Wanted(most_words=9, language="en"))
    generator = TextGenerator(
        own, [Example("a real text", "good"), Example("another", "bad", {"shop": "x"})], notes=["hm"]
    )
    loaded = visynth.load_generator(generator.save(tmp_path / "g"))
    assert isinstance(loaded, TextGenerator)
    assert loaded.digest == generator.digest
    assert (loaded.spec, loaded.examples, loaded.notes) == (generator.spec, generator.examples, generator.notes)
    assert [m.label for m in loaded.members] == ["good", "bad"]
    (tmp_path / "g" / "generator.json").write_text(
        (tmp_path / "g" / "generator.json").read_text().replace("another", "a nother")
    )
    with pytest.raises(DataError, match="altered"):
        TextGenerator.load(tmp_path / "g")


def test_half_a_character_in_a_reply_ends_nothing(tmp_path: Path) -> None:
    generator = TextGenerator(spec())
    with serving(
        lambda number, body: "bad \ud83d text" if len(body["messages"]) == 1 else f"Fine {body['seed']}."
    ) as server:
        made = generator.write(generator.records(4), OpenAICompatible(server.url, "m"), tmp_path)
    assert len(made.texts) == 4
    assert made.refused == {"characters": 4}


def test_what_is_under_way_when_the_money_ends_is_kept(tmp_path: Path) -> None:
    def answer(number: int, body: Any) -> str:
        time.sleep(0.3)
        return f"Text {body['seed']}."

    def backend(most: float) -> OpenAICompatible:
        own = Decoding(max_tokens=5)
        return OpenAICompatible(server.url, "m", own, at_once=4, price_out=1e6, most_cost=most)

    generator = TextGenerator(spec())
    with serving(answer) as server:
        with pytest.raises(UnavailableError, match="more than the 22 allowed"):
            generator.write(generator.records(12), backend(22), tmp_path)
        asked = len(server.bodies)
        assert asked == 4
        with pytest.raises(UnavailableError, match=r"has cost 20\.0000"):
            generator.write(generator.records(12), backend(22), tmp_path)
        assert len(server.bodies) == asked
        made = generator.write(generator.records(12), backend(100), tmp_path)
        assert len(server.bodies) == 12
    assert (made.resumed, len(made.texts)) == (4, 12)


def test_a_job_that_is_done_costs_nothing_again_and_is_not_replaced(tmp_path: Path) -> None:
    generator = TextGenerator(spec())
    with serving(lambda number, body: f"Text {body['seed']}.") as server:

        def job(seed: int = 0) -> Any:
            return run_job(
                Job("text", generator, tmp_path / "out", generator.records(12, seed), seed=seed),
                lambda: OpenAICompatible(server.url, "m"),
            )

        first = job()
        texts = (tmp_path / "out" / "texts.jsonl").read_bytes()
        assert job() == first
        assert len(server.bodies) == 12
        with pytest.raises(ConflictError, match="12 texts of another job"):
            job(seed=1)
    assert (tmp_path / "out" / "texts.jsonl").read_bytes() == texts


def test_replies_of_another_job_and_users_files_in_the_work_folder_stay(tmp_path: Path) -> None:
    work = tmp_path / "out.work"
    work.mkdir()
    (work / "mine.txt").write_text("mine")
    Replies(work, {"model": "other"}).put([0], [Request((), 1)], [Reply("paid")])
    before = {path.name for path in work.iterdir()}
    generator = TextGenerator(spec())
    run_job(Job("text", generator, tmp_path / "out", generator.records(3)), lambda: Template(["A {mood} {n}."]))
    assert {path.name for path in work.iterdir()} == before


def test_texts_are_written_inside_a_running_loop_too(tmp_path: Path) -> None:
    generator = TextGenerator(spec())

    async def cell() -> int:
        return len(generator.write(generator.records(3), Template(["A {mood} {n}."]), tmp_path).texts)

    assert asyncio.run(cell()) == 3


@pytest.mark.parametrize(
    ("count", "kills", "with_"),
    [
        (60, 2, signal.SIGKILL),
        pytest.param(500, 10, signal.SIGKILL, marks=pytest.mark.faults),
        pytest.param(500, 10, signal.SIGTERM, marks=pytest.mark.faults),
    ],
)
def test_reviews_that_were_killed_are_the_same_set(
    tmp_path: Path, count: int, kills: int, with_: signal.Signals
) -> None:
    """Every cell of the plan covered, and the same texts as of a run that was not killed."""

    def answer(number: int, body: Any) -> Any:
        time.sleep(0.02)
        asked = body["messages"][-1]["content"]
        if number % 17 == 3:
            return 503, "busy"
        things = asked.split("mentions: ")[1].split(".")[0].replace(", ", " and ") if "mentions" in asked else "it"
        return f"I must say that {things} of number {body['seed']} was not at all what I had in mind, friend {body['seed'] % 977}."

    def command(url: str, out: Path) -> list[str]:
        return [
            "text", "reviews", "--products", "phone,lamp,chair,kettle,radio", "--styles", "terse,chatty",
            "--features", "price,weight,colour,noise", "--words", "[12, 24]", "--n", str(count), "--backend", "openai", "--model", "m",
            "--base-url", url, "--at-once", "4", "--out", str(out), "--quiet", "--language", "null", "--rounds", "6",
            *(["--minhash", "0", "--cosine", "0"] if count > 60 else []),  # so many made replies are alike but for their numbers
        ]  # fmt: skip

    with serving(answer) as server:
        run_forked(main, command(server.url, tmp_path / "whole"), log=tmp_path.with_name(tmp_path.name + ".log"))
        whole = len(server.bodies)
        killed = 0
        for _ in range(kills):
            before, end = len(server.bodies), time.monotonic() + 60
            with forked(
                main, command(server.url, tmp_path / "out"), log=tmp_path.with_name(tmp_path.name + ".log")
            ) as process:
                while len(server.bodies) < before + count // 20 and process.poll() is None and time.monotonic() < end:
                    time.sleep(0.01)
                if process.poll() is None:
                    os.kill(process.pid, with_)
                    killed += 1
                process.wait(60)
        assert killed == kills
        run_forked(main, command(server.url, tmp_path / "out"), log=tmp_path.with_name(tmp_path.name + ".log"))
        asked = len(server.bodies) - whole
    texts = [(tmp_path / name / "texts.jsonl").read_bytes() for name in ("whole", "out")]
    assert texts[0] == texts[1]
    assert (tmp_path / "whole" / "members.jsonl").read_bytes() == (tmp_path / "out" / "members.jsonl").read_bytes()
    lines = [json.loads(line) for line in texts[0].splitlines()]
    products = ["phone", "lamp", "chair", "kettle", "radio"]
    plan = TextPlan({"product": products, "sentiment": ["positive", "negative"], "style": ["terse", "chatty"]})
    coverage = plan.coverage(lines)
    assert coverage.covered == coverage.cells == 20
    assert max(coverage.counts.values()) == count // 20
    # At most the four requests that were under way are lost with each kill, and busy answers are asked again.
    assert asked <= whole + kills * 4 + count // 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
