"""Templates for schedulers: each is parsed, and what it runs is a command of ours, as far as this machine has the tools."""

from __future__ import annotations

import ast
import os
import shlex
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from visynth.cli import _parser, _spelled
from visynth.commands import COMMANDS
from visynth.core.manifest import read_renders

DEPLOY = ROOT / "configs" / "deploy"


def check_command(line: str) -> None:
    """A command line of a template is one that visynth parses."""
    words = shlex.split(line)
    assert Path(words[0]).name == "visynth"
    verb, rest = words[1], words[2:]
    parser, flags, _ = _parser(verb, COMMANDS[verb])
    told = [str(DEPLOY / "retrain.yaml") if word == "/etc/visynth/retrain.yaml" else word for word in rest]
    parser.parse_args(_spelled([word for word in told if not word.startswith((">", "2>"))], flags))


def commands(text: str) -> list[str]:
    """Commands of ours in a text, in quotes or on lines of their own."""
    return [
        line[line.index("visynth ") :].strip("'\"")
        for line in text.splitlines()
        if "visynth retrain" in line or "visynth doctor" in line
    ]


def test_the_job_itself() -> None:
    check_command(f"visynth retrain --config {DEPLOY / 'retrain.yaml'}")
    assert (DEPLOY / "retrain.yaml").read_text().startswith("# visynth retrain --config")


def test_cron() -> None:
    lines = [line for line in (DEPLOY / "crontab").read_text().splitlines() if line and line[0].isdigit()]
    assert len(lines) == 2
    for line in lines:
        fields = line.split(None, 5)
        assert all(part == "*" or part.isdigit() for part in fields[:5])
        check_command(fields[5])


def test_systemd() -> None:
    service, timer = (DEPLOY / f"visynth-retrain.{kind}" for kind in ("service", "timer"))
    settings = dict(line.split("=", 1) for line in service.read_text().splitlines() if "=" in line and line[0] != "#")
    check_command(settings["ExecStart"])
    assert settings["SuccessExitStatus"] == "75 143"
    assert "OnCalendar=*-*-* 02:30:00" in timer.read_text()
    if shutil.which("systemd-analyze"):
        ran = subprocess.run(["systemd-analyze", "verify", str(timer)], capture_output=True, text=True)
        assert "Failed" not in ran.stderr.replace("Failed to load", "")


@pytest.mark.parametrize("file", ["kubernetes-cronjob.yaml", "kubernetes-render.yaml"])
def test_kubernetes(file: str) -> None:
    told: dict[str, Any] = yaml.safe_load((DEPLOY / file).read_text())
    spec = told["spec"]["jobTemplate"]["spec"] if told["kind"] == "CronJob" else told["spec"]
    if told["kind"] == "CronJob":
        assert told["spec"]["concurrencyPolicy"] == "Forbid"
    assert told["apiVersion"] == "batch/v1"
    fail, ignore = spec["podFailurePolicy"]["rules"]
    assert fail["onExitCodes"]["values"] == [64, 65, 78]
    assert ignore["onPodConditions"] == [{"type": "DisruptionTarget"}]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # which podFailurePolicy asks for
    container = pod["containers"][0]
    assert container["name"] == fail["onExitCodes"]["containerName"]
    if told["kind"] == "CronJob":
        check_command(shlex.join(["visynth", *container["args"]]))
    else:
        assert spec["completionMode"] == "Indexed"
        line = container["args"][0].replace("exec ", "", 1).replace("$JOB_COMPLETION_INDEX", "3")
        check_command(line)
        assert f"--shard-count {spec['completions']}" in line


def test_a_slurm_array_renders_a_whole_set(composition, tmp_path) -> None:
    """The script itself, task by task, in the environment that SLURM gives."""
    script = DEPLOY / "slurm-render.sh"
    heads = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert any("--array=0-15" in line for line in heads)
    assert any("--signal=TERM@120" in line for line in heads)
    visynth = tmp_path / "visynth"
    visynth.write_text(f'#!/bin/sh\nexec {shlex.quote(os.sys.executable)} -m visynth "$@" --shard-size 8\n')
    visynth.chmod(0o755)
    for task in ("4", "5"):  # an array that does not begin with 0
        environment = {
            **os.environ, "VISYNTH": str(visynth), "PER_CLASS": "10", "SLURM_ARRAY_TASK_ID": task,
            "SLURM_ARRAY_TASK_MIN": "4", "SLURM_ARRAY_TASK_COUNT": "2",
        }  # fmt: skip
        words = ["bash", str(script), str(composition[1]), str(tmp_path / "r")]
        subprocess.run(words, env=environment, check=True, capture_output=True, timeout=120)
    assert Counter(r.label for r in read_renders(tmp_path / "r", verify=True).records) == dict.fromkeys(
        composition[0].classes, 10
    )


@pytest.mark.parametrize("file", ["airflow_dag.py", "prefect_flow.py"])
def test_python_schedulers_parse(file: str) -> None:
    tree = ast.parse((DEPLOY / file).read_text())
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    found = [line for text in strings for line in commands(text) if text.startswith("visynth ")]
    lists = [
        [element.value if isinstance(element, ast.Constant) else "/etc/visynth/retrain.yaml" for element in node.elts]
        for node in ast.walk(tree)
        if isinstance(node, ast.List) and node.elts and isinstance(node.elts[0], ast.Constant)
    ]
    found += [shlex.join(words) for words in lists if words[0] == "visynth"]
    assert found
    for line in found:
        check_command(line)
