"""One contract for every registered table generator, and the faults of others that it must not have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import visynth
from tests.tabular.conftest import TINY
from tests.tabular.tables import dependent
from visynth.core import plugins
from visynth.core.errors import DataError, IntegrityError, UsageError
from visynth.tabular import CTGAN, Between, Diffusion, GaussianCopula, IndependentMarginals, Masked, Synthesizer, infer
from visynth.tabular.conditions import NO_CONDITIONS
from visynth.tabular.draws import BLOCK, Draw
from visynth.tabular.fidelity import fidelity, summary

Get = Callable[[str], Synthesizer]
NAMES = sorted(plugins.BUILT_IN["synthesizers"])


def test_the_suite_covers_every_registered_generator() -> None:
    assert set(NAMES) == set(TINY)


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_frames_in_any_chunks(name: str, fitted: Get) -> None:
    model = fitted(name)
    state, torch_state = np.random.get_state()[1].copy(), torch.random.get_rng_state()
    whole = model.sample(BLOCK + 300, seed=7)
    assert whole.equals(model.sample(BLOCK + 300, seed=7))
    assert whole.iloc[:20].equals(model.sample(20, seed=7))  # of the batch too: evaluation mode
    assert not whole.equals(model.sample(BLOCK + 300, seed=8))
    chunks = pd.concat(list(model.stream(BLOCK + 300, seed=7, chunk=500)), ignore_index=True)
    assert chunks.equals(whole)
    assert (np.random.get_state()[1] == state).all()
    assert torch.equal(torch.random.get_rng_state(), torch_state)


@pytest.mark.parametrize("name", NAMES)
def test_samples_have_the_columns_types_and_missing_values_of_the_data(
    name: str, fitted: Get, frame: pd.DataFrame
) -> None:
    sample = fitted(name).sample(1500, seed=1)
    assert list(sample.columns) == list(frame.columns)
    assert sample.dtypes.to_dict() == frame.dtypes.to_dict()
    assert sample["key"].is_unique
    assert sample["empty"].isna().all()
    assert (sample["unit"] == "mm").all()
    for column in ("sex", "visits", "gain", "day", "seen", "smoker"):
        assert sample[column].notna().all(), column
    assert set(sample["city"].unique()) <= {"Rome", "Oslo", "Bern"}
    assert sample["price"].str.fullmatch(r"\d+\.\d\d").all()
    assert pd.to_datetime(sample["day"].astype(str), format="%Y%m%d").dt.year.eq(2023).all()
    if name != "oversampler":  # it makes few missing values: a neighbour that has one is not enough
        tolerance = 0.02 if name in ("copula", "marginals") else 0.1  # others are hardly trained here
        assert abs(sample["income"].isna().mean() - frame["income"].isna().mean()) < tolerance + 0.03


@pytest.mark.parametrize("name", NAMES)
def test_rows_satisfy_conditions_or_an_error_says_why(name: str, fitted: Get) -> None:
    model = fitted(name)
    assert (model.sample(50, conditions={"sex": "male"}, seed=2)["sex"] == "male").all()
    if name == "oversampler":
        with pytest.raises(UsageError, match="conditions can name 'sex', but not 'city'"):
            model.sample(5, conditions={"city": "Bern"})
        return
    # The second category column and beyond, two at once: CTGAN's own code takes the wrong place of the vector.
    both = model.sample(40, conditions={"city": "Bern", "smoker": True}, seed=2)
    assert (both["city"] == "Bern").all()
    assert both["smoker"].all()
    mixed = model.sample(40, conditions={"income": {"low": 30, "high": 60}, "answer": ["no", None]}, seed=2)
    assert mixed["income"].between(30, 60).all()
    assert set(mixed["answer"].fillna("gone")) <= {"no", "gone"}
    if model.imputes:
        rows = pd.DataFrame({"sex": ["male", "female", None], "income": [41.25, None, 33.5]})
        given = model.sample(3, conditions=rows)
        assert given["sex"].tolist()[:2] == ["male", "female"]
        assert given["income"].tolist()[::2] == [41.25, 33.5]


def test_conditions_that_cannot_be_are_told_together(fitted: Get) -> None:
    with pytest.raises(UsageError) as error:
        fitted("masked").sample(
            5,
            conditions={
                "sex": "none",
                "colour": 1,
                "key": "AB-1",
                "city": {"low": 1},
                "gain": None,
                "income": Between(9, 1),
            },
        )
    words = str(error.value)
    for part in (
        "column 'sex' has no value 'none'; it has 'female', 'male'", "there is no column 'colour'", "'key' is of kind id",
        "column 'city' is categorical: it has no ranges", "column 'gain' has no missing values", "no value is between 9 and 1",
    ):  # fmt: skip
        assert part in words
    with pytest.raises(DataError, match="could not be had in 5000 draws each: tvae hardly ever makes such rows"):
        fitted("tvae").sample(2, conditions={"income": 41.23, "gain": {"low": 2000}})
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(UsageError, match="n must be a whole number"):
            fitted("marginals").sample(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_stored_generators_are_the_same_ones(name: str, fitted: Get, tmp_path: Path) -> None:
    model = fitted(name)
    folder = model.save(tmp_path / "generator")
    files = {path.name for path in folder.iterdir()}
    assert files == {"generator.json", "model.safetensors", "members.jsonl", "README.md", ".visynth.json"}
    loaded = visynth.load_generator(folder)
    assert type(loaded) is type(model)
    assert loaded.digest == model.digest
    assert loaded.sample(30, seed=3).equals(model.sample(30, seed=3))
    # Twice the same folder, two seeds: not the same rows after every load.
    assert not visynth.load_generator(folder).sample(30, seed=4).equals(loaded.sample(30, seed=3))
    for file in ("generator.json", "model.safetensors", "members.jsonl"):
        copied = shutil.copytree(folder, tmp_path / f"altered-{file}")
        data = bytearray((copied / file).read_bytes())
        place = data.index(b"female") if b"female" in data else len(data) // 2
        data[place] ^= 1
        (copied / file).write_bytes(bytes(data))
        with pytest.raises(IntegrityError, match=r"was altered|is not|not JSON"):
            visynth.load_generator(copied)


def test_a_generator_of_tables_is_no_generator_of_images(fitted: Get, tmp_path: Path) -> None:
    from visynth.generators.base import load_generator

    folder = fitted("marginals").save(tmp_path / "g")
    with pytest.raises(UsageError, match="makes rows of tables, not images"):
        load_generator(folder)
    with pytest.raises(IntegrityError, match="holds a IndependentMarginals generator, not a Masked"):
        Masked.load(folder)


def test_fingerprints_tell_rows_apart_and_can_be_left_out(fitted: Get, frame: pd.DataFrame, tmp_path: Path) -> None:
    members = fitted("marginals").fitted.members
    assert len({m.sha256 for m in members}) == len(members) == len(frame)
    assert {m.label for m in members} == {"female", "male"}
    bare = IndependentMarginals().fit(frame, members="none").save(tmp_path / "g")
    assert (bare / "members.jsonl").read_text() == ""


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_fitted_says_so(name: str) -> None:
    model = plugins.load("synthesizers", name)(**TINY[name])
    with pytest.raises(UsageError, match="has not been fitted"):
        model.sample(3)


@pytest.mark.parametrize("name", ["masked", "copula", "marginals"])
def test_missing_cells_are_filled_and_others_kept(name: str, fitted: Get, frame: pd.DataFrame) -> None:
    model, holes = fitted(name), frame.head(60).copy()
    holes.loc[::3, "income"] = np.nan
    holes.loc[1::3, "sex"] = None
    holes.loc[2::3, "children"] = pd.NA
    filled = model.impute(holes, seed=1)
    for column in ("income", "sex", "children", "answer"):
        assert filled[column].notna().all()
        known = holes[column].notna()
        assert (filled[column][known] == holes[column][known]).all()
    assert filled["key"].equals(holes["key"])
    assert filled.dtypes.to_dict() == holes.dtypes.to_dict()
    assert filled.equals(model.impute(holes, seed=1))


@pytest.mark.parametrize("name", sorted({"ctgan", "tvae", "diffusion", "oversampler"}))
def test_who_cannot_impute_says_so(name: str, fitted: Get, frame: pd.DataFrame) -> None:
    with pytest.raises(UsageError, match=f"{name} cannot impute: fit 'masked' or 'copula'"):
        fitted(name).impute(frame)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["numbers", "words", "one"])
def test_tables_of_one_kind_of_column(name: str, kind: str) -> None:
    rows = 60
    g = np.random.default_rng(0)
    tables = {
        "numbers": pd.DataFrame({"x": g.random(rows), "y": g.random(rows)}),
        "words": pd.DataFrame({"x": g.choice(list("ab"), rows), "y": g.choice(list("cd"), rows)}),
        "one": pd.DataFrame({"y": g.choice(list("cd"), rows)}),
    }
    arguments = {**TINY[name], **({"steps": 2} if "steps" in TINY[name] else {})}
    model = plugins.load("synthesizers", name)(**arguments)
    if name == "oversampler" and kind != "words":
        with pytest.raises((UsageError, DataError), match=r"name the class column|no modelled column"):
            model.fit(tables[kind], target="y" if kind == "one" else None)
        return
    target = "y" if kind != "numbers" else None
    assert len(model.fit(tables[kind], target=target).sample(11)) == 11


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("copula", {}),
        ("masked", {"steps": 300, "width": 96, "depth": 2, "batch_size": 256}),
        ("diffusion", {"steps": 300, "width": 96, "depth": 2, "batch_size": 256, "sampling_steps": 16}),
        pytest.param("tvae", {"steps": 3000, "batch_size": 256}, marks=pytest.mark.slow),
        pytest.param("ctgan", {"steps": 4000, "batch_size": 200, "lr": 5e-4}, marks=pytest.mark.slow),
        ("oversampler", {}),
    ],
)
def test_a_known_dependence_is_learned(name: str, arguments: dict[str, Any]) -> None:
    train, held = dependent(), dependent(seed=1)
    schema = infer(pd.concat([train, held]), target="kind")
    real = schema.table(held)
    scores = {}
    for one, model in ((name, plugins.load("synthesizers", name)(**arguments)), ("marginals", IndependentMarginals())):
        sample = model.fit(train, schema=schema, target="kind").sample(1500, seed=1)
        scores[one] = summary(fidelity(real, schema.table(sample), schema))
    assert scores[name]["trend error %"] < scores["marginals"]["trend error %"] / 1.5
    assert scores[name]["two-sample AUC"] < scores["marginals"]["two-sample AUC"] - 0.02


def test_rare_categories_come_as_often_as_they_are() -> None:
    """CTGAN's own code draws conditions by log-frequency while sampling: a class of 5 % would come in 20 %."""
    frame = dependent(3000)
    share = (frame["kind"] == "c").mean()
    spread = 3 * np.sqrt(share * (1 - share) / 4000)
    masked = Masked(steps=250, width=64, depth=1, batch_size=256)
    for model, more in ((IndependentMarginals(), 0.0), (GaussianCopula(), 0.0), (masked, 0.01)):
        drawn = model.fit(frame).sample(4000, seed=3)
        assert abs((drawn["kind"] == "c").mean() - share) < spread + more, model.network
    gan = CTGAN(steps=2, width=16, batch_size=200).fit(frame)
    column, code = gan._drawn_conditions(Draw(np.arange(20_000), 1, -1), NO_CONDITIONS)
    place = [c.name for c in gan.schema.modelled if c.kind == "categorical"].index("kind")
    of_kind = gan.mixed.places["kind"][0]
    codec = next(c for c in gan.mixed.codecs if c.name == "kind")
    names = codec.decode(code[column == place][:, None], np.zeros((int((column == place).sum()), 1)))
    assert abs((names == 2).mean() - share) < 3 * np.sqrt(share / 10_000)
    assert gan.mixed.words[place] == of_kind


