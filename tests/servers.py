"""Real servers on this machine, each on a port of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path


class Server:
    """One that is started at once and answers when this returns."""

    def __init__(self, *words: str, folder: Path | None = None, **environment: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.words = [sys.executable, *words, "--host", "127.0.0.1", "--port", str(self.port)]
        self.folder, self.environment = folder, os.environ | environment
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.words,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.folder,
            env=self.environment,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert self.process.poll() is None, "the server did not start"
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def pause(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        self.go_on()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def s3() -> Server:
    """An S3 server; it forgets everything when it is stopped."""
    return Server("-m", "moto.server")


def mlflow(folder: Path) -> Server:
    """An MLflow server that keeps everything in a folder."""
    words = ["-m", "mlflow", "server", "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    # Its jobs (of language models) need packages that the registry does not.
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    return Server(*words, folder=folder, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", **quiet)
