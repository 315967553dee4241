"""The installation and this machine."""

from __future__ import annotations

SKEW = 3600.0  # seconds by which the clocks of two machines may differ


def doctor(retrain: str | None = None, max_age: str = "") -> int:
    """Check the installation: versions, weights of the default features, augmentation backend, cores; or a scheduled job.

    Args:
        retrain: folder of a retraining job (its --out): say how its last run went.
        max_age: exit with 75 where that job has not ended well for longer than this, like 8d: for alerts when the scheduler
            itself has died.
    """
    import os

    if retrain is not None or max_age:
        return _job(retrain, max_age)

    from visynth.core.files import cache_folder
    from visynth.core.report import environment
    from visynth.data.transforms import backend
    from visynth.metrics.extractors import efficientnet_lite0

    for name, value in environment().items():
        print(f"{name:<26}{value}")
    print(f"{'cores':<26}{os.cpu_count()}")
    print(f"{'features':<26}{efficientnet_lite0().name}, weights found")
    print(f"{'classic augmentation':<26}{backend()}")
    print(f"{'feature cache':<26}{cache_folder()}")
    return 0


def _job(out: str | None, max_age: str) -> int:
    """How a scheduled job is."""
    import sys

    from visynth.core.errors import UsageError
    from visynth.jobs.retrain.options import age_seconds
    from visynth.jobs.retrain.telling import last_success

    if out is None:
        raise UsageError("max_age is of a retraining job: give its folder with --retrain.")
    limit = age_seconds(max_age) if max_age else float("inf")
    age, state = last_success(out)
    if not state:
        print(f"visynth: {out} has no run that ended well", file=sys.stderr)
        return 75
    print(f"{out}: {state['outcome']}, {age / 3600:.1f} h ago; champion {state['champion'][:12] or 'none'}")
    for reason in state["reasons"]:
        print(f"  {reason}")
    if age < -SKEW:
        print(
            f"visynth: the last run that ended well lies {-age / 3600:.1f} h in the future: a clock was wrong. The next run that "
            "ends well sets it right.",
            file=sys.stderr,
        )
        return 75
    if age > limit:
        print(
            f"visynth: the last run that ended well is older than {max_age}: is the scheduler alive?", file=sys.stderr
        )
        return 75
    return 0
