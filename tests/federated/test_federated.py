"""Training over sites: with one local step the joined training exactly, FedAvg by hand, the same after a kill; and what a server
refuses, and what a site gives away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from visynth.core.errors import ConflictError, DataError, UsageError
from visynth.federated.options import FederatedOptions, SitePrivacy
from visynth.federated.server import Federated, Rounds
from visynth.federated.site import Site
from visynth.federated.updates import packed, unpacked
from visynth.lightning_modules.data import GeneratorData
from visynth.lightning_modules.diffusion import Diffusion
from visynth.lightning_modules.facts import Facts, Pool
from visynth.privacy.accounting import Release, epsilon_of

ROUNDS = 4
SIZES = {"a": 12, "b": 20, "c": 8}


class Net(pytorch_lightning.LightningModule):
    """A small regression in double precision."""

    def __init__(self, optimizer: str = "adam", layer: nn.Module | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(3, 6), layer or nn.Tanh(), nn.Linear(6, 1)).double()
        self.optimizer = optimizer

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return ((self.net(x)[:, 0] - y) ** 2).mean()

    def configure_optimizers(self) -> Any:
        kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
        return kinds[self.optimizer](self.parameters(), lr=0.05)


class Rows(pytorch_lightning.LightningDataModule):
    """All rows of a site, as one batch."""

    def __init__(self, site: str, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed + ord(site[0]))
        x = torch.randn((SIZES[site], 3), generator=generator, dtype=torch.float64)
        self.rows = TensorDataset(
            x, x.sum(1) + torch.randn(len(x), generator=generator, dtype=torch.float64) + ord(site[0]) % 3
        )

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, batch_size=len(self.rows))


class Here:
    """Sites in this process."""

    def __init__(self, sites: Mapping[str, Site], silent: Sequence[str] = ()) -> None:
        self.sites, self.silent = sites, silent
        self.answers: list[dict[str, bytes]] = []

    def __call__(self, message: bytes, sites: Sequence[str]) -> Mapping[str, bytes]:
        self.answers.append({name: self.sites[name].answer(message) for name in sites if name not in self.silent})
        return self.answers[-1]


def options(**kwargs: Any) -> FederatedOptions:
    return FederatedOptions(**{"sites": {name: {} for name in SIZES}, "local_steps": 1, **kwargs})


def sites(args: FederatedOptions, optimizer: str = "adam") -> dict[str, Site]:
    return {name: Site(name, Net(optimizer), Rows(name), args, {"accelerator": "cpu"}) for name in args.sites}


def trainer(*callbacks: Any, **kwargs: Any) -> pytorch_lightning.Trainer:
    plain = {
        "max_epochs": -1, "max_steps": ROUNDS, "logger": False, "enable_checkpointing": False, "accelerator": "cpu",
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return pytorch_lightning.Trainer(callbacks=list(callbacks), **{**plain, **kwargs})


def federated(args: FederatedOptions, optimizer: str = "adam", **kwargs: Any) -> tuple[Net, Here, Federated]:
    net, here = Net(optimizer), Here(sites(args, optimizer))
    callback = Federated(here, args, key="5a" * 32)
    trainer(callback, **kwargs).fit(net, Rounds())
    return net, here, callback


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def joined(optimizer: str, **kwargs: Any) -> Net:
    """The training on the rows of all sites together."""
    net, rows = Net(optimizer), [Rows(name).rows.tensors for name in SIZES]
    together = TensorDataset(*(torch.cat(parts) for parts in zip(*rows, strict=True)))
    trainer(**kwargs).fit(net, DataLoader(together, batch_size=len(together)))
    return net


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_one_local_step_is_the_joined_training(optimizer: str, clip: float | None) -> None:
    net, _, _ = federated(options(algorithm="fedopt"), optimizer, gradient_clip_val=clip)
    assert torch.allclose(weights(net), weights(joined(optimizer, gradient_clip_val=clip)), rtol=0, atol=1e-12)


def test_fedavg_with_one_plain_step_is_the_joined_training_too() -> None:
    net, _, _ = federated(options(algorithm="fedavg"), "sgd")
    assert torch.allclose(weights(net), weights(joined("sgd")), rtol=0, atol=1e-12)


def test_fedavg_by_hand() -> None:
    """Each site trains three steps of a new Adam from the common weights; then the mean, by numbers of rows."""
    net, _, _ = federated(options(algorithm="fedavg", local_steps=3))
    hand = Net()
    for _ in range(ROUNDS):
        start, moved = weights(hand), []
        for name in SIZES:
            local = Net()
            nn.utils.vector_to_parameters(start.clone(), local.parameters())
            optimizer = torch.optim.Adam(local.parameters(), lr=0.05)
            for _ in range(3):
                optimizer.zero_grad()
                local.training_step(Rows(name).rows.tensors, 0).backward()
                optimizer.step()
            moved.append(weights(local) * SIZES[name] / sum(SIZES.values()))
        nn.utils.vector_to_parameters(torch.stack(moved).sum(0), hand.parameters())
    assert torch.allclose(weights(net), weights(hand), rtol=0, atol=1e-12)


def test_equal_weights_count_sites_not_rows() -> None:
    by_rows, equal = (
        federated(options(algorithm="fedopt"))[0],
        federated(options(algorithm="fedopt", weights="equal"))[0],
    )
    assert (weights(by_rows) - weights(equal)).norm() > 1e-3


def test_a_round_has_the_length_that_was_allowed() -> None:
    _, here, callback = federated(options(algorithm="fedopt", weights="equal", max_update_norm=0.1, local_steps=2))
    for answers in here.answers:
        for answer in answers.values():
            update, facts = unpacked(answer, "")
            size = sum(float(t.double().square().sum()) for t in update.values()) ** 0.5
            assert size <= 0.1 + 1e-12
            assert facts["length"] > 0.1
    assert callback.record()["longest update"] == 0.1


# -- images ----------------------------------------------------------------------------------------------------------------


def pool(seed: int, count: int) -> Pool:
    rng = np.random.default_rng(seed)
    return Pool(rng.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8), rng.integers(0, 2, count))


def image_data(seed: int, count: int = 30) -> GeneratorData:
    return GeneratorData.of_pool(pool(seed, count), FACTS, batch_size=4)


FACTS = Facts(("x", "y"), (0, 0), 1, (8, 8), "uint8", (0.0,), 0.5)
SMALL: dict[str, Any] = {"width": 8, "warmup": 16, "snapshots": False, "dropout": 0.2}


class PlainDiffusion(Diffusion):
    """With plain gradient steps: Adam's first ones would turn rounding errors of tiny gradients into whole steps."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.network.parameters(), lr=0.1)


