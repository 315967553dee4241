"""Texts by any server that speaks the OpenAI chat protocol: vLLM, llama.cpp, Ollama, TGI, ``transformers serve``, hosted ones.

The one network address that is ever asked is ``base_url``: no redirects, no proxies from the environment. The key comes from
an environment variable, is never written anywhere, and is struck out of whatever a server says.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from visynth.core import seeds as seeding
from visynth.core.errors import MissingExtra, UnavailableError, UsageError, choices, raise_all
from visynth.tabular.text.backends import Decoding, Reply, Request, RequestFailed

LARGEST = 4 * 2**20  # bytes of a reply
SEEDS = 2**31 - 1  # servers take 32 bits
LONGEST_WAIT = 60.0  # seconds between two tries
SHOWN = 300  # characters of a server's words in an error
IN_A_ROW = 5  # requests that fail one after the other before the server is said to be down
TOO_LONG = re.compile(
    r"context_length|maximum context|context (?:window|length|size)|max_model_len|prompt is too long", re.IGNORECASE
)
FILTERED = re.compile(r"content[_ ](?:filter|policy|management)|safety system|moderation", re.IGNORECASE)
CHARACTERS = 4  # of a token, where a server does not count them


@dataclass
class Usage:
    """What a run has used so far."""

    requests: int = 0
    retries: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def cost(self, price_in: float, price_out: float) -> float:
        """In the currency of the prices for a million tokens."""
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


class OpenAICompatible:
    """Chat completions over HTTP.

    Args:
        base_url: e.g. ``http://127.0.0.1:8000/v1``.
        model: the name that the server knows it by.
        decoding: how tokens are drawn.
        structured: how a schema is sent: ``"json_schema"``, ``"json_object"``, or ``"none"`` where the server knows neither;
            replies are checked in any case.
        key_env: environment variable that holds the key; where it is empty, none is sent.
        at_once: requests under way at a time.
        per_minute: most requests a minute; None for no limit.
        timeout: seconds for one reply.
        retries: further tries after 408, 429, 5xx, cut replies and timeouts.
        price_in: of a million prompt tokens, for the cost counter.
        price_out: of a million reply tokens.
        most_cost: the run stops, with what it has kept, before it costs more.
        extra: further fields of the request's body, e.g. ``{"top_k": 40}``; None leaves one out, e.g. ``{"max_tokens": None,
            "max_completion_tokens": 200}``.

    Raises:
        UsageError: values that cannot be, all listed together.
    """

    batch = 1

    def __init__(
        self,
        base_url: str,
        model: str,
        decoding: Decoding | None = None,
        *,
        structured: Literal["json_schema", "json_object", "none"] = "none",
        key_env: str = "OPENAI_API_KEY",
        at_once: int = 8,
        per_minute: float | None = None,
        timeout: float = 120.0,
        retries: int = 5,
        price_in: float = 0.0,
        price_out: float = 0.0,
        most_cost: float | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        key = os.environ.get(key_env, "").strip()
        problems = _address_problems(base_url, key_env)
        if not all("!" <= c <= "~" for c in key):
            problems.append(f"the key in {key_env} has spaces, line ends or characters that no key has")
        if structured not in ("json_schema", "json_object", "none"):
            problems.append(f"structured must be 'json_schema', 'json_object' or 'none', but got {structured!r}")
        for name, value, least in (("at_once", at_once, 1), ("retries", retries, 0)):
            if value < least:
                problems.append(f"{name} must be at least {least}, but got {value}")
        for name, number in (("timeout", timeout), ("per_minute", per_minute), ("most_cost", most_cost)):
            if number is not None and number <= 0:
                problems.append(f"{name} must be above 0, but got {number}")
        if most_cost is not None and not (price_in or price_out):
            problems.append("most_cost needs price_in and price_out, or nothing can be counted")
        reserved = sorted({"messages", "model", "stream"} & set(extra or {}))
        if reserved:
            problems.append(f"extra must not have {choices(reserved)}")
        raise_all("the backend", problems, UsageError)
        self.base_url, self.model, self.decoding = base_url.rstrip("/"), model, decoding or Decoding()
        self.structured, self.timeout, self.retries = structured, timeout, retries
        self.at_once, self.price_in, self.price_out, self.most_cost = at_once, price_in, price_out, most_cost
        self.learned: frozenset[str] = frozenset()  # what a server's model has learned, nobody can know
        self.extra = dict(extra or {})
        self.usage = Usage()
        self._key = key
        self._key_env = key_env
        self._pace = Pace(per_minute)
        self._failed_in_a_row = 0
        self._answered = False
        self._under_way = 0
        self._client: Any = None

    @property
    def identity(self) -> Mapping[str, Any]:
        drawn = vars(self.decoding)
        return {"backend": "openai", "model": self.model, **drawn, "structured": self.structured, "extra": self.extra}

    @property
    def cost(self) -> float:
        return self.usage.cost(self.price_in, self.price_out)

    def body(self, request: Request) -> dict[str, Any]:
        """The request's JSON."""
        own = self.decoding
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [dict(message) for message in request.messages],
            "temperature": own.temperature,
            "top_p": own.top_p,
            "max_tokens": own.max_tokens,
            "seed": request.seed % SEEDS,
        }
        if request.schema is not None and self.structured == "json_schema":
            wanted = {"name": "reply", "schema": dict(request.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": wanted}
        elif request.schema is not None and self.structured == "json_object":
            body["response_format"] = {"type": "json_object"}
        return {name: value for name, value in (body | self.extra).items() if value is not None}

    async def answer(self, requests: Sequence[Request]) -> Sequence[Reply | RequestFailed]:
        return [await self._reply(request) for request in requests]

    def resumed(self, replies: Sequence[Reply]) -> None:
        for reply in replies:
            self._count(reply)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _reply(self, request: Request) -> Reply | RequestFailed:
        self._check_cost(request)
        self._under_way += 1
        try:
            return await self._tries(request)
        finally:
            self._under_way -= 1

    async def _tries(self, request: Request) -> Reply | RequestFailed:
        why, wait = "", 0.0
        for attempt in range(self.retries + 1):
            if attempt:
                self.usage.retries += 1
                await asyncio.sleep(max(wait, self._backoff(request.seed, attempt)))
            await self._pace.wait()
            status, words, wait = await self._post(self.body(request))
            said = self._clean(words)
            if status == 200:
                reply, why = _read(words, request)
                if reply is not None:
                    self._count(reply)
                    if not why:
                        self._failed_in_a_row, self._answered = 0, True
                        return reply
                why = self._clean(why)
            elif status in (401, 403):
                known = f"the key in {self._key_env}" if self._key else f"no key: the variable {self._key_env} is empty"
                raise UsageError(f"{self.base_url} refused ({status}) {known}. It said: {said}")
            elif status == 404:
                raise UsageError(
                    f"{self.base_url} has no model {self.model!r}, or no chat completions (404). It said: {said}"
                )
            elif status in (0, 408, 409, 425, 429) or status >= 500:
                why = f"status {status}: {said}" if status else said
            elif TOO_LONG.search(words):
                return self._failed(f"the prompt and the reply are longer than the model's context: {said}")
            elif FILTERED.search(words) or self._answered:  # others were answered: it is this one
                return self._failed(f"the server refuses this request (status {status}): {said}")
            else:
                raise UsageError(
                    f"{self.base_url} refuses such requests (status {status}): {said}. What is sent besides the "
                    f"messages: {choices(sorted(set(self.body(request)) - {'messages'}))}; see 'structured' and 'extra'."
                )
        return self._failed(f"no usable answer in {self.retries + 1} tries; the last: {why}")

    def _failed(self, why: str) -> RequestFailed:
        """The failure of one request, or, where one after the other fails, the end of the run."""
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= IN_A_ROW:
            raise UnavailableError(
                f"{self.base_url} failed {self._failed_in_a_row} requests in a row; the last: {why}. What came before is kept: "
                "the same command goes on."
            )
        return RequestFailed(why)

    def _count(self, reply: Reply) -> None:
        self.usage.tokens_in += reply.tokens_in
        self.usage.tokens_out += reply.tokens_out

    def _check_cost(self, request: Request) -> None:
        """Refuse to ask where this request and those under way could cost more than is allowed."""
        if self.most_cost is None:
            return
        spent = self.cost
        asked = sum(len(message["content"]) for message in request.messages) / CHARACTERS
        one = (asked * self.price_in + self.decoding.max_tokens * self.price_out) / 1e6
        if spent + (self._under_way + 1) * one > self.most_cost:
            raise UnavailableError(
                f"the run has cost {spent:.4f}, and a further reply may cost {one:.4f}: more than the {self.most_cost:g} allowed. "
                "What came is kept, and counted: the same command goes on with a higher --most-cost."
            )

    def _backoff(self, seed: int, attempt: int) -> float:
        """Seconds: they double, and no two requests wait equally long."""
        longest: float = min(0.5 * 2.0 ** (attempt - 1), LONGEST_WAIT)
        return longest * (0.5 + 0.5 * float(seeding.rng(seed, f"text/wait/{attempt}").random()))

    async def _post(self, body: Mapping[str, Any]) -> tuple[int, str, float]:
        """Status (0 for none), what was said, and the seconds that the server asks to wait."""
        http, client = self._open()
        self.usage.requests += 1
        try:
            async with (
                asyncio.timeout(self.timeout),
                client.stream("POST", f"{self.base_url}/chat/completions", json=body) as answer,
            ):
                parts, size = [], 0
                async for part in answer.aiter_bytes():
                    size += len(part)
                    if size > LARGEST:
                        return 0, f"the reply is larger than {LARGEST} bytes", 0.0
                    parts.append(part)
                return answer.status_code, b"".join(parts).decode("utf-8", "replace"), _wait(answer.headers)
        except TimeoutError:
            return 0, f"no reply in {self.timeout:g} s", 0.0
        except http.HTTPError as error:
            return 0, f"{type(error).__name__}: {str(error) or 'the connection ended'}", 0.0

    def _open(self) -> tuple[Any, Any]:
        http = _http()
        if self._client is None:
            headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
            limits = http.Limits(max_connections=self.at_once)
            self._client = http.AsyncClient(
                headers=headers, timeout=self.timeout, limits=limits, follow_redirects=False, trust_env=False
            )
        return http, self._client

    def _clean(self, words: str) -> str:
        """A server's words, short, on one line, and without the key."""
        words = words.replace(self._key, "***") if self._key else words
        return " ".join(words.split())[:SHOWN]


class Pace:
    """Starts so many things a minute, evenly."""

    def __init__(self, per_minute: float | None) -> None:
        self.gap = 0.0 if per_minute is None else 60.0 / per_minute
        self.next = 0.0

    async def wait(self) -> None:
        now = time.monotonic()
        own = max(self.next, now)
        self.next = own + self.gap
        if own > now:
            await asyncio.sleep(own - now)


def _http() -> Any:
    try:
        import httpx2
    except ImportError as error:
        raise MissingExtra("texts by a server need httpx2: pip install 'visynth[text]'.") from error
    return httpx2


def _address_problems(base_url: str, key_env: str) -> list[str]:
    """What is wrong with an address; a password in it is not shown."""
    wrong = "base_url must be like http://127.0.0.1:8000/v1"
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        return [f"{wrong}, but it cannot be read"]
    if "@" in parts.netloc:
        return [f"{wrong}, and must not hold a password: put the key into the variable {key_env}"]
    good = parts.scheme in ("http", "https") and parts.hostname and port != 0
    return [] if good else [f"{wrong}, but got {base_url!r}"]


def _read(words: str, request: Request) -> tuple[Reply | None, str]:
    """The reply in a server's JSON, where there is one, and why it cannot be used."""
    try:
        said = json.loads(words)
        choice = said["choices"][0]
        content = choice["message"]["content"]
        finish = choice.get("finish_reason")
        usage = said.get("usage") or {}
        counted = [usage.get("prompt_tokens"), usage.get("completion_tokens")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        return None, f"not a chat completion ({type(error).__name__}): {words[: 2 * SHOWN]!r}"
    text = content if isinstance(content, str) else ""
    lengths = [sum(len(message["content"]) for message in request.messages), len(text)]
    tokens = [n if isinstance(n, int) else length // CHARACTERS for n, length in zip(counted, lengths, strict=True)]
    kinds: dict[Any, Literal["length", "filtered"]] = {"length": "length", "content_filter": "filtered"}
    reply = Reply(text, kinds.get(finish, "stop"), *tokens)
    return reply, "" if isinstance(content, str) else f"the reply's content is {type(content).__name__}, no text"


def _wait(headers: Mapping[str, str]) -> float:
    """Seconds of a Retry-After header, at most a minute; a date in it counts as none.

    Example:
        >>> _wait({"retry-after": "3"}), _wait({"retry-after": "tomorrow"}), _wait({})
        (3.0, 0.0, 0.0)
    """
    try:
        return min(max(float(headers.get("retry-after", 0)), 0.0), LONGEST_WAIT)
    except ValueError:
        return 0.0
