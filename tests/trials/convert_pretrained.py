"""Regenerate efficientnet_lite0.npz from the published weights; the README next to it says how."""

import sys
from pathlib import Path

import numpy as np
import torch

BLOCKS = 8
PARTS = {
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
}


def convert(pth: Path) -> dict[str, np.ndarray]:
    """Weights of the stem and the first eight blocks: kernels in Keras's layout, and batch normalisation."""
    state = {name: tensor.numpy() for name, tensor in torch.load(pth, map_location="cpu").items()}
    arrays = {
        "stem/kernel": state["_conv_stem.weight"].transpose(2, 3, 1, 0),
        "stem/norm": norm_of(state, "_bn0"),
    }
    for block in range(BLOCKS):
        for part, (convolution, norm) in PARTS.items():
            prefix = f"_blocks.{block}."
            weight = state.get(f"{prefix}{convolution}.weight")
            if weight is None:  # the first block does not expand
                continue
            order = (2, 3, 0, 1) if part == "depthwise" else (2, 3, 1, 0)
            arrays[f"block{block}/{part}/kernel"] = weight.transpose(order)
            arrays[f"block{block}/{part}/norm"] = norm_of(state, prefix + norm)
    return arrays


def norm_of(state: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Gamma, beta, moving mean and moving variance, (4, channels)."""
    parts = ("weight", "bias", "running_mean", "running_var")
    return np.stack([state[f"{name}.{part}"] for part in parts])


if __name__ == "__main__":
    target = Path(__file__).parents[2] / "model/networks/pretrained/efficientnet_lite0.npz"
    np.savez_compressed(target, **convert(Path(sys.argv[1])))