def test_a_diffusion_over_two_sites_is_the_joined_one() -> None:
    """Random numbers belong to places in one stream of all sites: noise, dropout, augmentation and weight averages agree too."""
    args = options(sites={"north": {}, "south": {}}, algorithm="fedopt", weights="equal")
    data = {"north": image_data(1), "south": image_data(2)}
    places = {
        name: Site(name, PlainDiffusion(**SMALL), data[name], args, {"accelerator": "cpu"}) for name in args.sites
    }
    net = PlainDiffusion(**SMALL)
    trainer(Federated(Here(places), args, FACTS, images=4)).fit(net, Rounds(FACTS))

    class Both(pytorch_lightning.LightningDataModule):
        facts = FACTS

        def train_dataloader(self) -> DataLoader[Any]:
            batches = []
            for number in range(ROUNDS):
                parts = [
                    data[name].train_dataloader().dataset.__getitems__(range(first, first + 4))  # type: ignore[attr-defined]
                    for name, first in (("north", 8 * number), ("south", 8 * number + 4))
                ]
                batches.append({key: torch.cat([part[key] for part in parts]) for key in parts[0]})
            return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

    both = PlainDiffusion(**SMALL)
    trainer().fit(both, Both())
    assert int(net.images_seen) == int(both.images_seen) == 8 * ROUNDS
    moved = (weights(both.network) - weights(initial())).norm()
    assert (
        float((weights(net.network) - weights(both.network)).norm() / moved) < 1e-5
    )  # sums of float32 in another order
    for ours, theirs in zip(net.averages, both.averages, strict=True):
        assert float((weights(ours) - weights(theirs)).norm() / moved) < 1e-5


