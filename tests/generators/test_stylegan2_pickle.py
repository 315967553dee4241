"""Public StyleGAN2 pickles, built from stand-in classes: read to the same images, and never executed."""

from __future__ import annotations

import os
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from tests.networks.test_stylegan2 import filled, normal
from visynth.core.errors import DataError, UsageError
from visynth.generators.base import load_generator
from visynth.generators.stylegan2_import import import_stylegan2
from visynth.generators.stylegan2_pickle import read_stylegan2
from visynth.networks.discriminator import Discriminator
from visynth.networks.resample import TAPS
from visynth.networks.stylegan2 import StyleGAN2, truncate


@pytest.fixture
def stand_ins(monkeypatch):
    """The two modules that such pickles name, with just what writing one needs."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("executed")

    class EasyDict(dict):
        pass

    _reconstruct_persistent_obj.__module__, _reconstruct_persistent_obj.__qualname__ = (
        "torch_utils.persistence",
        "_reconstruct_persistent_obj",
    )
    EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"
    persistence._reconstruct_persistent_obj, util.EasyDict = _reconstruct_persistent_obj, EasyDict
    for name, module in {
        "torch_utils": types.ModuleType("torch_utils"),
        "torch_utils.persistence": persistence,
        "dnnlib": types.ModuleType("dnnlib"),
        "dnnlib.util": util,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)

    class Node:
        """A module as it lies in such a file."""

        def __init__(self, name: str, arguments=None) -> None:
            self.name, self.children, self.parameters, self.buffers = name, OrderedDict(), OrderedDict(), OrderedDict()
            self.arguments = arguments or {}

        def __reduce__(self):
            state = {
                "training": False,
                "_parameters": self.parameters,
                "_buffers": self.buffers,
                "_non_persistent_buffers_set": set(),
                "_forward_hooks": OrderedDict(),
                "_modules": self.children,
                "_init_args": (),
                "_init_kwargs": EasyDict(self.arguments),
            }
            meta = {
                "type": "class",
                "version": 6,
                "module_src": "raise SystemExit",
                "class_name": self.name,
                "state": state,
            }
            return _reconstruct_persistent_obj, (EasyDict(meta),)

    def write(path: Path, **networks):
        held = {
            "training_set_kwargs": EasyDict(path="x.zip"),
            "augment_pipe": None,
            "G": None,
            "D": None,
            "G_ema": None,
        }
        for key, (name, weights, arguments) in networks.items():
            root = Node(name, arguments)
            for full, value in weights.items():
                *parents, last = full.split(".")
                node = root
                for part in parents:
                    node = node.children.setdefault(part, Node(part))
                if "noise_const" in last or "w_avg" in last or "resample" in last:
                    node.buffers[last] = value
                else:
                    node.parameters[last] = torch.nn.Parameter(value)
            held[key] = root
        path.write_bytes(pickle.dumps(held))
        return path

    return write


def weights_of(network, filters: bool = True):
    made = dict(network.state_dict())
    taps = torch.tensor(TAPS)
    for name in [n for n in made if n.endswith("conv1.weight")] if filters else []:
        made[name.replace("weight", "resample_filter")] = torch.outer(taps, taps) / 64
    return made


@pytest.mark.parametrize(("classes", "channels", "size"), [(3, 1, 32), (0, 3, 16)])
def test_the_same_images_and_a_discriminator(classes: int, channels: int, size: int, stand_ins, tmp_path) -> None:
    network = filled(StyleGAN2(size, channels, classes, 24, 32, 512, 48, 2))
    critic = filled(Discriminator(size, channels, classes, 512, 48))
    told = {"z_dim": 24, "synthesis_kwargs": {"channel_base": 512, "conv_clamp": None}}
    path = stand_ins(
        tmp_path / "network.pkl",
        G_ema=("Generator", weights_of(network), told),
        D=("Discriminator", weights_of(critic), {}),
    )
    folder = import_stylegan2(path, tmp_path / "generator", ["a", "b", "c"][:classes] or None)
    made = load_generator(folder)
    z = normal(5, (4, 24))
    labels = torch.tensor([0, 1, 2, 1]) if classes else torch.zeros(4, dtype=torch.int64)
    ws = made.of_latents(z, labels)
    own = network.styles(z, labels if classes else None)
    for psi in (1.0, 0.7):
        found = made.synthesize(truncate(ws, made.network.mapping.w_avg, psi), [0] * 4, "const")
        assert torch.allclose(found, network.synthesis(truncate(own, network.mapping.w_avg, psi)), atol=1e-3)
    assert made.spec.channels == channels
    from safetensors.torch import load_file

    again = Discriminator(size, channels, classes, 512, 48)
    again.load_state_dict(load_file(folder / "discriminator.safetensors"))
    images = torch.randn(4, channels, size, size)
    assert torch.equal(again(images, labels), critic(images, labels))
    samples = made.sample([1, 2], [0, len(made.classes) - 1])
    assert samples.images.shape == (2, channels, size, size)


def test_limits_of_half_precision_networks_are_kept(stand_ins, tmp_path) -> None:
    network = filled(StyleGAN2(16, 1, 0, 8, 8, 128, 8, 2))
    told = {"synthesis_kwargs": {"conv_clamp": 0.5}}
    path = stand_ins(tmp_path / "n.pkl", G_ema=("Generator", weights_of(network), told))
    found = read_stylegan2(path)
    assert found.arguments["clamp"] == 0.5
    made = load_generator(import_stylegan2(path, tmp_path / "generator"))
    assert float(made.network(normal(1, (4, 8)), None).abs().max()) <= 0.5 * 3 + 1e-6  # three images are summed


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


class TestHostile:
    @pytest.mark.parametrize("protocol", [0, 2, 4])
    def test_other_names_are_refused(self, protocol: int, tmp_path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"G_ema": Evil()}, protocol=protocol))
        with pytest.raises(
            DataError, match=r"asks for (posix|os|nt)\.system, which no network needs: it is not loaded"
        ):
            read_stylegan2("evil.pkl")
        assert not (tmp_path / "executed").exists()

    def test_within_a_tensor_too(self, tmp_path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        inner = pickle.dumps(Evil())

        class Tensor:
            def __reduce__(self):
                return torch.storage._load_from_bytes, (inner,)

        (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"G_ema": Tensor()}))
        with pytest.raises(DataError, match="is not a StyleGAN2 pickle that can be read"):
            read_stylegan2("evil.pkl")
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize("name", ["builtins.eval", "builtins.getattr", "torch.load", "functools.partial"])
    def test_well_known_ways_out(self, name: str, tmp_path) -> None:
        module, attribute = name.split(".")
        (tmp_path / "evil.pkl").write_bytes(f"c{module}\n{attribute}\n.".encode())
        with pytest.raises(DataError, match=f"asks for {name}, which no network needs"):
            read_stylegan2(tmp_path / "evil.pkl")

    def test_nesting_that_would_exhaust_the_stack(self, tmp_path) -> None:
        (tmp_path / "deep.pkl").write_bytes(b"})" + b"\x85" * 2_000_000 + b"Ns.")
        with pytest.raises(DataError, match="more parts than any network"):
            read_stylegan2(tmp_path / "deep.pkl")

    def test_tensors_larger_than_what_is_stored(self, tmp_path) -> None:
        class Large:
            def __reduce__(self):
                storage = torch.zeros(2).storage() if False else torch.zeros(2).untyped_storage()
                return torch._utils._rebuild_tensor_v2, (
                    torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True),
                    0,
                    (10**6,),
                    (0,),
                    False,
                    {},
                )

        (tmp_path / "large.pkl").write_bytes(pickle.dumps({"G_ema": Large()}))
        with pytest.raises(DataError, match="reaches beyond its storage"):
            read_stylegan2(tmp_path / "large.pkl")

    def test_what_the_reader_is_made_of_cannot_be_changed(self, tmp_path) -> None:
        for target in (b"cdnnlib.util\nEasyDict\n", b"ctorch._utils\n_rebuild_parameter\n"):
            (tmp_path / "changes.pkl").write_bytes(b"\x80\x02" + target + b"(N}U\x03getNst\x62.")
            with pytest.raises(DataError, match="tries to change"):
                read_stylegan2(tmp_path / "changes.pkl")


class TestOther:
    def test_a_generator_that_is_not_whole(self, stand_ins, tmp_path) -> None:
        network = filled(StyleGAN2(16, 1, 0, 24, 32, 512, 48, 2))
        weights = weights_of(network)
        del weights["mapping.w_avg"]
        told = {"z_dim": 24, "synthesis_kwargs": {"channel_base": 512, "conv_clamp": None}}
        path = stand_ins(tmp_path / "network.pkl", G_ema=("Generator", weights, told))
        with pytest.raises(DataError, match=r"not a whole StyleGAN2 generator:\n  - mapping.w_avg: missing"):
            import_stylegan2(path, tmp_path / "generator")
        assert not (tmp_path / "generator").exists()

    def test_files_that_are_none(self, tmp_path) -> None:
        (tmp_path / "torn.pkl").write_bytes(b"\x80\x04\x95")
        with pytest.raises(DataError, match="is not a StyleGAN2 pickle that can be read"):
            read_stylegan2(tmp_path / "torn.pkl")
        with pytest.raises(DataError, match="cannot be opened"):
            read_stylegan2(tmp_path / "nothing.pkl")
        (tmp_path / "list.pkl").write_bytes(pickle.dumps([1]))
        with pytest.raises(DataError, match="holds no network 'G_ema'; it holds none"):
            read_stylegan2(tmp_path / "list.pkl")

    def test_other_networks(self, stand_ins, tmp_path) -> None:
        path = stand_ins(tmp_path / "a.pkl", G_ema=("Generator", {"synthesis.input.weight": torch.zeros(1)}, {}))
        with pytest.raises(DataError, match="not the alias-free ones of StyleGAN3"):
            read_stylegan2(path)
        weights = weights_of(filled(StyleGAN2(16, 1, 0, 8, 8, 128, 8, 2)))
        weights["synthesis.b8.conv1.resample_filter"] = torch.ones(4, 4) / 16
        with pytest.raises(DataError, match="another filter"):
            read_stylegan2(stand_ins(tmp_path / "b.pkl", G_ema=("Generator", weights, {})))
        weights = {k: v for k, v in weights.items() if "b8.torgb" not in k and "resample" not in k}
        with pytest.raises(DataError, match="only the 'skip' architecture"):
            read_stylegan2(stand_ins(tmp_path / "c.pkl", G_ema=("Generator", weights, {})))

    def test_as_many_names_as_classes(self, stand_ins, tmp_path) -> None:
        network = filled(StyleGAN2(16, 1, 2, 8, 8, 128, 8, 2))
        path = stand_ins(tmp_path / "n.pkl", G_ema=("Generator", weights_of(network), {}))
        with pytest.raises(UsageError, match="knows 2 classes, but 3 names were given: a, b, c"):
            import_stylegan2(path, tmp_path / "g", ["a", "b", "c"])
        assert not (tmp_path / "g").exists()
