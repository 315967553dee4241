"""Makes the shards of an image plan: samples, draws again what cannot be used, encodes beside the sampling."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from visynth.core import plugins
from visynth.core.codec import Array
from visynth.core.errors import UsageError
from visynth.core.manifest import Record, encode_mask
from visynth.render.formats import PACKERS, Encoded
from visynth.render.plan import Planned, RenderPlan
from visynth.render.shards import Shard
from visynth.render.writers import encode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from visynth.generators.base import Generator, Samples

AHEAD = 4  # micro-batches sampled ahead of the encoders
NOT_FINITE, CONSTANT = "not a finite image", "one colour all over"


class Filter(Protocol):
    """Refuses images. Registered in the plugin group ``filters`` and built with the generator.

    ``digest`` names everything that its answers depend on; it becomes part of the plan.
    """

    digest: str

    def refusal(self, image: Array, label: str) -> str | None:
        """Why an image ``[H, W, C]`` of a class is refused, or None."""


@dataclass
class Drawn:
    """An image while it is made."""

    image: Planned
    attempt: int = 0
    row: dict[str, Any] | None = None
    data: Future[bytes] | bytes | None = None
    tried: list[dict[str, Any]] = field(default_factory=list)  # seeds that gave nothing, and why


class ImageMaker:
    """Makes shards of images.

    Args:
        generator: the plan's.
        said: the plan, or the plan as stored.
        ahead: micro-batches sampled ahead of the encoders; it does not change a byte.
    """

    def __init__(self, generator: Generator, said: Mapping[str, Any] | RenderPlan, ahead: int = AHEAD) -> None:
        self.plan = said if isinstance(said, RenderPlan) else RenderPlan.from_json(said)
        self.generator, self.members, self.card = generator, generator.members, generator.card
        self.ahead = ahead
        self.filters = make_filters(generator, list(self.plan.filters))
        changed = [name for name, own in self.filters.items() if own.digest != self.plan.filters[name]]
        if changed:
            raise UsageError(f"the filters {changed} differ from those of the plan: make a plan with them as they are.")

    def make(self, number: int, round_: int, pool: Executor | None) -> Callable[[], Shard]:
        """Sample a shard; encoding goes on in the pool, and the function that comes back waits for it.

        Args:
            number: of the shard.
            round_: 0, or how often its failed images were tried anew: each round adds ``plan.attempts`` draws.
            pool: encodes; None encodes here.
        """
        started = time.monotonic()
        images = [Drawn(image) for image in self.plan.shard(number)]
        waiting: deque[list[Drawn]] = deque()
        with plan_threads(self.plan.threads):
            todo = images
            for attempt in range(self.plan.attempts * (round_ + 1)):
                for start in range(0, len(todo), self.plan.micro_batch):
                    batch = todo[start : start + self.plan.micro_batch]
                    self._draw(batch, attempt, pool)
                    waiting.append(batch)
                    if len(waiting) > self.ahead:  # keeps few images in memory
                        _wait(waiting.popleft())
                todo = [own for own in todo if own.row is None]
                if not todo:
                    break
        sampled = time.monotonic() - started
        return lambda: self._whole(number, round_, images, sampled)

    def _draw(self, batch: list[Drawn], attempt: int, pool: Executor | None) -> None:
        wanted = [self.plan.planned(own.image.label, own.image.number, attempt) for own in batch]
        samples = self.generator.sample([i.seed for i in wanted], [i.label for i in wanted], **self.plan.options)
        for place, (own, image) in enumerate(zip(batch, wanted, strict=True)):
            pixels = samples.crop(place).permute(1, 2, 0).numpy()
            reason = self._refusal(samples, place, pixels, self.plan.classes[image.label])
            if reason is not None:
                own.tried.append({"seed": image.seed, "reason": reason})
                continue
            own.row = _row(self.plan, image, samples, place, pixels)
            task = (pixels.copy(), self.plan.encoding, self.plan.kind)
            own.data = pool.submit(encode, *task) if pool is not None else encode(*task)

    def _refusal(self, samples: Samples, place: int, pixels: Array, label: str) -> str | None:
        if samples.valid is not None and not bool(samples.valid[place]):
            return NOT_FINITE
        if pixels.size and (pixels == pixels[:1, :1]).all():
            return CONSTANT
        return next((why for own in self.filters.values() if (why := own.refusal(pixels, label)) is not None), None)

    def _whole(self, number: int, round_: int, images: Sequence[Drawn], seconds: float) -> Shard:
        rows: list[Encoded] = []
        failed = []
        for own in images:
            if own.row is None or own.data is None:
                label = self.plan.classes[own.image.label]
                failed.append({"label": label, "number": own.image.number, "tried": own.tried})
                continue
            data = own.data.result() if isinstance(own.data, Future) else own.data
            rows.append(Encoded(Record(**own.row, sha256=sha256(data).hexdigest()), own.image.label, data))
        files, records = PACKERS[self.plan.format](self.plan, number, rows)
        counts = Counter(record.label for record in records)
        lines = [record.to_line() for record in records]
        device = str(getattr(self.generator, "device", "cpu"))
        return Shard(number, round_, files, lines, counts, failed, seconds, device)


def make_filters(generator: Any, names: Sequence[str]) -> dict[str, Filter]:
    """Registered filters, built for a generator."""
    return {name: plugins.load("filters", name)(generator) for name in names}


@contextmanager
def plan_threads(count: int) -> Iterator[None]:
    """The block computes with the plan's number of threads: sums are rounded differently on more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _wait(batch: list[Drawn]) -> None:
    for own in batch:
        if isinstance(own.data, Future):
            own.data.result()


def _row(plan: RenderPlan, image: Planned, samples: Samples, place: int, pixels: Array) -> dict[str, Any]:
    height, width = pixels.shape[:2]
    mask = None if samples.masks is None else samples.masks[place, :height, :width].numpy()
    boxes = [] if samples.boxes is None else samples.boxes[place].tolist()
    return {
        "file_name": file_name(plan, image),
        "label": plan.classes[image.label],
        "seed": image.seed,
        "generator": plan.generator,
        "options": dict(plan.options),
        "parents": () if samples.parents is None else tuple(samples.parents[place]),
        "mask": None if mask is None or not np.asarray(mask).any() else encode_mask(mask),
        "boxes": tuple(tuple(box) for box in boxes),
        "height": height,
        "width": width,
    }


def file_name(plan: RenderPlan, image: Planned) -> str:
    """``<class>/<number>.<ending>``; the number counts within the class."""
    return f"{plan.classes[image.label]}/{image.number:08d}.{'png' if plan.encoding == 'png' else 'tif'}"
