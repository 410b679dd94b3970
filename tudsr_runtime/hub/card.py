"""The card of a repository: what is written in README.md, with the lines that the hub reads at its top."""

from __future__ import annotations

import json
from pathlib import Path

from tudsr_runtime.bundle import Bundle
from tudsr_runtime.hub.names import HubName

LICENCES = (
    "apache-2.0",
    "mit",
    "bsd-3-clause",
    "cc0-1.0",
    "cc-by-4.0",
    "openrail",
    "openrail++",
    "creativeml-openrail-m",
)
"""Licences that the hub has a name for; all others are "other" there."""


def bundle_card(bundle: Bundle, name: HubName) -> str:
    """The bundle's own card, which says what it was made of, below how to use it from the hub."""
    own = _text(bundle.folder / "README.md") or f"# {bundle.manifest.name}\n"
    if own.startswith("---\n"):
        return own
    head = _front_matter(bundle.manifest.licence, ["super-resolution", "onnx", "tudsr"])
    use = f"    tudsr upscale photo.png --bundle hf:{name.repository}\n"
    return f"{head}\n{use}\n{own}"


def adapter_card(folder: Path, name: HubName) -> str:
    """The card beside the adapter, or a short one of what its files say."""
    own = _text(folder / "README.md")
    if own and own.startswith("---\n"):
        return own
    config = json.loads(_text(folder / "adapter_config.json") or "{}")
    base, rank = config.get("base_model_name_or_path") or "its base", config.get("r")
    body = own or f"# {name.name}\n\nA LoRA adapter of rank {rank} for {base}, trained by tudsr.\n"
    export = "tudsr export --base BASE --stage1 FOLDER --merge-lora -o BUNDLE"
    use = f"    tudsr pull {name.repository}\n    {export}\n"
    return f"{_front_matter('other', ['super-resolution', 'lora', 'tudsr'], 'peft')}\n{use}\n{body}"


def _front_matter(licence: str, tags: list[str], library: str = "tudsr") -> str:
    known = licence.lower() if licence.lower() in LICENCES else "other"
    lines = [f"license: {known}", f"library_name: {library}", "pipeline_tag: image-to-image", "tags:"]
    if known == "other" and licence != "other":
        lines.insert(1, f"license_name: {json.dumps(licence)}")
    return "\n".join(["---", *lines, *(f"- {tag}" for tag in tags), "---", ""])


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
