"""After a loss that is no number: back to the last finite state with a lower learning rate, a few times, then stop."""

from __future__ import annotations

import copy
from typing import Any

from visynth.core.errors import Diverged

EVERY, MOST, SLOWER = 200, 3, 0.5


class Guard:
    """Keeps a copy of weights and optimisers every 200 steps; all processes see the same losses, so they go back
    together."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] | None = None

    def remember(self, module: Any) -> None:
        """Called after each step that went well."""
        if self._kept is None or int(module.gan.steps_done) % EVERY == 0:
            self._kept = {
                "weights": {name: value.detach().clone() for name, value in self._parts(module).items()},
                "optimizers": [copy.deepcopy(optimizer.state_dict()) for optimizer in _optimizers(module)],
            }

    def restore(self, module: Any, what: str) -> None:
        """Back to the copy, at half the learning rate.

        Raises:
            Diverged: it happened before any step, or for the fourth time.
        """
        seen = int(module.images_seen)
        if self._kept is None or int(module.restored) >= MOST:
            raise Diverged(
                f"{what} became infinite or not a number after {seen} images, {int(module.restored)} times before. The "
                "weights are those of the last "
                f"finite step. Lower lr_g and lr_d (now {module.args.lr_g:g} and {module.args.lr_d:g}) or raise gamma, "
                "and run the same command again."
            )
        module.restored += 1
        own = self._parts(module)
        for name, value in self._kept["weights"].items():
            own[name].data.copy_(value)
        for optimizer, state in zip(_optimizers(module), self._kept["optimizers"], strict=True):
            optimizer.load_state_dict(copy.deepcopy(state))
        slower = set_rates(module)
        module.print(
            f"{what} became infinite or not a number after {seen} images: back to the last good weights, learning "
            f"rates times {slower:g}"
        )

    def _parts(self, module: Any) -> dict[str, Any]:
        counters = ("images_seen", "stepped_at", "steps_done", "restored")
        return {name: v for name, v in module.state_dict(keep_vars=True).items() if name.split(".")[-1] not in counters}


def set_rates(module: Any) -> float:
    """The learning rates that the module was told, slower for each time that it was restored; gives the factor."""
    slower = SLOWER ** int(module.restored)
    for optimizer, rate in zip(_optimizers(module), (module.args.lr_d, module.args.lr_g), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * slower
    return slower


def _optimizers(module: Any) -> list[Any]:
    return [getattr(optimizer, "optimizer", optimizer) for optimizer in module.optimizers()]
