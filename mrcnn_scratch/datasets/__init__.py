"""The embedded procedural dataset, and a reader for any COCO-format folder."""
