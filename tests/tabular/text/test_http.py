"""The client of chat servers, against one that misbehaves."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from tests.tabular.text.server import completion, serving
from visynth.core.errors import UnavailableError, UsageError
from visynth.tabular.text import Decoding, OpenAICompatible, Reply, Request
from visynth.tabular.text.backends import RequestFailed
from visynth.tabular.text.http import Pace

KEY = "sk-secret-0123456789"
ASK = Request(({"role": "user", "content": "Say yes."},), seed=2**40 + 7)


def ask(server: Any, requests: int = 1, **options: Any) -> list[Any]:
    own = {"retries": 2, "timeout": 5.0, **options}
    backend = OpenAICompatible(server.url, "m", Decoding(0.5, 0.9, 30), **own)

    async def run() -> list[Any]:
        try:
            return [(await backend.answer([ASK]))[0] for _ in range(requests)]
        finally:
            await backend.close()

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenAICompatible, "_backoff", lambda self, seed, attempt: 0.0)


def test_what_is_sent_and_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda number, body: "Yes.") as server:
        assert ask(server, extra={"top_k": 4}) == [Reply("Yes.", "stop", 10, 5)]
    (body,) = server.bodies
    assert body == {
        "model": "m", "messages": [{"role": "user", "content": "Say yes."}], "temperature": 0.5, "top_p": 0.9, "max_tokens": 30,
        "seed": (2**40 + 7) % (2**31 - 1), "top_k": 4,
    }  # fmt: skip
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert server.paths == ["/v1/chat/completions"]


@pytest.mark.parametrize(
    "bad",
    [
        (429, "slow down", {"Retry-After": "0"}),
        (500, "oops"),
        (503, ""),
        "cut",
        (200, "no JSON"),
        (200, {"choices": []}),
        completion(None),
    ],
    ids=["429", "500", "503", "cut", "no-json", "no-choice", "no-text"],
)
def test_faults_that_pass_are_tried_again(bad: Any) -> None:
    with serving(lambda number, body: bad if number < 2 else "Yes.") as server:
        assert ask(server)[0].text == "Yes."
    assert len(server.bodies) == 3
    assert server.bodies[0] == server.bodies[2]


def test_a_fault_that_stays_fails_its_request_and_then_the_run() -> None:
    with serving(lambda number, body: (500, "oops")) as server:
        (failed,) = ask(server)
        assert isinstance(failed, RequestFailed)
        assert "status 500: oops" in str(failed)
        with pytest.raises(
            UnavailableError,
            match="failed 5 requests in a row; the last: no usable answer in 3 tries; the last: status 500",
        ):
            ask(server, requests=5)


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    def slow(number: int, body: Any) -> str:
        time.sleep(1.0)
        return "late"

    with serving(slow) as server:
        (failed,) = ask(server, timeout=0.1, retries=1)
    assert "no reply in 0.1 s" in str(failed)
    assert len(server.bodies) == 2


@pytest.mark.parametrize(
    ("status", "why"),
    [(401, "the key in OPENAI_API_KEY"), (403, "refused"), (404, "no model 'm'"), (422, "refuses such")],
)
def test_what_will_never_work_ends_at_once_and_shows_no_key(
    status: int, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with (
        serving(lambda number, body: (status, f"bad key {KEY}")) as server,
        pytest.raises(UsageError, match=why) as error,
    ):
        ask(server)
    assert len(server.bodies) == 1
    assert KEY not in str(error.value)
    assert "***" in str(error.value)
    assert KEY not in caplog.text


def test_a_prompt_longer_than_the_context_fails_alone() -> None:
    with serving(
        lambda n, body: (400, "This model's maximum context length is 8 tokens") if n == 0 else "Yes."
    ) as server:
        first, second = ask(server, requests=2)
    assert "longer than the model's context" in str(first)
    assert second.text == "Yes."


def test_redirects_are_not_followed() -> None:
    with (
        serving(lambda number, body: "Elsewhere.") as other,
        serving(lambda number, body: (307, "", {"Location": other.url + "/chat/completions"})) as server,
    ):
        with pytest.raises(UsageError, match="status 307"):
            ask(server)
        assert other.bodies == []


def test_replies_without_end_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visynth.tabular.text.http.LARGEST", 1000)
    with serving(lambda number, body: "x" * 5000) as server:
        (failed,) = ask(server, retries=0)
    assert "larger than 1000 bytes" in str(failed)


@pytest.mark.parametrize(
    ("structured", "kind"), [("json_schema", "json_schema"), ("json_object", "json_object"), ("none", None)]
)
def test_how_a_schema_is_sent(structured: Any, kind: str | None) -> None:
    backend = OpenAICompatible("http://127.0.0.1:1/v1", "m", structured=structured)
    schema = {"type": "object", "properties": {"a": {}}}
    body = backend.body(Request(ASK.messages, 1, schema))
    assert body.get("response_format", {}).get("type") == kind
    if structured == "json_schema":
        assert body["response_format"]["json_schema"]["schema"] == schema


def test_cost_is_counted_and_bounded() -> None:
    prices = {"price_in": 1e5, "price_out": 2e5}
    with serving(lambda number, body: "Yes.") as server:
        backend = OpenAICompatible(server.url, "m", Decoding(max_tokens=5), most_cost=7.0, **prices)

        async def run() -> None:
            try:
                for _ in range(9):
                    await backend.answer([ASK])
            finally:
                await backend.close()

        with pytest.raises(
            UnavailableError, match=r"has cost 6\.0000, and a further reply may cost 1\.\d+: more than the 7 allowed"
        ):
            asyncio.run(run())
    assert backend.usage.cost(**prices) == pytest.approx(3 * (10 * 0.1 + 5 * 0.2))
    assert len(server.bodies) == 3


def test_the_pace_is_held() -> None:
    async def run() -> float:
        pace, started = Pace(600), asyncio.get_running_loop().time()
        await asyncio.gather(*(pace.wait() for _ in range(4)))
        return asyncio.get_running_loop().time() - started

    assert asyncio.run(run()) >= 0.3


def test_wrong_options_are_told_together() -> None:
    with pytest.raises(UsageError) as error:
        OpenAICompatible(
            "ftp://x", "m", structured="yaml", at_once=0, timeout=0, most_cost=1, extra={"messages": []}  # type: ignore[arg-type]
        )  # fmt: skip
    for words in (
        "base_url must be like",
        "structured must be",
        "at_once must be",
        "timeout must be",
        "most_cost needs",
        "extra must not",
    ):
        assert words in str(error.value)
    with pytest.raises(UsageError, match="must not hold a password"):
        OpenAICompatible("http://me:secret@host/v1", "m")
    with pytest.raises(UsageError, match="temperature"):
        Decoding(temperature=-1)


@pytest.mark.parametrize(
    "said", [(200, f"Bearer {KEY} was sent"), (200, {"echo": f"Bearer {KEY}"}), (500, f"Bearer {KEY}")]
)
def test_a_server_that_repeats_the_key(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda number, body: said) as server:
        (failed,) = ask(server)
    assert "***" in str(failed)
    assert KEY not in str(failed)


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk one", "sk-\u00e9"])
def test_keys_that_cannot_be_sent_are_refused_unseen(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(UsageError, match="the key in MY_KEY") as error:
        OpenAICompatible("http://127.0.0.1:1/v1", "m", key_env="MY_KEY")
    assert "sk" not in str(error.value).replace("spaces", "")


@pytest.mark.parametrize("url", ["ftp://me:secret@host/v1", "http://[::1", "http://host:port/v1", "host/v1"])
def test_addresses_that_cannot_be(url: str) -> None:
    with pytest.raises(UsageError, match="base_url must be like") as error:
        OpenAICompatible(url, "m")
    assert "secret" not in str(error.value)


def test_one_filtered_request_fails_alone() -> None:
    refused = (400, "The response was filtered: content_filter")
    cut = completion("half a sent", "content_filter")
    with serving(lambda number, body: {0: refused, 1: cut, 3: (422, "odd")}.get(number, "Yes.")) as server:
        first, second, third, fourth, fifth = ask(server, requests=5)
    assert "content_filter" in str(first)
    assert (second.finish, third.text, fifth.text) == ("filtered", "Yes.", "Yes.")
    assert "refuses this request (status 422)" in str(fourth)


def test_a_model_that_wants_other_parameters() -> None:
    words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."

    def answer(number: int, body: Any) -> Any:
        return (400, words) if "max_tokens" in body else "Yes."

    with serving(answer) as server:
        with pytest.raises(UsageError, match="max_completion_tokens"):
            ask(server)
        (reply,) = ask(server, extra={"max_tokens": None, "max_completion_tokens": 30})
    assert reply.text == "Yes."
    assert server.bodies[-1]["max_completion_tokens"] == 30


def test_replies_without_a_count_and_without_text_cost_too() -> None:
    bodies = [{"choices": [{"message": {"content": "a" * 40}, "finish_reason": "stop"}]}, completion(None), "Yes."]
    with serving(lambda number, body: bodies[number]) as server:
        backend = OpenAICompatible(server.url, "m")

        async def run() -> None:
            try:
                await backend.answer([ASK])
                await backend.answer([ASK])
            finally:
                await backend.close()

        asyncio.run(run())
    assert backend.usage.tokens_out == 10 + 5 + 5
    backend.resumed([Reply("x", "stop", 7, 8)])
    assert backend.usage.tokens_out == 28
