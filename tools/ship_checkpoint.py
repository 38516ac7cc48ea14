"""Turns a training run into the tiny checkpoint that the package ships, with the record of how it was made.

    mrcnn train --data shapes:demo --steps 3000 --seed 0 --threads 1 --out runs/tiny
    python tools/ship_checkpoint.py runs/tiny "mrcnn train --data shapes:demo --steps 3000 --seed 0 --threads 1"

Writes, into mrcnn_scratch/assets: tiny-demo.safetensors (weights in half precision, no optimizer state),
tiny-demo.log.csv (the run's log) and tiny-demo.json (command, seed, versions, checksum, and the AP of the shipped
file itself on the validation images).
"""

import argparse
import hashlib
import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

import torch

from mrcnn_scratch.datasets.shapes import ShapesDataset
from mrcnn_scratch.evaluation import evaluate
from mrcnn_scratch.predict import shipped_checkpoint
from mrcnn_scratch.weights import load_model, read_checkpoint, write_checkpoint

VAL_IMAGES = 200
KEPT = ("config", "class_names", "label_to_category", "keypoint_names", "flip_pairs", "skeleton", "step")


def ship(run: Path, command: str, out: Path) -> dict:
    """Writes the three files and returns the record."""
    tensors, metadata = read_checkpoint(run / "last.safetensors")
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
        if name.startswith("model/")
    }
    kept = {key: metadata[key] for key in KEPT if key in metadata}
    write_checkpoint(out, half, kept | {"command": command})
    shutil.copyfile(run / "log.csv", out.with_suffix(".log.csv"))
    model, _ = load_model(out)
    seed = metadata["train_config"]["seed"]
    validation = ShapesDataset("demo", VAL_IMAGES, seed=seed, split="val")
    metrics = evaluate(model.to(memory_format=torch.channels_last), validation)
    record = {
        "command": command,
        "seed": seed,
        "train_config": metadata["train_config"],
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        "bytes": out.stat().st_size,
        "val_images": VAL_IMAGES,
        "metrics": {
            kind: {key: round(values[key], 4) for key in ("AP", "AP50", "AP75")} for kind, values in metrics.items()
        },
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "numpy", "numba")},
    }
    out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    return record


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the training run")
    parser.add_argument("command", help="the command that made it")
    parser.add_argument("--out", type=Path, default=shipped_checkpoint())
    arguments = parser.parse_args()
    print(json.dumps(ship(arguments.run, arguments.command, arguments.out)["metrics"], indent=2))
