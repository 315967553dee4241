"""Numbers drawn ahead are the numbers that would be drawn now."""

from __future__ import annotations

import copy
import pickle
import threading

import numpy as np
import pytest
import torch

from visynth.lightning_modules.latents import Augmenter
from visynth.lightning_modules.prefetch import Prefetcher
from visynth.lightning_modules.randomness import draw


def test_any_order_of_positions_gives_what_each_gives_alone() -> None:
    ahead = Prefetcher()
    batches = [[0, 1], [2, 3], [4, 5], [4, 5], [90, 91], [92, 93], [6, 7], [8, 9], [10], [11], [0, 1]]
    for positions in batches:
        found = ahead("draws", lambda places: draw(3, places, (1, 4, 4)), positions)
        alone = draw(3, positions, (1, 4, 4))
        assert torch.equal(found.noise, alone.noise)
        assert np.array_equal(found.uniform, alone.uniform)
        assert np.array_equal(found.normal, alone.normal)


def test_the_next_batch_is_drawn_in_a_thread_and_each_once() -> None:
    made: list[tuple[str, tuple[int, ...]]] = []

    def make(positions: tuple[int, ...]) -> int:
        made.append((threading.current_thread().name, positions))
        return sum(positions)

    ahead = Prefetcher()
    assert [ahead("x", make, [p, p + 1]) for p in (0, 2, 4, 4, 6)] == [1, 5, 9, 9, 13]
    here = threading.current_thread().name
    assert [positions for name, positions in made if name == here] == [(0, 1), (2, 3)]  # the second gives the step
    ahead("y", make, [0])  # waits for nothing of x
    assert {positions for name, positions in made if name != here} <= {(4, 5), (6, 7), (8, 9)}


def test_a_failure_ahead_is_told_when_it_is_asked_for() -> None:
    def make(positions: tuple[int, ...]) -> int:
        if positions[0] >= 4:
            raise ValueError("beyond")
        return positions[0]

    ahead = Prefetcher()
    assert [ahead("x", make, [p]) for p in (0, 2)] == [0, 2]
    with pytest.raises(ValueError, match="beyond"):
        ahead("x", make, [4])


def test_copies_start_anew() -> None:
    ahead = Prefetcher()
    for p in (0, 1, 2):
        ahead("x", lambda places: list(places), [p])
    for other in (copy.deepcopy(ahead), pickle.loads(pickle.dumps(ahead))):
        assert other("x", lambda places: -places[0], [3]) == -3


@pytest.mark.parametrize("kind", ["ada", "diffaugment"])
def test_augmentation_is_the_same_in_any_company(kind: str) -> None:
    kinds = ("blit", "geometry", "colour", "corruption") if kind == "ada" else ("colour", "translation", "cutout")
    images = torch.rand(4, 1, 16, 16)
    walked = Augmenter(kind, kinds, 5)
    for first in (0, 4, 8):
        positions = list(range(first, first + 4))
        whole = walked(images, positions, "real", 0.9)
        rows = [Augmenter(kind, kinds, 5)(images[i : i + 1], [positions[i]], "real", 0.9) for i in range(4)]
        torch.testing.assert_close(whole, torch.cat(rows))
