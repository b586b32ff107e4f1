"""Zip archives of stored members, as PyTorch writes them: refused where their sizes or checksums can't be true."""

from __future__ import annotations

import zipfile

CHUNK = 1 << 20  # bytes read at once
LOCAL_HEADER = 30  # bytes before a member's name


class Damaged(Exception):
    """What an archive says of its members is not so."""


def stored_members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members by name. Raises Damaged for a compressed, encrypted or doubled one, for members that overlap, and for
    bytes in front of the first."""
    members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    ends = [*(member.header_offset for member in members[1:]), archive.start_dir]
    for member, end in zip(members, ends, strict=True):
        if member.compress_type != zipfile.ZIP_STORED:
            raise Damaged(f"{member.filename} is compressed")
        if member.flag_bits & 1 or member.file_size != member.compress_size:
            raise Damaged(f"{member.filename} is encrypted or of an impossible size")
        if member.header_offset + LOCAL_HEADER + len(member.filename) + member.file_size > end:
            raise Damaged(f"{member.filename} overlaps what follows it")
    named = {member.filename: member for member in members}
    if len(named) != len(members):
        raise Damaged("it holds two members of one name")
    if members and members[0].header_offset:
        raise Damaged("it does not begin with its first member")
    return named


def check_sums(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]) -> None:
    """Read members, a chunk at a time; zipfile.BadZipFile for one that is not what its CRC-32 says."""
    for member in members:
        with archive.open(member) as file:
            while file.read(CHUNK):
                pass
