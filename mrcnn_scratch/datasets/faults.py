"""What a check of a dataset reports: one `Fault` for one thing that is wrong."""

from dataclasses import dataclass

from .fields import is_id


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: where, what, and what to do.

    `severity` "error": the record cannot be used; "warning": it is used, and the remedy says as what.
    `record` is (list in the JSON, index), such as ("annotations", 12); ("keypoints", 12) if only the
    keypoints of that annotation are lost; None if the whole file cannot be used.
    """

    file: str
    kind: str
    value: str
    remedy: str
    image_id: int | None = None
    annotation_id: int | None = None
    severity: str = "error"
    record: tuple[str, int] | None = None

    def __str__(self) -> str:
        where = []
        if self.record:
            part, index = self.record
            where.append(f"annotations[{index}].keypoints" if part == "keypoints" else f"{part}[{index}]")
        where += [f"annotation {self.annotation_id}"] if self.annotation_id is not None else []
        where += [f"image {self.image_id}"] if self.image_id is not None else []
        place = f" ({', '.join(where)})" if where else ""
        return f"{self.severity}: {self.file}{place}: {self.kind}: {self.value}; remedy: {self.remedy}"


class Blame:
    """Makes the faults of one record: knows its file, its place and its ids."""

    def __init__(self, file: str, part: str, index: int, record):
        ids = record if isinstance(record, dict) else {}
        self.file, self.record = file, (part, index)
        image_id, own_id = ids.get("image_id"), ids.get("id")
        if part == "images":
            image_id, own_id = own_id, None
        self.image_id = image_id if is_id(image_id) else None
        self.annotation_id = own_id if is_id(own_id) and part != "categories" else None

    def __call__(
        self, kind: str, value: str, remedy: str, severity: str = "error", keypoints: bool = False
    ) -> Fault:
        record = ("keypoints", self.record[1]) if keypoints else self.record
        return Fault(self.file, kind, value, remedy, self.image_id, self.annotation_id, severity, record)


def summarise(faults: list[Fault], limit: int = 20) -> str:
    """Write faults one a line, the first `limit` of them and a count of the others."""
    lines = [f"  {fault}" for fault in faults[:limit]]
    if len(faults) > limit:
        lines.append(f"  ... and {len(faults) - limit} more")
    return "\n".join(lines)
