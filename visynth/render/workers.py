"""Renders in several processes under one parent, which starts again those that die and sets shards aside that kill them."""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from visynth.core import errors
from visynth.core.errors import UsageError, VisynthError
from visynth.render.run import Done
from visynth.render.shards import Maker
from visynth.render.stage import Stage

AHEAD = 2  # shards that a worker has in hand: one is written while the next is sampled
BARREN = 24  # workers that may die one after the other with nothing committed, before all is stopped
DEATHS = 8  # of workers that had one shard alone in hand, until it is set aside


@dataclass(frozen=True)
class Workers:
    """Renders in worker processes. They load the generator from its folder and do not change a byte.

    Args:
        generator: the folder that they load.
        count: of processes.
        device: where they sample; with ``"cuda"`` they are dealt out over all devices.
        encoders: encoding threads of each; None: none on a CPU, else two.
        patience: seconds that a worker may take for a shard before it counts as hung and is ended.
    """

    generator: str | Path
    count: int = 2
    device: str = "cpu"
    encoders: int | None = None
    patience: float = 1800.0

    def __post_init__(self) -> None:
        if self.count < 1 or (self.encoders or 0) < 0 or self.patience <= 0:
            raise UsageError(
                "workers must be at least 1, encoders at least 0 and patience above 0, but got "
                f"{self.count}, {self.encoders} and {self.patience}."
            )

    def run(self, maker: Maker, stage: Stage, pending: Sequence[tuple[int, int]]) -> Iterator[Done]:
        """Deal shards out; see :class:`visynth.render.run.Engine`.

        Raises:
            VisynthError: a worker could not go on, or shards ended their workers again and again.
        """
        crew = _Crew(self, stage, deque(pending))
        try:
            yield from crew.results()
        finally:
            crew.stop()


class _Crew:
    """The shared state of the threads that look after one worker each."""

    def __init__(self, settings: Workers, stage: Stage, todo: deque[tuple[int, int]]) -> None:
        self.settings, self.stage, self.todo = settings, stage, todo
        self.rounds = dict(todo)
        self.left = {number for number, _ in todo}
        self.deaths: Counter[int] = Counter()
        self.barren = 0  # workers that died one after the other while none committed anything
        # In hand when a worker died: dealt out alone, so that it is seen which one it was.
        self.suspects: set[int] = set()
        self.aside: dict[int, str] = {}
        self.lock = threading.Lock()
        self.news: queue.Queue[Done | VisynthError] = queue.Queue()
        self.ended = threading.Event()
        self.slots = [_Slot(self, place) for place in range(min(settings.count, len(todo)))]

    def results(self) -> Iterator[Done]:
        for slot in self.slots:
            slot.start()
        while self.left - set(self.aside):
            try:
                news = self.news.get(timeout=0.5)
            except queue.Empty:
                continue
            if isinstance(news, VisynthError):
                raise news
            self.barren = 0
            if news.number in self.left:
                self.left.discard(news.number)
                yield news
        if self.aside:
            reasons = "; ".join(f"shard {number}: {why}" for number, why in sorted(self.aside.items()))
            raise VisynthError(
                f"{self.stage.where}: {len(self.aside)} shards ended their worker {DEATHS} times and are left out "
                f"({reasons}). All others are rendered; the same command tries these again."
            )

    def take(self, in_hand: Sequence[int] = ()) -> tuple[int, int] | None:
        """The next shard for a worker, if it may have another."""
        with self.lock:
            if not self.todo or len(in_hand) >= AHEAD:
                return None
            if in_hand and self.suspects & {*in_hand, self.todo[0][0]}:
                return None
            return self.todo.popleft()

    def died(self, in_hand: Sequence[int], why: str) -> None:
        """A worker is gone: what it had in hand is done anew, unless another was first or it keeps ending workers."""
        with self.lock:
            self.barren += 1
            if self.barren >= BARREN:
                self.news.put(VisynthError(f"{self.stage.where}: {BARREN} workers died one after the other ({why})."))
            for number in in_hand:
                if self.stage.has(number, self.rounds[number]):  # it had been committed, only the answer is lost
                    counts = self.stage.record(number, self.rounds[number])["counts"]
                    self.news.put(Done(number, counts))
                    continue
                self.suspects.add(number)
                self.deaths[number] += len(in_hand) == 1
                if self.deaths[number] >= DEATHS:
                    self.aside[number] = why
                else:
                    self.todo.appendleft((number, self.rounds[number]))

    def idle(self) -> bool:
        """Whether nothing is left for anybody."""
        return self.ended.is_set() or not (self.left - set(self.aside))

    def stop(self) -> None:
        self.ended.set()
        for slot in self.slots:
            slot.kill()
        for slot in self.slots:
            if slot.is_alive():
                slot.join(timeout=10)


