"""LoRA fine-tuning of a foundation model's U-Net or transformer through peft, on few images a class.

The pipeline's own parts do the work: its text encoders read the prompts once, its VAE encodes, its scheduler says what
is predicted (epsilon, v, or a flow). Only the low-rank weights are trained, kept in checkpoints and exported, under the
names that diffusers loads.
Sources: Hu et al., "LoRA" (ICLR 2022); Ho et al. (2020) eq. 14 for epsilon; Esser et al., "Scaling rectified flow
transformers" (ICML 2024), eq. 13 and section 3.1 (logit-normal timesteps) for flows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from visynth.core.artifact import FEDERATION, PRIVACY
from visynth.core.errors import DataError, MissingExtra, UsageError
from visynth.generators.base import Generator
from visynth.generators.diffusion import to_values
from visynth.generators.foundation import StartImage, load_pipeline, make_foundation, pipeline_folder
from visynth.lightning_modules.base import GeneratorModule, present
from visynth.lightning_modules.facts import Facts

TRAINABLE = ("UNet2DConditionModel", "SD3Transformer2DModel")  # Stable Diffusion and SDXL; Stable Diffusion 3
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


class LoRA(GeneratorModule):
    """Low-rank fine-tuning of a diffusers pipeline; train it with :class:`visynth.lightning_modules.data.GeneratorData`
    at the pipeline's size.

    The exported generator starts from the real training images (mode ``"image"``), as few-shot evidence asks for.

    Args:
        pipeline: folder that ``save_pretrained`` wrote, or a hub id.
        rank: of the low-rank weights; their alpha is the rank.
        lr: AdamW's learning rate.
        warmup: images over which it rises from 0.
        prompts: by class; by default ``"a photo of <class>"``.
        prompt_drop: share of images trained with an empty prompt, so that guidance keeps its meaning.
        targets: layers that get low-rank weights.
        mode: of the exported generator, ``"image"`` or ``"text"``.
        sampler: defaults of the exported generator, for instance ``{"strengths": [0.25, 0.5], "steps": 30}``.
        seed: of everything random in training.

    Raises:
        DataError: no pipeline there, or one of another kind.
        UsageError: numbers that cannot be right.
        MissingExtra: peft or transformers is not installed.
    """

    def __init__(
        self,
        pipeline: str,
        rank: int = 8,
        lr: float = 1e-4,
        warmup: int = 200,
        prompts: dict[str, str] | None = None,
        prompt_drop: float = 0.1,
        targets: list[str] | None = None,
        mode: Literal["image", "text"] = "image",
        sampler: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if rank < 1 or lr <= 0 or warmup < 0 or not 0 <= prompt_drop <= 1 or mode not in ("image", "text"):
            raise UsageError(
                "LoRA takes rank of at least 1, lr above 0, warmup of at least 0, prompt_drop in [0, 1] and mode "
                f"'image' or 'text', but got {rank}, {lr}, {prompt_drop}, {mode!r}."
            )
        self.save_hyperparameters()
        self.strict_loading = False  # checkpoints hold the low-rank weights alone
        self._network: Any = None
        self._parts: dict[str, Any] = {}  # frozen parts: outside of the module's own state on purpose

    @property
    def network(self) -> Any:
        """The pipeline's U-Net or transformer with its low-rank weights. A UsageError where the data are not known yet."""
        return present(self._network)

    def privacy_problems(self) -> list[str]:
        """Options that give real images away."""
        if self.args.mode == "image":
            return ["mode 'image' exports the training images to start from: set mode: text"]
        return []

    def federation_problems(self) -> list[str]:
        """Options for which a server would need real images."""
        return self.privacy_problems()

    # -- building ------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if self._network is None:
            if not hasattr(self.data, "facts"):
                raise UsageError(
                    "LoRA is trained with visynth.lightning_modules.data.GeneratorData, which says what its classes "
                    "are."
                )
            self.build(self.data.facts)

    def build(self, facts: Facts) -> None:
        """Load the pipeline, freeze it, add low-rank weights, and encode the prompts once."""
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise MissingExtra("LoRA needs peft and transformers: pip install 'visynth[foundation]'") from error
        self._facts = facts
        pipe = load_pipeline(pipeline_folder(self.args.pipeline), "text")
        self.kind = "transformer" if getattr(pipe, "transformer", None) is not None else "unet"
        network = getattr(pipe, self.kind)
        if type(network).__name__ not in TRAINABLE:
            raise DataError(
                f"LoRA trains {' and '.join(TRAINABLE)}, but the pipeline of {self.args.pipeline} has a "
                f"{type(network).__name__}; it can be used as it is by 'visynth fit pipeline'."
            )
        factor = pipe.vae_scale_factor
        if any(side % factor for side in facts.size):
            near = [side // factor * factor for side in facts.size]
            raise UsageError(
                f"size {facts.size} is not a multiple of {factor}, which the pipeline's VAE needs: choose {near}."
            )
        for part in (pipe.vae, network):
            part.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.args.seed)
            network.add_adapter(
                LoraConfig(
                    r=self.args.rank,
                    lora_alpha=self.args.rank,
                    init_lora_weights="gaussian",
                    target_modules=self.args.targets or TARGETS,
                )
            )
        self._network = network.train()  # adapters have no dropout here: train mode computes what eval mode does
        prompts = [(self.args.prompts or {}).get(name, f"a photo of {name}") for name in facts.classes]
        with torch.no_grad():
            encoded = [self._encode(pipe, prompt) for prompt in [*prompts, ""]]
        columns = list(zip(*encoded, strict=True))
        self._parts = {
            "vae": pipe.vae.eval(),
            "scheduler": pipe.scheduler,
            "text": [torch.cat(list(column)) if column[0] is not None else None for column in columns],
        }

    def _encode(self, pipe: Any, prompt: str) -> tuple[Tensor, Tensor | None]:
        """The prompt's tokens ``[1, T, D]`` and, where the model takes one, its pooled embedding ``[1, E]``."""
        encoding = pipe.encode_prompt(
            prompt=prompt,
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            **self._extra_prompts(pipe, prompt),
        )
        return encoding[0], (encoding[2] if len(encoding) == 4 else None)

    @staticmethod
    def _extra_prompts(pipe: Any, prompt: str) -> dict[str, Any]:
        from inspect import signature

        taken = signature(pipe.encode_prompt).parameters
        return {name: prompt for name in ("prompt_2", "prompt_3") if name in taken}

    # -- training ------------------------------------------------------------------------------------------------

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        positions = batch["position"].tolist()
        latents = self._latents(batch["image"])
        draws = self.draw(positions, latents.shape[1:])
        noise = draws.noise.to(latents)
        dropped = torch.from_numpy(draws.uniform[:, 9] < self.args.prompt_drop).to(batch["label"].device)
        labels = torch.where(dropped, torch.full_like(batch["label"], len(self.facts.classes)), batch["label"])
        text = [None if part is None else part.to(latents)[labels] for part in self._parts["text"]]
        losses = (
            self._flow(latents, noise, draws, text) if self._is_flow() else self._denoise(latents, noise, draws, text)
        )
        return self.finish_step(losses.mean(), len(latents))

    def _latents(self, images: Tensor) -> Tensor:
        vae = self._parts["vae"].to(images.device)
        values = to_values(images) if not images.dtype.is_floating_point else images
        values = values.expand(-1, 3, -1, -1) if values.shape[1] == 1 else values
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):  # SDXL's VAE overflows in 16 bits
            encoded = vae.encode(values.to(vae.dtype)).latent_dist.mode()
        latents: Tensor = (encoded - (getattr(vae.config, "shift_factor", None) or 0.0)) * vae.config.scaling_factor
        return latents

    def _is_flow(self) -> bool:
        return "FlowMatch" in type(self._parts["scheduler"]).__name__

    def _flow(self, latents: Tensor, noise: Tensor, draws: Any, text: Sequence[Tensor | None]) -> Tensor:
        """x_s = (1 - s) x + s noise, the network predicts noise - x; s is logit-normal."""
        level = torch.sigmoid(torch.from_numpy(draws.normal[:, 4]).to(latents))
        s = level.reshape(-1, 1, 1, 1)
        steps = self._parts["scheduler"].config.num_train_timesteps
        predicted = self.network(
            hidden_states=(1 - s) * latents + s * noise,
            timestep=level * steps,
            encoder_hidden_states=text[0],
            pooled_projections=text[1],
            return_dict=False,
        )[0]
        losses: Tensor = ((predicted.float() - (noise - latents).float()) ** 2).mean(dim=(1, 2, 3))
        return losses

    def _denoise(self, latents: Tensor, noise: Tensor, draws: Any, text: Sequence[Tensor | None]) -> Tensor:
        """Epsilon or v prediction, as the pipeline's scheduler says."""
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler.from_config(self._parts["scheduler"].config)
        count = scheduler.config.num_train_timesteps
        timesteps = torch.from_numpy((draws.uniform[:, 11] * count).astype(np.int64)).to(latents.device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        added = None
        if text[1] is not None:  # SDXL is told the size of the image and the crop
            height, width = self.facts.size
            ids = torch.tensor([height, width, 0, 0, height, width], device=latents.device, dtype=latents.dtype)
            added = {"text_embeds": text[1], "time_ids": ids.repeat(len(latents), 1)}
        predicted = self.network(
            noisy, timesteps, encoder_hidden_states=text[0], added_cond_kwargs=added, return_dict=False
        )[0]
        kind = scheduler.config.prediction_type
        if kind not in ("epsilon", "v_prediction"):
            raise DataError(
                f"the pipeline's scheduler predicts {kind!r}; epsilon, v_prediction and flows can be trained."
            )
        aim = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
        losses: Tensor = ((predicted.float() - aim.float()) ** 2).mean(dim=(1, 2, 3))
        return losses

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.network.parameters() if p.requires_grad], lr=self.args.lr)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        own, given = (
            {name for name in state if "lora_" in name} for state in (self.state_dict(), checkpoint["state_dict"])
        )
        if own != given:  # checkpoints hold these weights alone, so Lightning does not compare names
            raise DataError(
                f"the checkpoint's {len(given)} low-rank weights are not this network's {len(own)}: it is of another "
                "pipeline, of other targets, or of another version of visynth."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"] = {
            name: t
            for name, t in checkpoint["state_dict"].items()
            if "lora_" in name or name in ("images_seen", "stepped_at")
        }

    # -- what it makes -------------------------------------------------------------------------------------------

    def lora_weights(self) -> dict[str, Tensor]:
        """The low-rank weights under the names that ``load_lora_weights`` of diffusers reads."""
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict

        weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(self.network))
        return {f"{self.kind}.{name}": t.detach().cpu().clone() for name, t in weights.items()}

    def generator(self, **kwargs: Any) -> Generator:
        """The generator as it stands: the pipeline, the low-rank weights, and the real training images to start
        from."""
        facts = self.facts
        start_images = self._start_images() if self.args.mode == "image" else []
        return make_foundation(
            self.args.pipeline,
            facts.classes,
            facts.size,
            mode=self.args.mode,
            prompts=self.args.prompts,
            start_images=start_images,
            lora=self.lora_weights(),
            channels=1 if facts.channels == 1 else 3,
            sampler=self.args.sampler,
            device=self.device,
            **kwargs,
        )

    def _start_images(self) -> list[StartImage]:
        if not hasattr(self.data, "reference"):
            raise UsageError("the generator starts from real images: attach the datamodule that it was trained with.")
        images, labels, _ = self.data.reference()
        names = [(m.path, m.group) for m in self.members() if m.split == "train"]
        if len(names) != len(images):
            names = [(f"image {i}", str(i)) for i in range(len(images))]
        return [
            StartImage(name, group, int(label), np.repeat(p, 3, axis=2) if p.shape[2] == 1 else p[:, :, :3])
            for (name, group), label, p in zip(names, labels, images, strict=True)
        ]

    def sample(self, seeds: Tensor | Sequence[int], labels: Tensor | Sequence[int], **options: Any) -> Any:
        """Samples of the weights as they stand; the pipeline is loaded once, and new weights are put into it when they
        have moved."""
        now, held = int(self.images_seen), self.__dict__.get("_held")
        if held is None:
            held = (now, self.generator())
        elif held[0] != now:
            held = (now, held[1].with_lora(self.lora_weights()))
        self.__dict__["_held"] = held
        return held[1].sample(seeds, labels, **options)

    def export(self, folder: str | Path, ema: float | None = None) -> Path:
        """Write the generator folder, and beside it ``lora/`` in diffusers' format."""
        import diffusers
        from safetensors.torch import save_file

        from visynth.core.folders import new_folder

        if ema is not None:
            raise UsageError("LoRA keeps no weight average: leave ema out.")
        card = {
            "task": f"LoRA of rank {self.args.rank} on {self.args.pipeline}",
            **({PRIVACY: self.privacy} if self.privacy else {"images seen in training": int(self.images_seen)}),
            **({FEDERATION: self.federation} if self.federation else {}),
            "licence": "as the pipeline's, and as the images that it was trained on",
            "made by": "visynth fit",
        }
        written = self.generator(members=self.members(), card=card).save(folder)
        with new_folder(written.parent / "lora") as lora:
            save_file(
                self.lora_weights(),
                lora / "pytorch_lora_weights.safetensors",
                {"format": "pt", "diffusers": diffusers.__version__},
            )
        return written
