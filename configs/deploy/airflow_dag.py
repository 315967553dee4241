"""Airflow: retrain every night, alarm when no run has ended well for eight days."""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    "visynth_retrain_line7",
    schedule="30 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=10)},
) as dag:
    # 75: another run is at work: skip. 64, 65 and 78 are told apart in the log; retries do no harm, as runs are idempotent.
    retrain = BashOperator(
        task_id="retrain",
        bash_command="visynth retrain --config /etc/visynth/retrain.yaml --quiet --json",
        env={"OMP_WAIT_POLICY": "PASSIVE"},
        append_env=True,
        skip_on_exit_code=75,
    )
    alive = BashOperator(
        task_id="alive",
        bash_command="visynth doctor --retrain /srv/visynth/line7 --max-age 8d",
        trigger_rule="all_done",
    )
    retrain >> alive