class _Slot(threading.Thread):
    """Looks after one worker process: feeds it, listens to it, starts another when it dies."""

    def __init__(self, crew: _Crew, place: int) -> None:
        super().__init__(name=f"visynth-worker-{place}", daemon=True)
        self.crew, self.place = crew, place
        self.process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        while not self.crew.idle():
            first = self.crew.take()
            if first is None:
                self.crew.ended.wait(0.2)  # another worker may die and leave its shards
                continue
            try:
                self._serve(first)
            except Exception as error:  # else the others would wait for this one for ever
                self.crew.news.put(VisynthError(f"a worker cannot be looked after: {error!r}"))
                return

    def _serve(self, first: tuple[int, int]) -> None:
        """One worker's life: from its first shard until nothing is left or it dies."""
        settings = self.crew.settings
        process = self.process = subprocess.Popen(
            [sys.executable, "-m", "visynth.render.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
        )
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        if self.crew.ended.is_set():
            process.kill()
        in_hand: deque[int] = deque()
        why = ""
        try:
            head = {
                "parent": os.getpid(),
                "generator": str(settings.generator),
                "out": self.crew.stage.where,
                "device": device_of(settings.device, self.place),
                "encoders": settings.encoders,
            }
            lines = _Lines(stdout, settings.patience)
            _tell(stdin, head)
            wanted: tuple[int, int] | None = first
            while True:
                while wanted is not None:
                    in_hand.append(wanted[0])
                    _tell(stdin, wanted)
                    wanted = self.crew.take(in_hand)
                if len(in_hand) < AHEAD and not stdin.closed:
                    stdin.close()  # nothing more: it writes what it has and ends
                line = lines.next()
                if line is None:
                    why = f"no answer in {settings.patience:.0f} s"
                    break
                if not line:
                    break
                answer = json.loads(line)
                if "error" in answer:
                    if answer["kind"] != "Exception":
                        self.crew.news.put(_error(answer))
                        return
                    why = answer["error"].strip().splitlines()[-1]
                    break
                in_hand.remove(answer["shard"])
                self.crew.news.put(Done(answer["shard"], answer["counts"]))
                if not in_hand and stdin.closed:
                    break
                wanted = self.crew.take(in_hand) if not stdin.closed else None
        except (BrokenPipeError, ValueError):
            pass  # it died while a shard was written to its pipe, or half way through an answer: it is waited for below
        finally:
            if why:
                process.kill()
            code = process.wait()
            for stream in (stdin, stdout):
                with suppress(OSError):
                    stream.close()
            if in_hand:
                self.crew.died(list(in_hand), why or _ending(code))
            self.process = None

    def kill(self) -> None:
        process = self.process
        if process is not None:
            process.kill()


def device_of(device: str, place: int) -> str:
    """Device of the ``place``-th process of a machine: ``"cuda"`` is dealt out, any other name is meant as it is.

    Example:
        >>> device_of("cpu", 3)
        'cpu'
    """
    if device != "cuda":
        return device
    import torch

    return f"cuda:{place % max(torch.cuda.device_count(), 1)}"


def _tell(stream: IO[bytes], value: Any) -> None:
    stream.write((json.dumps(value) + "\n").encode())


class _Lines:
    """Lines of a pipe, each waited for with a limit. A buffered stream would hide lines from ``select``."""

    def __init__(self, stream: IO[bytes], patience: float) -> None:
        self.stream, self.patience, self._rest = stream, patience, b""

    def next(self) -> str | None:
        """The next line; empty when the process has gone, None when it took too long."""
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self.stream], [], [], self.patience)
            if not ready:
                return None
            piece = os.read(self.stream.fileno(), 1 << 16)
            if not piece:
                return ""
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


def _error(answer: dict[str, Any]) -> VisynthError:
    """A worker's error as one of ours."""
    kind = getattr(errors, answer["kind"], None)
    if isinstance(kind, type) and issubclass(kind, VisynthError):
        return kind(answer["error"])
    return errors.OutputError(f"{answer['error']}. What is committed is kept: run the same command again.")


def _ending(code: int) -> str:
    """How a process ended, in words."""
    return f"ended by signal {-code}" if code < 0 else f"ended with code {code}"