def initial() -> nn.Module:
    module = Diffusion(**SMALL)
    module.build(FACTS)
    return module.network


def test_a_killed_server_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    args = options(algorithm="fedopt", local_steps=2, share_of_sites=0.7)
    whole, _, full = federated(args)
    half = Net()
    first = trainer(Federated(Here(sites(args)), args, key="5a" * 32), max_steps=2)
    first.fit(half, Rounds())
    first.save_checkpoint(tmp_path / "half.ckpt")
    rest, callback = Net(), Federated(Here(sites(args)), args)  # new sites: they keep nothing
    trainer(callback).fit(rest, Rounds(), ckpt_path=str(tmp_path / "half.ckpt"), weights_only=True)
    assert torch.equal(weights(rest), weights(whole))
    assert callback.answers == full.answers
    assert 0 < sum(callback.answers.values()) < 3 * ROUNDS, "all sites took part in all rounds"
    other = Federated(Here(sites(args)), args, agreed={"algorithm": "fedavg"})
    with pytest.raises(ConflictError, match="agreed"):
        trainer(other).fit(Net(), Rounds(), ckpt_path=str(tmp_path / "half.ckpt"), weights_only=True)


# -- what is told, what is refused -------------------------------------------------------------------------------------------


def message(**facts: Any) -> bytes:
    own = {name: p.detach() for name, p in Net().named_parameters()}
    return packed(own, **{"round": 0, "first": 0, "images": 0, "agreed": {}, "facts": None, **facts})


def test_what_leaves_a_site() -> None:
    plain = options()
    update, facts = unpacked(sites(plain)["a"].answer(message()), "")
    assert set(facts) == {"site", "round", "loss", "length", "images"}
    assert facts["images"] == SIZES["a"]
    assert set(update) == {name for name, _ in Net().named_parameters()}
    equal = options(weights="equal")
    assert "images" not in unpacked(sites(equal)["a"].answer(message()), "")[1]
    private = options(weights="equal", privacy=SitePrivacy(5.0), max_update_norm=1.0)
    assert set(unpacked(sites(private)["a"].answer(message()), "")[1]) == {"site", "round"}


def test_counts_leave_a_site_only_when_asked() -> None:
    with pytest.raises(UsageError, match="share_counts needs GeneratorData"):
        sites(options(share_counts=True))["a"].answer(message())


def test_an_answer_is_a_function_of_the_round() -> None:
    one, other = sites(options(local_steps=3)), sites(options(local_steps=3))
    first = one["b"].answer(message())
    one["b"].answer(
        packed(
            {name: p.detach() + 1 for name, p in Net().named_parameters()},
            round=1,
            first=0,
            images=0,
            agreed={},
            facts=None,
        )
    )
    assert one["b"].answer(message()) == first == other["b"].answer(message())


def test_a_site_refuses_what_is_not_its_training() -> None:
    site = sites(options())["a"]
    with pytest.raises(DataError, match=r"extra: 1 at the server, None here"):
        site.answer(message(agreed={"extra": 1}))
    with pytest.raises(DataError, match=r"(?s)the message of the server.*float64 \[2\] there, float64 \[6\] here"):
        site.answer(packed({**{n: p.detach() for n, p in Net().named_parameters()}, "net.0.bias": torch.zeros(2, dtype=torch.float64)},
                           round=0, first=0, images=0, agreed={}, facts=None))  # fmt: skip
    other = Site(
        "north", Diffusion(**SMALL), image_data(1), options(sites={"north": {}, "south": {}}), {"accelerator": "cpu"}
    )
    with pytest.raises(DataError, match=r"size: \[16, 16\] at the server, \[8, 8\] here"):
        other.answer(message(facts={**FACTS.to_json(), "size": [16, 16]}))


