"""From the hub to the cache and from a folder to the hub.

A bundle is downloaded file by file as its manifest lists them, nothing else of the repository; checked; and
renamed into its place. So a copy that is there is whole, and consists of plain files.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tudsr_runtime.bundle import MANIFEST_NAME, MAX_MANIFEST_BYTES, UNLISTED, Bundle, open_bundle
from tudsr_runtime.errors import BundleError, DeviceError, OutputError, quoted
from tudsr_runtime.files import exclusive, make_folder
from tudsr_runtime.hub.names import COMMIT, HubName
from tudsr_runtime.installation import install_hint
from tudsr_runtime.manifest import Manifest

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
"""What makes a folder an adapter: PEFT's own two files."""
BESIDE_ADAPTER = ("tudsr.json", "prompt_embeds.safetensors", "README.md", "LICENSE")
"""What may lie beside them."""
LIBRARIES = ("huggingface_hub", "httpx", "httpx2", "requests", "urllib3", "hf_xet")
"""Libraries whose exceptions mean that something is wrong with the hub or the way to it."""
UNREACHABLE = {"TransportError", "ConnectionError", "OfflineModeIsEnabled", "LocalEntryNotFoundError"}
"""Names of exceptions of these libraries that mean that the hub was not reached at all."""
Notify = Callable[[str], None]


def local_folder(name: HubName, notify: Notify) -> Path:
    """The copy that was pulled, without asking the hub; else pulled now. Raises as `download`."""
    if name.commit is not None:
        return name.folder / name.commit
    return download(name, notify)


def download(name: HubName, notify: Notify) -> Path:
    """Download the bundle, or the adapter, as it is on the hub now; the folder of the copy.

    What is here already is not downloaded again, a download that was interrupted is gone on with.

    Raises:
        BundleError: there is none, it is damaged, or the hub cannot be reached.
        DeviceError: huggingface_hub is not installed. OutputError: the cache cannot be written.
    """
    hub = _Hub(name)
    commit = hub.commit()
    target = name.folder / commit
    make_folder(name.folder)
    with exclusive(name.folder / ".lock", lambda: notify(f"{name}: another process downloads it; waiting")):
        if not target.is_dir():
            _download(hub, commit, target, notify)
    name.remember(commit)
    return target


