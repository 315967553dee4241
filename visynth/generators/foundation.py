"""Pipelines of foundation models as generators: text-to-image, image-to-image started on real images, and inpainting.

Thin: diffusers loads and runs them, from a local folder or a hub id, with LoRA weights of ours on top. The generator
    folder keeps the LoRA
weights, the real images that it starts from, and the pipeline's fingerprint; the pipeline itself stays where it is.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visynth.core import seeds as seeding
from visynth.core.errors import DataError, IntegrityError, MissingExtra, UsageError, VisynthError, choices
from visynth.core.files import hash_file, hash_json
from visynth.core.pictures import GREY, box
from visynth.generators.base import Generator, Samples, Spec

Array = NDArray[Any]
MODES = {
    "image": "AutoPipelineForImage2Image",
    "text": "AutoPipelineForText2Image",
    "inpaint": "AutoPipelineForInpainting",
}
VARIABLE = "VISYNTH_PIPELINE"
NOISE_MODULES = ("diffusers.models.autoencoders.vae",)  # besides the pipeline's own and its scheduler's


@dataclass(frozen=True)
class StartImage:
    """A real training image to start from: uint8 ``[H, W, 3]`` at the pipeline's size, and for inpainting the part to
    repaint."""

    name: str
    group: str
    label: int
    image: Array
    mask: NDArray[np.bool_] | None = None


class Foundation(Generator):
    """A diffusers pipeline with one prompt a class.

    ``"image"`` starts from a real image of the class, drawn evenly over groups, noised to one of the ``strengths``:
    {0.25, 0.5, 0.75, 1} at guidance 7.5 as in Trabucco et al., "Effective data augmentation with diffusion models"
    (ICLR 2024), section 5. ``"inpaint"`` repaints the mask of a real image and leaves the rest as it is, bit for bit.
    ``"text"`` starts from nothing.
    """

    options: ClassVar[Mapping[str, Any]] = {
        "steps": 30,
        "guidance": 7.5,
        "strengths": [0.25, 0.5, 0.75, 1.0],
    }

    def __init__(
        self,
        spec: Spec,
        pipeline: Any,
        start_images: Sequence[StartImage],
        lora: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(spec, **kwargs)
        self.pipeline, self.start_images, self.lora = pipeline, tuple(start_images), dict(lora or {})
        if self.lora:
            pipeline.load_lora_weights({name: tensor.clone() for name, tensor in self.lora.items()})
        if hasattr(pipeline, "safety_checker"):
            pipeline.safety_checker = None  # it would blacken defects and findings that it takes for something else
        pipeline.set_progress_bar_config(disable=True)

    def with_lora(self, lora: Mapping[str, Tensor]) -> Foundation:
        """The same with other low-rank weights, over the same pipeline in memory: this one must not be sampled any
        more."""
        if self.lora:
            self.pipeline.unload_lora_weights()
        return Foundation(self.spec, self.pipeline, self.start_images, lora, members=self.members, card=self.card)

    def _sample(self, seeds: Sequence[int], labels: Sequence[int], **options: Any) -> Samples:
        _check_options(options)
        samples = [self._one(seed, label, options) for seed, label in zip(seeds, labels, strict=True)]
        images = torch.from_numpy(np.stack([image.transpose(2, 0, 1) for image, _, _, _ in samples]))
        parents = [parents for _, _, parents, _ in samples]
        valid = torch.tensor([valid for _, _, _, valid in samples])
        if self.spec.arguments["mode"] != "inpaint":
            return Samples(images, parents=parents, valid=valid)
        masks = np.stack([mask for _, mask, _, _ in samples])
        return Samples(
            images,
            torch.from_numpy(masks),
            [torch.tensor(box(mask), dtype=torch.float32).reshape(-1, 4) for mask in masks],
            parents,
            valid=valid,
        )

    def _one(self, seed: int, label: int, options: Mapping[str, Any]) -> tuple[Array, Array, tuple[str, ...], bool]:
        mode = self.spec.arguments["mode"]
        height, width = self.spec.size
        given: dict[str, Any] = {
            "prompt": self.spec.arguments["prompts"][self.classes[label]],
            "num_inference_steps": options["steps"],
            "guidance_scale": options["guidance"],
            "output_type": "np",
        }
        negative = self.spec.arguments["negative_prompt"]
        if negative:
            given["negative_prompt"] = negative
        generator = seeding.rng(seed, f"foundation/{label}")
        start_image = None
        if mode == "text":
            given |= {"height": height, "width": width}
        else:
            start_image = self._draw(label, generator)
            strength = options["strengths"][int(generator.integers(len(options["strengths"])))]
            # diffusers runs int(steps * strength) steps, and at least one must be left
            given |= {"image": _pil(start_image.image), "strength": max(float(strength), 1.01 / options["steps"])}
        if mode == "inpaint" and start_image is not None and start_image.mask is not None:
            given |= {"mask_image": _pil(start_image.mask.astype(np.uint8) * 255), "height": height, "width": width}
        with _noise_of(self.pipeline, seed):
            output = self.pipeline(**given)
        values = output.images[0]
        blanked = bool((getattr(output, "nsfw_content_detected", None) or [False])[0])  # by a safety checker
        valid = bool(np.isfinite(values).all()) and not blanked
        image = np.clip(np.rint(np.nan_to_num(values) * 255), 0, 255).astype(np.uint8)
        mask = np.zeros((height, width), bool)
        if mode == "inpaint" and start_image is not None and start_image.mask is not None:
            mask = start_image.mask
            image = np.where(mask[:, :, None], image, start_image.image)
        if self.spec.channels == 1:
            image = np.rint(image @ np.array(GREY)).astype(np.uint8)[:, :, None]
        return image, mask, () if start_image is None else (start_image.name,), valid

    def _draw(self, label: int, generator: np.random.Generator) -> StartImage:
        own = [a for a in self.start_images if a.label == label]
        if not own:
            raise DataError(
                f"{self.classes[label]} has no real image to start from: add some, or use mode 'text' for this class."
            )
        return seeding.draw_even(seeding.by_group(own), generator)

    def weights(self) -> dict[str, Tensor]:
        tensors = {f"lora.{name}": t.detach().cpu() for name, t in self.lora.items()}
        for i, start_image in enumerate(self.start_images):
            tensors[f"start_image.{i}"] = torch.from_numpy(start_image.image.copy())
            if start_image.mask is not None:
                tensors[f"mask.{i}"] = torch.from_numpy(start_image.mask.astype(np.uint8))
        return tensors or {"nothing": torch.zeros(1)}

    @classmethod
    def build(cls, spec: Spec, weights: dict[str, Tensor], device: str | torch.device) -> Foundation:
        arguments = spec.arguments
        folder = pipeline_folder(os.environ.get(VARIABLE) or arguments["pipeline"])
        present = fingerprint(folder)
        if present != arguments["fingerprint"]:
            raise IntegrityError(
                f"the pipeline in {folder} is not the one that this generator was made with (fingerprint "
                f"{present[:16]}..., not {arguments['fingerprint'][:16]}...). "
                f"Bring that one back, or name its folder by ${VARIABLE}."
            )
        start_images = [
            StartImage(
                a["name"],
                a["group"],
                a["label"],
                weights[f"start_image.{i}"].numpy(),
                weights[f"mask.{i}"].numpy().astype(bool) if f"mask.{i}" in weights else None,
            )
            for i, a in enumerate(arguments["start_images"])
        ]
        lora = {name.removeprefix("lora."): t for name, t in weights.items() if name.startswith("lora.")}
        return cls(spec, load_pipeline(folder, arguments["mode"]).to(device), start_images, lora)


def make_foundation(
    pipeline: str | Path,
    classes: Sequence[str],
    size: tuple[int, int],
    *,
    mode: str = "image",
    prompts: Mapping[str, str] | None = None,
    negative_prompt: str = "",
    start_images: Sequence[StartImage] = (),
    lora: Mapping[str, Tensor] | None = None,
    channels: int = 3,
    sampler: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    **kwargs: Any,
) -> Foundation:
    """A generator of a pipeline.

    Args:
        pipeline: folder that ``save_pretrained`` wrote, or a hub id.
        classes: class names.
        size: (height, width), multiples of 8 of the pipeline's latents.
        mode: ``"image"``, ``"inpaint"`` or ``"text"``.
        prompts: by class; by default ``"a photo of <class>"``.
        negative_prompt: for all classes.
        start_images: real training images, for ``"image"`` and ``"inpaint"`` (these with masks).
        lora: LoRA weights under diffusers' names.
        channels: 3, or 1 for grey images.
        sampler: options that differ from the defaults.
        device: where the pipeline runs.
        kwargs: ``members`` and ``card``.

    Raises:
        DataError: no pipeline there, or one of another kind.
        UsageError: an unknown mode, start_images that are missing.
    """
    if mode not in MODES:
        raise UsageError(f"mode must be one of {choices(MODES)}, but got {mode!r}.")
    if mode != "text" and not start_images:
        raise UsageError(f"mode {mode!r} starts from real images: give start_images, or use mode 'text'.")
    if mode == "inpaint" and any(a.mask is None for a in start_images):
        raise UsageError("mode 'inpaint' needs a mask for every start_image.")
    folder = pipeline_folder(pipeline)
    spec = Spec(
        network="foundation",
        arguments={
            "pipeline": str(pipeline),
            "fingerprint": fingerprint(folder),
            "mode": mode,
            "prompts": {name: (prompts or {}).get(name, f"a photo of {name}") for name in classes},
            "negative_prompt": negative_prompt,
            "start_images": [{"name": a.name, "group": a.group, "label": a.label} for a in start_images],
        },
        classes=tuple(classes),
        channels=channels,
        size=size,
        sampler=sampler,
        micro_batch=1,  # every image has a strength and a start of its own
        kind="inpainted" if mode == "inpaint" else "trained",
    )
    return Foundation(spec, load_pipeline(folder, mode).to(device), start_images, lora, **kwargs)


def pipeline_folder(pipeline: str | Path) -> Path:
    """The local folder of a pipeline; a hub id is fetched, or found in the hub's cache.

    Raises:
        DataError: neither a pipeline folder nor a hub id that can be read.
    """
    folder = Path(pipeline)
    if not folder.is_dir() and str(pipeline).count("/") == 1 and not str(pipeline).startswith((".", "/")):
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(str(pipeline)))
        except Exception as error:
            raise DataError(
                f"the pipeline {pipeline} is no folder here and could not be fetched ({type(error).__name__}). Without "
                "a network, download it elsewhere "
                "('hf download'), copy the folder, and give its path."
            ) from error
    if not (folder / "model_index.json").is_file():
        raise DataError(
            f"{folder} is not a diffusers pipeline: model_index.json is missing. Give a folder that save_pretrained "
            "wrote, not a single checkpoint file."
        )
    return folder


def fingerprint(folder: Path) -> str:
    """Hex sha256 over the pipeline's files: configurations, tokenizers and weights. Files that did not change are
    hashed once a process."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".") and p.suffix != ".md")
    stats = tuple((p, p.stat().st_size, p.stat().st_mtime_ns) for p in files)
    return hash_json([[p.relative_to(folder).as_posix(), _hash(p, size, time)] for p, size, time in stats])


