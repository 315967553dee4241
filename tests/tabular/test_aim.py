"""AIM: the budget is spent and not exceeded, tables that matter are chosen, and rows have what was counted.

JAX warns at every fork of a process that has it, so whatever runs it has a process of its own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.forked import run_forked
from tests.tabular.test_private import DOMAIN, machines
from visynth.core.errors import UsageError
from visynth.privacy.accounting import Release, epsilon_of, statement
from visynth.tabular import AIM, Synthesizer, TablePrivacy
from visynth.tabular.aim import _Rounds

SMALL: dict[str, Any] = {"estimation_steps": 60, "rounds": 12, "components": 100, "steps": 200, "most_bins": 6}
KEY = "7e" * 32


def alone(work: Any, tmp_path: Path, *arguments: Any) -> None:
    run_forked(work, *arguments, log=tmp_path / "log", seconds=240)


def rounds_of(budget: float, **options: Any) -> _Rounds:
    """Four columns of 3, 3, 2 and 2 codes: the second repeats the first, nothing else goes together."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 3, 3000)
    codes = np.stack([first, first, rng.integers(0, 2, 3000), rng.integers(0, 2, 3000)], axis=1).astype(np.int32)
    workload = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    given = {"rounds": 8, "estimation_steps": 100, "most_megabytes": 8.0, **options}
    return _Rounds(codes, [3, 3, 2, 2], workload, budget, given, KEY)


def _what_goes_together_is_counted() -> None:
    rounds = rounds_of(0.5)
    rows = rounds.run()
    assert (0, 1) in [clique for clique, _, _ in rounds.measured]
    assert (rows[:, 0] == rows[:, 1]).mean() > 0.98
    shares = np.bincount(rows[:, 0], minlength=3) / len(rows)
    assert np.abs(shares - np.bincount(rounds.codes[:, 0], minlength=3) / 3000).max() < 0.02
    costs = sum(1 / (2 * noise**2) for _, _, noise in rounds.measured)
    assert 0.89 * 0.5 < costs < 0.5
    assert abs(rounds.spent - 0.5) < 1e-9


def test_what_goes_together_is_counted_and_the_budget_is_spent(tmp_path: Path) -> None:
    alone(_what_goes_together_is_counted, tmp_path)


def _a_small_model_counts_no_large_tables() -> None:
    rounds = rounds_of(0.5, most_megabytes=1e-9)
    rounds.run()
    assert all(len(clique) == 1 for clique, _, _ in rounds.measured)
    assert abs(rounds.spent - 0.5) < 1e-9


def test_a_small_model_counts_no_large_tables(tmp_path: Path) -> None:
    alone(_a_small_model_counts_no_large_tables, tmp_path)


def test_choices_are_those_of_the_exponential_mechanism(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Rounds, "_fits", lambda self, clique: True)  # which needs the library
    rounds, epsilon, noise = rounds_of(1e9), 0.4, 1.0
    rows = np.random.default_rng(1).integers(0, 2, (3000, 4)).astype(np.int32)
    cliques, scores, sensitivity = rounds.scores(rows, noise)
    scores = scores / 500  # so that several have a chance
    rounds.scores = lambda *_: (cliques, scores, sensitivity)  # type: ignore[method-assign]
    counts = dict.fromkeys(cliques, 0)
    for number in range(4000):
        rounds.key = f"{number:064x}"
        counts[rounds._choose(rows, noise, epsilon)] += 1
    chances = np.exp(epsilon * scores / (2 * sensitivity))
    chances /= chances.sum()
    assert 0.02 < chances.min() < 0.5 * chances.max()
    found = np.array([counts[clique] for clique in cliques]) / 4000
    assert np.abs(found - chances).max() < 4 * np.sqrt(0.25 / 4000)
    assert abs(rounds.spent - 4000 * epsilon**2 / 8) < 1e-9


