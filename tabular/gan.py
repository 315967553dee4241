"""Conditional tabular GAN: Xu et al., "Modeling tabular data using conditional GAN" (NeurIPS 2019), written from the paper.

Section 4.2: numbers are a mode and a place in it. Section 4.3: a condition vector names one category of one column; it is
drawn by log-frequency while training and the real rows that the discriminator sees have it (*training by sampling*); the
generator pays a cross-entropy for ignoring it. Section 4.4: packed Wasserstein critic with gradient penalty.

While sampling, conditions are drawn by the real frequencies, not by the log-frequencies of the training, so that
marginals come out right; batch normalisation runs on its averages, so that a row does not depend on its neighbours; and a
condition that the generator ignores is redrawn.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from visynth.core import distributed
from visynth.core import seeds as seeding
from visynth.tabular.columns import Floats
from visynth.tabular.conditions import Conditions
from visynth.tabular.draws import Draw
from visynth.tabular.layers import one_hot, parted
from visynth.tabular.schema import Table
from visynth.tabular.spans import OnMixed
from visynth.tabular.training import Arrays, Batch

PENALTY = 10.0  # of the gradient (Xu et al., section 4.4)
TAU = 0.2  # temperature of the Gumbel softmax
BETAS = (0.5, 0.9)


class Residual(nn.Module):
    """Linear, batch normalisation, ReLU, and the input beside the output."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(inputs, width), nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([functional.relu(self.norm(self.linear(x))), x], dim=1)


