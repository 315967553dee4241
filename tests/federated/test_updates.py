"""Lengths, cuts, means and noise of updates against closed forms, and messages that are not what they should be."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from visynth.core.errors import DataError, UsageError
from visynth.federated.options import FederatedOptions, SitePrivacy
from visynth.federated.updates import check_alike, clipped, length, mean_update, noised, packed, unpacked

SITES: dict[str, Any] = {"a": {}, "b": {}}


def update(*values: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(values[:-1]), "b": torch.tensor([[values[-1]]])}


def test_a_cut_keeps_the_direction() -> None:
    assert length(update(2.0, 3.0, 6.0)) == 7.0
    short = clipped(update(2.0, 3.0, 6.0), 3.5)
    assert length(short) == pytest.approx(3.5)
    assert torch.allclose(short["w"], torch.tensor([1.0, 1.5]))
    assert torch.equal(clipped(update(2.0, 3.0, 6.0), 7.0)["w"], torch.tensor([2.0, 3.0]))
    assert torch.equal(clipped(update(2.0, 3.0, 6.0), None)["b"], torch.tensor([[6.0]]))


def test_a_mean_is_weighted_and_does_not_depend_on_the_order() -> None:
    rng = np.random.default_rng(0)
    updates = [{"w": torch.from_numpy(rng.normal(size=50)).float()} for _ in range(3)]
    weights = [5.0, 2.0, 13.0]
    by_hand = sum(w * u["w"].numpy().astype(np.float64) for w, u in zip(weights, updates, strict=True)) / 20
    assert np.array_equal(mean_update(updates, weights, 20)["w"].numpy(), np.asarray(by_hand).astype(np.float32))
    turned = mean_update(updates[::-1], weights[::-1], 20)
    assert np.array_equal(turned["w"].numpy(), np.asarray(by_hand).astype(np.float32))


def test_noise_has_its_size() -> None:
    noise = noised({"w": torch.zeros(20_000)}, 0.3, np.random.default_rng(1))["w"].double()
    assert float(noise.std()) == pytest.approx(0.3, rel=0.03)
    assert abs(float(noise.mean())) < 0.01


def test_a_message_is_safetensors_and_nothing_else() -> None:
    sent = update(1.0, 2.0, 3.0)
    tensors, facts = unpacked(packed(sent, round=4, site="a"), "site a")
    assert facts == {"round": 4, "site": "a"}
    assert all(torch.equal(tensors[name], sent[name]) for name in sent)
    headers = [{}, {"visynth": '{"schema": "visynth.federated/0"}'}, {"visynth": "{"}, {"visynth": "[]"}]
    for bad in (pickle.dumps(sent), b"", *(save(sent, header) for header in headers)):
        with pytest.raises(DataError, match="site a sent no message"):
            unpacked(bad, "site a")


def test_what_does_not_fit_is_told_all_at_once() -> None:
    like = update(1.0, 2.0, 3.0)
    check_alike(update(4.0, 5.0, 6.0), like, "site a")
    with pytest.raises(
        DataError,
        match=r"(?s)site a has 3 problems.*b is missing.*c is not known here.*w is float32 \[3\] there, float32 \[2\]",
    ):
        check_alike({"w": torch.zeros(3), "c": torch.zeros(1)}, like, "site a")
    with pytest.raises(DataError, match="not finite"):
        check_alike(update(1.0, float("nan"), 3.0), like, "site a")


@pytest.mark.parametrize(("options", "words"), [
    ({"sites": {"a": {}}}, "at least two"),
    ({"sites": {"a": {}, "b c": {}}}, "'b c'"),
    ({"local_steps": 0}, "local_steps"),
    ({"local_lr": 0.0}, "local_lr"),
    ({"share_of_sites": 0.0}, "share_of_sites"),
    ({"max_update_norm": -1.0}, "max_update_norm"),
    ({"min_sites": 3}, "min_sites"),
    ({"round_timeout": -1.0}, "round_timeout"),
    ({"max_update_norm": float("inf")}, "max_update_norm"),
    ({"privacy": SitePrivacy(1.0, most_noise=0.0), "max_update_norm": 1.0, "weights": "equal"}, "most_noise"),
    ({"privacy": SitePrivacy(1.0)}, "max_update_norm"),
    ({"privacy": SitePrivacy(1.0), "max_update_norm": 1.0}, "weights: equal"),
    ({"privacy": SitePrivacy(0.0), "max_update_norm": 1.0, "weights": "equal"}, "epsilon must be"),
    ({"privacy": SitePrivacy(1.0), "max_update_norm": 1.0, "weights": "equal", "share_counts": True}, "share_counts"),
    ({"privacy": SitePrivacy(1.0), "max_update_norm": 1.0, "weights": "equal", "min_sites": 1}, "min_sites"),
])  # fmt: skip
def test_options_that_cannot_be_right(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        FederatedOptions(**{"sites": SITES, **options})