GOOD = {"site": "a", "loss": 0.0, "length": 1.0, "images": 3}


@pytest.mark.parametrize(("facts", "words"), [
    ({"site": "b"}, "given as 'b'"),
    ({"round": 9}, "it is for round 9"),
    ({"images": None}, "'images' must be a whole number"),
    ({"images": "3"}, "'images' must be a whole number"),
    ({"images": 0}, "'images' must be a whole number"),
    ({"images": float("inf")}, "'images' must be a whole number"),
    ({"loss": float("nan")}, "'loss' must be a finite number"),
    ({"loss": "x"}, "'loss' must be a finite number"),
    ({"counts": {"x": 1}}, "'counts' was not asked for"),
])  # fmt: skip
def test_a_server_refuses_facts_that_it_did_not_ask_for(facts: dict[str, Any], words: str) -> None:
    _refused(lambda update, number: packed(update, **{**GOOD, "round": number, **facts}), words)


@pytest.mark.parametrize(("answer", "words"), [
    (lambda update, number: packed({k: v * float("inf") for k, v in update.items()}, **GOOD, round=number), "not finite"),
    (lambda update, number: packed({k: v.float() for k, v in update.items()}, **GOOD, round=number), "float32"),
    (lambda update, number: packed(update, site="a", round=number, images=3), "'loss' is missing"),
    (lambda update, number: b"nonsense", "no message"),
])  # fmt: skip
def test_a_server_refuses_what_is_no_answer(answer: Any, words: str) -> None:
    _refused(answer, words)


def _refused(answer: Any, words: str) -> None:
    def exchange(sent: bytes, names: Sequence[str]) -> Mapping[str, bytes]:
        update, facts = unpacked(sent, "")
        good = {name: packed(update, **{**GOOD, "site": name}, round=facts["round"]) for name in names}
        return {**good, "a": answer(update, facts["round"])}

    with pytest.raises(DataError, match=f"(?s)site a.*{words}"):
        trainer(Federated(exchange, options())).fit(Net(), Rounds())


def test_missing_answers(capsys: pytest.CaptureFixture[str]) -> None:
    args = options()
    with pytest.raises(DataError, match=r"2 of 3 sites answered \(missing: b\), 3 are needed"):
        trainer(Federated(Here(sites(args), silent=["b"]), args)).fit(Net(), Rounds())
    fewer = options(min_sites=2)
    callback = Federated(Here(sites(fewer), silent=["b"]), fewer)
    trainer(callback).fit(Net(), Rounds())
    assert callback.answers == {"a": ROUNDS, "b": 0, "c": ROUNDS}
    assert "no answer from b" in capsys.readouterr().out


@pytest.mark.parametrize(("module", "kwargs", "words"), [
    (Net(), {"accumulate_grad_batches": 2}, "a step is a round"),
    (Net(), {"max_steps": -1, "max_epochs": 1}, "trainer.max_steps"),
    (Net(layer=nn.BatchNorm1d(6)), {}, "running statistics"),
    (Net(), {"gradient_clip_val": 1.0}, "would cut how far the mean weights move"),
    (Net(), {"precision": "bf16-true"}, "rounds updates"),
])  # fmt: skip
def test_what_a_server_cannot_respect(module: Any, kwargs: dict[str, Any], words: str) -> None:
    args = options()
    with pytest.raises(UsageError, match=words):
        trainer(Federated(Here(sites(args)), args), **kwargs).fit(module, Rounds())


