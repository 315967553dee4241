"""What a rendered set says of itself: Croissant JSON-LD for machines, a card for people, both from the plan and the counts.

Sources: Croissant 1.0 (docs.mlcommons.org/croissant), Hugging Face's dataset card front matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from visynth.core.folders import ROWS

CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
GLOBS = {"folders": "*/*", "webdataset": "shard-*.tar", "parquet": "data/*.parquet"}
MEDIA = {"folders": "image/{encoding}", "webdataset": "application/x-tar", "parquet": "application/x-parquet"}
PURPOSE = {
    "training": "Training data for the classes below. Not for evaluation, and not as evidence about real objects.",
    "looking": "To look at: no benefit of training with these images was shown.",
}


def croissant(plan: Mapping[str, Any], summary: Mapping[str, Any], card: Mapping[str, Any]) -> dict[str, Any]:
    """Croissant's description of a rendered set.

    Args:
        plan: as stored.
        summary: of the finished set; its manifest files become file objects with their sha256.
        card: of the generator.
    """
    rows = plan["schema"] == ROWS
    form = "rows" if rows else plan.get("format", "folders")
    manifest = [
        {
            "@type": "cr:FileObject",
            "@id": part["name"],
            "name": part["name"],
            "contentUrl": part["name"],
            "encodingFormat": "application/jsonlines",
            "sha256": part["sha256"],
        }
        for part in summary["manifest"]
    ]
    files = {
        "@type": "cr:FileSet",
        "@id": "files",
        "name": "files",
        "encodingFormat": "application/x-parquet" if rows else MEDIA[form].format(encoding=plan["encoding"]),
        "includes": "part-*.parquet" if rows else GLOBS[form],
    }
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "name": f"visynth-{summary['root'][:12]}",
        "description": _sentence(plan, summary),
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "version": "1.0.0",
        "url": f"urn:visynth:{summary['root']}",
        "license": str(card.get("licence") or "not stated"),
        "isLiveDataset": False,
        "distribution": [*manifest, files],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "records",
                "name": "records",
                "field": [_field(name, kind, manifest[0]["@id"]) for name, kind in _fields(rows)],
            }
        ]
        if len(manifest) == 1
        else [],
    }


def dataset_card(plan: Mapping[str, Any], summary: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """``README.md`` of a rendered set, with the front matter that Hugging Face reads."""
    rows = plan["schema"] == ROWS
    front: dict[str, Any] = {
        "pretty_name": "Synthetic rows" if rows else "Synthetic images",
        "tags": ["synthetic", "visynth"],
        "task_categories": ["tabular-classification" if rows else "image-classification"],
    }
    if not rows and plan.get("format") == "parquet":
        front["configs"] = [{"config_name": "default", "data_files": "data/*.parquet"}]
    if rows:
        front["configs"] = [{"config_name": "default", "data_files": "part-*.parquet"}]
    facts = {
        "generator": plan["generator"],
        "plan": summary["plan"],
        "root": summary["root"],
        "licence": card.get("licence") or "not stated",
        "intended use": card.get("intended_use") or PURPOSE[plan.get("purpose", "training")],
    }
    counts = "".join(f"| {name} | {count} |\n" for name, count in summary["counts"].items())
    listed = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    failed = summary["failed"]
    lacking = f"\n{len(failed)} images of the plan could not be made and are left out (`summary.json` lists them).\n"
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=True, allow_unicode=True)}---\n\n"
        f"# {front['pretty_name']}\n\n{_sentence(plan, summary)}\n\n"
        f"| class | {'rows' if rows else 'images'} |\n|---|---|\n{counts}{lacking if failed else ''}\n"
        f"| | |\n|---|---|\n{listed}\n"
        "Every file is marked as synthetic where its format has a place for it. `members.jsonl` lists the real data behind "
        "the generator: do not evaluate on them.\n"
    )


def _sentence(plan: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    what = "rows" if plan["schema"] == ROWS else "images"
    return f"{summary['total']} synthetic {what} of {len(summary['counts'])} classes, made by a generator with visynth."


def _fields(rows: bool) -> list[tuple[str, str]]:
    if rows:
        return [("file_name", "sc:Text"), ("rows", "sc:Integer"), ("sha256", "sc:Text")]
    return [("file_name", "sc:Text"), ("label", "sc:Text"), ("seed", "sc:Integer"), ("sha256", "sc:Text")]


def _field(name: str, kind: str, file: str) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"records/{name}",
        "name": name,
        "dataType": kind,
        "source": {"fileObject": {"@id": file}, "extract": {"column": name}},
    }