def test_the_copula_conditions_exactly() -> None:
    g = np.random.default_rng(0)
    x = g.standard_normal(4000)
    frame = pd.DataFrame({"x": x, "y": 0.8 * x + 0.6 * g.standard_normal(4000)})
    drawn = GaussianCopula().fit(frame).sample(4000, conditions=pd.DataFrame({"x": np.full(4000, 1.5)}))
    assert (drawn["x"] == 1.5).all()
    assert abs(drawn["y"].mean() - 0.8 * 1.5) < 0.06  # of a normal pair: rho * x, deviation sqrt(1 - rho^2)
    assert abs(drawn["y"].std() - 0.6) < 0.05


def test_masked_likelihood_is_that_of_a_known_distribution() -> None:
    """Two columns, four combinations: the mean log-likelihood comes near the negative entropy."""
    g = np.random.default_rng(0)
    a = g.choice(["p", "q"], 4000, p=[0.25, 0.75])
    b = np.where(g.random(4000) < 0.9, a, "r")
    frame = pd.DataFrame({"a": a, "b": b})
    model = Masked(steps=250, width=32, depth=1, batch_size=512).fit(frame)
    counts = frame.value_counts(normalize=True)
    entropy = float(-(counts * np.log(counts)).sum())
    assert abs(-model.log_likelihood(frame.head(2000)).mean() - entropy) < 0.05