def test_a_training_that_is_not_over_these_sites_is_refused(tmp_path: Path) -> None:
    args = options(algorithm="fedopt")
    plain = trainer(max_steps=1)
    plain.fit(Net(), Rows("a"))
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(ConflictError, match="of a training on data at hand"):
        trainer(Federated(Here(sites(args)), args)).fit(
            Net(), Rounds(), ckpt_path=str(tmp_path / "plain.ckpt"), weights_only=True
        )
    module = Diffusion(**SMALL)
    trainer(max_steps=1).fit(module, image_data(1))
    two = options(sites={"north": {}, "south": {}})
    with pytest.raises(ConflictError, match="trained already"):
        trainer(Federated(Here({}), two, FACTS, images=4)).fit(module, Rounds(FACTS))
    net = federated(args)[0]
    first = trainer(Federated(Here(sites(args)), args), max_steps=1)
    first.fit(Net(), Rounds())
    first.save_checkpoint(tmp_path / "one.ckpt")
    other = options(algorithm="fedopt", max_update_norm=0.1)
    with pytest.raises(ConflictError, match=r"max_update_norm: None there, 0\.1 here"):
        trainer(Federated(Here(sites(other)), other)).fit(
            Net(), Rounds(), ckpt_path=str(tmp_path / "one.ckpt"), weights_only=True
        )
    assert "training_step" not in vars(net)


def test_an_error_leaves_the_module_as_it_was() -> None:
    args = options()
    net = Net("sgd")
    with pytest.raises(DataError):
        trainer(Federated(Here(sites(args), silent=["b"]), args)).fit(net, Rounds())
    trainer(max_steps=1).fit(net, Rows("a"))  # asks nobody
    assert not {"training_step", "configure_optimizers"} & vars(net).keys()


