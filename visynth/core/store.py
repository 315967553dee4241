"""Object stores (S3, Google, Azure, a local folder) by address: put if absent, get, list. Optional: ``obstore``.

Access keys and endpoints come from the environment, as that library reads them: ``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``, ``AWS_ENDPOINT`` (with ``AWS_ALLOW_HTTP=true`` for one without TLS), and the like.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from visynth.core.errors import IntegrityError, MissingExtra, OutputError, VisynthError
from visynth.core.files import cache_folder
from visynth.core.folders import cached_folder

URL = re.compile(r"^(s3|gs|gcs|az|azure|abfs|memory|file)://")
T = TypeVar("T")


def is_url(where: str | Path) -> bool:
    """Whether a place is an object store's address.

    Example:
        >>> is_url("s3://bucket/renders"), is_url("renders"), is_url("user/model")
        (True, False, False)
    """
    return isinstance(where, str) and URL.match(where) is not None


class Store:
    """Objects below an address.

    Args:
        url: of a bucket or a prefix in it.

    Raises:
        MissingExtra: obstore is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            import obstore  # noqa: F401
        except ImportError as error:
            raise MissingExtra(f"{url} is an object store: pip install 'visynth[store]'.") from error

    @cached_property
    def _store(self) -> Any:
        from obstore.store import from_url

        return _told(self.url, lambda: from_url(self.url))

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def put_new(self, name: str, data: bytes) -> bool:
        """Put an object that is not there yet; of several that try at once one wins. Returns whether this one did.

        Raises:
            OutputError: the store cannot be written.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            obstore.put(self._store, name, data, mode="create")
        except (AlreadyExistsError, PreconditionError):
            # A lost answer is asked for again, and then meets its own object: that is a success.
            return self.get(name) == data
        except Exception as error:
            raise OutputError(f"cannot write {self.url}/{name}: {error}") from error
        return True

    def put(self, name: str, data: bytes) -> None:
        """Put an object, over whatever is there."""
        import obstore

        _told(f"{self.url}/{name}", lambda: obstore.put(self._store, name, data))

    def put_chunks(self, name: str, chunks: Iterable[bytes]) -> None:
        """Put an object piece by piece, over whatever is there; until its end the old one stays."""
        import obstore

        def write() -> None:
            with obstore.open_writer(self._store, name) as stream:
                for chunk in chunks:
                    stream.write(chunk)

        _told(f"{self.url}/{name}", write)

    def get(self, name: str) -> bytes | None:
        """An object's content, or None where there is none."""
        import obstore

        try:
            return bytes(_told(f"{self.url}/{name}", lambda: obstore.get(self._store, name).bytes()))
        except FileNotFoundError:
            return None

    def has(self, name: str) -> bool:
        """Whether there is such an object."""
        import obstore

        try:
            _told(f"{self.url}/{name}", lambda: obstore.head(self._store, name))
        except FileNotFoundError:
            return False
        return True

    def names(self, prefix: str = "") -> Iterator[str]:
        """Names of objects below a prefix."""
        import obstore

        pages = _told(self.url, lambda: obstore.list(self._store, prefix or None))
        for page in pages:
            yield from (str(own["path"]) for own in page)

    def delete(self, names: list[str]) -> None:
        """Remove objects."""
        import obstore

        if names:
            _told(self.url, lambda: obstore.delete(self._store, names))


def _told(where: str, work: Callable[[], T]) -> T:
    """Do something in a store; its errors are told as ours, except that an object is not there."""
    from obstore.exceptions import NotFoundError

    try:
        return work()
    except (FileNotFoundError, NotFoundError) as error:
        raise FileNotFoundError(where) from error
    except VisynthError:
        raise
    except Exception as error:
        raise OutputError(f"cannot reach {where}: {error}. Check the address and its access keys.") from error


def fetched(url: str, names: tuple[str, ...]) -> Path:
    """A folder of an object store, in the local cache: those files of it that are there.

    The cache is keyed by the content of the first file, so that a folder that was replaced is fetched anew.

    Raises:
        IntegrityError: the first file is not there.
    """
    store = Store(url)
    head = store.get(names[0])
    if head is None:
        raise IntegrityError(f"there is no generator folder at {url}: it has no {names[0]}.")
    folder = cache_folder() / "fetched" / sha256(url.encode() + b"\n" + head).hexdigest()[:32]
    if folder.is_dir():
        return folder
    with cached_folder(folder) as new:
        for name in names:
            data = head if name == names[0] else store.get(name)
            if data is not None:
                (new / name).write_bytes(data)
    return folder
