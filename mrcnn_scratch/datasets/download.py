"""COCO 2017 onto a disk: fetched in pieces that survive a broken line, verified, unpacked, and nothing done twice.

An archive is first NAME.part, which grows and is resumed; it becomes NAME when its size and MD5 are those published,
and is removed once all that it holds lies unpacked. What is there already is not fetched again.
"""

import hashlib
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from ..files import whole_file
from .coco_archives import ARCHIVES, Archive

MIRROR = "http://images.cocodataset.org"
PIECE = 1 << 20  # bytes read at a time
STALL = 60.0  # seconds without a byte after which a connection is given up
ATTEMPTS = 6  # in a row that bring nothing new


class _Broken(Exception):
    """A connection that ended early, or a server that will answer later: worth another attempt."""


def download_coco(
    root: str | Path, parts: Sequence[str] = ("annotations", "val", "train"), mirror: str = MIRROR,
    keep_archives: bool = False, progress: bool = True, archives: dict[str, Archive] | None = None, pause: float = 2.0,
) -> list[str]:  # fmt: skip
    """Fetches, verifies and unpacks COCO 2017; called again it goes on where it was stopped.

    Args:
        root: gets annotations/, train2017/ and val2017/; archives wait in root/downloads.
        parts: of ``archives``.
        mirror: address that has the same files in the same places.
        keep_archives: leave the archives in root/downloads.
        progress: show bars with rate and time left.
        archives: what to expect of each part; None is COCO 2017, as published.
        pause: seconds before the second attempt, doubled for each further one.

    Returns:
        one sentence for each part.

    Raises:
        ValueError: an unknown part, too little space, or a server that has another file: names the file, what was
            expected, what came, and what to do. A wrong file is never unpacked.
        KeyboardInterrupt: what was fetched is kept; says how to go on.
    """
    root, archives = Path(root), ARCHIVES if archives is None else archives
    for part in parts:
        if part not in archives:
            raise ValueError(f"COCO has no part {part!r}: choose of {', '.join(archives)}")
    waiting = [archives[part] for part in parts if not _done(root, archives[part])]
    _check_space(root, waiting)
    told = []
    for part in parts:
        archive = archives[part]
        if archive not in waiting:
            told.append(f"{archive.folder}: complete already")
            continue
        try:
            path = fetch(archive, root / "downloads", mirror, progress, pause)
            count = unpack(archive, path, root, progress)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"what has come of {archive.name} is kept: the same command goes on") from None
        if not keep_archives:
            path.unlink()
        told.append(f"{archive.folder}: {count:,} files, verified")
    return told


def _marker(root: Path, archive: Archive) -> Path:
    return root / "downloads" / f"{archive.name}.done"


def _done(root: Path, archive: Archive) -> bool:
    marker = _marker(root, archive)
    return marker.is_file() and marker.read_text().strip() == archive.md5 and (root / archive.folder).is_dir()


