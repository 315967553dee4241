"""Commands on rendered sets: how far they are, whether they are whole, scores, reviews, exports."""

from __future__ import annotations

from json import dumps
from typing import Any, Literal

from visynth.commands.options import DataOptions
from visynth.commands.printing import printer, render_progress
from visynth.commands.rendering import device_here, engine_of, print_state


def renders_status(folder: str, json: bool = False) -> int:
    """Say how far a render is: shards that are there and missing, images of each class, failed images.

    Args:
        folder: what 'visynth render' writes, or an object store's address.
        json: print it as JSON.
    """
    from visynth.render.finish import state_of

    stage, plan = _opened(folder)
    state = state_of(stage, plan)
    if json:
        print(dumps({"out": folder, **state.to_json(), "plan": plan.hash}))
        return 0
    print(
        f"{folder}: {'finished' if state.finished else 'not finished'}; {len(state.committed)} of {state.planned} shards; "
        f"{dict(state.counts)}"
    )
    for own in state.failed:
        print(f"  failed: {own['label']} {own['number']}: {own['tried'][-1]['reason']} in {len(own['tried'])} draws")
    return 0


def renders_verify(folder: str) -> int:
    """Check every file of a rendered set against its manifest; of an unfinished one, every commit record.

    Args:
        folder: what 'visynth render' wrote, or an object store's address.
    """
    from visynth.core.errors import IntegrityError, listing

    stage, plan = _opened(folder)
    summary = stage.finished()
    if summary is None:
        wrong = [name for problems in stage.torn(range(plan.shards)).values() for name in problems]
        what = f"{len(stage.rounds())} of {plan.shards} shards are whole"
    else:
        wrong = stage.damaged({**dict(stage.files()), **{p["name"]: p["sha256"] for p in summary["manifest"]}})
        what = f"{summary['total']} {plan.what} as rendered; root {summary['root']}"
    if wrong:
        raise IntegrityError(
            f"{folder} does not hold what its manifest says ({len(wrong)} files missing or altered; the same 'visynth "
            f"render' command makes them again):\n{listing(wrong)}"
        )
    print(f"{folder}: {what}")
    return 0


def renders_sweep(folder: str) -> int:
    """Remove what killed workers of this machine left half made; nothing that is committed, and nothing of others.

    Args:
        folder: what 'visynth render' writes.
    """
    removed = _opened(folder)[0].sweep()
    print(f"{folder}: {len(removed)} unfinished shards removed" + (": " + ", ".join(removed) if removed else ""))
    return 0


def renders_retry_failed(
    folder: str, generator: str, workers: int = 0, encoders: int | None = None, device: str = "cpu", quiet: bool = False
) -> int:
    """Draw the failed images of an unfinished set again, as often as at first.

    Args:
        folder: what 'visynth render' writes, or an object store's address.
        generator: the one that rendered it.
        workers: processes that render; 0 renders in this one.
        encoders: encoding threads of each.
        device: where the generator runs.
        quiet: no progress.
    """
    from visynth.core.loading import load_generator
    from visynth.render.run import retry_failed
    from visynth.render.shards import maker

    stage, plan = _opened(folder)
    made = maker(load_generator(generator, device=device_here(device)), plan.to_json())
    runner = engine_of("local", generator, workers, encoders, device)
    state = retry_failed(made, stage, engine=runner, progress=None if quiet else render_progress)
    return print_state(folder, state, plan, json=False)


def renders_finalize(folder: str, allow_failed: bool = False) -> int:
    """Write manifest, root hash, Croissant and card of a set whose shards are all there.

    Args:
        folder: what 'visynth render' writes, or an object store's address.
        allow_failed: leave out images that could not be made.
    """
    from visynth.render.finish import finish, state_of

    stage, plan = _opened(folder)
    finish(stage, plan, allow_failed)
    return print_state(folder, state_of(stage, plan), plan, json=False)


def _opened(folder: str) -> tuple[Any, Any]:
    """A set's place and its stored plan."""
    from visynth.core import plugins
    from visynth.render.stages import open_stage

    stage = open_stage(folder)
    said = stage.plan()
    return stage, plugins.load("plans", str(said.get("schema"))).from_json(said)


def renders_score(
    folder: str,
    data: DataOptions,
    cache: bool = True,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Score every rendered image (does it look like its class, is it a copy), for WithSynthetic's keep=.

    Args:
        folder: what 'visynth render' wrote; scores.jsonl is written into it.
        data: the real images, and how to read them.
        cache: keep features of real images on disk.
        json: print the summary as JSON.
        quiet: no progress.
    """
    from visynth.core.manifest import read_renders
    from visynth.jobs.scores import score_renders

    renders = read_renders(folder)
    images = data.read()
    scores = score_renders(images, renders, cache=cache, progress=printer(quiet))
    summary = {}
    for name, count in renders.counts().items():
        own = [scores.images[record.file_name] for record in renders.records if record.label == name]
        if own:
            agreement = sum(score["agreement"] for score in own) / count
            summary[name] = {
                "images": count,
                "agreement": round(agreement, 3),
                "near_duplicates": sum(s["copy"] for s in own),
            }
            summary[name] |= {"real_agreement": round(scores.real[name], 3)} if name in scores.real else {}
    if json:
        print(dumps(summary))
    for name, row in {} if json else summary.items():
        real = f" (real images: {row['real_agreement']:.2f})" if "real_agreement" in row else ""
        print(
            f"{name}: {row['images']} images, mean agreement {row['agreement']:.2f}{real}, {row['near_duplicates']} near-duplicates"
        )
    return 0


def renders_review(
    folder: str, accept: list[str] | None = None, reject: list[str] | None = None, reviewer: str = ""
) -> int:
    """Note a reviewer's decisions on rendered images; what is rejected is not mixed in.

    Args:
        folder: what 'visynth render' wrote; the decisions are added to review.jsonl in it.
        accept: files to accept, as the manifest names them (crack/000001.png).
        reject: files to reject.
        reviewer: who decides.
    """
    from visynth.core.manifest import read_renders, write_reviews

    decisions = {**dict.fromkeys(accept or [], "accept"), **dict.fromkeys(reject or [], "reject")}
    counts = write_reviews(read_renders(folder), decisions, reviewer)
    print(f"{folder}: {counts['accept']} accepted, {counts['reject']} rejected, {counts['open']} without a decision")
    return 0


def renders_export(
    folder: str,
    format: Literal["coco", "yolo", "voc"],
    out: str,
    copy: bool = False,
    whole_image: bool = False,
    keep: dict[str, Any] | None = None,
) -> int:
    """Write boxes and masks of a rendered set for a detector.

    Args:
        folder: what 'visynth render' wrote.
        format: coco, yolo or voc.
        out: a new folder.
        copy: copy the images instead of linking them.
        whole_image: for sets without boxes: one box around each whole image.
        keep: which images count, e.g. '{review: accepted}'; by default all but those that a reviewer rejected.
    """
    from visynth.core.manifest import read_renders
    from visynth.render.exports import export

    print(export(read_renders(folder), format, out, copy=copy, whole_image=whole_image, keep=keep))
    return 0
