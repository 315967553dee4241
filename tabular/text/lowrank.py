"""Low-rank weights in a language model, through peft: added, copied in, switched off, written for other tools.

Source: Hu et al., "LoRA: low-rank adaptation of large language models" (ICLR 2022), eq. 3: W + alpha / rank * B A.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from visynth.core.errors import IntegrityError, MissingExtra, UsageError, choices, raise_all
from visynth.tabular.stored import packed

if TYPE_CHECKING:
    from torch import Tensor, nn

EVERY_LINEAR = "all-linear"
NAME = "default"  # peft's own, of an adapter that has none


@dataclass(frozen=True)
class LowRank:
    """Which layers get low-rank weights.

    Attributes:
        rank: of them.
        alpha: their scale is alpha / rank.
        targets: names of layers such as q_proj; none for every linear layer but the last.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: Sequence[str] = ()

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be {what}, but got {getattr(self, name)}"
            for name, what, good in (
                ("rank", "at least 1", self.rank >= 1),
                ("alpha", "above 0", self.alpha > 0),
            )
            if not good
        ]
        if isinstance(self.targets, str):
            problems.append(f"targets must be a list of names, but got {self.targets!r}")
        raise_all("the low-rank weights", problems, UsageError)

    def config(self) -> Any:
        """As peft has it."""
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise MissingExtra("LoRA needs peft: pip install 'visynth[text]'.") from error
        targets = list(self.targets) or EVERY_LINEAR
        return LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=targets, task_type="CAUSAL_LM")


def attach(model: Any, settings: LowRank) -> dict[str, nn.Parameter]:
    """Add low-rank weights, which change nothing yet, and freeze the rest.

    Args:
        model: of transformers; it is changed in place.
        settings: of the weights.

    Returns:
        The new weights by name, in float32.

    Raises:
        UsageError: the model has no such layers.
    """
    from peft import inject_adapter_in_model

    model.requires_grad_(False)
    _check_targets(model, settings.targets)
    inject_adapter_in_model(settings.config(), model)
    own = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    for parameter in own.values():
        parameter.data = parameter.data.float()
    return {name.replace(f".{NAME}.", "."): parameter for name, parameter in sorted(own.items())}


def _check_targets(model: Any, targets: Sequence[str]) -> None:
    """Refuse targets that no layer has, and those whose weights are embeddings: what is added to one would not be in the other.

    Raises:
        UsageError: all of them.
    """
    tied = {
        id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None
    }
    names = dict(model.named_modules())
    problems = []
    for target in targets:
        found = [module for name, module in names.items() if name == target or name.endswith(f".{target}")]
        if not found:
            ends = sorted(
                {
                    name.rsplit(".", 1)[-1]
                    for name, module in names.items()
                    if getattr(module, "weight", None) is not None
                }
            )
            problems.append(f"no layer is called {target!r}; those with weights are {choices(ends)}")
        elif any(id(getattr(module, "weight", None)) in tied for module in found):
            problems.append(f"{target!r} is the embedding, or shares weights with it")
    raise_all("the targets of the low-rank weights", problems, UsageError)


def put_in(model: Any, settings: LowRank, tensors: Mapping[str, Tensor]) -> None:
    """Add low-rank weights that were trained.

    Raises:
        IntegrityError: they are of another model.
    """
    own = attach(model, settings)
    wrong = [name for name in {*own, *tensors} if name not in own or name not in tensors]
    wrong += [name for name in own if name not in wrong and own[name].shape != tensors[name].shape]
    if wrong:
        raise IntegrityError(
            f"the low-rank weights do not fit the model: {len(wrong)} of {len(own)} differ, such as {sorted(wrong)[0]}."
        )
    for name, parameter in own.items():
        parameter.data.copy_(tensors[name])
        parameter.requires_grad_(False)


def _layers(model: Any) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def merge(model: Any) -> None:
    """Add the low-rank weights to those of the layers, so that nothing is slower for them; not where the layers have 16 bits, in
    which small changes would be lost."""
    import torch

    for layer in _layers(model):
        if layer.get_base_layer().weight.dtype == torch.float32:
            layer.merge()


@contextmanager
def switched_off(model: Any) -> Iterator[None]:
    """The model as it was before, for a while; it must not be merged."""
    layers = _layers(model)
    if any(layer.merged for layer in layers):
        raise UsageError("the low-rank weights are merged: they cannot be switched off.")
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def peft_files(settings: LowRank, tensors: Mapping[str, Tensor], base: str) -> dict[str, bytes]:
    """The files of an adapter as peft, vLLM and others read it.

    Args:
        settings: of the weights.
        tensors: by name.
        base: what the base model is called there.
    """
    said = settings.config().to_dict()
    layers = sorted({name.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for name in tensors})
    said |= {"target_modules": layers, "base_model_name_or_path": base, "inference_mode": True}
    said = {name: sorted(value) if isinstance(value, set) else value for name, value in said.items()}
    weights = packed({f"base_model.model.{name}": tensor for name, tensor in tensors.items()})
    return {
        "adapter_config.json": (json.dumps(said, indent=2, sort_keys=True, default=str) + "\n").encode(),
        "adapter_model.safetensors": weights,
    }