def _check_space(root: Path, archives: list[Archive]) -> None:
    """Before anything is fetched: the archives still to come, and all that they hold."""
    needed = 0
    for archive in archives:
        there = [root / "downloads" / name for name in (archive.name, f"{archive.name}.part")]
        needed += archive.unpacked + archive.size - sum(path.stat().st_size for path in there if path.is_file())
    place = next(folder for folder in (root, *root.resolve().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        names = ", ".join(archive.name for archive in archives)
        raise ValueError(
            f"{root} has {free / 1e9:.1f} GB free, {names} need {needed / 1e9:.1f} GB, packed and unpacked: make room, "
            "choose another --root, or fetch fewer --parts"
        )


def fetch(archive: Archive, folder: Path, mirror: str = MIRROR, progress: bool = True, pause: float = 2.0) -> Path:
    """The archive in ``folder``, whole and verified; goes on with NAME.part if there is one.

    Raises:
        ValueError: see :func:`download_coco`.
    """
    path, part = folder / archive.name, folder / f"{archive.name}.part"
    folder.mkdir(parents=True, exist_ok=True)
    url = f"{mirror.rstrip('/')}/{archive.path}"
    whole = path if path.is_file() else part
    if whole == part:
        _fetch_part(url, archive, part, progress, pause)
    found = _md5(whole, progress)
    if found != archive.md5:
        wrong = folder / f"{archive.name}.wrong"
        whole.replace(wrong)
        raise ValueError(
            f"{url} is another file: its MD5 is {found}, published is {archive.md5}. It was moved to {wrong}: look at "
            "it, remove it, and run the command again, with another --mirror if this one stays wrong"
        )
    whole.replace(path)
    return path


def _fetch_part(url: str, archive: Archive, part: Path, progress: bool, pause: float) -> None:
    """Lets NAME.part grow to its size, over as many connections as it takes."""
    failures, wait = 0, pause
    with tqdm(
        total=archive.size, desc=archive.name, unit="B", unit_scale=True, disable=not progress, dynamic_ncols=True
    ) as bar:
        while (before := _size(part)) < archive.size:
            bar.update(before - bar.n)
            try:
                _one_connection(url, archive, part, bar)
                reason = "the connection ended early"
            except (_Broken, TimeoutError, ConnectionError, HTTPException, urllib.error.URLError) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            if _size(part) > before:
                failures, wait = 0, pause
                continue
            failures += 1
            if failures == ATTEMPTS:
                raise ValueError(
                    f"{url}: {reason}, {ATTEMPTS} times in a row. {before:,} of {archive.size:,} bytes are kept in "
                    f"{part}: check the network and run the same command again, or give another --mirror"
                )
            time.sleep(wait)
            wait *= 2
        bar.update(archive.size - bar.n)
    if _size(part) > archive.size:
        raise ValueError(f"{part} has {_size(part):,} bytes, {archive.name} has {archive.size:,}: remove it, run again")


def _one_connection(url: str, archive: Archive, part: Path, bar: tqdm) -> None:
    """Appends what one connection brings; begins anew where the server cannot resume."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(request, timeout=STALL)
    except urllib.error.HTTPError as error:
        if error.code in (408, 425, 429) or error.code >= 500:
            raise _Broken(f"the server answers {error.code} {error.reason}") from error
        raise ValueError(f"{url}: the server answers {error.code} {error.reason}: check --mirror") from error
    with answer:
        resumed = start > 0 and answer.status == 206
        _check_total(url, archive, answer, resumed)
        if start and not resumed:
            bar.update(-start)
        with open(part, "ab" if resumed else "wb") as handle:
            room = archive.size - (start if resumed else 0)
            while piece := answer.read(min(PIECE, room + 1)):
                if len(piece) > room:
                    raise ValueError(f"{url} sends more than the {archive.size:,} bytes published: see --mirror")
                handle.write(piece)
                bar.update(len(piece))
                room -= len(piece)


def _check_total(url: str, archive: Archive, answer, resumed: bool) -> None:
    """Whether the server says that it has a file of this size, before any of it is fetched."""
    if resumed:
        stated = answer.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        stated = answer.headers.get("Content-Length", "")
    if stated.isdecimal() and int(stated) != archive.size:
        raise ValueError(
            f"{url} has {int(stated):,} bytes by the server's word, published are {archive.size:,}: it is another "
            "file, or a page in its place; look at the address, or give another --mirror"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _md5(path: Path, progress: bool) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    bar = tqdm(total=_size(path), desc=f"verify {path.name}", unit="B", unit_scale=True, disable=not progress)
    with open(path, "rb") as handle, bar:
        while piece := handle.read(PIECE):
            digest.update(piece)
            bar.update(len(piece))
    return digest.hexdigest()


def unpack(archive: Archive, path: Path, root: Path, progress: bool = True) -> int:
    """Writes the archive's members below ``root``, each whole or not at all; those that are there stay.

    Returns:
        how many files of ``archive.folder`` it holds.

    Raises:
        ValueError: a member that would lie elsewhere or is damaged, or too few members.
    """
    with zipfile.ZipFile(path) as source:
        members = [member for member in source.infolist() if not member.is_dir()]
        for member in members:
            target = (root / member.filename).resolve()
            if not target.is_relative_to(root.resolve()) or "\\" in member.filename:
                raise ValueError(f"{path}: member {member.filename!r} would be written outside {root}: do not use it")
        for member in tqdm(members, f"unpack {archive.name}", unit="file", disable=not progress, dynamic_ncols=True):
            target = root / member.filename
            if target.is_file() and _size(target) == member.file_size:
                continue
            try:
                with source.open(member) as packed, whole_file(target) as temporary, open(temporary, "wb") as handle:
                    shutil.copyfileobj(packed, handle, PIECE)
            except (zipfile.BadZipFile, EOFError) as error:
                raise ValueError(f"{path}: {member.filename} is damaged ({error}): remove the archive") from error
    count = sum(member.filename.startswith(f"{archive.folder}/") for member in members)
    if count < archive.members:
        raise ValueError(f"{path} holds {count:,} files of {archive.folder}, expected are {archive.members:,}")
    with whole_file(_marker(root, archive)) as temporary:
        temporary.write_text(archive.md5 + "\n")
    return count
