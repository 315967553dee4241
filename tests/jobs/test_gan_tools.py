"""Tools around GANs by API and command: looking, projecting, importing; and the smoke trainings through the whole
chain."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import visynth
from tests.contracts.test_generators import make_diffusion, make_gan
from tests.mixing.test_policies import Watch
from tests.ranks import TRAINER
from visynth.cli import main
from visynth.core.errors import UsageError
from visynth.core.manifest import read_renders
from visynth.data.reading import read_images
from visynth.generators.base import load_generator
from visynth.generators.gan import great_circle, truncated_normal
from visynth.generators.projection import ProjectedStyleGAN2, copy_shares, project
from visynth.jobs.explore import explore
from visynth.jobs.project import project_images
from visynth.render.run import make_plan, render_set


@pytest.fixture
def stylegan(composition):
    return make_gan("stylegan2", base=64, most=8, z_dim=8, w_dim=8)(composition)


class TestExplore:
    def test_sheets_strips_and_animations(self, stylegan, tmp_path, capsys) -> None:
        folder = stylegan.save(tmp_path / "generator")
        words = [
            "explore",
            str(folder),
            "--out",
            str(tmp_path / "look"),
            "--seeds",
            "0-3",
            "--frames",
            "4",
            "--side",
            "32",
        ]
        assert main(words) == 0
        names = {Path(line).name for line in capsys.readouterr().out.splitlines()}
        assert names == {
            "seeds.png",
            "truncation.png",
            "a_interpolation.png",
            "a.webp",
            "b_interpolation.png",
            "b.webp",
        }
        with Image.open(tmp_path / "look" / "seeds.png") as sheet:
            assert sheet.size == (4 * 36 + 4, 2 * 36 + 4)
        with Image.open(tmp_path / "look" / "a.webp") as loop:
            assert loop.n_frames == 16
            frames = []
            for number in (0, 8, 15):
                loop.seek(number)
                frames.append(np.asarray(loop.convert("RGB")).astype(int))
        # The last frame is on its way to the first.
        assert 0 < np.abs(frames[2] - frames[0]).mean() < np.abs(frames[1] - frames[0]).mean()

    def test_other_generators_have_a_sheet(self, composition, tmp_path) -> None:
        made = explore(make_diffusion(composition), tmp_path / "look", seeds=range(2))
        assert [path.name for path in made] == ["seeds.png"]
        made = explore(make_gan("cgan", width=8, z_dim=8)(composition), tmp_path / "b", ["b"], range(2), 2, 16, "gif")
        assert [path.name for path in made] == ["seeds.png", "b_interpolation.png", "b.gif"]

    def test_wrong_arguments_are_told_before_anything_is_written(self, stylegan, tmp_path) -> None:
        with pytest.raises(
            UsageError, match=r"classes 'c' are not among .*'a', 'b'; animation must be one of 'webp', 'gif'"
        ):
            explore(stylegan, tmp_path / "look", ["c"], animation="mp4")
        assert not (tmp_path / "look").exists()


class TestSampling:
    def test_ways_begin_and_end_at_the_pictures_of_their_seeds(self, stylegan, composition) -> None:
        for made in (stylegan, make_gan("biggan", width=4, z_dim=12, shared=8)(composition)):
            way = made.interpolate(3, 8, 1, 5, **({"noise": "none"} if made is stylegan else {}))
            ends = made.sample([3, 8], [1, 1], **({"noise": "none"} if made is stylegan else {})).images
            assert (way[[0, -1]].int() - ends.int()).abs().max() <= 1

    def test_great_circles_keep_lengths(self) -> None:
        a, b = torch.randn(2, 50)
        way = great_circle(a, b, torch.linspace(0, 1, 7))
        assert torch.allclose(way[[0, -1]], torch.stack([a, b]), atol=1e-4)
        assert torch.allclose(way.norm(dim=1), torch.lerp(a.norm(), b.norm(), torch.linspace(0, 1, 7)), rtol=1e-4)

    def test_truncated_latents_are_what_is_left_of_a_normal_distribution(self) -> None:
        z = truncated_normal(range(400), 50, 0.5)
        assert float(z.abs().max()) <= 0.5
        assert float(z.std()) == pytest.approx(0.2829, abs=0.005)  # sqrt(1 - 2 c phi(c) / (2 Phi(c) - 1))

    def test_mixing_and_centres(self, stylegan) -> None:
        plain = stylegan.sample(range(6), [0] * 6, noise="none").images
        assert not torch.equal(stylegan.sample(range(6), [0] * 6, noise="none", mixing=1.0).images, plain)
        still = stylegan.sample(range(6), [0, 0, 0, 1, 1, 1], noise="none", truncation=0.0, centre="class").images
        assert torch.equal(still[0], still[2])
        assert not torch.equal(still[0], still[3])
        with pytest.raises(UsageError, match=r"truncation must be in \[0, 2\] .*; noise must be one of 'random'"):
            stylegan.sample([0], [0], truncation=3.0, noise="loud")


class TestProjection:
    def test_a_generators_own_pictures_are_found_again(self, stylegan) -> None:
        labels = torch.tensor([0, 1, 1])
        ws = stylegan.of_latents(torch.randn(3, 8, generator=torch.Generator().manual_seed(3)), labels)
        images = stylegan.synthesize(ws, [0] * 3, "none")
        start = stylegan.synthesize(stylegan.centres(labels, "class"), [0] * 3, "none")
        found = project(stylegan, images, labels, steps=300, pull=0.0)
        before = (start - images).square().mean((1, 2, 3)).sqrt()
        assert bool((found.error < 0.35 * before).all())

    def test_variations_go_from_the_projection_to_any_picture_of_the_class(self, stylegan) -> None:
        from tests.contracts.test_generators import make_projected

        class Fake:
            members = stylegan.members

        made = make_projected((stylegan,))
        assert isinstance(made, ProjectedStyleGAN2)
        seeds, labels = list(range(24)), [0, 1] * 12
        close, far = made.sample(seeds, labels, strength=0.0), made.sample(seeds, labels, strength=1.0)
        assert close.parents is not None
        assert {parents[0] for parents in close.parents} == {"a/0.png", "b/0.png", "b/1.png"}
        own = [i for i, parents in enumerate(close.parents) if parents == ("a/0.png",)]
        assert all(torch.equal(close.images[i], close.images[own[0]]) for i in own)
        assert torch.equal(far.images, stylegan.sample(seeds, labels, noise="none").images)
        with pytest.raises(UsageError, match=r"strength must be in \[0, 1\]"):
            made.sample(seeds, labels, strength=2.0)

    def test_by_command_with_copies_counted_and_parents_in_the_manifest(
        self, stylegan, class_folders, tmp_path, capsys
    ) -> None:
        root = class_folders({"a": 3, "b": 4}, height=16, width=16, channels=3)
        folder = stylegan.save(tmp_path / "generator")
        words = ["project", str(folder), "--data", str(root), "--out", str(tmp_path / "near"), "--classes", "b"]
        assert main([*words, "--steps", "5"]) == 0
        told = capsys.readouterr()
        assert "variations of 4 real images" in told.out
        assert "near-duplicates of their parents" in told.err
        made = load_generator(tmp_path / "near")
        assert (tmp_path / "near" / "projections.png").is_file()
        assert {m.path for m in made.members if m.path.startswith("b/")} >= {"b/b_0.png", "b/b_3.png"}
        assert (
            main(f"render {tmp_path}/near --out {tmp_path}/r --classes b --per-class 5 --workers 0 --quiet".split())
            == 0
        )
        parents = {record.parents for record in read_renders(tmp_path / "r").records}
        assert parents <= {(f"b/b_{n}.png",) for n in range(4)}
        assert main(f"render {tmp_path}/near --out {tmp_path}/s --classes a --per-class 5 --quiet".split()) == 65
        assert "no real image of 'a' was projected; there are some of b" in capsys.readouterr().err

    def test_what_the_generator_held_out_stays_out(self, stylegan, class_folders, tmp_path, capsys) -> None:
        images = read_images(class_folders({"a": 4, "b": 6}, height=16, width=16, channels=3))
        held = {"a/a_1.png", "b/b_0.png", "b/b_5.png"}
        stylegan.members = tuple(
            replace(member, group="part" + member.path[-5])
            for member in images.members(lambda item: "test" if item.name in held else "train")
        )
        told: list[str] = []
        made = project_images(stylegan, images, tmp_path / "near", steps=2, strength=0.5, limit=3, progress=told.append)
        projected_latents = made.spec.arguments["projected_latents"]
        assert len(projected_latents) == 6
        assert held.isdisjoint(name for _, name, _ in projected_latents)
        assert {group for _, _, group in projected_latents} <= {f"part{n}" for n in range(6)}
        assert len(made.members) == 10
        assert told[0].startswith("3 images were held out when the generator was trained")

    def test_ways_of_projections_are_between_what_they_render(self, stylegan) -> None:
        from tests.contracts.test_generators import make_projected

        made = make_projected((stylegan,))
        way = made.interpolate(1, 2, 1, 20, strength=0.3)
        ends = made.sample([1, 2], [1, 1], strength=0.3).images
        assert (way[[0, -1]].int() - ends.int()).abs().max() <= 1
        assert len(way) == 20 > made.spec.micro_batch

    def test_copies_are_seen(self, stylegan) -> None:
        from tests.contracts.test_generators import make_projected
        from visynth.core.members import perceptual_hash

        made = make_projected((stylegan,))
        close = made.sample(list(range(24)), [0, 1] * 12, strength=0.0)
        names = [parents[0] for parents in close.parents or ()]
        hashes = [perceptual_hash(image.permute(1, 2, 0).numpy()) for image in close.images]
        assert copy_shares(made, dict(zip(names, hashes, strict=True)), 0.0) == {"a": 1.0, "b": 1.0}

    def test_other_generators_and_classes_are_told(self, stylegan, composition, class_folders, tmp_path) -> None:
        images = read_images(class_folders({"a": 3, "z": 3}))
        with pytest.raises(UsageError, match="projection needs a StyleGAN2 generator, but this one is 'compose'"):
            project_images(composition[0], images, tmp_path / "x")
        with pytest.raises(UsageError, match="classes 'z' are not in both the generator"):
            project_images(stylegan, images, tmp_path / "x", ["z"])


def test_import_by_command(tmp_path, capsys) -> None:
    (tmp_path / "evil.pkl").write_bytes(b"cos\nsystem\n.")
    assert main(["import-stylegan2", str(tmp_path / "evil.pkl"), "--out", str(tmp_path / "g")]) == 65
    assert "asks for os.system, which no network needs: it is not loaded" in capsys.readouterr().err
    assert not (tmp_path / "g").exists()


@pytest.mark.slow
def test_a_sweep_of_gamma_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    config = str(resources.files("visynth.configs") / "smoke" / "stylegan2.yaml")
    words = ["fit", "sweep", config, "--out", "s", "--kimg", "0.064", "--count", "40", "--factors", "[1, 4]"]
    assert main(words) == 0
    told = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert told["auto gamma"] == pytest.approx(2e-4 * 16**2 / 16)
    assert {row["factor"] for row in told["runs"]} == {1.0, 4.0}
    assert [row["kid"] for row in told["runs"]] == sorted(row["kid"] for row in told["runs"])
    assert "times the rule) has the lowest KID" in capsys.readouterr().out
    assert told["chosen_by"] == ["efficientnet_lite0"]
    for run in told["runs"]:
        card = load_generator(Path(run["run"]) / "generator").card
        assert card["extractors"] == {"efficientnet_lite0": "distances that settings were chosen by"}
    before = (tmp_path / "s" / "gamma_x4" / "generator" / "model.safetensors").stat().st_mtime_ns
    assert main(words) == 0
    assert "is finished" in capsys.readouterr().out
    assert (tmp_path / "s" / "gamma_x4" / "generator" / "model.safetensors").stat().st_mtime_ns == before
    assert main(["fit", "sweep", config, "--out", "few", "--count", "10"]) == 64
    assert "10 images are too few to measure KID with" in capsys.readouterr().err
    assert not list((tmp_path / "few").glob("gamma*"))  # told before anything was trained
    other = str(resources.files("visynth.configs") / "smoke" / "diffusion.yaml")
    assert main(["fit", "sweep", other, "--out", "t"]) == 64
    assert "trains a Diffusion, which has no gamma to choose" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["stylegan2", "biggan", "cgan"])
def test_gans_mix_into_a_training_rendered_or_at_work(name: str, composition, tmp_path) -> None:
    arguments = {
        "stylegan2": {"base": 64, "most": 8, "z_dim": 8, "w_dim": 8},
        "biggan": {"width": 4, "z_dim": 12, "shared": 8},
    }
    generator = make_gan(name, **arguments.get(name, {"width": 8, "z_dim": 8}))(composition)
    folder = generator.save(tmp_path / "generator")
    renders = render_set(generator, make_plan(generator, per_class=4), tmp_path / "renders").folder
    images, labels = torch.rand(24, 3, 16, 16) * 0.5, torch.tensor([0] * 20 + [1] * 4)

    class Data(pytorch_lightning.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(TensorDataset(images, labels), 8)

    for source, backend in ((renders, "samples"), (renders, "batches"), (folder, "online")):
        told = {
            "backend": backend,
            "share": 0.25,
            "balance": {"b": 6},
            "classes": {"a": 0, "b": 1},
            "leak_guard": False,
        }
        module = Watch()
        trainer = pytorch_lightning.Trainer(**TRAINER, max_epochs=1)
        trainer.fit(module, visynth.WithSynthetic(Data(), source, **told))
        seen = torch.cat([batch[0] for batch in module.batches])
        real = {picture.numpy().tobytes() for picture in images}
        assert sum(picture.numpy().tobytes() not in real for picture in seen) == 6
        assert int(torch.cat([batch[1] for batch in module.batches]).sum()) == 4 + 6
