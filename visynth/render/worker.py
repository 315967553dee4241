"""A process that renders shards for :class:`visynth.render.workers.Workers`: ``python -m visynth.render.worker``.

It reads one JSON line with its settings, then one line a shard, and answers one line a committed shard. Other libraries'
prints go to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any


def main() -> int:
    """Work until there are no more lines."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())

    from visynth.core.errors import VisynthError
    from visynth.core.loading import load_generator
    from visynth.core.processes import end_with_parent
    from visynth.render.run import encoding_threads, render_shards
    from visynth.render.shards import maker
    from visynth.render.stages import open_stage

    end_with_parent(settings["parent"])
    try:
        stage = open_stage(settings["out"])
        made = maker(load_generator(settings["generator"], settings["device"]), stage.plan())
        for done in render_shards(made, stage, _wanted(), encoding_threads(settings["encoders"], made)):
            _answer(answers, {"shard": done.number, "counts": dict(done.counts)})
    except VisynthError as error:
        _answer(answers, {"error": str(error), "kind": type(error).__name__})
        return error.exit_code
    except OSError as error:
        _answer(answers, {"error": str(error), "kind": "OSError", "errno": error.errno})
        return 73
    except Exception:
        _answer(answers, {"error": traceback.format_exc(), "kind": "Exception"})
        return 70
    return 0


def _wanted() -> Iterator[tuple[int, int]]:
    for line in sys.stdin:
        number, round_ = json.loads(line)
        yield number, round_


def _answer(stream: Any, value: dict[str, Any]) -> None:
    stream.write(json.dumps(value) + "\n")
    stream.flush()


if __name__ == "__main__":
    raise SystemExit(main())