class Random(Net):
    """Draws in its steps, and has a buffer that they change and one that they do not."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__("sgd")
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("walked", torch.zeros(()))
        self.register_buffer(
            "projection", torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.walked += 1
        return ((self.net(self.dropout(x) * self.projection)[:, 0] + self.walked - y) ** 2).mean()


class Shuffled(Rows):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, batch_size=4, shuffle=True)


class InOrder(Rows):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.rows, batch_size=4)


def random_message(number: int, **facts: Any) -> bytes:
    own = {name: p.detach() for name, p in Random().named_parameters()}
    return packed(own, **{"round": number, "first": 0, "images": 0, "agreed": {}, "facts": None, **facts})


def test_what_a_site_draws_is_a_function_of_the_round() -> None:
    site = Site("a", Random(), Shuffled("a"), options(local_steps=2), {"accelerator": "cpu"})
    first = site.answer(random_message(0))
    other = site.answer(random_message(1))
    torch.rand(5)
    assert site.answer(random_message(0)) == first
    update = [unpacked(answer, "")[0]["net.0.weight"] for answer in (first, other)]
    assert not torch.equal(*update), "every round meets the same rows"


def test_a_loader_of_which_rounds_would_see_the_first_batches_alone() -> None:
    with pytest.raises(UsageError, match="3 batches in one order"):
        Site("a", Net(), InOrder("a"), options(local_steps=2), {"accelerator": "cpu"}).answer(message())


def test_what_is_not_trained_must_be_the_servers() -> None:
    from visynth.federated.site import digest, untrained

    there = digest(untrained(Random()))
    Site("a", Random(), Rows("a"), options(), {"accelerator": "cpu"}).answer(random_message(0, untrained=there))
    with pytest.raises(DataError, match="frozen weights or buffers are others"):
        Site("a", Random(seed=1), Rows("a"), options(), {"accelerator": "cpu"}).answer(
            random_message(0, untrained=there)
        )


def test_a_schedule_at_the_sites_is_refused() -> None:
    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    args = options(algorithm="fedavg")
    site = Site("a", Scheduled(), Rows("a"), args, {"accelerator": "cpu"})
    with pytest.raises(UsageError, match="take algorithm: fedopt"):
        site.answer(message())


# -- differential privacy of a site ------------------------------------------------------------------------------------------

MANY = {f"s{number}": {} for number in range(400)}


def test_noise_belongs_to_the_round_whatever_the_order_of_tensors() -> None:
    runs = []
    for _ in range(3):
        net = Net("sgd")
        trainer(Federated(silent, private(4.0), key="77" * 32), max_steps=3).fit(net, Rounds())
        runs.append(weights(net))
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_the_sum_is_divided_by_what_is_expected_and_cut_by_the_server() -> None:
    """Dividing by the number of answers would tell it; and a site that does not cut is cut."""
    args = private(4.0, share_of_sites=0.05)
    start = weights(Net())
    moved = []
    for size in (0.0, 1e6):

        def exchange(sent: bytes, names: Sequence[str], size: float = size) -> Mapping[str, bytes]:
            update, facts = unpacked(sent, "")
            return {
                name: packed({k: torch.full_like(v, size) for k, v in update.items()}, site=name, round=facts["round"])
                for name in names
            }

        net = Net("sgd")
        callback = Federated(exchange, args, key="77" * 32)
        trainer(callback, max_steps=1).fit(net, Rounds())
        moved.append(start - weights(net))
    asked = len(callback.chosen(0))
    step = moved[1] - moved[0]  # the same noise in both
    assert float(step.norm()) == pytest.approx(asked * 2.0 / (0.05 * 400), rel=1e-6)
    assert asked != 0.05 * 400, "the number that was drawn is the expected one: another key shows more"


def silent(sent: bytes, names: Sequence[str]) -> Mapping[str, bytes]:
    """Sites whose update is nothing."""
    update, facts = unpacked(sent, "")
    return {name: packed({k: v * 0 for k, v in update.items()}, site=name, round=facts["round"]) for name in names}


def private(epsilon: float, **kwargs: Any) -> FederatedOptions:
    kwargs = {"share_of_sites": 0.25, "algorithm": "fedavg", **kwargs}
    return options(sites=MANY, weights="equal", max_update_norm=2.0, privacy=SitePrivacy(epsilon), **kwargs)


def test_noise_of_a_site_is_what_was_paid_for() -> None:
    args = private(4.0)
    callback = Federated(silent, args, key="77" * 32)
    net = Net("sgd")
    start = weights(net)
    trainer(callback, max_steps=50).fit(net, Rounds())
    closed = epsilon_of([Release("rounds", callback.noise, 0.25, 50)], 1e-3)
    assert callback.spent()["epsilon"] == pytest.approx(closed)
    assert 3.9 < closed <= 4.0
    walked = (weights(net) - start) / 50**0.5  # a walk of 50 equal steps
    assert float(walked.std()) == pytest.approx(callback.noise * 2.0 / 100, rel=0.35)
    assert "answers" not in callback.record()
    assert callback.spent()["unit"] == "site"


def test_an_epsilon_out_of_reach_says_which_is_not() -> None:
    few = options(weights="equal", max_update_norm=1.0, privacy=SitePrivacy(1.0))
    with pytest.raises(UsageError, match=r"(?s)each of 3 sites.*nothing would be learned. Reachable so: epsilon"):
        trainer(Federated(silent, few)).fit(Net(), Rounds())


def test_a_private_run_goes_on_with_its_epsilon(tmp_path: Path) -> None:
    args = private(4.0)
    first = trainer(Federated(silent, args), max_steps=6)
    half = Net("sgd")
    first.fit(half, Rounds())
    first.save_checkpoint(tmp_path / "half.ckpt")
    rest = Federated(silent, args)
    net = Net("sgd")
    with pytest.raises(ConflictError, match="noise"):
        trainer(rest, max_steps=12).fit(net, Rounds(), ckpt_path=str(tmp_path / "half.ckpt"), weights_only=True)
    whole = Federated(silent, args)
    trainer(whole, max_steps=6).fit(Net("sgd"), Rounds())
    again = Federated(silent, args)
    trainer(again, max_steps=6).fit(Net("sgd"), Rounds(), ckpt_path=str(tmp_path / "half.ckpt"), weights_only=True)
    assert again.spent()["epsilon"] == pytest.approx(whole.spent()["epsilon"])
    assert again.key == first.callbacks[0].key  # type: ignore[attr-defined]
