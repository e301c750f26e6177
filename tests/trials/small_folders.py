"""python -m tests.trials.small_folders TEXTURES [--checkout DIR]: trains on 4 classes of 15 photographs.

TEXTURES holds photographs named CLASS_number.jpg, at least 30 each of five classes or more. Each of SEEDS
draws four classes and 15 photographs of each, runs `ext-classify train` in DIR (default: this checkout), and
measures the network on the other photographs of the four classes, and abstention on drawn images, on the
other classes and, if NEU_DATA_DIR is set, on steel. Writes results/small_folders.md for this checkout.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from model.artifact import Artifact, load_artifact
from model.contact_sheet import TrialImages
from model.engines import open_classifier
from model.evaluation.hard_images import MOST_IMAGES, out_of_distribution_sets
from model.image import ImageSpec
from model.novelty import reasons_to_abstain

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
SEEDS, CLASSES, IMAGES = range(5), 4, 15
HEADER = (
    "seed",
    "classes",
    "unseen, right",
    "abstained: unseen",
    "drawn",
    "other textures",
    "steel",
    "CPU s",
)


def classes_of(textures: Path) -> dict[str, list[Path]]:
    found = defaultdict(list)
    for path in sorted(textures.glob("*_*.jpg")):
        found[path.name.partition("_")[0]].append(path)
    return dict(found)


def lay_out(classes: dict[str, list[Path]], seed: int, folder: Path) -> tuple[str, ...]:
    """Copy photographs to folder/{train,unseen}/CLASS and folder/other; return the names of the classes."""
    random = np.random.default_rng(seed)
    chosen = tuple(sorted(random.choice(sorted(classes), CLASSES, replace=False).tolist()))
    for name, paths in classes.items():
        parts = {"train": IMAGES, "unseen": len(paths)} if name in chosen else {"other": len(paths)}
        shuffled = [paths[place] for place in random.permutation(len(paths))]
        first = 0
        for part, last in parts.items():
            target = folder / part / name
            target.mkdir(parents=True)
            for path in shuffled[first:last]:
                shutil.copy(path, target)
            first = last
    return chosen


def load(spec: ImageSpec, folder: Path) -> np.ndarray:
    return TrialImages.of(folder, (), most=MOST_IMAGES).decode(spec)[0]


def train(checkout: Path, folder: Path, seed: int) -> tuple[Artifact, str, float]:
    """The artifact, the last line of the command's output, and its CPU-seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    h5 = folder / "ours.h5"
    flags = ["--data", str(folder / "train"), "--output", str(h5), "--seeds", str(seed)]
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "train", *flags],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return load_artifact(h5), done.stdout.splitlines()[-1], seconds


def measure(artifact: Artifact, folder: Path) -> tuple[float, dict[str, float]]:
    """Share of unseen images that are right without abstention, and shares abstained on, by set of images."""
    card = artifact.card
    classifier = open_classifier(artifact, "litert", 1, folder)
    steel = os.environ.get("NEU_DATA_DIR")
    sets = {
        "unseen": np.concatenate([load(card.image, folder / "unseen" / name) for name in card.class_names]),
        "drawn": np.concatenate(list(out_of_distribution_sets(card.image, ()).values())),
        "other": load(card.image, folder / "other"),
        **({} if steel is None else {"steel": load(card.image, Path(steel) / "test")}),
    }
    answers = {name: classifier.answer(images) for name, images in sets.items()}
    sizes = [len(list((folder / "unseen" / name).iterdir())) for name in card.class_names]
    labels = np.repeat(np.arange(CLASSES), sizes)
    right = float((answers["unseen"].probabilities.argmax(axis=1) == labels).mean())
    shares = {}
    for name, found in answers.items():
        reasons = reasons_to_abstain(card.novelty, found.embeddings, len(sets[name]))
        shares[name] = float(np.mean([reason is not None for reason in reasons]))
    return right, shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("textures", type=Path)
    parser.add_argument("--checkout", type=Path, default=ROOT)
    arguments = parser.parse_args()
    classes = classes_of(arguments.textures)
    rows, said, figures = [], [], []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            chosen = lay_out(classes, seed, folder)
            artifact, last_line, seconds = train(arguments.checkout, folder, seed)
            right, shares = measure(artifact, folder)
        found = [right, *(shares.get(name, np.nan) for name in ("unseen", "drawn", "other", "steel"))]
        figures.append(found)
        rows.append([str(seed), ", ".join(chosen), *(f"{share:.1%}" for share in found), f"{seconds:.0f}"])
        said.append(f"- seed {seed}: {last_line}")
        print(*rows[-1], last_line, sep="\t", flush=True)
    means = [f"{share:.1%}" for share in np.mean(figures, axis=0)]
    lines = [_line(HEADER), _line(["---"] * len(HEADER)), *map(_line, [*rows, ["mean", "", *means, ""]])]
    print(lines[-1])
    if arguments.checkout == ROOT:
        text = "\n".join([*lines, "", "What the command says at its end:", "", *said])
        (RESULTS / "small_folders.md").write_text(text + "\n", encoding="utf-8")


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
