"""One suite over every registered generator: the same bytes whatever the batch, a folder that cannot be altered
unseen."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from visynth.core import plugins
from visynth.core.errors import IntegrityError, UsageError
from visynth.core.files import hash_json
from visynth.core.members import merkle_root
from visynth.generators.base import SCHEMA, Generator, Spec, load_generator


def make_compose(composition):
    return composition[0]


def make_diffusion(composition):
    from visynth.generators.diffusion import Diffusion

    spec = Spec(
        network="diffusion",
        arguments={},
        classes=("a", "b"),
        channels=3,
        size=(8, 16),
        sampler={"steps": 3},
        micro_batch=4,
    )
    network = random_denoiser(3, 2, (8, 16))
    return Diffusion(replace(spec, arguments=network.arguments), network, members=composition[0].members)


def make_inpaint(composition):
    from visynth.generators.inpainting import Inpainting

    base = composition[0]
    classes = len(base.classes)
    network = random_denoiser(base.spec.channels, classes, (32, 32), conditions=base.spec.channels + 1)
    arguments = {**base.spec.arguments, "network": network.arguments, "window": 32}
    spec = replace(
        base.spec, network="inpaint", arguments=arguments, sampler={"steps": 2}, micro_batch=2, kind="inpainted"
    )
    return Inpainting(spec, base.defects, base.backgrounds, base.settings, network, members=base.members)


def make_foundation(composition, pipelines):
    from visynth.generators import foundation

    numbers = np.random.default_rng(0)
    pictures = numbers.integers(0, 255, (4, 32, 32, 3)).astype(np.uint8)
    start_images = [foundation.StartImage(f"{k}.png", str(k), k % 2, picture) for k, picture in enumerate(pictures)]
    return foundation.make_foundation(
        pipelines("stable_diffusion"),
        ["a", "b"],
        (32, 32),
        start_images=start_images,
        sampler={"steps": 3},
        members=composition[0].members,
    )


def random_denoiser(channels, classes, size, **kwargs):
    """A network whose output layer is not zero, so that seeds, labels and batches could show in its images."""
    from visynth.networks.unet import Denoiser

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Denoiser(
            channels,
            classes,
            size,
            width=8,
            multipliers=(1, 2),
            blocks=1,
            attention=(4,),
            mean=[0.1] * channels,
            **kwargs,
        )
        torch.nn.init.normal_(network.unet.conv_out.weight, std=0.05)
    return network


def make_gan(name: str, **arguments):
    """A trained-looking network: noise that shows, styles that differ."""

    def make(composition):
        from visynth.generators import gan

        kind = {"stylegan2": gan.StyleGAN2, "biggan": gan.BigGAN, "cgan": gan.CGAN}[name]
        spec = Spec(name, {"classes": 2, **arguments}, ("a", "b"), 3, (16, 16), micro_batch=4)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = kind.network_class(16, 3, 2, **arguments).eval()
            for weight, value in network.state_dict().items():
                if weight.endswith("noise_strength"):
                    value.fill_(0.3)
            for module in network.modules():
                if isinstance(module, torch.nn.ConvTranspose2d):
                    torch.nn.init.normal_(module.weight, std=0.1)
        return kind(spec, network, members=composition[0].members)

    return make


def make_projected(composition):
    from visynth.generators.projection import ProjectedStyleGAN2

    base = make_gan("stylegan2", base=64, most=8, z_dim=8, w_dim=8)(composition)
    told = [[0, "a/0.png", "g"], [1, "b/0.png", "h"], [1, "b/1.png", "h"]]
    spec = replace(
        base.spec,
        network="stylegan2_projected",
        arguments={**base.spec.arguments, "projected_latents": told},
        sampler={},
    )
    projected_latents = torch.randn(3, base.network.synthesis.styles, 8, generator=torch.Generator().manual_seed(0))
    return ProjectedStyleGAN2(spec, base.network, projected_latents, members=base.members)


# How a small one of each registered generator is made; a new name must be added here to pass the discovery test.
MAKERS = {
    "compose": make_compose,
    "diffusion": make_diffusion,
    "inpaint": make_inpaint,
    "foundation": make_foundation,
    "stylegan2": make_gan("stylegan2", base=64, most=8, z_dim=8, w_dim=8),
    "biggan": make_gan("biggan", width=4, z_dim=12, shared=8),
    "cgan": make_gan("cgan", width=8, z_dim=8),
    "stylegan2_projected": make_projected,
}


@pytest.fixture(params=plugins.names("generators"))
def generator(request: pytest.FixtureRequest, composition, pipelines) -> Generator:
    assert request.param in MAKERS, f"add a small {request.param!r} to MAKERS"
    made = MAKERS[request.param]
    return made(composition, pipelines) if made is make_foundation else made(composition)


@pytest.fixture
def saved(generator: Generator, tmp_path):
    return generator.save(tmp_path / "generator")


def some(generator: Generator, count: int = 6) -> tuple[list[int], list[int]]:
    return [2**62 + 11 * i for i in range(count)], [i % len(generator.classes) for i in range(count)]


def equal(first, second) -> bool:
    return bool(torch.equal(first.images, second.images))


def test_an_image_depends_on_its_seed_and_label_alone(generator: Generator) -> None:
    seeds, labels = some(generator)
    together = generator.sample(seeds, labels)
    order = [3, 0, 5, 1, 4, 2]
    shuffled = generator.sample([seeds[i] for i in order], [labels[i] for i in order])
    assert torch.equal(shuffled.images, together.images[order])
    for i in range(len(seeds)):
        assert torch.equal(generator.sample([seeds[i]], [labels[i]]).images[0], together.images[i])


def test_seeds_above_32_bits_differ(generator: Generator) -> None:
    for label in range(len(generator.classes)):
        assert not equal(generator.sample([5], [label]), generator.sample([5 + 2**32], [label]))


def test_global_random_state_is_left_alone(generator: Generator) -> None:
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    generator.sample(*some(generator))
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]


def test_samples_keep_the_shapes_that_the_spec_promises(generator: Generator) -> None:
    samples = generator.sample(*some(generator))
    spec = generator.spec
    assert samples.images.shape == (6, spec.channels, *spec.size)
    assert str(samples.images.dtype).endswith(spec.dtype)
    for i in range(6):
        height, width = samples.crop(i).shape[1:]
        if samples.masks is not None:
            assert samples.masks[i].shape == spec.size
            assert not samples.masks[i, height:].any()
            assert not samples.masks[i, :, width:].any()
        if samples.boxes is not None and len(samples.boxes[i]):
            x1, y1, x2, y2 = samples.boxes[i][0].tolist()
            assert 0 <= x1 < x2 <= width
            assert 0 <= y1 < y2 <= height


def test_saved_and_loaded_it_gives_the_same_bytes(generator: Generator, saved) -> None:
    again = load_generator(saved)
    assert again.digest == generator.digest
    assert again.spec == generator.spec
    assert again.members == generator.members
    assert equal(again.sample(*some(again)), generator.sample(*some(generator)))


def test_the_folder_holds_what_the_contract_names(saved) -> None:
    assert sorted(p.name for p in saved.iterdir()) == [
        ".visynth.json",
        "README.md",
        "generator.json",
        "members.jsonl",
        "model.safetensors",
        "preview.png",
    ]
    said = json.loads((saved / "generator.json").read_text())
    for key in (
        "schema",
        "network",
        "arguments",
        "classes",
        "channels",
        "size",
        "value_range",
        "sampler",
        "micro_batch",
    ):
        assert key in said
    for key in ("weights_sha256", "members_root", "digest", "versions", "card"):
        assert key in said


@pytest.mark.injected
@pytest.mark.parametrize("place", [0.1, 0.5, 0.99])
def test_a_flipped_bit_in_the_weights_is_refused(saved, place: float) -> None:
    file = saved / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match="was altered"):
        load_generator(saved)


def test_a_changed_word_in_the_json_is_refused(saved) -> None:
    file = saved / "generator.json"
    said = json.loads(file.read_text())
    said["classes"] = said["classes"][::-1]
    file.write_text(json.dumps(said))
    with pytest.raises(IntegrityError, match="does not match its own digest"):
        load_generator(saved)


def test_changed_members_are_refused(saved) -> None:
    file = saved / "members.jsonl"
    file.write_text("\n".join(file.read_text().splitlines()[1:]) + "\n")
    with pytest.raises(IntegrityError, match="members_root"):
        load_generator(saved)


@pytest.mark.parametrize("name", ["generator.json", "model.safetensors", "members.jsonl"])
def test_a_missing_file_is_named(saved, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(IntegrityError, match=f"{name} is missing"):
        load_generator(saved)


def test_another_schema_is_refused(saved) -> None:
    file = saved / "generator.json"
    file.write_text(file.read_text().replace(SCHEMA, "visynth.generator/9"))
    with pytest.raises(IntegrityError, match="this version reads"):
        load_generator(saved)


@pytest.mark.parametrize("name", ["pit/hole", "..", ".hidden", " ", "a\\b"])
def test_class_names_must_be_folder_names(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be folder names"):
        Spec("compose", {}, (name,), 1, (8, 8))


@pytest.mark.parametrize(
    ("seeds", "labels", "told"),
    [
        ([], [], "seeds is empty"),
        ([1, 2], [0], "2 seeds but 1 labels"),
        ([1], [99], r"labels \[99\] are not in the generator"),
        ([1], [-1], r"labels \[-1\] are not in the generator"),
        ([-1], [0], r"must be in \[0, 2\*\*63\)"),
        ([2**63], [0], r"must be in \[0, 2\*\*63\)"),
        (torch.tensor([1.0]), [0], "must be an int64 tensor"),
        (torch.tensor([[1]]), [0], "must be an int64 tensor"),
        ([1.5], [0], "must be whole numbers"),
    ],
)
def test_wrong_input_gets_a_clear_error(generator: Generator, seeds, labels, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        generator.sample(seeds, labels)


def test_unknown_options_are_named_with_the_known(generator: Generator) -> None:
    with pytest.raises(UsageError, match="options 'sparkle' are unknown"):
        generator.sample([1], [0], sparkle=True)


def test_several_problems_are_told_at_once(generator: Generator) -> None:
    with pytest.raises(UsageError, match=r"2 seeds but 1 labels.*labels \[50\]"):
        generator.sample([1, 2], [50])


def test_the_digest_follows_the_weights_and_not_the_card(generator: Generator, saved, tmp_path) -> None:
    again = load_generator(saved)
    again.card = {"task": "something else"}
    again.save(tmp_path / "other")
    assert load_generator(tmp_path / "other").digest == generator.digest
    assert merkle_root(again.members) == merkle_root(reversed(again.members))


def test_the_digest_names_how_images_came_about_and_their_type(generator: Generator) -> None:
    others = {"composite", "inpainted", "trained"} - {generator.spec.kind}
    specs = [
        generator.spec,
        *(replace(generator.spec, kind=kind) for kind in others),
        replace(generator.spec, dtype="uint16"),
    ]
    assert len({hash_json(spec.identity()) for spec in specs}) == 4
