"""Bundles the files of the Python UDF, which runs in a warehouse, into a folder to upload.

`python -m app.provisioning.udf_bundle FOLDER` writes the handler, a zip of `app` and `model`, and the four
files of the model; infra/snowflake/14_warehouse_functions.sql uploads and names them.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import app
import model
from app.provisioning.ddl import FOLDER
from model.artifact import Artifact, card_path, load_artifact, next_to, next_to_h5, read_compiled
from model.defaults import DEFAULT_MODEL_PATH
from model.errors import ArtifactError

HANDLER = FOLDER / "udf" / "ext_classify_udf.py"
ZIP_NAME = "ext_classify.zip"


def write_bundle(artifact: Artifact, folder: Path) -> list[Path]:
    """Write the files into `folder`. Raises ArtifactError for a model that is not compiled.

    The output is reproducible: unchanged code gives the same bytes, so an upload can skip it.
    """
    paths = next_to_h5(artifact)
    if read_compiled(artifact, paths) is None:
        raise ArtifactError(
            f"A warehouse needs a compiled model. Run first: ext-classify compile --model {artifact.h5_path}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write_zip(folder / ZIP_NAME, artifact)
    if artifact.h5_path.is_dir():
        raise ArtifactError(
            f"A warehouse needs a network in one file. Received: the folder {artifact.h5_path}. "
            "Save the network as .keras and import that."
        )
    # The function's SQL names an .h5; the content tells what it is.
    network = next_to(artifact.h5_path, ".h5").name
    copied = {path.name: path for path in (HANDLER, card_path(artifact.h5_path), paths.tflite, paths.stamp)}
    for name, path in {**copied, network: artifact.h5_path}.items():
        shutil.copyfile(path, folder / name)
    return [folder / ZIP_NAME, *(folder / name for name in (*copied, network))]


def package_check() -> str:
    """The statement that resolves the function's packages; Snowflake's error names a missing one."""
    text = (FOLDER / "14_warehouse_functions.sql").read_text(encoding="utf-8")
    [check] = re.findall(r"^SELECT SYSTEM\$RESOLVE_PYTHON_PACKAGES.*?;$", text, re.MULTILINE | re.DOTALL)
    return str(check)


def _write_zip(path: Path, artifact: Artifact) -> None:
    novelty = artifact.card.novelty
    # A warehouse without LiteRT builds the pretrained blocks, which no network of `train` needs.
    has_blocks = novelty is not None and novelty.embedding == "pretrained"
    suffixes = (".py", ".npz") if has_blocks else (".py",)
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name, content in sorted(_sources(suffixes)):
            archive.writestr(ZipInfo(name), content, ZIP_DEFLATED)


def _sources(suffixes: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    for package in (app, model):
        root = Path(str(package.__file__)).parent
        for source in root.rglob("*"):
            if source.suffix not in suffixes:
                continue
            yield f"{root.name}/{source.relative_to(root).as_posix()}", source.read_bytes()
    # app reads its version from package metadata.
    metadata = f"Metadata-Version: 2.1\nName: ext-classify\nVersion: {app.__version__}\n"
    yield f"ext_classify-{app.__version__}.dist-info/METADATA", metadata.encode()


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write the files of the Python UDF that runs in a warehouse."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL_PATH, help="the model's .h5 file")
    options = parser.parse_args()
    try:
        write_bundle(load_artifact(options.model), options.folder)
    except (ArtifactError, OSError) as error:
        parser.exit(1, f"{error}\n")
    sys.stdout.write(f"Check first that the account has the packages:\n\n{package_check()}\n")


if __name__ == "__main__":
    main()
