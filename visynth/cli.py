"""The command line. The table of verbs is static and imports nothing heavy; only the chosen verb's parser is built.

Every verb is a typed function in :mod:`visynth.commands`; jsonargparse turns its signature and docstring into flags, so
that flags, ``--config file.yaml`` and ``--print_config`` work alike for all of them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

VERBS = {
    "trial": "from a folder with a rare class to a verdict per class: does synthesis help?",
    "quickstart": "a trial on a small built-in set, in a few minutes",
    "preflight": "look at a set: files, groups, leakage, which synthesizer suits",
    "fit": "make a generator: 'fit -c config.yaml' trains one, 'fit compose' needs no training",
    "render": "render a class-balanced image set from a generator, resumable",
    "renders": "status, verify, sweep, retry-failed, finalize, export (COCO, YOLO, VOC), score or review a rendered set",
    "search": "choose how much of a rendered set to mix in, on validation, then open the test once",
    "evaluate": "measure a rendered set on real test images, per class, against honest baselines",
    "gate": "turn a report into promote, reject or insufficient evidence",
    "audit": "attack a generator: membership, extraction, copies, each beside a positive and a negative control",
    "explore": "look at what a generator makes: sheets, interpolations, an animation",
    "project": "real images into a StyleGAN2: a generator of variations of them",
    "import-stylegan2": "a public StyleGAN2 checkpoint as a generator folder, nothing in it executed",
    "tabular": "tables: trial, fit, sample, impute and evaluate generators of rows",
    "series": "sensors, events and scans over time: trial, fit, sample, stream, impute, forecast, evaluate, replay",
    "text": "texts by language models: reviews, a rare class, conversations, rows of a table",
    "retrain": "keep a generator fresh: retrain on new data, judge, promote or roll back; for any scheduler",
    "registry": "keep generators as versions: add, list, log, path, promote, rollback, verify",
    "doctor": "check the installation and this machine",
}
USAGE = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see :mod:`visynth.core.errors`)."""
    try:
        code = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        return 141
    return code


def _stdout_is_closed() -> bool:
    """Whether the reader of our output has gone (``visynth --help | head -1``); then nothing more is written to it."""
    import os
    import select

    watch = select.poll()
    watch.register(sys.stdout.fileno(), select.POLLERR)
    closed = any(event & select.POLLERR for _, event in watch.poll(0))
    if closed:  # what is still in the buffer goes nowhere, else the interpreter complains as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return closed


