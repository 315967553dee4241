"""How surprised a language model is by texts: the loss of every token of a reply, and what is made of it."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from visynth.tabular.text.models import LanguageModel
from visynth.tabular.text.talks import Arrays, batches

if TYPE_CHECKING:
    from torch import Tensor

LOWEST = 0.2  # share of a text's tokens that Min-K% looks at


def token_losses(model: Any, ids: Tensor, first: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood (nats) of the tokens of replies.

    Args:
        model: causal, of transformers.
        ids: int64 ``[N, L]``, padded on the right.
        first: tokens before the reply ``[N]``.
        length: tokens of prompt and reply ``[N]``.

    Returns:
        Losses float32 ``[N, W]`` of the tokens from the shortest prompt's end on, and whether each is one of the reply's.
    """
    import torch
    from torch.nn.functional import cross_entropy

    ids = ids[:, : int(length.max())]
    place = torch.arange(ids.shape[1], device=ids.device)
    keep = ids.shape[1] - int(first.min()) + 1  # from the last token before a reply on
    some = {"logits_to_keep": keep} if "logits_to_keep" in signature(model.forward).parameters else {}
    mask = (place < length[:, None]).long()
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **some).logits[:, -keep:]
    asked, place = ids[:, -keep:], place[-keep:]
    # Rows of words one after the other: over a transposed view the same takes three times as long.
    flat = cross_entropy(logits[:, :-1].float().flatten(0, 1), asked[:, 1:].flatten(), reduction="none")
    losses = flat.view(len(ids), -1)
    return losses, (place[1:] >= first[:, None]) & (place[1:] < length[:, None])


def mean_losses(model: Any, ids: Tensor, first: Tensor, length: Tensor) -> Tensor:
    """Mean loss of each reply's tokens ``[N]``: every text counts the same, whatever its length."""
    losses, own = token_losses(model, ids, first, length)
    return (losses * own).sum(dim=1) / own.sum(dim=1)


def losses_of(model: LanguageModel, arrays: Arrays, batch: int = 16) -> list[NDArray[np.float64]]:
    """The token losses of each reply, as :func:`visynth.tabular.text.talks.encoded` has them, without gradients."""
    import torch

    found = []
    for rows in batches(arrays, batch):
        with torch.inference_mode():
            losses, own = token_losses(
                model.model, *(torch.from_numpy(rows[name]).to(model.device) for name in ("ids", "first", "length"))
            )
        found += [row[mask].double().cpu().numpy() for row, mask in zip(losses, own, strict=True)]
    return found


def min_k(losses: NDArray[np.float64], share: float = LOWEST) -> float:
    """Mean loss of the tokens that surprised most (Min-K%: Shi et al., "Detecting pretraining data from large language models",
    ICLR 2024).

    Example:
        >>> min_k(np.array([1.0, 5.0, 2.0, 3.0, 4.0]), 0.4)
        4.5
    """
    return float(np.sort(losses)[-max(int(len(losses) * share), 1) :].mean())
