"""A registry on an MLflow server. Optional: ``mlflow-skinny``.

A version of ours is a version of the registered model, with our hash as its tag ``visynth.version``; its files are the
artifact ``generator`` of a run. MLflow sets an alias without a condition: of two who move one, the last wins, and nothing
is logged. It does number the versions of a registered model without gaps, one at a time. So the event log is kept as the
versions of a second registered model, ``NAME.events``: an event counts if the one before it is the last that counted when
it was written. MLflow's own alias follows the log, for ``models:/NAME@champion``; moved by hand, it is a contradiction.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from visynth.core.errors import ConflictError, IntegrityError, MissingExtra, UnavailableError, UsageError
from visynth.core.files import cache_folder, canonical_json
from visynth.core.folders import cached_folder
from visynth.jobs.registry.base import Registry
from visynth.jobs.registry.contents import Contents, check_contents
from visynth.jobs.registry.events import Alias, Event, Wish, check_chain, folded

SCHEMES = ("mlflow+http", "mlflow+https")
EXPERIMENT = "visynth"
ARTIFACT = "generator"
VERSION, EVENT, KEY, FOLLOWED = "visynth.version", "visynth.event", "visynth.key", "visynth.followed"
TRIES = 40  # to do what others, who were faster, kept from being done
PAGE = 1000
PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")  # answers that are worth another try
COLLIDING = (*PASSING, "BAD_REQUEST")  # of what two may set at once: the server's database takes one of them


@dataclass(frozen=True)
class Line:
    """An event as the server keeps it.

    Attributes:
        number: of the version of ``NAME.events``.
        key: of the process that wrote it.
        event: that it holds.
        followed: MLflow's own alias was set after it.
    """

    number: int
    key: str
    event: Event
    followed: bool


class MLflowRegistry(Registry):
    """See the module's docstring. User name, password or token are read by MLflow from its environment variables.

    Args:
        address: ``mlflow+https://host:5000/NAME``; NAME is the registered model.

    Raises:
        UsageError: it is no such address.
        MissingExtra: mlflow-skinny is not installed.
    """

    def __init__(self, address: str) -> None:
        self.where = address
        parts = urlsplit(address)
        prefix, _, self.name = parts.path.rpartition("/")
        if parts.scheme not in SCHEMES or not parts.netloc or not self.name:
            raise UsageError(f"a registry on MLflow must be like mlflow+https://host:5000/NAME, but got {address!r}.")
        self.log = f"{self.name}.events"
        self._client = _client(f"{parts.scheme.removeprefix('mlflow+')}://{parts.netloc}{prefix}")

    # -- versions ------------------------------------------------------------------------------------------------------

    def folder(self, version: str) -> Path:
        folder = cache_folder() / "registry" / version  # a copy, which is checked each time
        if folder.is_dir():
            try:
                return check_contents(folder, version)
            except IntegrityError:  # of our copy: that says nothing of the version
                shutil.rmtree(folder)
        with cached_folder(folder) as new:
            found = Path(self._download(version, str(new)))
            check_contents(found, version)
            for path in found.iterdir():
                path.rename(new / path.name)
            found.rmdir()
        return check_contents(folder, version)

    def verify(self, version: str) -> None:
        with tempfile.TemporaryDirectory() as temporary:
            check_contents(Path(self._download(version, temporary)), version)

    def _download(self, version: str, into: str) -> str:
        run = self._kept(version).run_id
        return str(self._ask("download_artifacts", run, ARTIFACT, into))

    def _kept(self, version: str) -> Any:
        """MLflow's version of ours: the first, where several added it at once."""
        found = self._find(version)
        if found is not None:
            return found
        raise IntegrityError(f"{self.where} has no version {version[:12]}: it was deleted, or never was there.")

    def _find(self, version: str) -> Any:
        return next((own for own in self._versions(self.name) if own.tags.get(VERSION) == version), None)

    def _store(self, contents: Contents) -> None:
        version = contents.version
        self._ensure_model(self.name)
        if self._find(version) is not None:
            return
        with tempfile.TemporaryDirectory() as temporary:
            contents.write(Path(temporary))
            experiment = self._experiment()
            run = self._ask("create_run", experiment, run_name=f"{self.name} {version[:12]}").info.run_id
            self._ask("log_artifacts", run, temporary, ARTIFACT)
            self._ask("update_run", run, "FINISHED")  # set_terminated prints to where our results go
        self._create(self.name, run, {VERSION: version})

    def _experiment(self) -> str:
        found = self._ask("get_experiment_by_name", EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        made = self._create_once("create_experiment", EXPERIMENT)
        return str(made or self._ask("get_experiment_by_name", EXPERIMENT).experiment_id)

    # -- the log -------------------------------------------------------------------------------------------------------

    def events(self) -> list[Event]:
        return check_chain([line.event for line in self._lines()], f"{self.log} on {self.where}")

    def _lines(self) -> list[Line]:
        """Events that count, oldest first."""
        kept = self._versions(self.log)
        numbers = [int(own.version) for own in kept]
        if numbers != list(range(1, len(numbers) + 1)):
            gap = next(place for place, number in enumerate(numbers, 1) if place != number)
            raise IntegrityError(f"{self.log} on {self.where} was altered: event version {gap} was deleted.")
        lines: list[Line] = []
        for own in kept:
            try:
                event = Event(**json.loads(own.tags[EVENT]))
            except (KeyError, TypeError, ValueError) as error:
                raise IntegrityError(
                    f"{self.log} on {self.where} was altered: version {own.version} is no event ({error})."
                ) from error
            if event.hashed() != event.sha:
                raise IntegrityError(
                    f"{self.log} on {self.where} was altered: event {event.seq} is not what was logged."
                )
            if event.before == (lines[-1].event.sha if lines else ""):
                lines.append(Line(int(own.version), own.tags.get(KEY, ""), event, FOLLOWED in own.tags))
        return lines

    def _append(self, wish: Wish) -> Event:
        self._ensure_model(self.log)
        run = self._kept(wish.new).run_id
        key = uuid.uuid4().hex  # nothing else tells two processes apart that log the same in the same second
        for attempt in range(TRIES):
            lines = self._lines()
            events = [line.event for line in lines]
            event = wish.event(events[-1] if events else None, folded(events).get(wish.alias))
            self._create(self.log, run, {EVENT: canonical_json(asdict(event)), KEY: key})
            if any(line.key == key for line in self._lines()):
                if wish.alias:
                    self._follow(wish.alias)
                return event
            _wait(attempt)
        raise UnavailableError(f"{self.where} is written by too many at once: try again later.")

    # -- aliases -------------------------------------------------------------------------------------------------------

    def aliases(self) -> dict[str, Alias]:
        """All aliases, by the log.

        Raises:
            ConflictError: MLflow's own alias names another version: somebody moved it outside visynth.
        """
        for patience in (0.3, 1.0, None):
            lines = self._lines()
            moves = {line.event.alias: line for line in lines if line.event.alias}
            found = folded(line.event for line in lines)
            shown = self._shown()
            wrong = [name for name, alias in found.items() if shown.get(name) != alias.version]
            if not wrong:
                return found
            behind = [name for name in wrong if not moves[name].followed]
            for name in behind:  # killed, or at work, between log and alias
                self._follow(name)
            if patience is None or behind == wrong:
                break
            time.sleep(patience)  # a process that was slow may be about to set it right
        moved = [name for name in wrong if name not in behind]
        if moved:
            name, alias = moved[0], found[moved[0]]
            raise ConflictError(
                f"{name} of {self.name}: MLflow's alias names {shown.get(name, 'nothing')[:12]}, the log of visynth "
                f"{alias.version[:12]}; somebody moved it outside visynth. Say which it is: 'visynth registry promote "
                f"{self.where} --alias {name} --expect {alias.gen} --version VERSION'."
            )
        return found

    def _shown(self) -> dict[str, str]:
        """Our versions by MLflow's own aliases."""
        if not self._has_model(self.name):
            return {}
        model = self._ask("get_registered_model", self.name)
        ours = {str(own.version): own.tags.get(VERSION, "") for own in self._versions(self.name)}
        return {name: ours.get(str(number), f"version {number}") for name, number in model.aliases.items()}

    def _follow(self, name: str) -> None:
        """Set MLflow's alias to what the log says, and again where the log moved meanwhile."""
        last = self._last_move(name)
        while True:
            number = str(self._kept(last.event.new).version)
            self._ask("set_registered_model_alias", self.name, name, number)
            tag = (self.log, str(last.number), FOLLOWED, "true")
            self._ask("set_model_version_tag", *tag, again=COLLIDING)  # whoever else sets it sets the same
            before, last = last, self._last_move(name)
            if before.number == last.number:
                return

    def _last_move(self, name: str) -> Line:
        return next(line for line in reversed(self._lines()) if line.event.alias == name)

    # -- the server ----------------------------------------------------------------------------------------------------

    def _versions(self, name: str) -> list[Any]:
        """MLflow's versions of a registered model, oldest first."""
        found: list[Any] = []
        token = None
        while True:
            page = self._ask("search_model_versions", f"name='{name}'", PAGE, ["version_number ASC"], page_token=token)
            found += page
            token = page.token
            if not token:
                # Pages are places in a list that grows meanwhile: an entry may come twice.
                return [own for _, own in sorted({int(own.version): own for own in found}.items())]

    def _has_model(self, name: str) -> bool:
        return bool(self._ask("search_registered_models", f"name='{name}'", 1))

    def _ensure_model(self, name: str) -> None:
        if not self._has_model(name):
            self._create_once("create_registered_model", name)

    def _create(self, name: str, run: str, tags: dict[str, str]) -> None:
        source = f"runs:/{run}/{ARTIFACT}"
        self._ask("create_model_version", name, source, run, tags, await_creation_for=0)

    def _create_once(self, call: str, name: str) -> Any:
        """Create something that another process may create at the same time; None where it did."""
        from mlflow.exceptions import MlflowException

        try:
            return getattr(self._client, call)(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise UnavailableError(f"{self.where}: {error}") from error
            return None

    def _ask(self, call: str, *args: Any, again: tuple[str, ...] = PASSING, **options: Any) -> Any:
        """A method of MLflow's client, by name, with its failures as ours."""
        from mlflow.exceptions import MlflowException, RestException

        attempt = 0
        while True:
            try:
                return getattr(self._client, call)(*args, **options)
            except MlflowException as error:
                # The server answers so where another was faster; MLflow's client has tried again where none answered.
                code = error.error_code if isinstance(error, RestException) else None
                if code not in again or attempt == TRIES:
                    raise UnavailableError(f"{self.where}: {error}") from error
            _wait(attempt)
            attempt += 1


def _wait(attempt: int) -> None:
    """Longer each time, and not as long as others wait."""
    time.sleep(random.uniform(0.5, 1.0) * min(0.02 * 1.5**attempt, 1.0))


def _client(uri: str) -> Any:
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise MissingExtra(f"{uri} is an MLflow server: pip install 'visynth[mlflow]'.") from error
    return MlflowClient(tracking_uri=uri, registry_uri=uri)
