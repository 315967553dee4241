"""Causal language models from local files: folders as transformers saves them, and GGUF files. Nothing is downloaded, and no
code that lies beside the weights is run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any

from visynth.core.errors import DataError, MissingExtra, UsageError
from visynth.core.files import hash_file

REPLY = "REPLY"  # stands for one while the chat template's end is looked for
WEIGHTS = ("*.safetensors", "*.gguf")


@dataclass(frozen=True)
class LanguageModel:
    """A model and its tokenizer.

    Attributes:
        model: of transformers, in evaluation mode.
        tokenizer: a fast one, padding on the left.
        path: where they were read from.
        adapter: digest of the low-rank weights that were added, or "".
        learned: hashes of the texts that they learned.
    """

    model: Any
    tokenizer: Any
    path: Path
    adapter: str = ""
    learned: frozenset[str] = frozenset()

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of the weights' files, without the adapter."""
        return weights_digest(self.path)

    @property
    def context(self) -> int:
        """Most tokens of prompt and reply together."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 2**31)

    @property
    def device(self) -> Any:
        return next(self.model.parameters()).device

    @property
    def stops(self) -> list[int]:
        """Tokens that end a reply."""
        own = self.model.generation_config.eos_token_id
        listed = own if isinstance(own, list) else [own]
        return sorted({int(token) for token in [*listed, self.tokenizer.eos_token_id] if token is not None})

    def ids(self, messages: Any) -> list[int]:
        """Tokens of a conversation up to where the reply begins."""
        tokenizer = self.tokenizer
        if tokenizer.chat_template:
            text = tokenizer.apply_chat_template(
                [dict(m) for m in messages], add_generation_prompt=True, tokenize=False
            )
        else:  # a base model: the prompt, and the reply on a line of its own
            text = "\n".join(message["content"] for message in messages) + "\n"
        return [int(token) for token in tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"]]

    def reply_ids(self, text: str) -> list[int]:
        """Tokens of a reply and of its end."""
        own = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [*map(int, own), *self.end]

    @cached_property
    def end(self) -> list[int]:
        """Tokens after a reply up to the one that ends it, as the chat template has them.

        Raises:
            UsageError: nothing ends a reply.
        """
        stops, tokenizer = self.stops, self.tokenizer
        if tokenizer.chat_template:
            talk = [{"role": "user", "content": "?"}, {"role": "assistant", "content": REPLY}]
            after = tokenizer.apply_chat_template(talk, tokenize=False).rsplit(REPLY, 1)[-1]
            tokens = [int(token) for token in tokenizer(after, add_special_tokens=False)["input_ids"]]
            ends = [place for place, token in enumerate(tokens) if token in stops]
            if ends:
                return tokens[: ends[0] + 1]
        if tokenizer.eos_token_id is None:
            raise UsageError(f"{self.path}: its tokenizer has no end token, so that a reply would never end.")
        return [int(tokenizer.eos_token_id)]


def load_model(path: str | Path, device: str = "cpu", encoder: bool = False) -> LanguageModel:
    """A model from a folder or a ``.gguf`` file, in float32 on a CPU and bfloat16 on a GPU.

    Args:
        path: of the model.
        device: where it runs.
        encoder: whether its hidden states are asked for, and not its words; then it need not be causal.

    Raises:
        UsageError: there is none, or it is none for text.
        MissingExtra: transformers is not installed.
    """
    try:
        import torch
        from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtra("local language models need transformers: pip install 'visynth[text]'.") from error
    path = Path(path)
    files = weight_files(path)
    one = files[0] if path.is_file() or files[0].suffix == ".gguf" else None
    own: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if one is not None:
        _check_gguf(files)
        own["gguf_file"] = one.name
    else:
        own["use_safetensors"] = True
    folder = path.parent if path.is_file() else path
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, **{k: v for k, v in own.items() if k != "use_safetensors"}
            )
            dtype = torch.float32 if str(device) == "cpu" else torch.bfloat16
            model = (AutoModel if encoder else AutoModelForCausalLM).from_pretrained(folder, dtype=dtype, **own)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UsageError(
            f"{path} cannot be read as {'a text model' if encoder else 'a causal language model'}: {' '.join(str(error).split())[:300]}"
        ) from error
    if not tokenizer.is_fast:
        raise UsageError(f"{path} has no fast tokenizer (tokenizer.json), which is needed.")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    model.requires_grad_(False)
    return LanguageModel(model.to(device).eval(), tokenizer, path)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and hints while a model is read; as they were afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):  # the GGUF reader has a bar of its own
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _check_gguf(files: list[Path]) -> None:
    if len(files) > 1:
        raise UsageError(f"there are several GGUF files: {[f.name for f in files]}. Give one of them as the model.")
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingExtra("GGUF files need the package gguf: pip install 'visynth[text]'.") from error


def weight_files(path: str | Path) -> list[Path]:
    """The files of a model's weights.

    Raises:
        UsageError: there are none.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".gguf":
        return [path]
    files = sorted(file for pattern in WEIGHTS for file in path.glob(pattern)) if path.is_dir() else []
    safe = [file for file in files if file.suffix == ".safetensors"]
    if not files:
        raise UsageError(
            f"there is no language model at {path}: give a folder with config.json, tokenizer.json and *.safetensors, or a "
            ".gguf file. Hub ids are not looked up; download the model first."
        )
    return safe or files


def weights_digest(path: str | Path) -> str:
    """Hex sha256 over the hashes of a model's weight files."""
    stats = [(file, file.stat()) for file in weight_files(path)]
    return sha256("".join(_hashed(file, s.st_size, s.st_mtime_ns) for file, s in stats).encode()).hexdigest()


@cache
def _hashed(file: Path, size: int, changed: int) -> str:
    """Hash of a file as it is now: weights are large, and asked for several times in a run."""
    return hash_file(file)


def too_long(tokens: int, reply: int, context: int) -> DataError:
    return DataError(f"the prompt has {tokens} tokens and the reply up to {reply}: the model's context is {context}")
