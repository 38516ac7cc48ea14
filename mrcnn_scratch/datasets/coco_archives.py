"""The archives of COCO 2017, as its publisher serves them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """One file of the publisher's, and what it must hold."""

    path: str  # on the server, after the mirror's address
    size: int  # bytes
    md5: str
    unpacked: int  # bytes that its members need, about
    folder: str  # of the members that count
    members: int  # files in that folder, at least

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


# Sizes and MD5 as the server states them (its ETags), and as many projects have written them down
ARCHIVES = {
    "annotations": Archive(
        "annotations/annotations_trainval2017.zip", 252_907_541, "f4bbac642086de4f52a3fdda2de5fa2c", 850_000_000,
        "annotations", 6,
    ),
    "val": Archive("zips/val2017.zip", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80", 830_000_000, "val2017", 5000),
    "train": Archive(
        "zips/train2017.zip", 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2", 19_700_000_000, "train2017", 118_287
    ),
}  # fmt: skip