def test_one_row_changes_a_score_by_no_more_than_the_sensitivity() -> None:
    rounds = rounds_of(1.0)
    rows = np.random.default_rng(1).integers(0, 2, (3000, 4)).astype(np.int32)
    _, before, sensitivity = rounds.scores(rows, 1.0)
    changes = []
    for gone in (0, 1, 2):
        other = rounds_of(1.0)
        other.codes = np.delete(other.codes, gone, axis=0)
        other._answers = rounds._answers  # type: ignore[method-assign]  # the model is as it was
        changes.append(np.abs(other.scores(rows, 1.0)[1] - before).max())
    assert 0 < max(changes) <= sensitivity


def test_weights_are_how_much_of_the_workload_a_table_is_in() -> None:
    """By hand: for pairs of three columns, a pair meets itself twice and the others once each."""
    rounds = _Rounds(np.zeros((1, 3), np.int32), [2, 2, 2], [(0, 1), (0, 2), (1, 2)], 1.0, {}, KEY)
    pairs, singles = [(0, 1), (0, 2), (1, 2)], [(0,), (1,), (2,)]
    assert rounds.candidates() == {**dict.fromkeys(singles, 2.0), **dict.fromkeys(pairs, 4.0)}


def _privately(folder: str) -> None:
    options = TablePrivacy(epsilon=20.0, domain=DOMAIN, key_file=str(Path(folder) / "key"))
    few = machines()[["wear", "maker", "kind"]]
    models = [AIM(**SMALL).fit(few, target="kind", privacy=options) for _ in range(2)]
    assert models[0].digest == models[1].digest  # of one key: a fit that was killed gives the same
    spent = models[0].fitted.privacy
    releases = [Release(**release) for release in spent["releases"]]
    assert 18 < spent["epsilon"] == epsilon_of(releases, spent["delta"]) <= 20
    assert "epsilon by prv" not in spent
    assert spent["budget spent"] <= spent["budget (zCDP)"] * (1 + 1e-9)
    assert spent["budget (zCDP)"] == 1 / (2 * releases[1].noise ** 2)
    models[0].save(Path(folder) / "g")
    loaded = Synthesizer.load(Path(folder) / "g")
    rows = loaded.sample(2000, seed=1)
    assert rows.equals(models[0].sample(2000, seed=1))
    assert (loaded.sample(30, conditions={"kind": "bad"}, seed=3)["kind"] == "bad").all()
    wear = rows.groupby("kind")["wear"].mean()
    assert wear["bad"] - wear["good"] > 0.2  # of 0.45
    text = "".join(p.read_text(errors="ignore") for p in (Path(folder) / "g").iterdir())
    assert "unique" not in text


@pytest.mark.timeout(300)
def test_a_private_fit_keeps_what_goes_together_and_says_what_it_spent(tmp_path: Path) -> None:
    alone(_privately, tmp_path, str(tmp_path))


def test_without_privacy_all_pairs_are_counted() -> None:
    from visynth.tabular import PrivateMarginals

    options = {"components": 50, "steps": 100, "most_bins": 6}
    plain, own = (kind(**options).fit(machines(500), target="kind") for kind in (PrivateMarginals, AIM))
    assert plain.sample(50, seed=1).equals(own.sample(50, seed=1).astype(plain.sample(1).dtypes))


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(UsageError, match="rounds and estimation_steps must be at least 1"):
        AIM(rounds=0)
    with pytest.raises(UsageError, match="take accountant 'rdp'"):
        AIM(**SMALL).fit(
            machines(500), target="kind", privacy=TablePrivacy(epsilon=20.0, domain=DOMAIN, accountant="prv")
        )
    choices = Release("choices", 2.0, gaussian=False)
    with pytest.raises(UsageError, match="counted by Renyi divergences alone"):
        epsilon_of([choices], 1e-5, "prv")
    assert "epsilon by prv" not in statement([choices], 1e-5, "rdp", "row", "all")
    assert epsilon_of([choices], 1e-5) == epsilon_of([Release("counts", 2.0)], 1e-5)


def test_nothing_of_jax_is_needed_until_a_private_fit() -> None:
    import subprocess
    import sys

    code = "import sys, visynth.tabular; visynth.tabular.AIM(); sys.exit('jax' in sys.modules or 'mbi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ}, check=False).returncode == 0
