"""Tabular variational autoencoder: Xu et al. (NeurIPS 2019), section 4.5, on the same rows as the GAN.

Codes are drawn from the decoder's probabilities and places from its normal distributions: taking the likeliest code and
the mean would make every sample a typical one.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from visynth.tabular.columns import Floats
from visynth.tabular.conditions import Conditions
from visynth.tabular.draws import Draw
from visynth.tabular.layers import cross_entropies, one_hot
from visynth.tabular.schema import Table
from visynth.tabular.spans import OnMixed
from visynth.tabular.training import Arrays, Batch

FACTOR = 2.0  # weight of the reconstruction
SIGMA = (0.01, 1.0)  # limits of the places' learned deviations


class VAENet(nn.Module):
    """Encoder and decoder.

    Args:
        places: number of places.
        codes: sum of the fields' sizes.
        latent: dimensions.
        width: of the hidden layers.
    """

    def __init__(self, places: int, codes: int, latent: int, width: int) -> None:
        super().__init__()
        self.places = places
        self.encoder = nn.Sequential(nn.Linear(places + codes, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.moments = nn.Linear(width, 2 * latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, places + codes)
        )
        self.log_sigma = PlaceScales(places)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Means and deviations of the places, logits of the codes."""
        out = self.decoder(z)
        means = torch.tanh(out[:, : self.places])
        return means, self.log_sigma(means.detach()).exp().clamp(*SIGMA), out[:, self.places :]


class PlaceScales(nn.Module):
    """A learned logarithm of a deviation for each place; a layer of its own, so that gradients of rows can be told apart.

    Args:
        places: number of places.
    """

    def __init__(self, places: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.full((places,), -2.3))

    def forward(self, means: Tensor) -> Tensor:
        """The logarithms for each row of means ``[B, places]``."""
        return self.value.expand_as(means)


class TVAE(OnMixed):
    """The tabular variational autoencoder.

    Args:
        steps: optimiser steps; the paper trains 300 epochs of 500 rows.
        batch_size: rows of a step, over all processes.
        lr: peak learning rate.
        latent: dimensions.
        width: of the hidden layers.
        ema: share of the old average that a step keeps.
        rare_below: rows that a category needs.
        seed: of weights, batches and noise.
    """

    network = "tvae"
    fits_by = "a variational bound"
    weight_decay = 1e-5

    def __init__(
        self,
        steps: int = 8000,
        batch_size: int = 500,
        lr: float = 1e-3,
        latent: int = 128,
        width: int = 128,
        ema: float = 0.995,
        rare_below: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()

    def build(self) -> nn.Module:
        return VAENet(len(self.mixed.numbers), sum(self.sizes), self.args.latent, self.args.width)

    def noise(self, count: int, generator: np.random.Generator) -> Arrays:
        return {"z": generator.standard_normal((count, self.args.latent)).astype(np.float32)}

    def loss(self, batch: Batch) -> Tensor:
        return self._row_losses(cast(VAENet, self.net), batch).mean()

    @torch.no_grad()
    def losses(self, frame: Any, *, seed: int = 0) -> Floats | None:
        """The negative bound of each row ``[N]``, at the mean of its latent distribution."""
        net = cast(VAENet, self.average)
        codes, places = self.mixed.encode(self.schema.table(frame), int(self.args.seed))
        zeros = np.zeros((len(codes), self.args.latent), np.float32)
        arrays = {"codes": codes, "places": places, "z": zeros}
        batch = {name: torch.from_numpy(values).to(net.log_sigma.value.device) for name, values in arrays.items()}
        return np.asarray(self._row_losses(net, batch).double().cpu().numpy())

    def _row_losses(self, net: VAENet, batch: Batch) -> Tensor:
        codes, places = batch["codes"].long(), batch["places"]
        hidden = net.encoder(torch.cat([places, one_hot(codes, self.sizes)], dim=1))
        mean, log_variance = net.moments(hidden).chunk(2, dim=1)
        predicted, sigma, logits = net.decode(mean + batch["z"] * (log_variance / 2).exp())
        within = self._within(codes).float()  # a place counts where its value lies in a mode
        normal = ((places - predicted) ** 2 / (2 * sigma**2) + sigma.log()) * within
        words = cross_entropies(logits, codes, self.sizes)
        divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1)
        return cast(Tensor, FACTOR * (normal.sum(1) + words.sum(1)) + divergence)

    def _within(self, codes: Tensor) -> Tensor:
        """Whether each place is that of a value in a mode, bool ``[B, places]``."""
        firsts = {c.name: c.first for c in self.mixed.codecs if hasattr(c, "modes")}
        own = [codes[:, f] >= firsts[self.mixed.fields[f].column] for f in self.mixed.numbers]
        return torch.stack(own, dim=1) if own else codes.new_zeros((len(codes), 0), dtype=torch.bool)

    @torch.no_grad()
    def _draw(self, draw: Draw, conditions: Conditions) -> Table:
        net = cast(VAENet, self.average)
        z = torch.from_numpy(draw.normals(self.args.latent, "tvae").astype(np.float32)).to(net.log_sigma.value.device)
        mean, sigma, logits = net.decode(z)
        codes = self.codes_of(logits, draw.uniforms(len(self.sizes), "tvae/codes"))
        spread = draw.normals(len(self.mixed.numbers), "tvae/places") * sigma.double().cpu().numpy()
        return self.mixed.decode(codes, mean.double().cpu().numpy() + spread)
