"""Prefect: retrain every night. ``python prefect_flow.py`` serves it."""

from __future__ import annotations

import subprocess

from prefect import flow, task

CONFIG = "/etc/visynth/retrain.yaml"
NOT_AGAIN = (64, 65, 78)  # wrong arguments, bad data, another configuration: trying again cannot help


def _worth_another_try(task, run, state) -> bool:
    """Whether a failed run is to be tried again."""
    error = state.result(raise_on_failure=False)
    return not (isinstance(error, subprocess.CalledProcessError) and error.returncode in NOT_AGAIN)


@task(retries=3, retry_delay_seconds=600, retry_condition_fn=_worth_another_try)
def retrain(config: str = CONFIG) -> str:
    """The outcome as JSON. Exit code 75 means that another run is at work: that is no failure."""
    ran = subprocess.run(
        ["visynth", "retrain", "--config", config, "--quiet", "--json"], capture_output=True, text=True
    )
    if ran.returncode == 75:
        return ran.stderr
    ran.check_returncode()
    return ran.stdout


@flow(name="visynth-retrain-line7")
def nightly() -> str:
    """One run."""
    return retrain()


if __name__ == "__main__":
    nightly.serve(cron="30 2 * * *", limit=1)
