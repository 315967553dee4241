"""Network of the autoregressive model: a recurrent memory of the steps before, and one channel of a step after the other.

Each number is a mixture of normal distributions (Graves, "Generating sequences with recurrent neural networks", 2013,
section 4), each category a softmax, given the memory and the step's channels before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visynth.tabular.timeseries.encoding import Channel

LEAST_LOG, MOST_LOG = -5.0, 2.0  # of a normal distribution's deviation


class SeriesRNN(nn.Module):
    """Steps and condition -> parameters of every channel's distribution.

    Args:
        channels: of a step.
        condition: numbers of the condition.
        width: of the memory.
        depth: layers of the memory.
        mixture: normal distributions of a number.
        ends: whether a series' end is drawn too.
    """

    def __init__(
        self, channels: Sequence[Channel], condition: int, width: int, depth: int, mixture: int, ends: bool
    ) -> None:
        super().__init__()
        self.channels, self.mixture, self.hidden = tuple(channels), mixture, max(width // 2, 16)
        self.numbers = channels[-1].span.stop
        self.start = nn.Linear(condition, depth * width)
        self.memory = nn.GRU(2 * self.numbers + condition, width, depth, batch_first=True)
        count = len(channels)
        self.from_memory = nn.Linear(width, count * self.hidden)
        self.from_step = nn.Parameter(torch.zeros(self.numbers, count * self.hidden))
        self.heads = nn.ModuleList([nn.Linear(self.hidden, self.outputs(channel)) for channel in channels])
        self.end = nn.Linear(width, 1) if ends else None
        earlier = torch.zeros(self.numbers, count, self.hidden)
        for place, channel in enumerate(channels):
            earlier[channel.span, place + 1 :] = 1
        self.register_buffer("earlier", earlier.flatten(1), persistent=False)
        nn.init.normal_(self.from_step, std=0.1)

    earlier: Tensor

    def outputs(self, channel: Channel) -> int:
        """Parameters of a channel's distribution: logits; or weights, means and deviations, and whether there is a value."""
        return channel.categories or 3 * self.mixture + 1 + channel.nullable

    def begin(self, condition: Tensor) -> Tensor:
        """The memory before the first step ``[depth, B, width]``."""
        depth, width = self.memory.num_layers, self.memory.hidden_size
        return torch.tanh(self.start(condition)).view(len(condition), depth, width).transpose(0, 1).contiguous()

    def remember(self, before: Tensor, known: Tensor, condition: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Memory at each step, from the steps before ``[B, T, numbers]``."""
        conditions = condition[:, None].expand(-1, before.shape[1], -1)
        out, state = self.memory(torch.cat([before, known, conditions], dim=2), state)
        return out, state

    def context(self, memory: Tensor, step: Tensor) -> Tensor:
        """What each channel's head sees: memory and earlier channels of the step ``[..., channels, hidden]``."""
        own = self.from_memory(memory) + step @ (self.from_step * self.earlier)
        return nn.functional.silu(own).view(*own.shape[:-1], len(self.channels), self.hidden)

    def one_context(self, memory: Tensor, step: Tensor, place: int) -> Tensor:
        """The context of one channel ``[B, hidden]``."""
        span = slice(place * self.hidden, (place + 1) * self.hidden)
        own = nn.functional.linear(memory, self.from_memory.weight[span], self.from_memory.bias[span])
        return nn.functional.silu(own + step @ (self.from_step * self.earlier)[:, span])

    def mixtures(self, out: Tensor, before: Tensor, noise: float) -> tuple[Tensor, Tensor, Tensor]:
        """Log weights, means and deviations ``[..., mixture]``; means are changes from a share of the value before."""
        k = self.mixture
        share = torch.sigmoid(out[..., 3 * k : 3 * k + 1])
        means = share * before[..., None] + out[..., k : 2 * k]
        deviations = out[..., 2 * k : 3 * k].clamp(LEAST_LOG, MOST_LOG).exp() + noise
        return out[..., :k].log_softmax(-1), means, deviations
