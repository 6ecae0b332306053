"""The uploads of a tier: begun, resumed, found and aborted."""

from __future__ import annotations

from collections.abc import Iterator

from tierstore.backend import Capabilities
from tierstore.errors import InvalidKeyError, StorageError
from tierstore.keys import check_key
from tierstore.uploads import OpenUpload, PartSizes, ResumeToken
from tierstore_hdfs.answers import FileStatus
from tierstore_hdfs.errors import naming
from tierstore_hdfs.files import Files
from tierstore_hdfs.listing import entries
from tierstore_hdfs.multipart import MOST_PARTS, PartsUpload
from tierstore_hdfs.paths import HIDDEN, is_hidden, is_temporary, outer_folder, upload_key

_LONGEST = 1400  # signs: a key, and the hidden folder in it


class Uploads:
    """The uploads of one tier.

    An `OpenUpload` is a folder of parts, or one hidden file: its `upload_id` is that folder or
    file, relative to the root, and its key, of a small object, the hidden file's own.
    """

    def __init__(self, files: Files, capabilities: Capabilities) -> None:
        self._files = files
        self._capabilities = capabilities

    def begin(self, key: str, size: int | None) -> PartsUpload:
        """Begin an upload of `size` bytes, which is not 0, or of a size that is not known yet."""
        files = self._files
        outer, inner = files.paths.upload_folder(key)
        can = self._capabilities
        sizes = PartSizes(size, can.part_size_for(size), can.max_parts)
        with naming(files.url, key):
            files.client.call("PUT", files.paths.folder(inner), "MKDIRS")
            if files.options.storage_policy:
                path, policy = files.paths.folder(outer), files.options.storage_policy
                files.client.call("PUT", path, "SETSTORAGEPOLICY", storagepolicy=policy)
        return PartsUpload(files, key, inner, sizes, resumable=size is not None)

    def resume(self, key: str, size: int | None, token: str) -> PartsUpload:
        """Go on with the upload that `token` names: below a hidden folder, which `abort` removes.

        A journal holds the token, and nothing there says that it is what we wrote.
        """
        known = ResumeToken.parse(token, key, size, most=MOST_PARTS)
        outer = outer_folder(known.upload_id)
        if not outer or upload_key(outer, known.upload_id) != key:
            raise StorageError("the upload's token names no parts of it")
        sizes = PartSizes(known.size, known.part_size, MOST_PARTS)
        upload = PartsUpload(self._files, key, known.upload_id, sizes)
        upload.recall()
        return upload

    def list(self, prefix: str) -> Iterator[OpenUpload]:
        """Yield what was left open below `prefix`; every folder there is looked at."""
        folder = prefix.rpartition("/")[0]
        # Where a folder has a comma, the parts lie above it.
        folder = "/".join(folder.partition(",")[0].split("/")[:-1]) if "," in folder else folder
        for upload in self._below(f"{folder}/" if folder else ""):
            if upload.key.startswith(prefix):
                yield upload

    def abort(self, upload: OpenUpload) -> None:
        """Remove what an upload holds; one that is gone is no error.

        Raises:
            InvalidKeyError: it names something that is not hidden.
        """
        above, _, name = check_key(upload.upload_id).rpartition("/")
        if not is_hidden(name):
            raise InvalidKeyError(f"{upload.upload_id!r} is not an unfinished upload")
        with naming(self._files.url, upload.key):
            self._files.remove(self._files.paths.folder(upload.upload_id), recursive=True)
        self._files.prune([above])

    def abort_all(self, key: str) -> None:
        """Free every upload of one key; only what is hidden where it may lie is looked at."""
        for place in {self._files.paths.upload_folder(key)[0], key}:
            above = place.rpartition("/")[0]
            for upload in list(self._hidden(f"{above}/" if above else "")):
                if upload.key == key or is_temporary(upload.key, key):
                    self.abort(upload)

    def _hidden(self, folder: str) -> Iterator[OpenUpload]:
        for name, status in entries(self._files, folder, after=HIDDEN):
            if not name.startswith(HIDDEN):
                return
            if is_hidden(name):
                yield self._found(folder + name, status)

    def _below(self, folder: str) -> Iterator[OpenUpload]:
        for name, status in entries(self._files, folder):
            here = folder + name
            if is_hidden(name):
                yield self._found(here, status)
            elif status.is_folder and len(here) <= _LONGEST:
                yield from self._below(f"{here}/")

    def _found(self, outer: str, status: FileStatus) -> OpenUpload:
        begun, inner = status.changed, outer
        while status.is_folder and len(inner) <= _LONGEST:
            inside = [e for e in entries(self._files, f"{inner}/") if not is_hidden(e[0])]
            begun = max([begun, *(each.changed for _, each in inside)])
            if not inside or not inside[0][1].is_folder:
                break
            inner, status = f"{inner}/{inside[0][0]}", inside[0][1]
        key = upload_key(outer, inner) if inner != outer else outer
        return OpenUpload(key, outer, begun / 1000)
