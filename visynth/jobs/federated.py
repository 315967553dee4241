"""``visynth fit`` over sites: the server's and the sites' parts of one configuration, and sites in this process."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import visynth
from visynth.core.errors import UsageError, raise_all
from visynth.federated.options import FederatedOptions, local_problems
from visynth.federated.server import Exchange, Federated, Rounds
from visynth.federated.site import Site


class InProcess:
    """Sites one after another in this process, each with its own module and data: the small reference.

    Args:
        cli: of the configuration.
        options: of the federated training.
    """

    def __init__(self, cli: Any, options: FederatedOptions) -> None:
        self.cli, self.options = cli, options
        self.sites: dict[str, Site] = {}

    def __call__(self, message: bytes, sites: Sequence[str]) -> Mapping[str, bytes]:
        for name in sites:
            if name not in self.sites:
                self.sites[name] = make_site(self.cli, self.options, name, self.options.sites[name])
        return {name: self.sites[name].answer(message) for name in sites}


def make_site(cli: Any, options: FederatedOptions, name: str, arguments: Mapping[str, Any]) -> Site:
    """A site with the configured module and its own data.

    Args:
        cli: of the configuration, after :func:`prepare_site`.
        options: of the federated training.
        name: of the site.
        arguments: of the data that are its own.

    Raises:
        UsageError: arguments that all sites share, or that the data do not take.
    """
    raise_all(f"site {name}", _problems(cli, arguments), UsageError)
    config = _plain_config(cli.config["data"])
    config["init_args"] = {**config.get("init_args", {}), **arguments}
    datamodule = _instantiated(config, name)
    # The server's weights come with each round; what the module draws itself is of the same seed everywhere.
    return Site(
        name, copy.deepcopy(cli.site_model), datamodule, options, _site_trainer(cli, options), agreed(cli, options)
    )


def become_server(cli: Any, options: FederatedOptions, exchange: Exchange | None = None) -> None:
    """Turn a configured training into the server's part: its data are rounds, and sites answer in the place of a gradient.

    Args:
        cli: of the configuration; trainer and data are exchanged in it.
        options: of the federated training.
        exchange: carries messages; None: sites in this process.

    Raises:
        UsageError: data without declared facts, and a module that does not say them.
    """
    prepare_site(cli, options)
    if options.algorithm == "fedavg":  # the server's step is no gradient step
        cli.trainer.gradient_clip_val = None
    for name, arguments in options.sites.items():
        raise_all(f"site {name}", _problems(cli, arguments), UsageError)
    facts, batch = _facts(cli), int(getattr(cli.site_data, "batch_size", 0) or 0)
    if not batch and hasattr(cli.model, "images_seen"):
        raise UsageError(
            f"{type(cli.site_data).__name__} has no batch_size, by which rounds and sites share one stream of random numbers: give it one."
        )
    images = options.local_steps * batch
    server = Federated(exchange or InProcess(cli, options), options, facts, images, agreed(cli, options))
    cli.trainer.callbacks.insert(0, server)
    cli.datamodule = Rounds(facts)


def _problems(cli: Any, arguments: Mapping[str, Any]) -> list[str]:
    """Arguments of a site that are not its own to say; what is the own of another DataModule nobody knows here."""
    return local_problems(arguments) if hasattr(cli.site_data, "join_federation") else []


def _plain_config(config: Any) -> dict[str, Any]:
    values: dict[str, Any] = config.as_dict() if hasattr(config, "as_dict") else dict(config)
    return values


def _instantiated(config: dict[str, Any], name: str) -> Any:
    """A DataModule of its configuration, as LightningCLI makes it.

    Raises:
        UsageError: arguments that it does not take.
    """
    import pytorch_lightning
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pytorch_lightning.LightningDataModule, "data")
    try:
        values = parser.parse_object({"data": config})
    except Exception as error:  # jsonargparse's own, of many kinds
        raise UsageError(f"site {name}: its data cannot be made so: {error}") from None
    return parser.instantiate_classes(values)["data"]


def prepare_site(cli: Any, options: FederatedOptions) -> None:
    """Keep what sites are made of."""
    cli.site_data, cli.site_model = cli.datamodule, copy.deepcopy(cli.model)
    cli.site_clip = cli.trainer.gradient_clip_val if options.algorithm == "fedavg" else None


def _facts(cli: Any) -> Any:
    if hasattr(cli.site_data, "declared_facts"):
        return cli.site_data.declared_facts()
    hparams = getattr(cli.model, "hparams", {})
    if hasattr(cli.model, "build") and any(hparams.get(name) is None for name in ("classes", "channels", "size")):
        raise UsageError(
            f"{type(cli.site_data).__name__} cannot say what its images are before they are read: take GeneratorData with classes "
            f"and channels, or give the module classes, channels, size."
        )
    return None


def agreed(cli: Any, options: FederatedOptions) -> dict[str, Any]:
    """What the server and all sites must have in common, in plain values."""
    model = cli.config["model"]
    return {
        "visynth": visynth.__version__,
        "model": str(model["class_path"]),
        "arguments": _plain(model.get("init_args")),
        "algorithm": options.algorithm,
        "local_steps": options.local_steps,
        "local_lr": options.local_lr,
        "weights": options.weights,
        "max_update_norm": options.max_update_norm,
        "sites": list(options.names),
        "batch_size": getattr(cli.site_data, "batch_size", None),
    }


def _plain(value: Any) -> Any:
    if hasattr(value, "as_dict"):
        value = value.as_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _site_trainer(cli: Any, options: FederatedOptions) -> dict[str, Any]:
    config = cli.config["trainer"]
    return {
        "accelerator": config.get("accelerator") or "auto",
        "precision": config.get("precision") or "32-true",
        "gradient_clip_val": cli.site_clip,
        "gradient_clip_algorithm": config.get("gradient_clip_algorithm") if cli.site_clip else None,
    }


def site_folders(options: FederatedOptions) -> list[Path]:
    """Folders that the sites read, as far as they are known here."""
    named = [arguments.get(key) for arguments in options.sites.values() for key in ("data", "masks")]
    return [Path(folder) for folder in named if isinstance(folder, str) and Path(folder).is_dir()]
