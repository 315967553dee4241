"""Foundation models: real pipeline classes from folders that their own code saved, and LoRA weights that diffusers
itself reads."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning
import torch

from tests.pipelines import MAKERS
from tests.ranks import TRAINER
from visynth.callbacks.checkpoint import AtomicCheckpointIO, KeepLast
from visynth.core.errors import DataError, IntegrityError, UsageError, VisynthError
from visynth.generators import foundation
from visynth.generators.base import load_generator
from visynth.generators.foundation import StartImage, make_foundation, pipeline_folder
from visynth.lightning_modules import LoRA
from visynth.lightning_modules.data import GeneratorData

SIZE = (32, 32)


def start_images() -> list[StartImage]:
    numbers = np.random.default_rng(0)
    made = []
    for k in range(6):
        mask = np.zeros(SIZE, bool)
        mask[4 + k : 16 + k, 8:24] = True
        made.append(
            StartImage(f"{k}.png", str(k // 2), k % 2, numbers.integers(0, 255, (*SIZE, 3)).astype(np.uint8), mask)
        )
    return made


def make(folder: Path, mode: str = "image", **kwargs):
    return make_foundation(
        folder, ["spot", "good"], SIZE, mode=mode, start_images=start_images(), **{"sampler": {"steps": 4}, **kwargs}
    )


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("mode", ["text", "image", "inpaint"])
def test_every_kind_in_every_mode_gives_images_of_their_seed_alone(name: str, mode: str, pipelines) -> None:
    generator = make(pipelines(name), mode)
    together = generator.sample([5, 6, 5 + 2**32], [0, 1, 0])
    assert together.images.shape == (3, 3, 32, 32)
    assert torch.equal(generator.sample([6], [1]).images[0], together.images[1])
    assert not torch.equal(together.images[0], together.images[2])
    assert together.parents[0] == () if mode == "text" else together.parents[0][0].endswith(".png")


def test_image_to_image_starts_from_an_image_of_its_class(pipelines) -> None:
    generator = make(pipelines("stable_diffusion"), sampler={"steps": 10, "strengths": [0.05]})
    by_name = {a.name: a for a in generator.start_images}
    samples = generator.sample(list(range(12)), [k % 2 for k in range(12)])
    assert all(by_name[parents[0]].label == k % 2 for k, parents in enumerate(samples.parents))
    assert len({parents[0] for parents in samples.parents}) > 3


def test_strength_decides_how_much_is_left_of_the_anchor(pipelines) -> None:
    generator = make(pipelines("stable_diffusion"))
    weak, strong = (
        generator.sample([1] * 1 + [2, 3, 4], [0] * 4, strengths=[s], steps=10).images.float() for s in (0.1, 1.0)
    )
    reference = generator.sample([1, 2, 3, 4], [0] * 4, strengths=[0.1], steps=10).images.float()
    assert torch.equal(weak, reference)
    assert (weak - strong).abs().mean() > 1


def test_inpainting_leaves_everything_outside_the_mask(pipelines) -> None:
    generator = make(pipelines("stable_diffusion"), "inpaint")
    by_name = {a.name: a for a in generator.start_images}
    samples = generator.sample([1, 2, 3], [0, 1, 0])
    assert generator.spec.kind == "inpainted"
    for k in range(3):
        start_image = by_name[samples.parents[k][0]]
        image = samples.images[k].permute(1, 2, 0).numpy()
        assert (image[~start_image.mask] == start_image.image[~start_image.mask]).all()
        assert (image[start_image.mask] != start_image.image[start_image.mask]).any()
        assert (samples.masks[k].numpy() == start_image.mask).all()
        assert samples.boxes[k].tolist() == [[8.0, 4 + int(start_image.name[0]), 24.0, 16 + int(start_image.name[0])]]


def test_a_changed_pipeline_is_refused_and_a_moved_one_can_be_named(pipelines, tmp_path: Path, monkeypatch) -> None:
    own = tmp_path / "pipeline"
    shutil.copytree(pipelines("stable_diffusion"), own)
    generator = make(own)
    folder = generator.save(tmp_path / "generator")
    expected = generator.sample([1], [0]).images
    assert torch.equal(load_generator(folder).sample([1], [0]).images, expected)
    own.rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is not a diffusers pipeline"):
        load_generator(folder)
    monkeypatch.setenv("VISYNTH_PIPELINE", str(tmp_path / "elsewhere"))
    assert torch.equal(load_generator(folder).sample([1], [0]).images, expected)
    config = tmp_path / "elsewhere" / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    with pytest.raises(IntegrityError, match="is not the one that this generator was made with"):
        load_generator(folder)


def test_folders_of_another_kind_say_what_they_are(tmp_path: Path, monkeypatch) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    network = UNet2DModel(
        8, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4
    )
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    with pytest.raises(DataError, match="holds a DDPMPipeline, which has no 'image' form"):
        make(tmp_path / "ddpm")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"model_index.json is missing"):
        make(tmp_path / "empty")

    def no_network(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    with pytest.raises(DataError, match=r"could not be fetched.*copy the folder"):
        pipeline_folder("someone/something")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"mode": "video"}, "mode must be one of 'image', 'text', 'inpaint'"),
        ({"start_images": []}, "starts from real images"),
        (
            {"mode": "inpaint", "start_images": [StartImage("a", "a", 0, np.zeros((32, 32, 3), np.uint8))]},
            "needs a mask",
        ),
    ],
)
def test_wrong_input_is_told(wrong, told: str, pipelines) -> None:
    with pytest.raises(UsageError, match=told):
        make_foundation(pipelines("stable_diffusion"), ["spot"], SIZE, **{"start_images": start_images(), **wrong})


def test_wrong_options_are_told(pipelines) -> None:
    with pytest.raises(UsageError, match=r"steps must be.*guidance must be.*strengths must be"):
        make(pipelines("stable_diffusion")).sample([1], [0], steps=0, guidance=-1, strengths=[2.0])


# -- LoRA ------------------------------------------------------------------------------------------------------------


def train(root: Path, folder: Path, data: Path, steps: int = 3, **kwargs) -> LoRA:
    own = LoRA(str(folder), rank=2, warmup=4, lr=1e-2, sampler={"steps": 2}, seed=1)
    given = GeneratorData(str(data), 32, batch_size=2)
    pytorch_lightning.Trainer(max_steps=steps, default_root_dir=root, **{**TRAINER, **kwargs}).fit(own, given)
    return own


def test_noise_that_does_not_come_from_the_seed_is_told(pipelines, monkeypatch) -> None:
    """Another version of diffusers draws it in a place that we do not know: nothing may come out that is not of its
    seed."""
    monkeypatch.setattr(foundation, "NOISE_MODULES", ())
    generator = make(pipelines("stable_diffusion"), "image")  # its encoder draws in a module of its own
    state = torch.get_rng_state()
    with pytest.raises(VisynthError, match="draws noise for StableDiffusionImg2ImgPipeline in a place"):
        generator.sample([5], [0])
    torch.set_rng_state(state)
    monkeypatch.undo()
    assert len(generator.sample([5], [0])) == 1, "what was lent is given back"


def test_lora_samples_without_loading_its_pipeline_again(pipelines, class_folders, tmp_path: Path, monkeypatch) -> None:
    data = class_folders({"good": 4, "spot": 3}, height=32, width=32, channels=3)
    own = train(tmp_path, pipelines("stable_diffusion"), data)
    loads, hashes = [], []
    load, hashed = foundation.load_pipeline, foundation.hash_file
    monkeypatch.setattr(foundation, "load_pipeline", lambda *told: loads.append(1) or load(*told))
    monkeypatch.setattr(foundation, "hash_file", lambda path: hashes.append(path) or hashed(path))
    first = own.sample([1], [0]).images
    with torch.no_grad():
        for name, parameter in own.network.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.5)
    own.images_seen += 2  # as after a step
    second = own.sample([1], [0]).images
    assert len(loads) == 1
    assert len(hashes) == len(set(hashes)), "no file is hashed twice"
    assert not torch.equal(first, second)
    assert torch.equal(own.generator().sample([1], [0]).images, second)


@pytest.mark.parametrize("name", MAKERS)
def test_lora_trains_and_its_weights_are_diffusers_own_format(
    name: str, pipelines, class_folders, tmp_path: Path
) -> None:
    import diffusers

    data = class_folders({"good": 4, "spot": 3}, height=40, width=36, channels=3)
    own = train(tmp_path, pipelines(name), data)
    weights = own.lora_weights()
    assert weights
    assert all(key.startswith(f"{own.kind}.") for key in weights)
    assert any(
        ("lora_B" in key or ".up." in key) and tensor.any() for key, tensor in weights.items()
    )  # B starts at zero: it was trained
    folder = own.export(tmp_path / "generator")
    loaded = load_generator(folder)
    assert torch.equal(loaded.sample([1, 2], [0, 1]).images, own.sample([1, 2], [0, 1]).images)

    pipe = (
        diffusers.AutoPipelineForText2Image.from_pretrained(pipelines(name), text_encoder_3=None, tokenizer_3=None)
        if name == "sd3"
        else (diffusers.AutoPipelineForText2Image.from_pretrained(pipelines(name)))
    )
    pipe.load_lora_weights(tmp_path / "lora")
    network = getattr(pipe, own.kind)
    theirs = {n: p for n, p in network.named_parameters() if "lora_" in n}
    ours = {n: p for n, p in own.network.named_parameters() if "lora_" in n}
    assert len(theirs) == len(ours)
    for key, tensor in theirs.items():
        assert torch.equal(tensor, ours[key.replace("default_0", "default")]), key


def test_checkpoints_hold_the_low_rank_weights_alone_and_resume_exactly(
    pipelines, class_folders, tmp_path: Path
) -> None:
    data = class_folders({"good": 4, "spot": 3}, height=32, width=32, channels=3)
    folder = pipelines("stable_diffusion")
    saver = {"plugins": [AtomicCheckpointIO()], "enable_checkpointing": True}
    whole = train(tmp_path / "whole", folder, data, 4)
    train(tmp_path / "parts", folder, data, 2, callbacks=[KeepLast()], **saver)
    kept = torch.load(KeepLast.path(tmp_path / "parts"), weights_only=True)
    assert all("lora_" in key or key in ("images_seen", "stepped_at") for key in kept["state_dict"])
    own = LoRA(str(folder), rank=2, warmup=4, lr=1e-2, sampler={"steps": 2}, seed=1)
    pytorch_lightning.Trainer(
        max_steps=4, default_root_dir=tmp_path, **{**TRAINER, **saver, "callbacks": [KeepLast()]}
    ).fit(
        own, GeneratorData(str(data), 32, batch_size=2), ckpt_path=KeepLast.path(tmp_path / "parts"), weights_only=True
    )
    first, second = whole.lora_weights(), own.lora_weights()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_wrong_lora_input_is_told(pipelines, class_folders, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rank of at least 1"):
        LoRA("x", rank=0)
    data = class_folders({"good": 3, "spot": 3}, channels=3)
    own = LoRA(str(pipelines("stable_diffusion")))
    with pytest.raises(UsageError, match="is not a multiple of 2"):
        pytorch_lightning.Trainer(max_steps=1, default_root_dir=tmp_path, **TRAINER).fit(
            own, GeneratorData(str(data), 33, batch_size=2)
        )


def test_fit_pipeline_and_a_lora_run_by_command(pipelines, samples: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    from visynth.cli import main

    monkeypatch.chdir(tmp_path)
    pipe = str(pipelines("stable_diffusion"))
    words = (
        f"fit pipeline --data {samples}/images --masks {samples}/masks --groups {samples}/groups.csv --pipeline "
        f"{pipe} --size 32"
    )
    assert main([*words.split(), "--mode", "inpaint", "--out", "painted", "--sampler", "{steps: 2}"]) == 0, (
        capsys.readouterr().err
    )
    assert set(load_generator("painted").classes) == {"scratch", "spot", "stain"}
    words = "render --generator painted --out renders --per-class 2 --workers 0 --quiet"
    assert main(words.split()) == 0, capsys.readouterr().err
    assert (
        main(
            [
                "fit",
                "pipeline",
                "--data",
                str(samples / "images"),
                "--pipeline",
                str(tmp_path),
                "--size",
                "32",
                "--out",
                "x",
            ]
        )
        == 65
    )
    assert "model_index.json is missing" in capsys.readouterr().err

    config = f"""
trainer: {{default_root_dir: run, max_steps: 2, accelerator: cpu}}
model: {{class_path: visynth.lightning_modules.LoRA, init_args: {{pipeline: "{pipe}", rank: 2, sampler: {{steps: 2}}}}}}
data: {{class_path: visynth.lightning_modules.data.GeneratorData, init_args: {{data: "{samples}/images", size: 32, batch_size: 2}}}}
"""
    Path("lora.yaml").write_text(config)
    assert main(["fit", "-c", "lora.yaml"]) == 0, capsys.readouterr().err
    assert Path("run/lora/pytorch_lora_weights.safetensors").is_file()
    assert load_generator("run/generator").lora
    assert main(["fit", "export", "--run", "run", "--out", "again"]) == 0, capsys.readouterr().err
    assert load_generator("again").digest == load_generator("run/generator").digest
