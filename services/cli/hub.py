"""A dataset repository of a Hugging Face hub, through `huggingface_hub`: what it holds, and one commit to it.

Only this file imports the library, and only when a command needs it. Large files go up one by one and show only with
the commit, which comes last and is a whole: a push that is interrupted changes nothing that a reader sees.
"""

import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from presswork_client import ClientError, DatasetFile, DatasetHandle
from services.cli.exits import BadInput
from services.core import extras
from services.core.model.errors import PressworkError, SettingsError

_KIND = "dataset"
_SAMPLE_BYTES = 512  # by which the hub tells text from other files
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Held:
    """A file of the repository. `sha256` None: it is a small one, which git itself holds."""

    size: int
    sha256: str | None


class Repository:
    """`owner/name`. Every method raises BadInput if the hub refuses and PressworkError if it cannot be reached."""

    def __init__(self, name: str) -> None:
        """Raises SettingsError: the extra or a token is missing."""
        extras.require("hub")
        import huggingface_hub
        from huggingface_hub import utils

        utils.disable_progress_bars()
        utils.logging.set_verbosity_error()
        self.name = name
        with self._refusals():
            if huggingface_hub.get_token() is None:
                raise SettingsError(
                    "The hub needs a token that may write: set HF_TOKEN, or sign in with `hf auth login`."
                )
            self._api = huggingface_hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
        self.url = f"{self._api.endpoint}/datasets/{name}"
        self.revision = ""

    def open(self, *, public: bool) -> bool:
        """Makes the repository unless it is there. True: it is public. Raises BadInput if it is and may not be."""
        from huggingface_hub.errors import RepositoryNotFoundError

        with self._refusals():
            try:
                info = self._api.repo_info(self.name, repo_type=_KIND)
            except RepositoryNotFoundError:
                self._api.create_repo(self.name, repo_type=_KIND, private=not public)
                info = self._api.repo_info(self.name, repo_type=_KIND)
        self.revision = str(info.sha)
        if not info.private and not public:
            raise BadInput(f"{self.name} is a public repository; --public pushes to it nevertheless.", [])
        return not info.private

    def files(self) -> dict[str, Held]:
        with self._refusals():
            found = self._api.list_repo_tree(self.name, recursive=True, repo_type=_KIND, revision=self.revision)
            return {
                one.path: Held(one.size, one.lfs.sha256 if one.lfs else None) for one in found if hasattr(one, "size")
            }

    def read(self, path: str) -> bytes:
        """A small file."""
        from huggingface_hub import hf_hub_url, utils

        of = {"repo_type": _KIND, "revision": self.revision, "endpoint": self._api.endpoint}
        with self._refusals():
            answer = utils.get_session().get(
                hf_hub_url(self.name, path, **of), headers=utils.build_hf_headers(), follow_redirects=True
            )
            utils.hf_raise_for_status(answer)
        return bytes(answer.content)

    def upload(
        self, dataset: DatasetHandle, files: Sequence[DatasetFile], parallel: int, on_bytes: Callable[[int], None]
    ) -> list[Any]:
        """Sends the contents of the files that the hub does not have, and returns what `commit` adds."""
        found: list[Any] = []
        for begin in range(0, len(files), _BATCH):
            sources = [RemoteFile(dataset, file, on_bytes) for file in files[begin : begin + _BATCH]]
            some = [_addition(source) for source in sources]
            with self._refusals():
                self._api.preupload_lfs_files(
                    self.name, some, repo_type=_KIND, revision="main", num_threads=parallel, free_memory=False
                )
            for source in sources:
                source.close()
                source.counted_all()
            found += some
        return found

    def commit(self, additions: Sequence[Any], small: dict[str, bytes], gone: Sequence[str], message: str) -> str:
        """Adds and deletes all of it at once. Returns the commit's address. Raises BadInput if another commit came
        between."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[Any] = [*additions, *(CommitOperationAdd(path, data) for path, data in small.items())]
        operations += [CommitOperationDelete(path, is_folder=False) for path in gone]
        with self._refusals(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = self._api.create_commit(
                self.name, operations, commit_message=message, repo_type=_KIND, parent_commit=self.revision
            )
        return str(made.commit_url)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        try:
            yield
        except Exception as error:
            cause = _cause(error)
            if isinstance(cause, HfHubHTTPError):
                raise self._refusal(cause) from error
            if isinstance(cause, HFValidationError):
                raise BadInput(f"{self.name!r} is no repository; it must be one such as owner/name.", []) from error
            if isinstance(cause, (ClientError, PressworkError)):
                raise cause from None
            if isinstance(cause, ValueError):  # as the library says of a card or a file that the hub does not take
                words = " ".join(str(cause).split())
                raise BadInput(f"The hub does not take {self.name}: {words}", []) from error
            if type(cause).__module__.partition(".")[0] in ("httpx", "httpx2", "requests") or isinstance(
                cause, OSError
            ):
                raise PressworkError(f"The hub cannot be reached: {cause}"[:300]) from error
            raise

    def _refusal(self, error: Any) -> PressworkError:
        status = error.response.status_code
        said = " ".join((error.server_message or "").split()).rstrip(".")
        what = f"The hub refuses {self.name} with {status}" + (f": {said}" if said else "")
        if status == 401:
            return BadInput(f"{what}; is HF_TOKEN, or the login, one of its tokens?", [])
        if status in (402, 413, 507) or "storage" in said.lower() or "quota" in said.lower():
            return BadInput(f"{what}; free some space there, and the same command goes on.", [])
        if status == 403:
            return BadInput(f"{what}; the token needs the right to write to datasets of that owner.", [])
        if status == 404:
            return BadInput(f"{what}; there is no such owner, or the token does not see it.", [])
        if status in (409, 412):
            return BadInput(f"{what}; somebody else has changed it meanwhile: run the command again.", [])
        if status == 429 or status >= 500:
            return PressworkError(f"{what}; it is busy or away: the same command goes on later.")
        return BadInput(f"{what}.", [])


class RemoteFile(io.BufferedIOBase):
    """A file of a version as `huggingface_hub` reads one: it is fetched as it is read, and not before."""

    def __init__(self, dataset: DatasetHandle, file: DatasetFile, on_bytes: Callable[[int], None]) -> None:
        self._dataset, self.file, self._on_bytes = dataset, file, on_bytes
        self._at = self.counted = 0
        self._blocks: Iterator[bytes] | None = None
        self._held, self._next = b"", 0  # what was fetched and not read, and where it begins

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.file["bytes"]}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        rest = max(0, self.file["bytes"] - self._at)
        wanted = rest if size is None or size < 0 else min(size, rest)
        if not wanted:
            return b""
        if self._blocks is None or self._next != self._at:
            self._blocks = self._dataset.read(self.file, self._at)
            self._held, self._next = b"", self._at
        pieces, have = [self._held], len(self._held)
        while have < wanted:
            data = next(self._blocks)
            pieces.append(data)
            have += len(data)
        whole = b"".join(pieces)
        found, self._held = whole[:wanted], whole[wanted:]
        self._at = self._next = self._at + wanted
        if self._at == self.file["bytes"]:
            next(self._blocks, None)  # which checks the sha256
            self._blocks = None
        if (fresh := self._at - self.counted) > 0:
            self.counted += fresh
            self._on_bytes(fresh)
        return found

    def counted_all(self) -> None:
        """Counts what the hub did not ask for."""
        self._on_bytes(self.file["bytes"] - self.counted)
        self.counted = self.file["bytes"]

    def close(self) -> None:
        """Ends the connection. The file may be read again."""
        self._blocks, self._held = None, b""


def _addition(source: RemoteFile) -> Any:
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.lfs import UploadInfo

    sample = source.read(_SAMPLE_BYTES)
    source.seek(0)
    file = source.file
    found = CommitOperationAdd(file["path"], b"")
    found.path_or_fileobj = source  # not given before: the library would read all of it for a sha256 that is known
    found.upload_info = UploadInfo(size=file["bytes"], sample=sample, sha256=bytes.fromhex(file["sha256"]))
    return found


def _cause(error: BaseException) -> BaseException:
    """What a thread of the library has raised, out of its wrapping."""
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return error