class GeneratorNet(nn.Module):
    """Noise and condition -> places in (-1, 1) and logits of every field's codes.

    Args:
        inputs: noise and condition dimensions together.
        places: number of places.
        codes: sum of the fields' sizes.
        width: of the hidden layers.
        depth: residual layers.
    """

    def __init__(self, inputs: int, places: int, codes: int, width: int, depth: int = 2) -> None:
        super().__init__()
        self.places = places
        self.layers = nn.Sequential(*(Residual(inputs + k * width, width) for k in range(depth)))
        self.last = nn.Linear(inputs + depth * width, places + codes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.last(self.layers(x))
        return torch.tanh(out[:, : self.places]), out[:, self.places :]


class DiscriminatorNet(nn.Module):
    """``pac`` rows with their conditions -> one score.

    Args:
        inputs: numbers of a row and its condition.
        width: of the hidden layers.
        pac: rows that are judged together.
    """

    def __init__(self, inputs: int, width: int, pac: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise([inputs * pac, width, width]))
        self.last = nn.Linear(width, 1)

    def forward(self, x: Tensor, chance: torch.Generator) -> Tensor:
        """Scores ``[packs, 1]``; half of the hidden numbers are dropped by a generator of the step's own."""
        for layer in self.layers:
            x = functional.leaky_relu(layer(x), 0.2)
            x = x * 2 * (torch.rand(x.shape, generator=chance, device=x.device) < 0.5)
        return cast(Tensor, self.last(x))


class CTGAN(OnMixed):
    """The conditional tabular GAN.

    Args:
        steps: generator steps; the paper trains 300 epochs of 500 rows.
        batch_size: rows of a step, over all processes; a multiple of ``pac`` on each.
        lr: of both networks.
        noise_dim: of the latent noise.
        width: of the hidden layers.
        pac: rows that the discriminator judges together (Lin et al., "PacGAN", NeurIPS 2018).
        ema: share of the old average that a step keeps.
        rare_below: rows that a category needs.
        seed: of weights, batches and noise.
    """

    network = "ctgan"
    fits_by = "an adversarial game"

    def __init__(
        self,
        steps: int = 5000,
        batch_size: int = 500,
        lr: float = 2e-4,
        noise_dim: int = 128,
        width: int = 256,
        pac: int = 10,
        ema: float = 0.99,
        rare_below: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self._frequencies: list[NDArray[np.float64]] = []
        self._by_code: list[
            tuple[NDArray[np.int64], NDArray[np.int64]]
        ] = []  # rows by code, and where each code starts

    # -- fitting -----------------------------------------------------------------------------------------------------

    @property
    def condition_dims(self) -> int:
        return sum(self.sizes[field] for field in self.mixed.words)

    fits_privately = False

    def encode(self, table: Table) -> Arrays:
        arrays = super().encode(table)
        codes = arrays["codes"]
        self._frequencies = [
            np.bincount(codes[:, f], minlength=self.sizes[f]).astype(np.float64) for f in self.mixed.words
        ]
        self._by_code = [
            (np.argsort(codes[:, f], kind="stable"), np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))
            for f, counts in zip(self.mixed.words, self._frequencies, strict=True)
        ]
        return arrays

    def encoding_json(self) -> dict[str, Any]:
        return {**super().encoding_json(), "frequencies": [values.tolist() for values in self._frequencies]}

    def restore_encoding(self, said: Any) -> None:
        super().restore_encoding(said)
        self._frequencies = [np.array(values) for values in said["frequencies"]]

    def build(self) -> nn.Module:
        args, codes, places = self.args, sum(self.sizes), len(self.mixed.numbers)
        self.discriminator = DiscriminatorNet(codes + places + self.condition_dims, args.width, args.pac)
        return GeneratorNet(args.noise_dim + self.condition_dims, places, codes, args.width)

    def configure_optimizers(self) -> Any:
        nets = (self.discriminator, self.net)
        return [torch.optim.Adam(net.parameters(), lr=self.args.lr, betas=BETAS, weight_decay=1e-6) for net in nets]

    def batch(self, rows: NDArray[np.int64], generator: np.random.Generator) -> tuple[NDArray[np.int64], Arrays]:
        """Rows that have the conditions, which the discriminator sees in another order than the generator."""
        count = len(rows) // int(self.args.pac) * int(self.args.pac) or int(self.args.pac)
        noise: Arrays = {"z": generator.standard_normal((count, self.args.noise_dim), dtype=np.float32)}
        noise["z_d"] = generator.standard_normal((count, self.args.noise_dim), dtype=np.float32)
        noise["mix"] = generator.random((count, 1)).astype(np.float32)
        for name in ("gumbel", "gumbel_d"):
            noise[name] = -np.log(generator.standard_exponential((count, sum(self.sizes)), dtype=np.float32) + 1e-20)
        if not self._frequencies:
            return generator.choice(rows, count), noise
        column = generator.integers(len(self._frequencies), size=count)
        code, u = np.empty(count, np.int64), generator.random(count)
        for number, frequency in enumerate(self._frequencies):
            own, cumulative = column == number, np.cumsum(np.log1p(frequency))
            code[own] = np.searchsorted(cumulative, u[own] * cumulative[-1], side="right")
        order = generator.permutation(count)
        noise |= {"column": column, "code": code, "real_column": column[order], "real_code": code[order]}
        return self._rows_with(column[order], code[order], generator.random(count)), noise

    def _rows_with(self, column: NDArray[np.int64], code: NDArray[np.int64], u: Floats) -> NDArray[np.int64]:
        """One row for each category of a column, evenly among those that have it."""
        picked = np.empty(len(column), np.int64)
        for number, (ordered, starts) in enumerate(self._by_code):
            own = column == number
            first, last = starts[code[own]], starts[code[own] + 1]
            picked[own] = ordered[first + (u[own] * (last - first)).astype(np.int64)]
        return picked

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        discriminator_optimizer, optimizer = cast(Any, self.optimizers())
        chance = torch.Generator(self.device)
        chance.manual_seed(seeding.derive("ctgan/dropout", self.args.seed, int(self.steps_done), distributed.rank()))
        count = len(batch["z"]) // self.args.pac * self.args.pac  # a rank's share may not be a multiple
        batch = {name: values[:count] for name, values in batch.items()}
        real = torch.cat([batch["places"], one_hot(batch["codes"].long(), self.sizes)], dim=1)
        real_condition, condition = self._condition(batch, "real_"), self._condition(batch, "")

        with torch.no_grad():
            fake, _ = self._generate(batch["z_d"], condition, batch["gumbel_d"])
        distance = self._judge(fake, condition, chance).mean() - self._judge(real, real_condition, chance).mean()
        mixed = batch["mix"] * torch.cat([real, real_condition], 1) + (1 - batch["mix"]) * torch.cat(
            [fake, condition], 1
        )
        loss_d = distance + PENALTY * self._penalty(mixed, chance)
        self._step(discriminator_optimizer, loss_d, self.discriminator)

        fake, logits = self._generate(batch["z"], condition, batch["gumbel"])
        loss_g = self._condition_loss(logits, batch) - self._judge(fake, condition, chance).mean()
        self._step(optimizer, loss_g, self.net)
        self.after_step()
        self.log_dict({"loss_d": loss_d.detach(), "loss_g": loss_g.detach()}, prog_bar=True, batch_size=count)

    def _step(self, optimizer: Any, loss: Tensor, net: nn.Module) -> None:
        self.stop_unless_finite(loss)
        optimizer.zero_grad()
        parameters = list(net.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        distributed.average_gradients(parameters)
        optimizer.step()

    def _condition(self, batch: Batch, side: str) -> Tensor:
        """Condition vectors ``[B, condition_dims]``: one category of one column."""
        if not self._frequencies:
            return batch["z"].new_zeros(len(batch["z"]), 0)
        starts = np.concatenate([[0], np.cumsum([len(f) for f in self._frequencies])[:-1]])
        place = torch.from_numpy(starts).to(self.device)[batch[f"{side}column"]] + batch[f"{side}code"]
        return functional.one_hot(place, self.condition_dims).float()

    def _generate(self, z: Tensor, condition: Tensor, gumbel: Tensor) -> tuple[Tensor, Tensor]:
        """Fake rows as the discriminator sees them, and their logits."""
        places, logits = self.net(torch.cat([z, condition], dim=1))
        parts = zip(parted(logits, self.sizes), parted(gumbel, self.sizes), strict=True)
        soft = [torch.softmax((part + noise) / TAU, dim=1) for part, noise in parts]
        return torch.cat([places, *soft], dim=1), logits

    def _judge(self, rows: Tensor, condition: Tensor, chance: torch.Generator) -> Tensor:
        both = torch.cat([rows, condition], dim=1)
        return cast(Tensor, self.discriminator(both.view(len(both) // self.args.pac, -1), chance))

    def _penalty(self, mixed: Tensor, chance: torch.Generator) -> Tensor:
        """Squared deviation of the gradient's norm from 1, over packs of rows (Gulrajani et al., NeurIPS 2017, eq. 3)."""
        packs = mixed.detach().view(len(mixed) // self.args.pac, -1).requires_grad_()
        (gradient,) = torch.autograd.grad(self.discriminator(packs, chance).sum(), packs, create_graph=True)
        return cast(Tensor, ((gradient.norm(dim=1) - 1) ** 2).mean())

    def _condition_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        if not self._frequencies:
            return logits.new_zeros(())
        parts, total = parted(logits, self.sizes), logits.new_zeros(())
        for number, field in enumerate(self.mixed.words):
            own = batch["column"] == number
            if bool(own.any()):
                total = total + functional.cross_entropy(parts[field][own], batch["code"][own], reduction="sum")
        return total / len(logits)

    # -- sampling ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _draw(self, draw: Draw, conditions: Conditions) -> Table:
        device = next(self.average.parameters()).device
        column, code = self._drawn_conditions(draw, conditions)
        z = torch.from_numpy(draw.normals(self.args.noise_dim, "ctgan").astype(np.float32)).to(device)
        batch = {"z": z, "column": torch.from_numpy(column).to(device), "code": torch.from_numpy(code).to(device)}
        places, logits = self.average(torch.cat([z, self._condition(batch, "")], dim=1))
        codes = self.codes_of(logits, draw.uniforms(len(self.sizes), "ctgan/codes"))
        return self.mixed.decode(codes, places.double().cpu().numpy())

    def _drawn_conditions(self, draw: Draw, conditions: Conditions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The column and category that each row's generator is given: the rarest asked for, else one by frequency."""
        u = draw.uniforms(2, "ctgan/condition")
        if not self._frequencies:
            return np.zeros(len(u), np.int64), np.zeros(len(u), np.int64)
        column = np.minimum((u[:, 0] * len(self._frequencies)).astype(np.int64), len(self._frequencies) - 1)
        code = np.empty(len(u), np.int64)
        rarity = np.full(len(u), np.inf)
        asked = self.given_codes(conditions, draw)
        for number, field in enumerate(self.mixed.words):
            counts = self._frequencies[number].copy()
            counts[list(self.mixed.fields[field].never)] = 0
            name = self.mixed.fields[field].column
            if name in conditions.allowed:
                codec = next(c for c in self.mixed.codecs if c.name == name)
                legal = codec.within(conditions.allowed[name].holds, 0, 0)[0]  # type: ignore[union-attr]
                counts = counts * legal if (counts * legal).any() else counts
                narrowed = counts.sum() < rarity * np.ones(len(u))
                column, rarity = np.where(narrowed, number, column), np.where(narrowed, counts.sum(), rarity)
            own = column == number
            cumulative = np.cumsum(counts)
            code[own] = np.searchsorted(cumulative, u[own, 1] * cumulative[-1], side="right")
            rows = asked[:, field] >= 0
            rarer = rows & (counts[np.maximum(asked[:, field], 0)] < rarity)
            column, code = np.where(rarer, number, column), np.where(rarer, asked[:, field], code)
            rarity = np.where(rarer, counts[np.maximum(asked[:, field], 0)], rarity)
        return column, code
