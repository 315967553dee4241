"""Texts by a language model on this machine.

Tokens are drawn by the record's own numbers: with one uniform number for each (seed, position) the token is looked up in the
distribution's cumulative sum, so that global random state plays no part. Requests are computed in batches of one size,
padded to one length: equal requests in an equal batch get equal replies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visynth.core import seeds as seeding
from visynth.core.errors import MissingExtra, UsageError
from visynth.core.files import canonical_json
from visynth.tabular.text.backends import Decoding, Reply, Request, RequestFailed
from visynth.tabular.text.models import LanguageModel, load_model, too_long

if TYPE_CHECKING:
    import torch

HEAD = 1024  # most likely tokens that are looked at first


class TransformersLocal:
    """A causal language model from a folder or a GGUF file.

    Args:
        model: path, or a model that is loaded already.
        decoding: how tokens are drawn.
        device: ``"cpu"``, ``"cuda"`` and the like.
        batch: requests computed together.
        constrain: whether a reply with a schema can only be what the schema allows (by llguidance), token by token.
        adapter: folder of low-rank weights of this model, see :class:`visynth.tabular.text.lora.TextLoRA`.

    Example:
        >>> TransformersLocal("no/such/folder")
        Traceback (most recent call last):
        visynth.core.errors.UsageError: there is no language model at no/such/folder: give a folder with config.json, ...
    """

    at_once = 1
    cost = None

    def __init__(
        self,
        model: str | Path | LanguageModel,
        decoding: Decoding | None = None,
        *,
        device: str = "cpu",
        batch: int = 16,
        constrain: bool = True,
        adapter: str | Path | None = None,
    ) -> None:
        if batch < 1:
            raise UsageError(f"batch must be at least 1, but got {batch}.")
        if adapter is not None and isinstance(model, LanguageModel):
            raise UsageError("a model that is loaded already has its adapter, or none: give its path.")
        self.batch, self.constrain = batch, constrain
        self.decoding = decoding or Decoding()
        self.model = model if isinstance(model, LanguageModel) else _loaded(model, adapter, device)
        self._grammars: dict[str, Any] = {}
        self._tokenizer: Any = None

    @property
    def learned(self) -> frozenset[str]:
        """Hashes of the texts that the adapter learned."""
        return self.model.learned

    @property
    def identity(self) -> Mapping[str, Any]:
        # The batch is part of it: arithmetic is rounded differently at other sizes.
        own = {
            "model": self.model.digest,
            "batch": self.batch,
            "constrain": self.constrain,
            "device": self.model.device.type,
        }
        own |= {"adapter": self.model.adapter} if self.model.adapter else {}
        return {"backend": "transformers", **own, **vars(self.decoding)}

    async def answer(self, requests: Sequence[Request]) -> Sequence[Reply | RequestFailed]:
        return self.complete(requests)

    def resumed(self, replies: Sequence[Reply]) -> None:
        """Nothing costs anything."""

    async def close(self) -> None:
        """The model stays: others may use it."""

    def complete(self, requests: Sequence[Request]) -> list[Reply | RequestFailed]:
        """Replies to at most ``batch`` requests."""
        prompts = [self.model.ids(request.messages) for request in requests]
        most = self.decoding.max_tokens
        fits = [len(prompt) + most <= self.model.context for prompt in prompts]
        own = [place for place, good in enumerate(fits) if good]
        drawn = self._draw([requests[k] for k in own], [prompts[k] for k in own]) if own else []
        outcome: dict[int, Reply | RequestFailed] = dict(zip(own, drawn, strict=True))
        for place, prompt in enumerate(prompts):
            if not fits[place]:
                outcome[place] = RequestFailed(str(too_long(len(prompt), most, self.model.context)))
        return [outcome[place] for place in range(len(requests))]

    def _draw(self, requests: Sequence[Request], prompts: Sequence[list[int]]) -> list[Reply]:
        import torch
        from transformers import LogitsProcessorList

        count, width = len(prompts), max(map(len, prompts))
        padded = [*prompts, *[prompts[-1]] * (self.batch - count)]
        pad = self.model.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in padded], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in padded], device=self.model.device)
        seeds = [request.seed for request in requests]
        seeds += [seeds[-1]] * (self.batch - count)
        steps: list[Any] = [ByOwnNumbers(self.decoding, seeds, width)]
        grammars = [None if request.schema is None else self._grammar(request.schema) for request in requests]
        if self.constrain and any(grammars):
            grammars += [grammars[-1]] * (self.batch - count)
            steps.insert(0, Constrained(self._ll_tokenizer(), grammars, width, self.model.stops))
        with torch.inference_mode():
            out = self.model.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=self.decoding.max_tokens, do_sample=False,
                logits_processor=LogitsProcessorList(steps), pad_token_id=pad, eos_token_id=self.model.stops or None,
                temperature=None, top_p=None, top_k=None, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0,
            )  # fmt: skip
        return [
            self._reply(len(prompt), row) for prompt, row in zip(prompts, out[:count, width:].tolist(), strict=True)
        ]

    def _reply(self, prompt: int, tokens: list[int]) -> Reply:
        ends = [place for place, token in enumerate(tokens) if token in self.model.stops]
        own = tokens[: ends[0]] if ends else tokens
        text = self.model.tokenizer.decode(own, skip_special_tokens=True)
        cut = not ends and len(own) >= self.decoding.max_tokens
        return Reply(text.strip(), "length" if cut else "stop", prompt, len(own))

    def _grammar(self, schema: Mapping[str, Any]) -> Any:
        key = canonical_json(dict(schema))
        if self.constrain and key not in self._grammars:
            guidance = _guidance()
            # Without free white space: a small model would write nothing else, and end at the token limit.
            options = {"whitespace_flexible": False}
            grammar = guidance.LLMatcher.grammar_from_json_schema(key, overrides=options)
            wrong = guidance.LLMatcher.validate_grammar(grammar, self._ll_tokenizer())
            if wrong:
                raise UsageError(f"the schema cannot be made a grammar: {wrong}. Use constrain: false.")
            self._grammars[key] = grammar
        return self._grammars.get(key)

    def _ll_tokenizer(self) -> Any:
        if self._tokenizer is None:
            _guidance()
            from llguidance import hf

            vocabulary = self.model.model.get_input_embeddings().num_embeddings
            self._tokenizer = hf.from_tokenizer(
                self.model.tokenizer, n_vocab=max(vocabulary, len(self.model.tokenizer))
            )
        return self._tokenizer


def _loaded(path: str | Path, adapter: str | Path | None, device: str) -> LanguageModel:
    if adapter is None:
        return load_model(path, device)
    from visynth.tabular.text.lora import with_adapter  # reads Lightning

    return with_adapter(path, adapter, device)


def _guidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingExtra(
            "replies that a schema constrains need llguidance: pip install 'visynth[text]', or use constrain: false."
        ) from error
    return llguidance


class ByOwnNumbers:
    """Leaves one token of each row: the one that the row's own number falls on.

    Args:
        decoding: temperature and top_p.
        seeds: of the rows.
        start: tokens before the first that is drawn.
    """

    def __init__(self, decoding: Decoding, seeds: Sequence[int], start: int) -> None:
        self.decoding, self.seeds, self.start = decoding, seeds, start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch

        step = input_ids.shape[1] - self.start
        if self.decoding.temperature == 0:
            chosen = scores.argmax(dim=-1, keepdim=True)
        else:
            numbers = [float(seeding.uniforms(seed, np.array([step]), 1, "text/token")[0, 0]) for seed in self.seeds]
            uniform = torch.tensor(numbers, dtype=torch.float64, device=scores.device)
            chosen = draw_tokens(scores.double() / self.decoding.temperature, self.decoding.top_p, uniform)
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen, 0.0)


def draw_tokens(logits: torch.Tensor, top_p: float, uniform: torch.Tensor) -> torch.Tensor:
    """Tokens ``[N, 1]`` by inverse cumulative distribution, of the smallest set with at least ``top_p`` of the probability.

    Args:
        logits: float64 ``[N, V]``.
        top_p: in (0, 1].
        uniform: float64 ``[N]`` in (0, 1).

    Example:
        >>> import torch
        >>> logits = torch.log(torch.tensor([[0.1, 0.6, 0.3]], dtype=torch.float64)).repeat(3, 1)
        >>> draw_tokens(logits, 0.7, torch.tensor([0.1, 0.65, 0.99], dtype=torch.float64)).ravel().tolist()
        [1, 1, 2]
    """
    import torch

    probabilities = torch.softmax(logits, dim=-1)
    ordered, tokens = torch.topk(probabilities, min(HEAD, logits.shape[-1]), dim=-1)
    if bool((ordered.sum(dim=-1) < top_p).any()):  # rarely: sorting everything takes most of the time
        ordered, tokens = torch.sort(probabilities, dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    ordered = torch.where(before < top_p, ordered, 0.0)
    total = ordered.cumsum(dim=-1)
    place = torch.searchsorted(total, uniform[:, None] * total[:, -1:])
    last = (ordered > 0).sum(dim=-1, keepdim=True) - 1
    return tokens.gather(1, torch.minimum(place, last))


class Constrained:
    """Rules out tokens that a row's grammar does not allow.

    Args:
        tokenizer: of llguidance.
        grammars: of the rows; None allows everything.
        start: tokens before the first that is drawn.
        stops: tokens that end a reply.
    """

    def __init__(self, tokenizer: Any, grammars: Sequence[Any], start: int, stops: Sequence[int]) -> None:
        from llguidance import LLMatcher

        self.matchers = [None if grammar is None else LLMatcher(tokenizer, grammar) for grammar in grammars]
        self.start, self.stops = start, list(stops)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        import torch
        from llguidance.torch import allocate_token_bitmask, fill_next_token_bitmask

        width = scores.shape[1]
        mask = allocate_token_bitmask(1, width)
        for row, matcher in enumerate(self.matchers):
            if matcher is None:
                continue
            if input_ids.shape[1] > self.start and not matcher.is_stopped():
                matcher.consume_token(int(input_ids[row, -1]))
            if matcher.is_stopped():
                allowed = torch.zeros(width, dtype=torch.bool)
                allowed[self.stops] = True
            else:
                fill_next_token_bitmask(matcher, mask, 0)
                bits = np.unpackbits(mask.numpy().view(np.uint8), axis=1, bitorder="little")[0, :width]
                allowed = torch.from_numpy(bits.astype(bool))
            scores[row] = scores[row].masked_fill(~allowed.to(scores.device), float("-inf"))
        return scores