def _download(hub: _Hub, commit: str, target: Path, notify: Notify) -> None:
    partial = target.with_name(f".{commit}")
    files, size = hub.wanted(commit, partial)
    notify(
        f"downloading {hub.name} from {hub.endpoint}: {len(files)} files"
        + (f", {size / 1e6:.1f} MB" if size else "")
    )
    for file in files:
        hub.fetch(file, commit, partial)
    # What huggingface_hub keeps about the download is no part of it.
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    if (partial / MANIFEST_NAME).exists():
        try:
            open_bundle(partial)
        except BundleError as error:
            # Nothing of it is used again: the next download begins from nothing.
            shutil.rmtree(partial, ignore_errors=True)
            said = str(error).replace(f"{partial}{os.sep}", "").replace(str(partial), "the bundle")
            raise BundleError(f"{hub.name} as the hub has it is unsound: {said}") from error
    try:
        partial.rename(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error


@dataclass
class _Hub:
    """One repository on the hub, through huggingface_hub."""

    name: HubName

    @property
    def endpoint(self) -> str:
        """The hub's address: HF_ENDPOINT, else that of the library."""
        from huggingface_hub import constants

        return os.environ.get("HF_ENDPOINT", "").rstrip("/") or str(constants.ENDPOINT)

    @property
    def api(self) -> Any:
        """The library's client. It finds the user's token by its own means."""
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise DeviceError(
                f"{self.name} needs huggingface_hub, which cannot be imported ({error})",
                hint=install_hint("hub"),
            ) from None
        return HfApi(endpoint=self.endpoint, library_name="tudsr")

    def commit(self) -> str:
        """The commit that the revision is now."""
        with self._errors():
            commit = str(self.api.model_info(self.name.repository, revision=self.name.revision).sha)
        if not COMMIT.fullmatch(commit):
            raise BundleError(f"{self.endpoint} names no commit of {self.name}, but {quoted(commit)}")
        return commit

    def wanted(self, commit: str, folder: Path) -> tuple[list[str], int]:
        """The files that make the bundle or adapter, and the bytes of a bundle's."""
        with self._errors():
            there = self._files(commit)
        if MANIFEST_NAME not in there:
            if {*ADAPTER} <= there:
                return [name for name in (*ADAPTER, *BESIDE_ADAPTER) if name in there], 0
            raise BundleError(
                f"{self.name} is no bundle, nor an adapter: it has neither {MANIFEST_NAME} nor {ADAPTER[0]}"
            )
        manifest = self._manifest(commit, folder)
        beside = sorted(there & (UNLISTED - {MANIFEST_NAME}))
        return [*(file.path for file in manifest.files()), *beside], sum(f.bytes for f in manifest.files())

    def _files(self, revision: str) -> set[str]:
        """Paths of the repository's files in that state."""
        return {
            file.rfilename for file in self.api.model_info(self.name.repository, revision=revision).siblings
        }

    def _manifest(self, commit: str, folder: Path) -> Manifest:
        path = self.fetch(MANIFEST_NAME, commit, folder)
        try:
            if path.stat().st_size > MAX_MANIFEST_BYTES:
                raise BundleError(f"it is larger than {MAX_MANIFEST_BYTES} bytes")
            return Manifest.from_json(path.read_text(encoding="utf-8"))
        except (BundleError, ValueError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise BundleError(f"{self.name}: {MANIFEST_NAME} is unsound: {error}") from error

    def fetch(self, file: str, commit: str, folder: Path) -> Path:
        """Download one file to its place below `folder`."""
        with self._errors(), _bars():
            return Path(
                self.api.hf_hub_download(self.name.repository, file, revision=commit, local_dir=folder)
            )

    def send(self, folder: Path, files: list[str], card: str, private: bool, message: str) -> str:
        """Make the repository what the folder is; the address of the commit."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        repository, api = self.name.repository, self.api
        with self._errors(), _bars():
            # Not exist_ok: the library then takes "not allowed" for "exists already".
            if not api.repo_exists(repository):
                api.create_repo(repository, private=private)
            there = self._files(self.name.revision)
            operations: list[Any] = [CommitOperationAdd(file, str(folder / file)) for file in files]
            operations.append(CommitOperationAdd("README.md", card.encode()))
            sent = {one.path_in_repo for one in operations}
            operations += [CommitOperationDelete(file) for file in sorted(there - sent - {".gitattributes"})]
            done = api.create_commit(
                repository, operations, commit_message=message, revision=self.name.revision
            )
        return str(done.commit_url)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # What a thread of an upload met is the cause of a RuntimeError.
            cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
            if isinstance(cause, Exception) and (_is_of_libraries(cause) or isinstance(cause, OSError)):
                raise self._explained(cause) from error
            raise

    def _explained(self, error: Exception) -> BundleError | OutputError:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        place = f"{self.name.repository} on {self.endpoint}"
        if "GatedRepoError" in kinds:
            return BundleError(f"{place} is gated", hint="ask for access on its page, then `hf auth login`")
        if "RepositoryNotFoundError" in kinds:
            return BundleError(
                f"there is no {place}, or it is private", hint="`hf auth login` for a private one"
            )
        if "RevisionNotFoundError" in kinds:
            return BundleError(f"{place} has no revision {quoted(self.name.revision)}")
        if "RemoteEntryNotFoundError" in kinds:
            return BundleError(f"{place} lacks a file that its manifest lists: {_first_line(error)}")
        if (status := getattr(getattr(error, "response", None), "status_code", None)) is not None:
            hint = "`hf auth login` with a token that may write" if status in (401, 403) else None
            return BundleError(
                f"{self.endpoint} refused with status {status}: {_first_line(error)}", hint=hint
            )
        if not _is_of_libraries(error) and getattr(error, "filename", None) is not None:
            return OutputError(f"cannot write {error.filename}: {error.strerror or error}")  # type: ignore[attr-defined]
        if not kinds & UNREACHABLE:
            return BundleError(f"{place}: {type(error).__name__}: {_first_line(error)}")
        hint = "go online, HF_ENDPOINT=https://... for a mirror, or --bundle DIR"
        return BundleError(
            f"{self.endpoint} cannot be reached, and {self.name} is not in the cache", hint=hint
        )


def _is_of_libraries(error: BaseException) -> bool:
    return any(kind.__module__.partition(".")[0] in LIBRARIES for kind in type(error).__mro__)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]


@contextmanager
def _bars() -> Iterator[None]:
    """The library's progress bars, where stderr is a terminal."""
    # Not listed in its __all__, but documented.
    from huggingface_hub import utils as hub

    if sys.stderr.isatty() or hub.are_progress_bars_disabled():  # type: ignore[attr-defined]
        yield
        return
    hub.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        hub.enable_progress_bars()  # type: ignore[attr-defined]


def upload(folder: str, name: HubName, private: bool, message: str | None) -> str:
    """Send a bundle, which is checked first, or an adapter; the address of the commit.

    Files that are on the hub and not in the folder are deleted there.

    Raises:
        BundleError: it is neither, it is damaged, or the hub refused or cannot be reached.
        DeviceError: huggingface_hub is not installed.
    """
    from tudsr_runtime.hub.card import adapter_card, bundle_card

    path = Path(folder)
    if all((path / file).is_file() for file in ADAPTER):
        files = [file for file in (*ADAPTER, *BESIDE_ADAPTER) if (path / file).is_file()]
        card, what = adapter_card(path, name), "adapter"
    else:
        bundle = open_bundle(folder)
        path, files, card, what = bundle.folder, _files_of(bundle), bundle_card(bundle, name), "bundle"
    files = [file for file in files if file != "README.md"]
    return _Hub(name).send(path, files, card, private, message or f"{what}, by tudsr push")


def _files_of(bundle: Bundle) -> list[str]:
    listed = [file.path for file in bundle.manifest.files()]
    return [*listed, *sorted(name for name in UNLISTED if (bundle.folder / name).is_file())]


def remove(name: HubName, revision_was_named: bool) -> list[Path]:
    """Delete the copies of a repository from the cache, or of one revision; the folders that are gone.

    Raises:
        BundleError: there is none. OutputError: one cannot be deleted.
    """
    if revision_was_named:
        found = [name.folder / name.commit] if name.commit else []
    else:
        found = [path for path in name.folder.glob("*") if COMMIT.fullmatch(path.name)]
    if not found:
        raise BundleError(f"{name} is not in the cache", hint="tudsr bundle list")
    for path in found:
        try:
            shutil.rmtree(path)
        except OSError as error:
            raise OutputError(f"cannot delete {path}: {error.strerror or error}") from error
    if not any(COMMIT.fullmatch(path.name) for path in name.folder.iterdir()):
        shutil.rmtree(name.folder, ignore_errors=True)
        with suppress(OSError):
            name.folder.parent.rmdir()
    return found
