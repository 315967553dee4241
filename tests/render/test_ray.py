"""Rendering by Ray Data actors on a real local Ray; run with 'scripts/faults'."""

from __future__ import annotations

import os

import pytest

from tests.render.killing import assassin, processes
from visynth.core.manifest import read_renders
from visynth.render.run import make_plan, render_set

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore"),  # Ray's own, and those of its processes
]


@pytest.fixture(scope="module")
def ray():
    """A local Ray with more logical cores than this machine has: its own actors take some."""
    module = pytest.importorskip("ray")
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    module.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield module
    module.shutdown()


def test_the_same_bytes_by_ray(ray, composition, renders, tmp_path) -> None:
    from visynth.render.ray_actors import Ray

    generator, folder = composition
    made = render_set(generator, make_plan(generator, per_class=12), tmp_path / "r", engine=Ray(folder, 2))
    assert made.root() == renders.root()
    plan = make_plan(generator, per_class=12, shard_size=5)
    assert (
        render_set(generator, plan, tmp_path / "q", engine=Ray(folder, 2)).root()
        == render_set(generator, plan, tmp_path / "p").root()
    )


def test_ray_workers_that_are_killed(ray, composition, tmp_path) -> None:
    """20 SIGKILLs of actors' processes: nothing is lost, doubled or torn."""
    from visynth.render.ray_actors import Ray

    generator, folder = composition
    plan = make_plan(generator, per_class=150, shard_size=8)
    whole = render_set(generator, plan, tmp_path / "whole")

    def actors() -> list[int]:
        return [pid for pid, _, words in processes() if "ray::" in words and "_Actor" in words]

    with assassin(actors, kills=20, pause=(0.5, 1.5)) as killed:
        for number in range(40):
            made = render_set(generator, plan, tmp_path / f"r{number}", engine=Ray(folder, 2))
            assert read_renders(made.folder, verify=True).root() == whole.root()
            if len(killed) >= 20:
                break
    assert len(killed) == 20