@functools.lru_cache(4096)
def _hash(path: Path, size: int, time: int) -> str:
    return hash_file(path)


def load_pipeline(folder: Path, mode: str) -> Any:
    """The pipeline for a mode, by diffusers' own tables.

    Raises:
        DataError: the folder's pipeline cannot do it; the message says what it is.
    """
    import json

    import diffusers

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    # Parts that the folder does without (a safety checker, SD 3's large text encoder) must be named, or diffusers asks
    # for them.
    absent = {name: None for name, kind in index.items() if isinstance(kind, list) and kind[0] is None}
    try:
        return getattr(diffusers, MODES[mode]).from_pretrained(
            folder, local_files_only=True, use_safetensors=True, **absent
        )
    except ImportError as error:
        raise MissingExtra(f"{folder} needs further packages: pip install 'visynth[foundation]' ({error})") from error
    except (ValueError, OSError, AttributeError, TypeError) as error:
        raise DataError(
            f"{folder} holds a {index.get('_class_name')}, which has no {mode!r} form or could not be loaded "
            f"({str(error).splitlines()[0][:200]}). Pipelines of Stable Diffusion, SDXL, "
            "Stable Diffusion 3, Flux and their like have; give the folder of one."
        ) from error


@contextmanager
def _noise_of(pipeline: Any, seed: int) -> Iterator[None]:
    """All noise within the block comes from the seed: diffusers' ``randn_tensor`` is lent ours, draw after draw.

    A torch generator would keep only 32 bits of the seed, and its numbers depend on the device.

    Raises:
        VisynthError: noise was drawn from torch's global generator, or none by this function: another version of
            diffusers draws it elsewhere, and its images would not be functions of the seed.
    """
    used: list[str] = []

    def randn_tensor(
        shape: Any, generator: Any = None, device: Any = None, dtype: Any = None, layout: Any = None
    ) -> Tensor:
        used.append(f"foundation/noise/{len(used)}")
        noise = seeding.noise([seed], tuple(shape)[1:], used[-1]).expand(tuple(shape))
        return noise.to(device=device, dtype=dtype)

    names = {type(pipeline).__module__, type(pipeline.scheduler).__module__, *NOISE_MODULES}
    modules = [sys.modules[name] for name in sorted(names) if hasattr(sys.modules.get(name), "randn_tensor")]
    before = [(module, module.__dict__["randn_tensor"]) for module in modules]
    states = _global_states()
    try:
        for module in modules:
            module.__dict__["randn_tensor"] = randn_tensor
        yield
    finally:
        for module, own in before:
            module.__dict__["randn_tensor"] = own
    if not used or not all(torch.equal(a, b) for a, b in zip(states, _global_states(), strict=True)):
        import diffusers

        raise VisynthError(
            f"diffusers {diffusers.__version__} draws noise for {type(pipeline).__name__} in a place that visynth does "
            "not know, so images would not "
            "follow from their seeds: use a version that this one was tested with (see constraints.txt), and report it."
        )


def _global_states() -> list[Tensor]:
    """States of torch's global generators that were used at all."""
    states = [torch.get_rng_state()]
    used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return states + (torch.cuda.get_rng_state_all() if used else [])


def _check_options(options: Mapping[str, Any]) -> None:
    problems = []
    if not isinstance(options["steps"], int) or not 1 <= options["steps"] <= 1000:
        problems.append(f"steps must be a whole number from 1 to 1000, but got {options['steps']!r}")
    if not 0 <= options["guidance"] <= 30:
        problems.append(f"guidance must be in [0, 30], but got {options['guidance']}")
    strengths = options["strengths"]
    if not isinstance(strengths, list | tuple) or not strengths or not all(0 < s <= 1 for s in strengths):
        problems.append(f"strengths must be a list of numbers in (0, 1], but got {strengths!r}")
    if problems:
        raise UsageError("sampler options: " + "; ".join(problems) + ".")


def _pil(image: Array) -> Any:
    from PIL import Image

    return Image.fromarray(image)
