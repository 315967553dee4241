"""Seeds, balance, files, members, errors: exact and against outside references."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from typing import ClassVar

import numpy as np
import pytest
import torch

from visynth.core import balance, errors, files, members, seeds
from visynth.core.errors import DataError, IntegrityError, OutputError, UsageError
from visynth.core.members import Member


def member(path: str = "a.png", **other) -> Member:
    given = {"label": "a", "group": "g", "split": "train", "sha256": path, "pixels": path, "phash": "0123456789abcdef"}
    return Member(path=path, **{**given, **other})


class TestSeeds:
    def test_noise_rows_do_not_depend_on_their_company(self) -> None:
        assert torch.equal(seeds.noise([7, 8, 9], (3, 4))[1], seeds.noise([8], (3, 4))[0])

    def test_seeds_that_agree_in_32_bits_differ(self) -> None:
        assert not torch.equal(seeds.noise([3], (8,)), seeds.noise([3 + 2**32], (8,)))
        # What we avoid: torch keeps the low 32 bits only.
        first, second = (torch.Generator().manual_seed(s) for s in (3, 3 + 2**32))
        assert torch.equal(torch.randn(8, generator=first), torch.randn(8, generator=second))

    def test_streams_are_apart(self) -> None:
        assert not torch.equal(seeds.noise([3], (8,), "a"), seeds.noise([3], (8,), "b"))

    def test_noise_is_standard_normal(self) -> None:
        values = seeds.noise(range(200), (500,)).double()
        assert abs(float(values.mean())) < 0.01
        assert abs(float(values.std()) - 1) < 0.01

    def test_derive_is_blake2b_of_the_parts(self) -> None:
        digest = hashlib.blake2b(b"a\x1f1", digest_size=8).digest()
        assert seeds.derive("a", 1) == int.from_bytes(digest, "big") >> 1
        assert 0 <= seeds.derive("x") < 2**63

    @pytest.mark.parametrize("text", ["", "a", "5-3", "1--2", "-4"])
    def test_bad_ranges(self, text: str) -> None:
        with pytest.raises(UsageError, match="seeds must look like"):
            seeds.parse_range(text)

    def test_out_of_range(self) -> None:
        with pytest.raises(UsageError, match="seed must be in"):
            seeds.rng(-1)


class TestBalance:
    counts: ClassVar = {"good": 100, "dent": 30, "crack": 4}

    def test_words_fill_up_to_the_majority_counting_reals(self) -> None:
        with pytest.warns(UserWarning, match="crack 96 -> 40"):
            assert balance.targets("not majority", self.counts) == {"good": 0, "dent": 70, "crack": 40}
        with pytest.warns(UserWarning, match="capped at 10 synthetic"):
            assert balance.targets("minority", self.counts) == {"good": 0, "dent": 0, "crack": 40}

    def test_to_names_another_level_for_all_classes(self) -> None:
        assert balance.targets("all", {"a": 10, "b": 5}, to=20) == {"a": 10, "b": 15}

    def test_imbalanced_learn_agrees_on_the_words(self) -> None:
        # imbalanced-learn's "not majority" resamples every class to the majority count: sums must be equal for all.
        wanted = balance.targets("not majority", {"a": 50, "b": 20, "c": 10})
        assert {name: n + {"a": 50, "b": 20, "c": 10}[name] for name, n in wanted.items()} == {
            "a": 50,
            "b": 50,
            "c": 50,
        }

    def test_float_is_a_ratio_for_two_classes(self) -> None:
        assert balance.targets(0.5, {"a": 100, "b": 20}) == {"a": 0, "b": 30}
        with pytest.raises(UsageError, match="two classes only"):
            balance.targets(0.5, self.counts)

    def test_exact_counts_are_not_capped(self) -> None:
        assert balance.targets({"crack": 900}, self.counts)["crack"] == 900
        assert balance.targets(lambda c: dict.fromkeys(c, 1), self.counts) == {"good": 1, "dent": 1, "crack": 1}

    @pytest.mark.parametrize(
        ("word", "told"),
        [
            ("minorty", "must be one of 'minority'"),
            ({"rust": 3}, "unknown classes 'rust'"),
            ({"crack": -1}, "at least 0"),
            (True, "must be one of"),
            (2.0, r"in \(0, 1\]"),
        ],
    )
    def test_bad_words(self, word, told: str) -> None:
        with pytest.raises(UsageError, match=told):
            balance.targets(word, {"good": 3, "crack": 1})


class TestFiles:
    def test_write_keeps_the_old_file_when_it_cannot_write(self, tmp_path, monkeypatch) -> None:
        path = tmp_path / "a.json"
        files.write_json(path, {"a": 1})
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OutputError, match="No space left"):
            files.write_json(path, {"a": 2})
        assert '"a": 1' in path.read_text()
        assert [p.name for p in tmp_path.iterdir()] == ["a.json"]

    def test_unwritable_output_is_told_before_any_work(self, tmp_path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match="Choose another output folder"):
            files.ensure_writable(tmp_path / "file" / "out")

    def test_nan_has_no_json(self) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            files.canonical_json(float("nan"))


class TestMembers:
    def test_merkle_root_of_two_is_rfc_6962(self) -> None:
        pair = [member("a"), member("b")]
        leaves = [hashlib.sha256(b"\x00" + members._line(m).encode()).digest() for m in pair]
        assert members.merkle_root(pair) == hashlib.sha256(b"\x01" + leaves[0] + leaves[1]).hexdigest()

    def test_root_changes_with_any_field_and_not_with_order(self) -> None:
        three = [member("a"), member("b"), member("c")]
        root = members.merkle_root(three)
        assert members.merkle_root(three[::-1]) == root
        assert members.merkle_root([member("a"), member("b"), member("c", split="test")]) != root

    def test_written_and_read(self, tmp_path) -> None:
        members.write(tmp_path / "m.jsonl", [member("b"), member("a")])
        assert [m.path for m in members.read(tmp_path / "m.jsonl")] == ["a", "b"]
        (tmp_path / "m.jsonl").write_text('{"path": "a"}\n')
        with pytest.raises(IntegrityError, match="line 1 is not a member record"):
            members.read(tmp_path / "m.jsonl")

    def test_overlaps_are_told_by_their_closest_way(self) -> None:
        ours = [member("t", sha256="s", pixels="p", phash="ffff0000ffff0000")]
        found = members.overlaps(
            [
                member("1", sha256="s", pixels="-", phash="0" * 16),
                member("2", sha256="-", pixels="p", phash="0" * 16),
                member("3", sha256="-", pixels="-", phash="ffff0000ffff000f"),
                member("4", sha256="-", pixels="-", phash="ffff0000ffff001f"),
            ],
            ours,
        )
        assert [(o.candidate, o.how) for o in found] == [
            ("1", "same file"),
            ("2", "same pixels"),
            ("3", "near-duplicate"),
        ]

    def test_perceptual_hash_survives_light_and_noise_and_not_another_picture(self) -> None:
        rng = np.random.default_rng(0)
        picture = np.kron(rng.integers(40, 200, (8, 8)), np.ones((8, 8)))[:, :, None]
        changed = np.clip(picture * 1.1 + rng.normal(0, 3, picture.shape), 0, 255)
        other = np.kron(rng.integers(40, 200, (8, 8)), np.ones((8, 8)))[:, :, None]
        hashes = [members.perceptual_hash(p.astype(np.uint8)) for p in (picture, changed, other)]
        assert members.hamming(hashes[0], hashes[1]) <= members.NEAR
        assert members.hamming(hashes[0], hashes[2]) > 10

    def test_distances_are_hamming(self) -> None:
        hashes = ["00000000000000ff", "ffffffffffffffff", "0000000000000000"]
        table = members.distances(hashes, hashes)
        assert table.tolist() == [[members.hamming(a, b) for b in hashes] for a in hashes]


def test_every_error_has_its_documented_exit_code() -> None:
    tree = {
        e.__name__: e.exit_code
        for e in vars(errors).values()
        if isinstance(e, type) and issubclass(e, errors.VisynthError)
    }
    for name, code in tree.items():
        line = next(row for row in errors.__doc__.splitlines() if f" {name}" in f" {row.replace('─', ' ')}")
        assert str(code) in line
    assert Counter(tree.values())[64] == 2
    assert issubclass(DataError, ValueError)
