"""A tiny causal language model, made in the test: a BPE tokenizer and a two-layer Llama with random weights."""

from __future__ import annotations

from pathlib import Path

import torch

TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}<|assistant|>"
SENTENCES = [
    "the phone is great and the price is fine",
    "a bad lamp that broke after two days",
    '{"text": "a, b", "stars": 5}',
    "the quick brown fox jumps over the lazy dog 0123456789",
]


def tiny_model(folder: Path, chat: bool = True, width: int = 32) -> Path:
    """Write a model folder as transformers saves it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    own = Tokenizer(models.BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    own.train_from_iterator(SENTENCES * 5, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, eos_token="<|end|>", pad_token="<|end|>")
    if chat:
        tokenizer.chat_template = TEMPLATE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=width * 3 // 2, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=256, bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=True,
        )  # fmt: skip
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def schooled(folder: Path, sentences: list[tuple[str, str]], steps: int = 150) -> Path:
    """The model after a plain training of all its weights on prompts and replies: one that knows the kind of text."""
    from visynth.tabular.text.losses import mean_losses
    from visynth.tabular.text.models import load_model
    from visynth.tabular.text.talks import Talk, encoded

    model = load_model(folder)
    talks = [Talk(({"role": "user", "content": prompt},), reply) for prompt, reply in sentences]
    rows = {name: torch.from_numpy(values) for name, values in encoded(model, talks)[0].items()}
    optimizer = torch.optim.AdamW(model.model.requires_grad_(True).parameters(), lr=1e-2)
    order = torch.Generator().manual_seed(0)
    for _ in range(steps):
        picked = torch.randint(len(talks), (16,), generator=order)
        mean_losses(model.model, *(rows[name][picked] for name in ("ids", "first", "length"))).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.model.save_pretrained(folder)
    return folder
