"""What GAN, VAE and diffusion share: a table as one vector of places and one-hot codes, and drawing codes from logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visynth.core.errors import UsageError
from visynth.tabular.columns import Floats
from visynth.tabular.conditions import Conditions
from visynth.tabular.discrete import CategoryCodec
from visynth.tabular.draws import Draw
from visynth.tabular.layers import illegal_codes, parted, pick
from visynth.tabular.mixed import Mixed, Scaling
from visynth.tabular.schema import Table
from visynth.tabular.training import Arrays, Trained


class OnMixed(Trained):
    """A trained generator over codes and places."""

    scaling: Scaling = "modes"

    def __init__(self) -> None:
        super().__init__()
        self._mixed: Mixed | None = None

    @property
    def mixed(self) -> Mixed:
        """How columns become codes and places. A UsageError before the fit."""
        if self._mixed is None:
            raise UsageError(f"this {type(self).__name__} has not been fitted: call fit(frame), or load one.")
        return self._mixed

    @property
    def sizes(self) -> list[int]:
        """Codes of each field."""
        return [field.size for field in self.mixed.fields]

    def fit_encoding(self, table: Table) -> list[str]:
        least, seed = int(self.args.rare_below), int(self.args.seed)
        self._mixed = Mixed.of(
            self.fitted.model_schema, table, self.scaling, least=least, keep=self.fitted.kept_whole, seed=seed
        )
        return self._mixed.notes(table)

    def encode(self, table: Table) -> Arrays:
        codes, places = self.mixed.encode(table, int(self.args.seed))
        return {"codes": codes, "places": places}

    def encoding_json(self) -> dict[str, Any]:
        return {"codecs": self.mixed.to_json()}

    def restore_encoding(self, said: Mapping[str, Any]) -> None:
        self._mixed = Mixed.from_json(said["codecs"])

    def codes_of(self, logits: Tensor, u: Floats) -> NDArray[np.int64]:
        """Codes int64 ``[B, fields]`` drawn from logits ``[B, sum of sizes]`` at uniform numbers ``[B, fields]``."""
        drawn = np.empty(u.shape, np.int64)
        chances = torch.from_numpy(u).to(logits.device)
        for number, part in enumerate(parted(logits, self.sizes)):
            parent = self.mixed.parent(number)
            before = None if parent is None else torch.from_numpy(drawn[:, parent]).to(part.device)
            illegal = illegal_codes(self.mixed.fields[number], before, part.device)
            drawn[:, number] = pick(part.masked_fill(illegal, -torch.inf), chances[:, number]).cpu().numpy()
        return drawn

    def given_codes(self, conditions: Conditions, draw: Draw) -> NDArray[np.int64]:
        """Codes of category columns that conditions fix, -1 elsewhere."""
        codes = np.full((len(draw.keys), len(self.mixed.fields)), -1, np.int64)
        for codec in self.mixed.codecs:
            if not isinstance(codec, CategoryCodec):
                continue
            own = list(self.mixed.places[codec.name])
            if codec.name in conditions.fixed:
                values, given = conditions.fixed[codec.name]
                codes[:, own] = np.where(given[:, None], codec.encode(values), -1)
        return codes
