"""Finds packages of the Debian archive in a folder, and takes them apart with dpkg-deb."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def archive_of(packages: Path, name: str) -> Path | None:
    """Returns the .deb file of a package, the last by name of several, or `None`."""
    return max(packages.glob(f"{name}_*.deb"), default=None)


def dpkg_deb(action: str, archive: Path, *words: str | Path) -> str:
    """
    Returns what dpkg-deb prints about a .deb file.

    Raises:
        SystemExit: there is no dpkg-deb, or it cannot read the file.
    """
    try:
        return subprocess.run(
            ["dpkg-deb", action, archive, *words], check=True, capture_output=True, text=True
        ).stdout.strip()
    except FileNotFoundError as error:
        raise SystemExit(f"{archive}: dpkg-deb is not installed, which takes packages apart; install dpkg") from error
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split())
        raise SystemExit(f"{archive}: cannot be taken apart ({reason}); download it again") from error


def version_of(archive: Path) -> str:
    """Returns the version that a .deb file says it is."""
    return dpkg_deb("--field", archive, "Version")


@contextmanager
def extracted(archive: Path) -> Iterator[Path]:
    """Yields a folder with the files of a .deb file, which is removed at the end."""
    with tempfile.TemporaryDirectory() as folder:
        dpkg_deb("--extract", archive, folder)
        yield Path(folder)


@contextmanager
def taken_apart(packages: Path, name: str) -> Iterator[Path | None]:
    """
    Yields the folder with the files of a package: the one of its name, or what its .deb file holds until the end.

    Yields `None` where there is neither.
    """
    archive = archive_of(packages, name)
    if (packages / name).is_dir():
        yield packages / name
    elif archive is None:
        yield None
    else:
        with extracted(archive) as folder:
            yield folder
