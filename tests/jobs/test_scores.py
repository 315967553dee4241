"""Scores and reviews of rendered images, and what WithSynthetic leaves out by them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from visynth.cli import main
from visynth.core.errors import IntegrityError, UsageError
from visynth.core.filters import kept
from visynth.core.manifest import read_renders, read_reviews, read_scores
from visynth.jobs.scores import score_renders


@pytest.fixture
def folder(renders, tmp_path):
    return shutil.copytree(renders.folder, tmp_path / "renders")


class TestScores:
    def test_own_class_and_copies_are_told(self, folder, sample_set, samples) -> None:
        found = read_renders(folder)
        # A rendered file that is a training image under its own and under a wrong name.
        real = next((samples / "images" / "spot").glob("*.png"))
        spot, stain = (next(r for r in found.records if r.label == name) for name in ("spot", "stain"))
        shutil.copy(real, folder / spot.file_name)
        shutil.copy(real, folder / stain.file_name)
        judged = score_renders(sample_set, read_renders(folder))
        scores = judged.images
        assert scores == {
            name: {k: v for k, v in line.items() if k != "file_name"} for name, line in read_scores(folder).items()
        }
        assert set(scores) == {r.file_name for r in found.records}
        assert scores[spot.file_name]["copy"]
        assert scores[spot.file_name]["nearest"] == f"spot/{real.name}"
        assert scores[spot.file_name]["agreement"] > scores[stain.file_name]["agreement"]
        assert all(0 <= score["agreement"] <= 1 for score in scores.values())
        assert set(judged.real) == set(sample_set.classes)
        assert sum(judged.real.values()) / 4 > 0.25, "held-out real images: chance is 0.25"

        left = kept(read_renders(folder), {"near_duplicates": False})
        assert spot.file_name not in {r.file_name for r in left}
        agreeing = kept(read_renders(folder), {"agreement": 0.5})
        assert {r.file_name for r in agreeing} == {n for n, s in scores.items() if s["agreement"] >= 0.5}

    def test_from_the_command_line(self, folder, samples, capsys) -> None:
        arguments = [
            "--folder",
            str(folder),
            "--data",
            str(samples / "images"),
            "--groups",
            str(samples / "groups.csv"),
        ]
        assert main(["renders", "score", *arguments, "--json", "true", "--quiet", "true"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["spot"]["images"] == 12
        assert len(read_scores(folder)) == 48

    def test_filters_ask_for_scores_that_are_not_there(self, folder) -> None:
        with pytest.raises(UsageError, match=r"48 images of .* have none in scores.jsonl(.|\n)*visynth renders score"):
            kept(read_renders(folder), {"agreement": 0.5})

    def test_nothing_left(self, folder, sample_set) -> None:
        score_renders(sample_set, read_renders(folder))
        with pytest.raises(UsageError, match="keep leaves none of the 48 images"):
            kept(read_renders(folder), {"agreement": 1.0})


class TestReviews:
    def test_the_last_decision_counts_and_rejected_ones_are_left_out(self, folder, capsys) -> None:
        names = [r.file_name for r in read_renders(folder).records][:3]
        review = ["renders", "review", "--folder", str(folder)]
        assert main([*review, "--accept", json.dumps(names), "--reviewer", "ada"]) == 0
        assert main([*review, "--reject", json.dumps(names[1:2])]) == 0
        assert "2 accepted, 1 rejected, 45 without a decision" in capsys.readouterr().out
        assert read_reviews(folder) == {names[0]: "accept", names[1]: "reject", names[2]: "accept"}
        found = read_renders(folder)
        assert len(kept(found, {})) == 47
        assert [r.file_name for r in kept(found, {"review": "accepted"})] == [names[0], names[2]]
        assert len(kept(found, {"review": "any"})) == 48

    def test_bad_input(self, folder, capsys) -> None:
        review = ["renders", "review", "--folder", str(folder)]
        assert main(review) == 64
        assert main([*review, "--reject", '["spot/none.png"]']) == 64
        assert "has no images 'spot/none.png'" in capsys.readouterr().err
        with pytest.raises(UsageError, match="has no decisions"):
            kept(read_renders(folder), {"review": "accepted"})
        (folder / "review.jsonl").write_text('{"file_name": "a", "decision": "maybe"}\n')
        with pytest.raises(IntegrityError, match="decision 'maybe'; decisions are 'accept', 'reject'"):
            read_reviews(folder)
        (folder / "review.jsonl").write_text('{"file_name": "a"\n')
        with pytest.raises(IntegrityError, match="line 1 is not JSON"):
            read_reviews(folder)

    def test_records_of_another_folder_are_not_needed(self, renders) -> None:
        assert len(kept(replace(renders, records=renders.records[:5]), {})) == 5