def _main(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if words else USAGE
    if words[0] == "--version":
        from visynth import __version__

        print(f"visynth {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        return _say(_unknown(verb), USAGE)
    _exit_on_sigterm()
    try:
        return _run(verb, rest)
    except KeyboardInterrupt:
        return _say("interrupted; what was committed is kept", 130)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except Exception as error:
        from visynth.core.errors import VisynthError

        if isinstance(error, VisynthError):
            return _say(str(error), error.exit_code)
        raise


def _exit_on_sigterm() -> None:
    """A scheduler's SIGTERM ends the command with 143; what was committed is kept, as after any kill."""
    import signal
    import threading

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(_say("stopped by SIGTERM; what was committed is kept", 143)))


def _run(verb: str, words: list[str]) -> int:
    import os

    # Idle threads that spin take the core from the ones that work: on two busy cores 25 times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if verb == "fit" and words and words[0].startswith("-") and words[0] not in ("-h", "--help"):
        from visynth.jobs.train import fit

        return fit(words)
    from visynth import commands

    words, nested = _nested(verb, words, commands.NESTED)
    function: Callable[..., int | None] = commands.COMMANDS[nested]
    parser, flags, groups = _parser(nested.replace(".", " "), function)
    values = parser.instantiate_classes(parser.parse_args(_spelled(words, flags))).as_dict()
    values.pop("config", None)
    for name, (kind, fields) in groups.items():
        values[name] = kind(**{field: values.pop(field) for field in fields})
    return function(**values) or 0


def _nested(verb: str, words: list[str], nested: Mapping[str, tuple[str, ...]]) -> tuple[list[str], str]:
    """``fit compose ...`` and ``renders verify ...`` name a second word."""
    if verb not in nested:
        return words, verb
    if words and words[0] in nested[verb]:
        return words[1:], f"{verb}.{words[0]}"
    lines = [f"  visynth {verb} {word} --help" for word in nested[verb]]
    if verb == "fit":
        lines.append(
            "  visynth fit -c configs/....yaml     train a generator (LightningCLI: --print_config, "
            "--trainer.max_steps N, ...)"
        )
    print("\n".join([f"usage: visynth {verb} {{{'|'.join(nested[verb])}}} ...", *lines]))
    raise SystemExit(0 if words[:1] in (["-h"], ["--help"]) else USAGE)


def _spelled(words: list[str], flags: Mapping[str, str]) -> list[str]:
    """The words as jsonargparse wants them.

    Understood are the first argument bare (``visynth gate report``), hyphens (``--per-class 3``), switches
    (``--quiet``, ``--no-cache``) and lists as people write them (``--rare a,b``, ``--rare a --rare b``, ``--rare '[a,
    b]'``).

    Args:
        words: after the verb.
        flags: ``{parameter: its type as written}``, in order.
    """
    spelled: list[str] = []
    if words and not words[0].startswith("-") and flags:
        spelled, words = [f"--{next(iter(flags))}={words[0]}"], words[1:]
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        positive = name.removeprefix("no_")
        if not word.startswith("--") or (name not in flags and flags.get(positive) != "bool"):
            spelled.append(word)
        elif name not in flags:
            spelled.append(f"--{positive}=false" if not equals else word)
        elif flags[name] == "bool" and not equals:
            spelled.append(f"--{name}={rest.pop(0) if rest[:1] in (['true'], ['false']) else 'true'}")
        elif flags[name].startswith("list"):
            given = value if equals else rest.pop(0) if rest and not rest[0].startswith("--") else ""
            parts = [part.strip() for part in given.split(",") if part.strip()]
            spelled += (
                [f"--{name}={given}"] if given.startswith("[") else [f"--{name}+={part}" for part in parts or [""]]
            )
        else:
            spelled.append(f"--{name}{equals}{value}")
    return spelled


def _parser(name: str, function: Callable[..., Any]) -> tuple[Any, dict[str, str], dict[str, tuple[Any, list[str]]]]:
    """The parser of a verb, its flags with their types, and the dataclasses among its parameters with their fields.

    The fields of a parameter that is a dataclass (:class:`visynth.commands.options.DataOptions`) are flags beside the
    others.
    """
    from dataclasses import fields, is_dataclass
    from inspect import signature
    from typing import get_type_hints

    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise SystemExit(_say(f"{_near(message, flags)}\nSee 'visynth {name} --help'.", USAGE))

        def format_help(self, *args: Any, **kwargs: Any) -> str:
            # Flags are typed with hyphens and switches bare; jsonargparse prints the parameters' underscores and
            # values.
            text = re.sub(
                r"--[a-z_0-9]+", lambda flag: flag.group().replace("_", "-"), super().format_help(*args, **kwargs)
            )
            text = re.sub(r"\[--([a-z-]+) \{true,false\}\]", r"[--[no-]\1]", text)
            text = re.sub(r"--([a-z-]+) \{true,false\}", _switch, text)
            text = re.sub(r"(--[a-z-]+) \[ITEM,\.\.\.\], --[a-z-]+\+ \[ITEM,\.\.\.\]", r"\1 ITEM,...", text)
            text = re.sub(r"(--[a-z-]+) ([A-Z_]+), \1\+ \2", r"\1 ITEM,...", text)
            return re.sub(r"\[ITEM,\.\.\.\]", "ITEM,...", text).replace("--print-config", "--print_config")

    flags: dict[str, str] = {}
    groups: dict[str, tuple[Any, list[str]]] = {}
    hints = get_type_hints(function)
    first = " ".join((function.__doc__ or "").partition("\n\n")[0].split())
    parser = Parser(prog=f"visynth {name}", allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with these options")
    for parameter in signature(function).parameters.values():
        if is_dataclass(kind := hints[parameter.name]):
            groups[parameter.name] = kind, [field.name for field in fields(kind)]
            flags |= {field.name: str(field.type) for field in fields(kind)}
            parser.add_class_arguments(kind, as_group=False, fail_untyped=True)
        else:
            flags[parameter.name] = str(parameter.annotation)
    parser.add_function_arguments(function, as_group=False, fail_untyped=True, skip=set(groups))
    bare = next(iter(flags), "")
    parser.description = first + (f"  The first word may be {bare.upper()} without its flag." if bare else "")
    return parser, flags, groups


def _switch(match: re.Match[str]) -> str:
    name = match.group(1)
    return f"--{name}, --no-{name}".ljust(len(match.group()))


def _near(message: str, flags: Mapping[str, str]) -> str:
    """An error about an unknown flag, with the one that was probably meant."""
    from difflib import get_close_matches

    match = re.search(r"unrecognized arguments: --([\w-]+)", message)
    near = get_close_matches(match.group(1).replace("-", "_"), flags, 1) if match else []
    return message + (f"; did you mean --{near[0].replace('_', '-')}?" if near else "")


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {known}" for verb, known in VERBS.items())
    return (
        "visynth: synthetic images for rare classes, measured per class.\n\n"
        f"usage: visynth VERB ...\n\n{verbs}\n\n"
        "Every verb takes --help, --config file.yaml and --print_config.\n"
        "Start with:  visynth trial --data DIR --rare CLASS --out trial/"
    )


def _unknown(verb: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(verb, VERBS, 1)
    return f"there is no verb {verb!r}" + (f"; did you mean {near[0]!r}?" if near else f". Verbs: {', '.join(VERBS)}.")


def _say(words: str, code: int) -> int:
    print(f"visynth: {words}", file=sys.stderr)
    return code
