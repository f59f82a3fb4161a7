"""Files that need not be made twice, below the user's cache folder.

An entry is found by its *kind* and *key*: the key is any text (source, compiler version, flags …). The file is named by
the SHA-256 of the key, and the whole key is stored beside it and compared, so a hit is never a coincidence of names:

    objects/3f/3fa9….o      the contents
    objects/3f/3fa9….key    the key

Writers work on a temporary file in the same folder and rename it, so a reader (or a second process) sees a whole entry
or none. What cannot be stored in the cache folder goes to a temporary one that lives as long as the `Cache`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tempfile  # where it is needed it is imported: finding an entry should not wait for it

Writer = Callable[[Path], object]


class Cache:
    """A folder of content-addressed files; `root` None means a temporary folder only.

    Attributes:
        root: the folder that outlives the process, or None.
    """

    def __init__(self, root: Path | None) -> None:
        self.root = root
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    def find(self, kind: str, key: str, suffix: str) -> Path | None:
        """The file stored under `key`, or None."""
        roots = [self.root] if self.root is not None else []
        roots += [Path(self._temporary.name)] if self._temporary is not None else []
        for root in roots:
            path = _place(root, kind, key, suffix)
            with contextlib.suppress(OSError, UnicodeDecodeError):
                if path.with_suffix(".key").read_bytes() == key.encode() and path.is_file():
                    # `trim` drops what was not used for longest. The entry's own times say when it changed.
                    os.utime(path.with_suffix(".key"))
                    return path
        return None

    def add(self, kind: str, key: str, suffix: str, data: bytes | Writer) -> Path:
        """Store `data` under `key` (over an older entry) and return its path.

        Args:
            kind: name of the subfolder.
            key: what the contents follow from.
            suffix: of the file's name, for example ".o".
            data: the contents, or a function that writes them to the path it is given.
        """
        write: Writer = data if callable(data) else lambda path: path.write_bytes(data)
        if self.root is not None:
            try:
                return _store(_place(self.root, kind, key, suffix), key, write)
            except OSError as error:
                warn_unusable(self.root, error)
                self.root = None
        return _store(_place(self.temporary(), kind, key, suffix), key, write)

    def temporary(self) -> Path:
        """A folder that is deleted with this object."""
        if self._temporary is None:
            import tempfile

            self._temporary = tempfile.TemporaryDirectory(prefix="smartmem-", ignore_cleanup_errors=True)
        return Path(self._temporary.name)

    def folder(self, name: str) -> Path:
        """A folder for files that another tool manages."""
        if self.root is not None:
            try:
                (self.root / name).mkdir(parents=True, exist_ok=True)
                return self.root / name
            except OSError as error:
                warn_unusable(self.root, error)
                self.root = None
        path = self.temporary() / name
        path.mkdir(exist_ok=True)
        return path

    def trim(self, kind: str, most_bytes: int) -> None:
        """Delete the entries of `kind` that were not used for longest until the rest fits into `most_bytes`.

        And into half of what the disk would have free without them. The entry that was used last stays in any case.
        """
        if self.root is None:
            return
        import shutil

        files = []
        for path in (self.root / kind).glob("*/*"):
            with contextlib.suppress(OSError):
                if path.suffix != ".key":
                    files.append((_used(path), path.stat().st_size, path))
        total = sum(size for _, size, _ in files)
        with contextlib.suppress(OSError):
            most_bytes = min(most_bytes, (shutil.disk_usage(self.root).free + total) // 2)
        for _, size, path in sorted(files)[:-1]:
            if total <= most_bytes:
                break
            for victim in (path, path.with_suffix(".key")):
                with contextlib.suppress(OSError):
                    victim.unlink()
            total -= size

    def clear(self) -> tuple[int, int]:
        """Delete every entry; the number of files and bytes that went."""
        import shutil

        files, size = self.usage()
        if self.root is not None:
            for child in list(self.root.iterdir()) if self.root.is_dir() else []:
                if child.is_dir():
                    shutil.rmtree(child, ignore_errors=True)
        return files, size

    def usage(self) -> tuple[int, int]:
        """Number and total bytes of the files in `root`."""
        sizes = []
        for path in self.root.rglob("*") if self.root is not None else ():
            with contextlib.suppress(OSError):
                if path.is_file():
                    sizes.append(path.stat().st_size)
        return len(sizes), sum(sizes)


def open_cache() -> Cache:
    """The user's cache: SMARTMEM_CACHE if set ("off": none), else the platform's cache folder.

    A folder that cannot be written is warned about once and replaced by a temporary one.
    """
    named = os.environ.get("SMARTMEM_CACHE", "")
    if named.lower() == "off":
        return Cache(None)
    if named:
        root = Path(named).expanduser().absolute()
    else:
        import platformdirs

        root = Path(platformdirs.user_cache_dir("smartmem"))
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(root, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        warn_unusable(root, error)
        return Cache(None)
    return Cache(root)


def warn_unusable(root: Path, error: OSError) -> None:
    """Say that the cache is not used; Python shows the same warning from one place once."""
    reason = error.strerror or str(error)
    warnings.warn(
        f"the cache {root} cannot be written ({reason}): going on without it; set SMARTMEM_CACHE to another folder",
        RuntimeWarning,
        stacklevel=2,
    )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """`with replacing(path) as temporary:` write `temporary`, which then becomes `path`; nothing stays on failure."""
    import tempfile

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes 0600
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _place(root: Path, kind: str, key: str, suffix: str) -> Path:
    digest = hashlib.sha256(key.encode()).hexdigest()
    return root / kind / digest[:2] / (digest + suffix)


def _used(path: Path) -> float:
    """When an entry was found last; without its key: when it was written."""
    try:
        return path.with_suffix(".key").stat().st_mtime
    except FileNotFoundError:
        return path.stat().st_mtime


def _store(path: Path, key: str, write: Writer) -> Path:
    for target, writer in ((path, write), (path.with_suffix(".key"), lambda p: p.write_bytes(key.encode()))):
        with replacing(target) as temporary:
            writer(temporary)
    return path
