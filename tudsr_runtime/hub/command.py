"""`tudsr pull`, `tudsr push`, `tudsr bundle list` and `tudsr bundle remove`."""

from __future__ import annotations

import shutil
from pathlib import Path

from tudsr_runtime.atomic import atomic_dir
from tudsr_runtime.bundle import BUILTIN_BUNDLES, open_bundle
from tudsr_runtime.errors import BundleError, OutputError
from tudsr_runtime.hub.names import HubName, copies, parse_name
from tudsr_runtime.hub.transfer import download, remove, upload
from tudsr_runtime.terminal import Terminal


def pull(name: str, output: Path | None) -> None:
    """Bring what the hub has now into the cache, and copy it to `output` if that is given.

    Raises:
        UsageError: that is no name. OutputError: `output` exists or cannot be written. And as the download.
    """
    terminal, wanted = Terminal(), parse_name(name)
    if output is not None and output.exists():
        raise OutputError(f"{output} exists already", hint="another -o")
    folder = download(wanted, terminal.remark)
    if output is not None:
        with atomic_dir(output) as made:
            shutil.copytree(folder, made, dirs_exist_ok=True)
    terminal.note(f"{wanted} is at commit {folder.name}")
    terminal.result(output or folder)


def push(folder: str, name: str, private: bool, message: str | None) -> None:
    """Send a bundle or an adapter to the hub; prints the address of the commit."""
    Terminal().result(upload(folder, parse_name(name), private, message))


def bundle_list(as_json: bool) -> None:
    """Print the built-in bundles and those of the hub that are in the cache, with size and commit."""
    terminal = Terminal()
    for name in BUILTIN_BUNDLES:
        opened = open_bundle(name, verify=False)
        _tell(terminal, as_json, name, opened.folder, opened.bytes, [])
    for copy in copies():
        folder, named = copy.folder / copy.revision, copy.revisions_of(copy.revision)
        label = str(HubName(copy.owner, copy.name, named[0] if named else copy.revision))
        _tell(terminal, as_json, label, folder, _bytes(folder), named)


def _tell(
    terminal: Terminal, as_json: bool, name: str, folder: Path, size: int, revisions: list[str]
) -> None:
    commit = folder.name if name not in BUILTIN_BUNDLES else None
    if as_json:
        record = {
            "name": name,
            "folder": str(folder),
            "bytes": size,
            "commit": commit,
            "revisions": revisions,
        }
        terminal.json(record)
    else:
        terminal.result(f"{name:<40} {size / 1e6:>9.1f} MB  {commit[:12] if commit else 'built in'}")


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def bundle_remove(name: str) -> None:
    """Delete the copies of a bundle in the cache, or the one of a revision that is named.

    Raises:
        BundleError: it is built in, or not in the cache. OutputError: it cannot be deleted.
    """
    if name in BUILTIN_BUNDLES:
        raise BundleError(f"{name} comes with the package and cannot be removed")
    terminal, wanted = Terminal(), parse_name(name)
    gone = remove(wanted, "@" in name)
    for folder in gone:
        terminal.result(folder)
    terminal.note(f"{wanted}: {'1 copy' if len(gone) == 1 else f'{len(gone)} copies'} removed")
