"""Where texts go: one JSON line a text with its provenance, those that could not be had with the reason, a summary, and the forms
that fine-tuning tools read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from visynth.core.errors import UsageError
from visynth.core.files import readable_json
from visynth.core.folders import put_files
from visynth.core.members import as_text
from visynth.tabular.frames import pandas
from visynth.tabular.text.backends import Backend
from visynth.tabular.text.generator import TextGenerator
from visynth.tabular.text.writing import Text, Written

FILES = ("texts.jsonl", "missing.jsonl", "summary.json", "members.jsonl", "report.json", "report.html", "generator")
LOCK = "lock"
FORMS = ("messages", "alpaca", "sharegpt")


def line_of(text: Text, generator: TextGenerator, backend: Backend) -> dict[str, Any]:
    """A text as it is written: its fields and attributes, and how it came about."""
    attributes = dict(text.record.attributes)
    clash = sorted(set(attributes) & set(text.fields))
    attributes = {name: value for name, value in attributes.items() if name not in clash}
    provenance = {
        "number": text.record.number,
        "seed": text.seed,
        "model": backend.identity.get("model", backend.identity["backend"]),
        "prompt_sha256": text.prompt,
        "generator": generator.digest,
        "parents": [f"text/{place:09d}" for place in text.record.parents],
        "tries": text.tries,
    }
    provenance |= {} if text.record.row is None else {"row": text.record.row}
    asked = {name: text.record.attributes[name] for name in clash}
    provenance |= {"asked": asked} if asked else {}
    return {**attributes, **text.fields, "synthetic": True, "provenance": provenance}


def json_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False, sort_keys=False) + "\n" for row in rows).encode()


def json_value(value: Any) -> Any:
    """A frame's cell as JSON has it.

    Example:
        >>> import numpy as np
        >>> json_value(np.int64(3)), json_value(np.float64("nan")), json_value(np.bool_(True))
        (3, None, True)
    """
    if isinstance(value, (str, bool, int, list, dict)) or value is None:
        return value
    if pandas().isna(value):
        return None
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, (bool, int, float)) else str(value)


def put_texts(
    out: Path,
    generator: TextGenerator,
    backend: Backend,
    written: Written,
    summary: Mapping[str, Any],
    more: Mapping[str, bytes],
) -> None:
    """Write what a job made into its folder.

    Raises:
        OutputError: files of these names are there that visynth did not write.
    """
    lines = [line_of(text, generator, backend) for text in written.texts]
    missing = [
        {"number": f.record.number, "attributes": dict(f.record.attributes), "check": f.check, "why": f.why}
        for f in sorted(written.failures, key=lambda f: f.record.number)
    ]
    files = {
        "texts.jsonl": json_lines(lines),
        "missing.jsonl": json_lines(missing),
        "members.jsonl": as_text(generator.members).encode(),
    }
    # The summary last: where it is, the job is done.
    put_files(out, {**files, **more, "summary.json": readable_json(summary)})


def tidy(work: Path, replies: str) -> None:
    """The job is done: remove the file of its replies, and its lock, and nothing else."""
    for name in (replies, LOCK):
        (work / name).unlink(missing_ok=True)
    with suppress(OSError):  # something is in it that is not this job's
        work.rmdir()


def conversation(form: str, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """A conversation in the form of a fine-tuning tool.

    Args:
        form: ``"messages"`` (OpenAI, TRL), ``"alpaca"`` (instruction, input, output: the last answer, what came before is its
            input) or ``"sharegpt"``.
        messages: system, user and assistant in turn, an assistant at the end.

    Example:
        >>> turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        >>> conversation("alpaca", turns)
        {'instruction': 'Hi', 'input': '', 'output': 'Hello'}
        >>> conversation("sharegpt", turns)["conversations"][1]
        {'from': 'gpt', 'value': 'Hello'}
    """
    if form == "messages":
        return {"messages": [dict(message) for message in messages]}
    if form == "sharegpt":
        names = {"system": "system", "user": "human", "assistant": "gpt"}
        return {"conversations": [{"from": names[m["role"]], "value": m["content"]} for m in messages]}
    if form == "alpaca":
        asked = [m["content"] for m in messages if m["role"] == "user"]
        before = "\n".join(f"{m['role']}: {m['content']}" for m in messages[:-2])
        return {"instruction": asked[-1], "input": before, "output": messages[-1]["content"]}
    raise UsageError(f"form must be one of {', '.join(FORMS)}, but got {form!r}.")
