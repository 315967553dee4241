"""Tiny random pipelines of the real classes, saved by their own code: what a user's folder looks like, in kilobytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
    "projection_dim": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


UNET = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


def tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer of single letters."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", "ab", *letters, *(f"{c}</w>" for c in letters)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=77)


def vae(channels: int, **kwargs: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[8, 8],
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        **kwargs,
    )


def stable_diffusion(folder: Path) -> Path:
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(
        **UNET,
        cross_attention_dim=32,
        norm_num_groups=4,
        attention_head_dim=4,
    )
    pipe = StableDiffusionPipeline(
        unet=unet,
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        vae=vae(4),
        text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT)),
        tokenizer=tokenizer(folder.parent / "tokenizer"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def sdxl(folder: Path) -> Path:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    unet = UNet2DConditionModel(
        **UNET,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=64,
        norm_num_groups=4,
    )
    pipe = StableDiffusionXLPipeline(
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        vae=vae(4, force_upcast=False),
        text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT, hidden_act="gelu")),
        tokenizer=tokenizer(folder.parent / "tokenizer"),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**TEXT, hidden_act="gelu")),
        tokenizer_2=tokenizer(folder.parent / "tokenizer"),
    )
    pipe.save_pretrained(folder)
    return folder


def sd3(folder: Path) -> Path:
    """Stable Diffusion 3: a transformer trained as a flow, here without its third text encoder."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=16,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        out_channels=16,
    )
    config = CLIPTextConfig(**{**TEXT, "hidden_size": 32}, hidden_act="gelu")
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(16, shift_factor=0.0609, scaling_factor=1.5035, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer(folder.parent / "tokenizer"),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer_2=tokenizer(folder.parent / "tokenizer"),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.save_pretrained(folder)
    return folder


def write(name: str, folder: Path) -> Path:
    """The pipeline of a name in a folder; the global random state stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MAKERS[name](folder / name)


MAKERS = {"stable_diffusion": stable_diffusion, "sdxl": sdxl, "sd3": sd3}
