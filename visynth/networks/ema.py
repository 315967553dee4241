"""Power-function averages of weights, and their choice after training.

Source: Karras et al., "Analyzing and improving the training dynamics of diffusion models" (CVPR 2024), cited as *EDM2*,
sections 3.1 and C. An average with exponent gamma weighs the weights at time s by s^gamma over [0, t]. Its width
relative to t is ``std``; two such averages stored along the way give every other width afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def gamma_of(std: float) -> float:
    """The exponent of a relative width: the positive root of (g + 1) / ((g + 2)^2 (g + 3)) = std^2 (EDM2, eq. 126).

    Args:
        std: in (0, 0.28]; wider than that no power function is.

    Example:
        >>> round(gamma_of(0.10), 6), round(gamma_of(0.05), 6)
        (6.937204, 16.972199)
    """
    roots = np.roots([1.0, 7.0, 16.0 - std**-2, 12.0 - std**-2])
    return float(np.real(roots[np.argmax(np.real(roots))]))


def power_beta(time: float, step: float, gamma: float) -> float:
    """Share of the old average kept in an update that ends at ``time`` and lasts ``step`` (EDM2, eq. 127); 0 at the
    first.

    Example:
        >>> power_beta(64, 64, 7.0)
        0.0
    """
    return float((1 - step / time) ** (gamma + 1))


def inner(time_a: float, gamma_a: float, time_b: float, gamma_b: float) -> float:
    """Integral of the product of two averages' densities, p(s) = (g + 1) s^g / t^(g + 1) on [0, t] (EDM2, eq. 135).

    Example:
        >>> round(inner(1.0, 1.0, 1.0, 1.0), 4)  # of (2 s)^2 over [0, 1]
        1.3333
    """
    low = min(time_a, time_b)
    scale = (low / time_a) ** (gamma_a + 1) * (low / time_b) ** (gamma_b + 1)
    return float((gamma_a + 1) * (gamma_b + 1) / ((gamma_a + gamma_b + 1) * low) * scale)


def posthoc(stored: Sequence[tuple[float, float]], time: float, gamma: float) -> NDArray[np.float64]:
    """Coefficients of stored averages whose sum comes nearest to the average (time, gamma), in L2 (EDM2, section C.2).

    Args:
        stored: (time, gamma) of each.
        time: when the wanted average ends.
        gamma: its exponent.

    Example:
        >>> (posthoc([(1.0, 16.97), (2.0, 16.97), (2.0, 6.94)], 2.0, 6.94).round(6) + 0.0).tolist()  # no -0.0
        [0.0, 0.0, 1.0]
    """
    gram = np.array([[inner(*a, *b) for b in stored] for a in stored])
    aim = np.array([inner(*a, time, gamma) for a in stored])
    weights, *_ = np.linalg.lstsq(gram, aim, rcond=1e-12)
    return np.asarray(weights, dtype=np.float64)
