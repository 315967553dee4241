"""Plans: every cell covered, shares met, tables followed, equal seeds equal plans."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest

from visynth.core.errors import UsageError
from visynth.tabular.text import Prompt, TextPlan
from visynth.tabular.text.real_rows import records_of_rows

FULL = {
    "product": ["phone", "lamp", "chair"],
    "sentiment": ["good", "bad"],
    "kind": {"given": "product", "table": {"phone": ["smart", "plain"], "lamp": {"shares": {"desk": 3, "wall": 1}}, "chair": ["soft"]}},
    "features": {"choose": 2, "of": ["price", "weight", "look", "smell"]},
    "words": {"range": [5, 8]},
    "source": {"shares": {"web": 0.7, "shop": 0.3}},
}  # fmt: skip


def test_cells_get_equally_many_and_the_rest_is_spread() -> None:
    rows = [record.attributes for record in TextPlan(FULL).records(240, seed=3)]
    assert set(Counter((r["product"], r["sentiment"]) for r in rows).values()) == {40}
    assert Counter(r["source"] for r in rows) == {"web": 168, "shop": 72}
    assert Counter(r["kind"] for r in rows if r["product"] == "lamp") == {"desk": 60, "wall": 20}
    assert {r["kind"] for r in rows if r["product"] == "chair"} == {"soft"}
    assert set(Counter(f for r in rows for f in r["features"]).values()) == {120}
    assert all(len(set(r["features"])) == 2 for r in rows)
    for cell in product(FULL["product"], FULL["sentiment"]):
        words = Counter(r["words"] for r in rows if (r["product"], r["sentiment"]) == cell)
        assert set(words.values()) == {10}


@pytest.mark.parametrize("n", [6, 7, 11, 100])
def test_every_cell_is_covered_as_soon_as_it_can_be(n: int) -> None:
    plan = TextPlan(FULL)
    coverage = plan.coverage(record.attributes for record in plan.records(n, seed=n))
    assert coverage.covered == coverage.cells == 6
    assert max(coverage.counts.values()) - min(coverage.counts.values()) <= 1


def test_fewer_texts_than_cells_still_balance_each_attribute() -> None:
    plan = TextPlan({name: list(range(10)) for name in "abcdef"})
    rows = [record.attributes for record in plan.records(40)]
    for name in "abcdef":
        assert set(Counter(row[name] for row in rows).values()) == {4}


def test_equal_seeds_give_equal_plans_and_others_others() -> None:
    one, same, other = (TextPlan(FULL).records(30, seed=seed) for seed in (5, 5, 6))
    assert one == same
    assert [r.attributes for r in one] != [r.attributes for r in other]
    assert len({r.seed for r in one} | {r.seed for r in other}) == 60
    assert one[3].again(0).seed == one[3].seed != one[3].again(1).seed


def test_all_that_is_wrong_is_told_together() -> None:
    with pytest.raises(UsageError) as error:
        TextPlan(
            {
                "a": [],
                "b": {"given": "z", "table": {}},
                "c": {"choose": 3, "of": ["x"]},
                "d": {"range": [3, 1]},
                "e": {"shares": {"x": -1}},
                "f": ["x", "x"],
                "g": "x",
                "h": ["one"],
                "i": {"given": "h", "table": {"two": ["y"]}},
            }
        )
    for words in (
        "'a': levels must be a list",
        "'b': given 'z' is no attribute",
        "'c': choose must be from 1 to 1",
        "'d': range",
        "'e': shares",
        "'f': levels ['x'] stand there twice",
        "'g': got 'x'",
        "nothing for h = 'one'",
        "h = 'two' never happens",
    ):
        assert words in str(error.value)


def test_rows_give_their_attributes_equally_often() -> None:
    records = records_of_rows([{"city": c} for c in "abc"], 10, seed=1)
    assert sorted(Counter(r.attributes["city"] for r in records).values()) == [3, 3, 4]
    assert all(r.row is not None and r.attributes["city"] == "abc"[r.row] for r in records)


def test_what_fills_a_template_is_data() -> None:
    prompt = Prompt("About {{ x }}.", system="{{ x | upper }}")
    evil = "{{ ''.__class__.__mro__ }} {% for i in range(9) %}{{ i }}{% endfor %} ../../etc/passwd"
    system, user = prompt.messages({"x": evil})
    assert user["content"] == f"About {evil}."
    assert system["content"] == evil.upper()


@pytest.mark.parametrize(
    "template",
    ["{{ y }}", "{{ x.__class__.__mro__ }}", "{% for i in range(10**12) %}{{ i }}{% endfor %}", "{{ 1 // 0 }}"],
)
def test_templates_that_cannot_be_filled_are_told(template: str) -> None:
    with pytest.raises(UsageError, match="cannot be filled"):
        Prompt(template).messages({"x": "a"})


def test_templates_that_cannot_be_read_are_told() -> None:
    with pytest.raises(UsageError, match="user part is no template"):
        Prompt("{% if %}")
    with pytest.raises(UsageError, match="empty"):
        Prompt(" ")


@pytest.mark.parametrize("n", [7, 40, 100, 333, 1500])
@pytest.mark.parametrize("seed", [0, 2])
def test_every_attribute_is_balanced_whatever_the_number(n: int, seed: int) -> None:
    sizes = {"a": 10, "b": 2, "c": 5, "d": 10}
    rows = [r.attributes for r in TextPlan({name: list(range(size)) for name, size in sizes.items()}).records(n, seed)]
    for name, size in sizes.items():
        counts = Counter(row[name] for row in rows)
        assert max(counts.values()) - min(counts[level] for level in range(size)) <= 1
    cells = Counter(tuple(row.values()) for row in rows)
    assert max(cells.values()) <= n // 1000 + 1


def test_levels_that_cannot_be_compared_are_told() -> None:
    with pytest.raises(UsageError) as error:
        TextPlan({"a": [{"x": 1}], "b": {"given": ["a"], "table": {}}, "c": {"shares": {"x": float("inf")}}})
    for words in ("levels must be texts or numbers", "given ['a']", "shares must be numbers"):
        assert words in str(error.value)
