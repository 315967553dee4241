"""The command line: verbs, words as people type them, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from typing import get_args

import pytest

from visynth import commands
from visynth.cli import VERBS, _parser, _spelled, main


class TestCommandLine:
    def test_help_names_every_verb_and_every_verb_exists(self, capsys) -> None:
        assert main(["--help"]) == 0
        said = capsys.readouterr().out
        assert all(re.search(rf"^  {verb}\s", said, re.M) for verb in VERBS)
        assert {name.split(".")[0] for name in commands.COMMANDS} == set(VERBS)

    @pytest.mark.parametrize("buffered", ["", "1"])
    def test_a_reader_that_has_seen_enough_is_no_fault(self, buffered: str, monkeypatch) -> None:
        monkeypatch.setenv("PYTHONUNBUFFERED", buffered)
        command = [sys.executable, "-m", "visynth", "--help"]
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "wb") as gone:
            ended = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, text=True)
        assert (ended.returncode, ended.stderr) == (141, "")

    def test_help_is_quick(self) -> None:
        times = []
        for _ in range(3):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "visynth", "--help"], check=True, capture_output=True)
            times.append(time.perf_counter() - started)
        assert min(times) < 0.5

    @pytest.mark.parametrize("name", sorted(commands.COMMANDS))
    def test_every_option_of_every_verb_is_explained(self, name: str, capsys) -> None:
        assert main([*name.split("."), "--help"]) == 0
        said = capsys.readouterr().out
        assert "--print_config" in said
        for flag in _parser(name, commands.COMMANDS[name])[1]:
            assert re.search(rf"--{flag.replace('_', '-')}(, --no-\S+)?( [A-Z{{].*)?\n?\s+\S", said), flag

    @pytest.mark.parametrize(
        ("words", "code", "told"),
        [
            ([], 64, ""),
            (["trail"], 64, "did you mean 'trial'"),
            (["render"], 64, "arguments are required: generator, out"),
            (["render", "--generator", "x", "--out", "y", "--per-clas", "3"], 64, "--per-clas"),
            (["render", "--generator", "nothing", "--out", "y"], 65, "no generator folder"),
            (["fit", "dream"], 64, ""),
            (["preflight", "--data", "nothing", "--rare", "a"], 65, "there is no folder nothing"),
            (["gate", "--report", "nothing"], 65, "cannot be read as a report"),
            (["render", "--generator", "x", "--out", "y", "--workers", "-1"], 64, "workers and encoders at least 0"),
        ],
    )
    def test_exit_codes(self, words, code: int, told: str, capsys, tmp_path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(words) == code
        assert told in capsys.readouterr().err

    def test_the_whole_way_by_command(self, medium, tmp_path, capsys, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        data = f"{medium}/images --masks {medium}/masks --groups {medium}/groups.csv"
        assert main(f"preflight {data} --rare spot,scratch --out p --json".split()) == 0
        assert json.loads(capsys.readouterr().out)["suits"]["spot"]["kind"] == "composition"
        assert (tmp_path / "p" / "groups.csv").is_file()
        assert main([*f"fit compose {data} --out g --settings".split(), "{spot: {shift: 4}}"]) == 0
        assert (
            main(["render", "g", "--out", "r", "--balance", "all", "--to", "30", "--workers", "0", "--json", "--quiet"])
            == 0
        )
        root = json.loads(capsys.readouterr().out.splitlines()[-1])["root"]
        assert (
            main(["render", "--generator", "g", "--out", "r", "--balance", "all", "--to", "31", "--workers", "0"]) == 78
        )
        assert main(["renders", "verify", "r"]) == 0
        assert root in capsys.readouterr().out
        assert main(["renders", "export", "r", "--format", "coco", "--out", "coco"]) == 0
        config = tmp_path / "render.yaml"
        config.write_text("generator: g\nout: r2\nper_class: 2\nworkers: 0\nquiet: true\n")
        assert main(["render", "--config", str(config)]) == 0
        assert main(["render", "--config", str(config), "--print_config"]) == 0
        assert "per_class: 2" in capsys.readouterr().out

    def test_trial_and_gate_by_command(self, medium, tmp_path, capsys) -> None:
        data = f"{medium}/images --masks {medium}/masks --groups {medium}/groups.csv"
        less = "--draws 1 --folds 2 --synthetic 8 --render 2 --learned none --no-others --dense false --workers 0"
        assert main(f"trial {data} --rare spot --out {tmp_path}/t {less} --json --quiet".split()) == 0
        verdict = json.loads(capsys.readouterr().out)[0]
        assert verdict["class"] == "spot"
        code = main(f"gate {tmp_path}/t --fail-on-reject --level 0.025".split())
        assert code in ({"helps": (0, 21), "does not": (20,), "cannot tell": (21,)}[verdict["answer"]])
        assert (tmp_path / "t" / "recipe.yaml").is_file()
        capsys.readouterr()
        assert main(f"gate --plan {medium}/images --groups {medium}/groups.csv --classes spot".split()) == 0
        assert "a test sees gains from" in capsys.readouterr().out


FLAGS = {"data": "str", "rare": "list[str]", "classes": "list[str] | None", "cache": "bool", "no_masks": "str | None"}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("DIR --rare a", ["--data=DIR", "--rare+=a"]),
        ("--rare a,b --rare c", ["--rare+=a", "--rare+=b", "--rare+=c"]),
        ("--rare=a,b", ["--rare+=a", "--rare+=b"]),
        ("--classes [a,b]", ["--classes=[a,b]"]),
        ("--cache --data D", ["--cache=true", "--data", "D"]),
        ("--no-cache D", ["--cache=false", "D"]),
        ("--cache false --data=D", ["--cache=false", "--data=D"]),
        ("--no-masks nsa --no-rare", ["--no_masks", "nsa", "--no-rare"]),  # a flag of that name, and one of no such
        ("--config f.yaml", ["--config", "f.yaml"]),
        ("--rare", ["--rare+="]),
        ("--rare --cache", ["--rare+=", "--cache=true"]),
        ("--rare a, --cache", ["--rare+=a", "--cache=true"]),
    ],
)
def test_words_as_people_type_them(typed: str, meant: list[str]) -> None:
    assert _spelled(typed.split(), FLAGS) == meant


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("trial D --mask M --rare a", "did you mean --masks?"),  # an abbreviation says less than it seems
        ("trial D --rare a --learned stylegan", "'inpaint', 'diffusion', 'projection'"),
        ("evaluate R", "required: data"),
        ("project G --data D --out o --fit stretch", "'crop', 'pad', 'squash'"),
    ],
)
def test_wrong_words_are_told_with_what_is_allowed(typed: str, told: str, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(typed.split()) == 64
    assert told in capsys.readouterr().err


def test_choices_stand_in_the_help_and_are_those_of_the_rooms(capsys) -> None:
    """Commands name choices without importing what decides them."""
    from visynth.core.balance import WORDS
    from visynth.core.pictures import FITS
    from visynth.generators.foundation import MODES
    from visynth.jobs import explore
    from visynth.jobs.trial.options import Learned
    from visynth.render import exports

    told = {
        "trial": get_args(Learned), "render": [f"'{w}'" if " " in w else w for w in WORDS], "project": FITS, "fit pipeline": sorted(MODES),
        "renders export": exports.FORMATS, "explore": explore.FORMATS,
    }  # fmt: skip
    for verb, choices in told.items():
        assert main([*verb.split(), "--help"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "{" + ",".join(choices).replace("'", "") + "}" in said.replace("'", ""), verb


def test_lazy_packages_list_their_names() -> None:
    import visynth.callbacks
    import visynth.lightning_modules

    assert {"StyleGAN2", "Diffusion", "GeneratorData"} <= set(dir(visynth.lightning_modules))
    assert "Any" not in dir(visynth.lightning_modules)
    assert "KIDCallback" in dir(visynth.callbacks)
