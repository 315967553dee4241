"""Options of a federated training, checked as a whole."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from visynth.core.errors import UsageError, choices, raise_all
from visynth.privacy.accounting import Accountant, option_problems

LOCAL_DATA = ("data", "masks", "groups", "group_pattern", "max_bad_fraction", "num_workers", "temper", "seed")
# Not Any: what has a class_path in it would be made into an object while the options are read.
Plain = bool | int | float | str | list | dict | None  # type: ignore[type-arg]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass
class SitePrivacy:
    """Differential privacy of a site: who sees the generator can hardly say whether a site took part.

    The server is trusted: it sees every site's clipped update, and adds the noise. What is protected is a site, with all that it has,
    from whoever gets the generator; the other sites, who see the weights of every round, are trusted to answer a round that is
    repeated after a kill as they did before. With few sites an epsilon that leaves any use is out of reach: the training is refused,
    with what can be reached.

    Args:
        epsilon: of the whole training.
        delta: below one in the number of sites; by default the largest power of ten that is.
        accountant: ``"rdp"`` or ``"prv"``; both are told.
        most_noise: noise of the mean update over ``max_update_norm`` above which nothing is learned.
    """

    epsilon: float
    delta: float | None = None
    accountant: Accountant = "rdp"
    most_noise: float = 0.1


@dataclass
class FederatedOptions:
    """A training over sites: FedAvg, or a server's optimiser over the sites' gradients.

    Args:
        sites: by name what differs there in the arguments of the data, for instance ``{data: a/images}``; ``{}`` where a site says
            it itself (NVFlare). Of GeneratorData that is what images it has and how they are read; of your own DataModule anything.
        algorithm: ``"fedavg"``: sites train with the module's optimiser, begun anew each round, and weights are averaged (McMahan
            et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017). ``"fedopt"``: sites
            walk along their gradients, and the server takes the mean gradient for a step of the module's optimiser (Reddi et al.,
            "Adaptive federated optimization", ICLR 2021); with one local step it is the joined training exactly.
        local_steps: of a site in a round.
        local_lr: step size of the sites' walks, for ``"fedopt"``.
        weights: ``"images"``: sites count by their number of training images, which then leaves them; or ``"equal"``.
        max_update_norm: length to which a site's update is cut, at the site, and once more by the server.
        share_of_sites: probability with which a site takes part in a round.
        min_sites: answers without which a round fails; fewer than asked are told. None: all that were asked.
        share_counts: whether sites tell their images per class, for the card of the generator.
        round_timeout: seconds after which a round goes on without the sites that have not answered, as far as ``min_sites`` allows
            (NVFlare); 0 waits for all.
        privacy: differential privacy of a site; needs ``max_update_norm``, and equal weights.
        engine: ``"in_process"``: one site after another, here; ``"nvflare"``: NVFlare's simulator, a process a site.

    Raises:
        UsageError: options that cannot be right, all at once.

    Example:
        >>> FederatedOptions(sites={"a": {"data": "a/images"}, "b": {"data": "b/images"}}).local_steps
        10
    """

    sites: dict[str, dict[str, Plain]] = field(default_factory=dict)
    algorithm: Literal["fedavg", "fedopt"] = "fedavg"
    local_steps: int = 10
    local_lr: float = 0.05
    weights: Literal["images", "equal"] = "images"
    max_update_norm: float | None = None
    share_of_sites: float = 1.0
    min_sites: int | None = None
    share_counts: bool = False
    round_timeout: float = 0.0
    privacy: SitePrivacy | None = None
    engine: Literal["in_process", "nvflare"] = "in_process"

    def __post_init__(self) -> None:
        raise_all("federated", [*self._sites(), *self._numbers(), *self._private()], UsageError)

    def _sites(self) -> list[str]:
        if len(self.sites) < 2:
            return [f"sites must name at least two, but got {choices(self.sites) if self.sites else 'none'}"]
        return [
            f"site {name!r}: a name is of letters, digits, '_', '.' and '-', and begins with a letter or digit"
            for name in self.sites
            if not NAME.fullmatch(name)
        ]

    def _numbers(self) -> list[str]:
        problems = []
        if self.local_steps < 1:
            problems.append(f"local_steps must be at least 1, but got {self.local_steps}")
        if not 0 < self.local_lr < math.inf:
            problems.append(f"local_lr must be above 0, but got {self.local_lr}")
        if self.max_update_norm is not None and not 0 < self.max_update_norm < math.inf:
            problems.append(f"max_update_norm must be a number above 0, but got {self.max_update_norm}")
        if not 0 < self.share_of_sites <= 1:
            problems.append(f"share_of_sites must be in (0, 1], but got {self.share_of_sites}")
        if self.round_timeout < 0:
            problems.append(f"round_timeout must be at least 0, but got {self.round_timeout}")
        if self.min_sites is not None and not 1 <= self.min_sites <= max(len(self.sites), 1):
            problems.append(f"min_sites must be in [1, {len(self.sites)}], but got {self.min_sites}")
        return problems

    def _private(self) -> list[str]:
        if self.privacy is None:
            return []
        problems = option_problems(self.privacy.epsilon, 1.0)
        if not self.privacy.most_noise > 0:
            problems.append(f"privacy.most_noise must be above 0, but got {self.privacy.most_noise}")
        if self.max_update_norm is None:
            problems.append("privacy needs max_update_norm: the noise is a multiple of what one site may add")
        if self.weights != "equal":
            problems.append("privacy needs weights: equal: the number of a site's images is not paid for")
        if self.share_counts:
            problems.append("privacy and share_counts: counts of a site are not paid for, leave them out")
        if self.min_sites is not None:
            problems.append(
                "privacy and min_sites: a site that does not answer adds nothing, as one that was not asked; leave it out"
            )
        return problems

    @property
    def names(self) -> tuple[str, ...]:
        """The sites, in the order of their places in the stream."""
        return tuple(self.sites)


def local_problems(arguments: Mapping[str, Any]) -> list[str]:
    """Arguments of the data that a site may not say itself, in words.

    Example:
        >>> local_problems({"data": "a/images", "size": 16})[0][:51]
        'size is not its own to say: all sites share it (its'
    """
    return [
        f"{name} is not its own to say: all sites share it (its own are {', '.join(sorted(LOCAL_DATA))})"
        for name in arguments
        if name not in LOCAL_DATA
    ]
