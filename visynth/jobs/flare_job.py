"""The folder of an NVFlare job, and its simulator: server and sites as processes of this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from visynth.core.errors import MissingExtra, UsageError, VisynthError
from visynth.core.files import readable_json
from visynth.core.folders import new_folder
from visynth.federated.checks import check_server
from visynth.federated.options import FederatedOptions
from visynth.jobs.configured import configured
from visynth.jobs.federated import become_server

NAME = "visynth"
CLASSES = ["visynth.jobs.flare.FlareServer", "visynth.jobs.flare.FlareClient"]
PATHS = ("data", "masks", "groups")
LOG_TAIL = 30  # lines that are shown of a failed simulation


def check_installed() -> None:
    """Raises MissingExtra without NVFlare."""
    if find_spec("nvflare") is None:
        raise MissingExtra("engine 'nvflare' needs NVFlare: pip install 'visynth[federated]'.")


def write_job(folder: Path, config: str, options: FederatedOptions, simulated: bool = False) -> Path:
    """The job of a federated training, for ``nvflare job submit`` or the simulator.

    Args:
        folder: of the job; refused where it holds anything else.
        config: of ``visynth fit``, as YAML text.
        options: its part about sites.
        simulated: whether sites are told where their data are; else each has a file of its own.
    """
    own = {name: _absolute(arguments) for name, arguments in options.sites.items()} if simulated else None
    shared = config if simulated else _without_sites(config)
    server = {"path": CLASSES[0], "args": {"config": shared}}
    with new_folder(folder) as made:
        # The name first: 'nvflare job submit' 2.9 writes the file anew from the branch that holds its first value.
        meta = {
            "name": NAME,
            "resource_spec": {},
            "min_clients": options.min_sites or len(options.sites),
            "deploy_map": {"app": ["@ALL"]},
        }
        (made / "meta.json").write_text(json.dumps(meta, indent=2), encoding="utf-8")
        _write(made / "app" / "config" / "config_fed_server.json", {
            "format_version": 2, "workflows": [{"id": "rounds", **server}], "components": [],
            "task_data_filters": [], "task_result_filters": [],
        })  # fmt: skip
        client = {"path": CLASSES[1], "args": {"config": shared, "sites": own}}
        _write(made / "app" / "config" / "config_fed_client.json", {
            "format_version": 2, "executors": [{"tasks": ["train"], "executor": client}], "components": [],
            "task_data_filters": [], "task_result_filters": [],
        })  # fmt: skip
    return folder


def simulate(root: Path, config: str, options: FederatedOptions) -> None:
    """Run a job on NVFlare's simulator: a process for each site, messages over loopback.

    Args:
        root: the run folder; the simulator works in ``<root>.work/``, a sibling.
        config: of ``visynth fit``, as YAML text.
        options: its part about sites.

    Raises:
        MissingExtra: NVFlare is not installed.
        VisynthError: the simulation failed; the end of its log is told.
    """
    check_installed()
    work = root.with_name(root.name + ".work")
    job = write_job(work / "job", config, options, simulated=True)
    log = work / "simulation.log"
    with tempfile.TemporaryDirectory(dir=work, prefix="nvflare-") as space, open(log, "wb") as stream:
        _write(Path(space) / "local" / "resources.json", {"format_version": 2, "class_allow_list": [*CLASSES]})
        words = [sys.executable, "-m", "nvflare.private.fed.app.simulator.simulator", str(job), "-w", space,
                 "-c", ",".join(options.sites), "-t", str(len(options.sites))]  # fmt: skip
        code = subprocess.run(words, stdout=stream, stderr=subprocess.STDOUT, check=False).returncode
    if code != 0 or not (root / "finished.json").is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        told = [line for line in lines if "Error" in line or "Exception" in line][-LOG_TAIL:] or lines[-LOG_TAIL:]
        raise VisynthError("NVFlare's simulation ended without a generator. " + f"{log} says:\n" + "\n".join(told))


def make_job(training: str | Path, out: str | Path) -> Path:
    """The job of a configuration, for sites that say themselves where their data are.

    Raises:
        UsageError: a configuration without a federated part, or one that no server can respect.
    """
    cli = configured(["--config", str(training)], logger=False)
    options = cli.config_init["federated"]
    if options is None:
        raise UsageError(f"{training} has no federated part: name the sites there (federated.sites).")
    text = cli.parser.dump(cli.config, skip_none=False)
    become_server(cli, options)
    check_server(cli.trainer, cli.model, options)
    return write_job(Path(out), text, options)


def _absolute(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with whole paths: the sites' processes work elsewhere."""
    return {
        name: str(Path(value).resolve()) if name in PATHS and isinstance(value, str) and Path(value).exists() else value
        for name, value in arguments.items()
    }


def _without_sites(config: str) -> str:
    """The configuration with the sites' names alone: where their data lie is not told to others."""
    values = yaml.safe_load(config)
    values["federated"]["sites"] = {name: {} for name in values["federated"]["sites"]}
    return str(yaml.safe_dump(values, sort_keys=False))


def _write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(readable_json(values))
