"""From records to texts: ask, read, check, tell what was wrong and ask again a bounded number of times, then leave out what
repeats and write those records anew.

The texts are a function of records, recipe and replies: of neither the order in which replies come nor of how often the run
was killed. A request that a server fails to answer is asked again by the next run, so that a set may differ from what it
would have been without the failure.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, TypeVar

from visynth.core import seeds as seeding
from visynth.core.files import canonical_json
from visynth.core.progress import NowAndThen, Progress, no_progress, time_left
from visynth.tabular.text.backends import Backend, Reply, Request, RequestFailed, Schema
from visynth.tabular.text.cache import Replies
from visynth.tabular.text.checks import Check, main_text, run_checks
from visynth.tabular.text.duplicates import Deduplication, repeats
from visynth.tabular.text.embedding import Embedder
from visynth.tabular.text.plan import Record
from visynth.tabular.text.prompts import Message, whole_characters
from visynth.tabular.text.replies import Unusable, read_reply

AGAIN = "Your last reply cannot be used: {why}. Reply once more, with nothing but what was asked for."
NO_ANSWER = "no answer"
T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """How a record becomes a text.

    Attributes:
        messages: the prompt of a record.
        schema: of the reply; None where it is plain text.
        checks: by name.
        duplicates: what counts as said already.
        embedder: for near-duplicates.
        real: texts that must not be repeated.
        attempts: at one record in a round, the first and those with the error told.
        rounds: in which records without a text are written anew, with other random numbers.
    """

    messages: Callable[[Record], Sequence[Message]]
    schema: Schema | None = None
    checks: Mapping[str, Check] = field(default_factory=dict)
    duplicates: Deduplication = field(default_factory=Deduplication)
    embedder: Embedder | None = None
    real: tuple[str, ...] = ()
    attempts: int = 3
    rounds: int = 3


@dataclass(frozen=True)
class Text:
    """A text that was written.

    Attributes:
        record: that it is for.
        fields: of the reply.
        prompt: hex sha256 of the messages that it answers.
        seed: with which it was asked for.
        tries: replies that were needed.
    """

    record: Record
    fields: Mapping[str, Any]
    prompt: str
    seed: int
    tries: int


@dataclass(frozen=True)
class Failure:
    """A record without a text: the check that the last reply failed, and why."""

    record: Record
    check: str
    why: str


@dataclass
class Written:
    """What a run has made.

    Attributes:
        texts: in the order of the records.
        failures: records that have none in the end.
        refused: replies by the check that they failed; repeats among them.
        replies: that came.
        tokens: of prompts and of replies.
        resumed: replies that were kept from an earlier run.
    """

    texts: list[Text] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    replies: int = 0
    tokens: tuple[int, int] = (0, 0)
    resumed: int = 0


def write_texts(
    records: Sequence[Record], recipe: Recipe, backend: Backend, replies: Replies, progress: Progress = no_progress
) -> Written:
    """Write a text for each record.

    Args:
        records: of the plan.
        recipe: of the job.
        backend: that answers.
        replies: that are kept.
        progress: receives lines.

    Raises:
        UnavailableError: nobody answers; what came is kept.
        UsageError: nobody ever will.
        OutputError: replies cannot be kept.
    """
    written = Written()
    backend.resumed(list(replies.kept.values()))
    left = list(records)
    for round_ in range(recipe.rounds):
        own = [record.again(round_) for record in left]
        outcomes = _in_a_loop(_Round(recipe, backend, replies, written, progress, round_).run(own))
        outcomes = _without_repeats(outcomes, recipe, written)
        written.texts += [outcome for outcome in outcomes if isinstance(outcome, Text)]
        written.failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        missing = {failure.record.number for failure in written.failures}
        left = [record for record in left if record.number in missing]
        if not left:
            break
    written.texts.sort(key=lambda text: text.record.number)
    return written


def _without_repeats(outcomes: Sequence[Text | Failure], recipe: Recipe, written: Written) -> list[Text | Failure]:
    """The outcomes of a round, where what says again what a real or an earlier text says has become a failure."""
    kept = list(outcomes)
    texts = [(place, outcome) for place, outcome in enumerate(outcomes) if isinstance(outcome, Text)]
    before = [*recipe.real, *(main_text(text.fields) for text in written.texts)]
    own = [main_text(text.fields) for _, text in texts]
    for number, how in repeats(own, recipe.duplicates, recipe.embedder, before).items():
        place, text = texts[number]
        written.refused[f"repeat, {how}"] += 1
        kept[place] = Failure(text.record, f"repeat, {how}", f"it says again what another text says ({how})")
    return kept


class _Round:
    """One pass over the records that have no text yet."""

    def __init__(
        self, recipe: Recipe, backend: Backend, replies: Replies, written: Written, progress: Progress, round_: int
    ) -> None:
        self.recipe, self.backend, self.replies, self.written = recipe, backend, replies, written
        self.progress, self.round = NowAndThen(progress), round_
        self.outcomes: dict[int, Text | Failure] = {}
        self.ended = False
        self.started, self.total, self.asked = time.monotonic(), 0, 0

    async def run(self, records: Sequence[Record]) -> list[Text | Failure]:
        size = self.backend.batch
        self.total = len(records)
        batches = iter([records[start : start + size] for start in range(0, len(records), size)])
        tasks = [asyncio.create_task(self._work(batches)) for _ in range(self.backend.at_once)]
        try:
            # Where one fails, the others start nothing new, but what is under way is paid for and kept.
            results = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            await self.backend.close()
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors:
            raise errors[0]
        return [self.outcomes[record.number] for record in records]

    async def _work(self, batches: Iterator[Sequence[Record]]) -> None:
        for batch in batches:
            if self.ended:
                return
            try:
                await self._write(batch)
            except BaseException:
                self.ended = True
                raise

    async def _write(self, batch: Sequence[Record]) -> None:
        talks = {record.number: list(self.recipe.messages(record)) for record in batch}
        left = list(batch)
        for attempt in range(self.recipe.attempts):
            requests = [self._request(record, talks[record.number], attempt) for record in left]
            answers = await self._answers([record.number for record in left], requests)
            if self.ended:
                return
            for record, request, answer in zip(left, requests, answers, strict=True):
                outcome = self._outcome(record, request, answer, attempt)
                self.outcomes[record.number] = outcome
                if isinstance(outcome, Failure) and isinstance(answer, Reply):
                    said = {"role": "assistant", "content": whole_characters(answer.text) or "(nothing)"}
                    talks[record.number] = [*talks[record.number][: -2 if attempt else None], said]
                    talks[record.number].append({"role": "user", "content": AGAIN.format(why=outcome.why)})
            again = [r for r, answer in zip(left, answers, strict=True) if isinstance(answer, Reply)]
            left = [record for record in again if isinstance(self.outcomes[record.number], Failure)]
            if not left:
                break
        self._tell()

    def _request(self, record: Record, messages: Sequence[Message], attempt: int) -> Request:
        seed = record.seed if attempt == 0 else seeding.derive("text/attempt", record.seed, attempt)
        return Request(tuple(messages), seed, self.recipe.schema, record.attributes)

    async def _answers(self, numbers: Sequence[int], requests: Sequence[Request]) -> Sequence[Reply | RequestFailed]:
        kept = self.replies.get(numbers, requests)
        if kept is not None:
            self.written.resumed += len(kept)
            return kept
        answers = await self.backend.answer(requests)
        good = [(n, r, a) for n, r, a in zip(numbers, requests, answers, strict=True) if isinstance(a, Reply)]
        if good:
            self.replies.put(*map(list, zip(*good, strict=True)))
        self.asked += len(good)
        return answers

    def _outcome(self, record: Record, request: Request, answer: Reply | RequestFailed, attempt: int) -> Text | Failure:
        written = self.written
        if isinstance(answer, RequestFailed):
            written.refused[NO_ANSWER] += 1
            return Failure(record, NO_ANSWER, str(answer))
        written.replies += 1
        written.tokens = written.tokens[0] + answer.tokens_in, written.tokens[1] + answer.tokens_out
        try:
            fields = read_reply(answer, self.recipe.schema)
            check, why = run_checks(self.recipe.checks, fields, record)
        except Unusable as error:
            check, why = error.check, str(error)
        if why:
            written.refused[check] += 1
            return Failure(record, check, why)
        return Text(record, fields, prompt_hash(request.messages), request.seed, attempt + 1)

    def _tell(self) -> None:
        done, seconds = len(self.outcomes), time.monotonic() - self.started
        good = sum(isinstance(outcome, Text) for outcome in self.outcomes.values())
        which = f", round {self.round + 1}" if self.round else ""
        left = time_left((self.total - done) * seconds / max(done, 1))
        rate = self.asked / max(seconds, 1e-9)
        self.progress(f"  {done} of {self.total} records{which}: {good} texts, {rate:.1f} replies/s, {left}")


def _in_a_loop(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, in a thread of its own where a loop runs already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def prompt_hash(messages: Sequence[Message]) -> str:
    """Hex sha256 of a conversation."""
    return sha256(canonical_json([dict(message) for message in messages]).encode("utf-8", "surrogatepass")).hexdigest()
