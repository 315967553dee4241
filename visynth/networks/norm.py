"""Batch normalisation that is the same over any number of processes, and whose statistics are measured for sampling.

Source: Ioffe and Szegedy (ICML 2015); class-conditional gain and bias after de Vries et al. (NeurIPS 2017); standing
statistics after Brock et al., "Large scale GAN training" (ICLR 2019), section 4: averages over many batches of the
finished network, so that an image never depends on the others made with it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from visynth.core import distributed
from visynth.networks.layers import wide


class Norm(nn.Module):
    """Normalises channels over the joined batch of all processes; gain and bias are parameters, or linear in a
    condition ``[N, width]``.

    Args:
        channels: of the images.
        width: of the condition; 0 for none.
        linear: makes the layers of the condition.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, width: int = 0, linear: Callable[[int, int], nn.Module] | None = None) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        if width:
            make = linear or (lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False))
            self.gain, self.bias = make(width, channels), make(width, channels)
        else:
            self.weight, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.gathered: list[tuple[Tensor, Tensor]] | None = None

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        mean, variance = self._measured(x) if self.training else (self.mean, self.variance)
        if self.gathered is not None:
            self.gathered.append((mean.detach(), variance.detach()))
        if self.width:
            gain, bias = 1 + self.gain(condition)[:, :, None, None], self.bias(condition)[:, :, None, None]
        else:
            gain, bias = self.weight[:, None, None], self.shift[:, None, None]
        scale = (variance + 1e-5).rsqrt()[:, None, None]
        normed: Tensor = (wide(x) - mean[:, None, None]) * scale * gain + bias
        return normed.to(x.dtype)

    def _measured(self, x: Tensor) -> tuple[Tensor, Tensor]:
        moments = torch.stack([wide(x).mean(dim=(0, 2, 3)), wide(x).square().mean(dim=(0, 2, 3))])
        world = distributed.world_size()
        if (
            world > 1 and torch.distributed.is_initialized() and self.gathered is None
        ):  # see measure: one process may do it
            from torch.distributed.nn.functional import all_reduce

            moments = all_reduce(moments) / world  # type: ignore[no-untyped-call]  # its gradient is summed over the processes as well
        return moments[0], (moments[1] - moments[0].square()).clamp(min=0)


def measure(network: nn.Module, run: Callable[[int], object], batches: int) -> None:
    """Set every norm's standing statistics to the averages over ``run(0)`` ... ``run(batches - 1)``; the network ends
    in eval mode.

    Args:
        network: with :class:`Norm` layers.
        run: makes one batch of images.
        batches: how many.
    """
    layers = [module for module in network.modules() if isinstance(module, Norm)]
    network.eval()
    for layer in layers:
        layer.training = True  # this layer alone: the spectral norms within it must not move
        layer.gathered = []
    with torch.no_grad():
        for batch in range(batches if layers else 0):
            run(batch)
    for layer in layers:
        assert layer.gathered is not None
        means, variances = (torch.stack(parts) for parts in zip(*layer.gathered, strict=True))
        layer.mean.copy_(means.mean(dim=0))
        layer.variance.copy_(variances.mean(dim=0))
        layer.gathered = None
        layer.eval()