def test_straight_paths_train_and_sample() -> None:
    model = Diffusion(objective="flow", steps=200, width=64, depth=1, batch_size=256, sampling_steps=10).fit(
        dependent(600)
    )
    drawn = model.sample(600, seed=1)
    assert np.corrcoef(drawn["level"], drawn["double"])[0, 1] > 0.8


def test_over_sampling_lies_between_real_rows_of_the_class() -> None:
    from imblearn.over_sampling import SMOTE

    from visynth.tabular import Oversampler

    frame = dependent(300)[["level", "double", "kind"]]
    model = Oversampler().fit(frame, target="kind")
    drawn = model.sample(100, conditions={"kind": "c"}, seed=1)
    real = frame[frame["kind"] == "c"]
    for column in ("level", "double"):
        assert drawn[column].between(real[column].min(), real[column].max()).all()
    assert "none: the folder holds the real rows" in model.card["privacy"]
    assert SMOTE  # the library's, not ours
    with pytest.raises(UsageError, match="'borderline' or 'adasyn'"):
        Oversampler("other")  # type: ignore[arg-type]
    mixed = frame.assign(level=np.random.default_rng(0).random(300))[
        ["level", "kind"]
    ]  # borderline ones need neighbours
    for method in ("borderline", "adasyn"):
        assert len(Oversampler(method).fit(mixed, target="kind").sample(20, conditions={"kind": "b"})) == 20  # type: ignore[arg-type]


def test_the_card_and_readme_say_what_it_is(fitted: Get, tmp_path: Path) -> None:
    folder = fitted("masked").save(tmp_path / "g")
    readme = (folder / "README.md").read_text()
    assert "Fitted to 400 rows" in readme
    assert "without differential privacy" in readme
    said = json.loads((folder / "generator.json").read_text())
    assert said["schema"] == "visynth.table/1"
    assert "anonym" not in readme.lower()
