"""Federated training on NVFlare: its server and clients carry the messages, what is in them is visynth's.

NVFlare brings identities, transport and the life of a job (https://nvflare.readthedocs.io, Apache-2.0); the arithmetic is
:mod:`visynth.federated`, so that a run here and one in process give the same weights. Sites and server have visynth installed:
a job carries a configuration, and no code.
"""

from __future__ import annotations

import math
import os
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from nvflare.apis.dxo import DXO, DataKind, from_shareable
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.workflows.model_controller import ModelController

from visynth.core.errors import UsageError, VisynthError
from visynth.federated.site import Site
from visynth.jobs.configured import configured
from visynth.jobs.federated import make_site, prepare_site
from visynth.jobs.train import train

TASK, MESSAGE = "train", "message"
SITE_FILE = "VISYNTH_SITE"  # variable with the path of a site's own file


class FlareServer(ModelController):  # type: ignore[misc]
    """The server's part of a job: a training whose rounds are NVFlare's tasks.

    Args:
        config: the configuration of ``visynth fit``, as YAML text.
    """

    def __init__(self, config: str) -> None:
        # A site that fails is one that does not answer: how many are enough is decided by visynth.
        super().__init__(persistor_id="", ignore_result_error=True)
        self.config = config

    def run(self) -> None:
        """Called by NVFlare, once for a job."""
        cli = _configured(self.config)
        timeout = math.ceil(cli.config_init["federated"].round_timeout)

        def exchange(message: bytes, sites: Sequence[str]) -> Mapping[str, bytes]:
            model = FLModel(params={MESSAGE: message}, params_type=ParamsType.FULL)
            # All of them, or the time is over: whoever is among the first few is no better than the rest.
            answers = self.send_model_and_wait(
                task_name=TASK, data=model, targets=list(sites), min_responses=len(sites), timeout=timeout
            )
            if self.abort_signal.triggered:
                raise VisynthError("NVFlare ended the job; the same job goes on from the last checkpoint.")
            return {str(answer.meta["client_name"]): bytes(answer.params[MESSAGE]) for answer in answers}

        train(cli, exchange)


class FlareClient(Executor):  # type: ignore[misc]
    """A site's part of a job. Its name is the one that NVFlare knows it by.

    Args:
        config: the configuration of ``visynth fit``, as YAML text.
        sites: by name a site's own arguments of the data, for the simulator; None: each site reads the YAML file that the variable
            ``VISYNTH_SITE`` names there.
    """

    def __init__(self, config: str, sites: dict[str, dict[str, Any]] | None = None) -> None:
        super().__init__()
        self.config, self.sites = config, sites
        self.site: Site | None = None

    def execute(self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal) -> Shareable:
        """One round. An error is told in full in the site's own log; to the server, and in the log of errors, which NVFlare may
        send there, only that there was one."""
        if task_name != TASK:
            return make_reply(ReturnCode.TASK_UNKNOWN)
        try:
            if self.site is None:
                self.site = self._made(str(fl_ctx.get_identity_name()))
            answer = self.site.answer(bytes(from_shareable(shareable).data[MESSAGE]))
        except Exception as error:
            self.log_info(fl_ctx, f"{type(error).__name__}: {error}\n{traceback.format_exc()}", fire_event=False)
            self.log_error(
                fl_ctx, f"the round failed by {type(error).__name__}; log.txt has all of it", fire_event=False
            )
            return make_reply(ReturnCode.EXECUTION_EXCEPTION)
        return DXO(DataKind.WEIGHTS, data={MESSAGE: answer}).to_shareable()

    def _made(self, name: str) -> Site:
        cli = _configured(self.config, logger=False)
        options = cli.config_init["federated"]
        prepare_site(cli, options)
        return make_site(cli, options, name, own_data(name) if self.sites is None else self.sites[name])


def own_data(name: str) -> dict[str, Any]:
    """A site's own arguments of the data, from the file that it keeps.

    Raises:
        UsageError: there is no such file, or it holds no mapping.
    """
    place = os.environ.get(SITE_FILE)
    if not place or not Path(place).is_file():
        raise UsageError(
            f"site {name}: set {SITE_FILE} to the path of a YAML file with this site's arguments of the data, for instance "
            f"'data: /images' (now {place!r})."
        )
    values = yaml.safe_load(Path(place).read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise UsageError(
            f"site {name}: {place} must hold arguments of the data as a mapping, but holds {type(values).__name__}."
        )
    return values


def _configured(text: str, logger: bool = True) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(text, encoding="utf-8")
        return configured(["--config", str(file)], logger)
