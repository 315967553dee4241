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
    "renders": "verify, export (COCO, YOLO, VOC), score or review a rendered set",
    "evaluate": "measure a rendered set on real test images, per class, against honest baselines",
    "gate": "turn a report into promote, reject or insufficient evidence",
    "explore": "look at what a generator makes: sheets, ways between pictures, an animation",
    "project": "real images into a StyleGAN2: a generator of variations of them",
    "import-stylegan2": "a public StyleGAN2 checkpoint as a generator folder, nothing in it executed",
    "doctor": "check the installation and this machine",
}
USAGE = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see :mod:`visynth.errors`)."""
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
        from visynth.errors import VisynthError

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
        from visynth.training import fit

        return fit(words)
    from visynth import commands

    words, nested = _nested(verb, words, commands.NESTED)
    function: Callable[..., int | None] = commands.COMMANDS[nested]
    parser = _parser(nested.replace(".", " "), function)
    values = parser.parse_args(_spelled(words, function)).as_dict()
    values.pop("config", None)
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
            "  visynth fit -c configs/....yaml     train a generator (LightningCLI: --print_config, --trainer.max_steps N, ...)"
        )
    print("\n".join([f"usage: visynth {verb} {{{'|'.join(nested[verb])}}} ...", *lines]))
    raise SystemExit(0 if words[:1] in (["-h"], ["--help"]) else USAGE)


def _spelled(words: list[str], function: Callable[..., Any]) -> list[str]:
    """The words as jsonargparse wants them: the first argument bare, ``--per-class 3``, bare switches and ``--rare a --rare b`` are understood."""
    from inspect import signature

    parameters = signature(function).parameters
    kinds = {name: str(parameter.annotation) for name, parameter in parameters.items()}
    spelled: list[str] = []
    if words and not words[0].startswith("-") and parameters:
        # "visynth explore generator/": the first argument needs no flag.
        spelled, words = [f"--{next(iter(parameters))}={words[0]}"], words[1:]
    for place, word in enumerate(words):
        if not word.startswith("--"):
            spelled.append(word)
            continue
        flag, equals, value = word[2:].partition("=")
        name = flag.replace("-", "_")
        following = words[place + 1] if place + 1 < len(words) else "--"
        if kinds.get(name) == "bool" and not equals and following not in ("true", "false"):
            spelled.append(f"--{name}=true")
        elif kinds.get(name, "").startswith("list") and not (value if equals else following).startswith("["):
            spelled.append(f"--{name}+{equals}{value}")
        else:
            spelled.append(f"--{name}{equals}{value}" if name in kinds else word)
    return spelled


def _parser(name: str, function: Callable[..., Any]) -> Any:
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise SystemExit(_say(f"{message}\nSee 'visynth {name} --help'.", USAGE))

        def format_help(self, *args: Any, **kwargs: Any) -> str:
            # Flags are typed with hyphens; jsonargparse prints the parameters' underscores.
            return re.sub(
                r"--[a-z_]+", lambda flag: flag.group().replace("_", "-"), super().format_help(*args, **kwargs)
            ).replace("--print-config", "--print_config")

    first, _, _ = (function.__doc__ or "").partition("\n")
    parser = Parser(prog=f"visynth {name}", description=first)
    parser.add_argument("--config", action="config", help="YAML file with these options")
    parser.add_function_arguments(function, as_group=False, fail_untyped=True)
    return parser


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {told}" for verb, told in VERBS.items())
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
