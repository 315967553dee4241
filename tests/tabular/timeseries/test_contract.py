"""What every generator of series promises, registered ones and all kinds of series."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tabular.timeseries.sets import sessions, waves
from visynth.core import plugins
from visynth.core.errors import DataError, IntegrityError, UsageError
from visynth.core.loading import load_generator
from visynth.tabular.timeseries import Series, SeriesGenerator
from visynth.tabular.timeseries.fitted import check_held_out

TINY: dict[str, dict[str, Any]] = {
    "ar": {"steps": 12, "width": 24, "mixture": 2},
    "diffusion": {"steps": 12, "width": 16, "depth": 1, "heads": 2, "sampling_steps": 3},
    "vae": {"steps": 12, "latent": 3},
    "bootstrap": {},
    "independent": {},
}
SETS = {"waves": waves, "sessions": sessions}


def test_every_registered_model_is_here() -> None:
    assert sorted(TINY) == plugins.names("series")


@pytest.fixture(scope="module")
def real() -> dict[str, Series]:
    return {name: make() for name, make in SETS.items()}


@pytest.fixture(scope="module", params=[(model, data) for model in sorted(TINY) for data in SETS], ids="-".join)
def fitted(request, real) -> tuple[SeriesGenerator, Series]:
    model, data = request.param
    before = torch.random.get_rng_state()
    generator = plugins.load("series", model)(**TINY[model]).fit(real[data])
    assert torch.equal(before, torch.random.get_rng_state())
    return generator, real[data]


def same(first: Series, second: Series) -> bool:
    return first.hashes() == second.hashes() and first.times.tolist() == second.times.tolist()


def test_equal_seeds_give_equal_series_and_other_seeds_others(fitted) -> None:
    generator, _ = fitted
    state = np.random.get_state()[1].tolist()
    assert same(generator.sample(5, seed=3), generator.sample(5, seed=3))
    assert not same(generator.sample(5, seed=3), generator.sample(5, seed=3 + 2**32))
    assert np.random.get_state()[1].tolist() == state


def test_a_series_does_not_depend_on_how_many_are_drawn(fitted) -> None:
    generator, _ = fitted
    many, few = generator.sample(40, seed=1), generator.sample(3, seed=1)
    assert same(many.take([0, 1, 2]), few)


def test_conditions_are_kept_and_unknown_ones_refused(fitted) -> None:
    generator, series = fitted
    target = series.schema.target
    for label in series.schema.classes:
        assert generator.sample(4, conditions={target: label}).labels() == [label] * 4
    with pytest.raises(UsageError, match=r"no value 'odd'(.|\n)*'colour' is no static"):
        generator.sample(1, conditions={target: "odd", "colour": 1})


def test_values_stay_in_the_real_range_with_the_real_columns(fitted) -> None:
    generator, series = fitted
    drawn = generator.sample(30, seed=2)
    assert drawn.frame().columns.tolist() == series.frame().columns.tolist()
    assert (drawn.frame().dtypes == series.frame().dtypes).all()
    for column in series.schema.channels.modelled:
        own, fake = series.channels[column.name], drawn.channels[column.name]
        assert np.nanmin(fake) >= np.nanmin(own)
        assert np.nanmax(fake) <= np.nanmax(own)
        assert column.nullable or not (np.isnan(fake).any() if fake.dtype.kind == "f" else (fake < 0).any())
    inside = np.ones(len(drawn.times), bool)
    inside[drawn.offsets[:-1]] = False
    assert (np.diff(drawn.times, prepend=0)[inside] > 0).all()


def test_lengths_are_those_asked_for_or_like_the_real_ones(fitted) -> None:
    generator, series = fitted
    assert generator.sample(3, length=5).lengths.tolist() == [5, 5, 5]
    drawn = generator.sample(60, seed=4).lengths
    if len(set(series.lengths.tolist())) == 1:
        assert set(drawn.tolist()) == set(series.lengths.tolist())
    else:
        assert len(set(drawn.tolist())) > 2


def test_a_saved_generator_is_the_same_one(fitted, tmp_path: Path) -> None:
    generator, series = fitted
    generator.save(tmp_path / "g")
    loaded = load_generator(tmp_path / "g")
    assert type(loaded) is type(generator)
    assert loaded.digest == generator.digest
    assert same(loaded.sample(3, seed=5), generator.sample(3, seed=5))
    assert not list((tmp_path / "g").glob("*.p*kl"))
    spec = (tmp_path / "g" / "generator.json").read_text()
    (tmp_path / "g" / "generator.json").write_text(spec.replace(series.schema.classes[0], "other"))
    with pytest.raises(IntegrityError):
        load_generator(tmp_path / "g")


def test_pieces_of_any_size_give_the_same_series(fitted) -> None:
    generator, series = fitted
    condition = {str(series.schema.target): series.schema.classes[0]}
    if not generator.lengthens:
        with pytest.raises(UsageError, match="draws whole series"):
            next(generator.stream(chunk=3))
        with pytest.raises(UsageError, match="length must be in"):
            generator.sample(1, length=1000)
        return
    rows = []
    for chunk in (7, 50):
        parts = list(generator.stream(chunk=chunk, length=50, seed=6, conditions=condition))
        assert all(part.lengths[0] <= chunk for part in parts)
        assert (np.diff(np.concatenate([part.times for part in parts])) > 0).all()
        rows.append({name: np.concatenate([part.channels[name] for part in parts]) for name in parts[0].channels})
    whole = generator.sample(1, length=50, seed=6, conditions=condition)
    for name in rows[0]:
        np.testing.assert_array_equal(rows[0][name], rows[1][name])
        np.testing.assert_array_equal(rows[0][name], whole.channels[name])


def test_what_a_model_cannot_do_is_refused_and_what_it_can_keeps_the_given(fitted) -> None:
    generator, series = fitted
    own = series.take([0, 1])
    if generator.forecasts:
        drawn = generator.forecast(own, 6, seed=1)
        assert drawn.lengths.tolist() == [6, 6]
        assert drawn.names == own.names
        assert drawn.times[0] > own.times[own.offsets[1] - 1]
        assert same(drawn, generator.forecast(own, 6, seed=1))
    else:
        with pytest.raises(UsageError, match="cannot forecast"):
            generator.forecast(own, 6)
    if generator.imputes:
        name = series.schema.numbers[0]
        holes = {**own.channels, name: np.where(np.arange(len(own.times)) % 3 == 0, np.nan, own.channels[name])}
        filled = generator.impute(replace(own, channels=holes), seed=1)
        assert not np.isnan(filled.channels[name]).any()
        kept = ~np.isnan(holes[name])
        np.testing.assert_array_equal(filled.channels[name][kept], own.channels[name][kept])
    else:
        with pytest.raises(UsageError, match="cannot impute"):
            generator.impute(own)


def test_series_that_were_fitted_are_no_test(fitted) -> None:
    generator, series = fitted
    with pytest.raises(DataError, match="series that the generator was fitted to"):
        check_held_out(generator.fitted, series)


@pytest.mark.parametrize("model", sorted(TINY))
def test_what_cannot_be_fitted_is_refused_at_once(model: str) -> None:
    kind = plugins.load("series", model)
    with pytest.raises(UsageError, match="has not been fitted"):
        kind(**TINY[model]).sample(1)
    with pytest.raises(DataError, match="there is 1 series, and 2 are needed"):
        kind(**TINY[model]).fit(waves().take([0]))
    with pytest.raises(UsageError, match="window must be at least 2"):
        kind(**TINY[model]).fit(waves(), window=1)
    with pytest.raises(UsageError, match="fit"):
        kind(**TINY[model]).fit(waves(), colour=3)
    with pytest.raises(UsageError, match="fit takes series"):
        kind(**TINY[model]).fit(waves().frame())
