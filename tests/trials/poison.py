"""python -m tests.trials.poison: each input of the fuzzing corpus, among rows that must succeed."""

import argparse
import json
import random
from base64 import b64encode
from collections import Counter
from pathlib import Path

from tests.benchmarks.images import as_jpeg, load_images
from tests.running import exchange, running_service

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus" / "image"
HEALTHY = 7
_JSON = {"Content-Type": "application/json"}


def outcomes_of(port: int, texts: list[str]) -> list[dict[str, object]]:
    body = json.dumps({"data": list(enumerate(texts))}).encode()
    answer = exchange(port, "POST", "/classify", body, _JSON)
    assert answer.status == 200, answer.body
    numbers, outcomes = zip(*json.loads(answer.body)["data"], strict=True)
    assert numbers == tuple(range(len(texts)))
    return list(outcomes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=CORPUS, help="(default: the corpus)")
    folder: Path = parser.parse_args().folder
    poisons = [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]
    healthy = [b64encode(image).decode() for image in as_jpeg(load_images().files[:HEALTHY])]
    codes: Counter[str] = Counter()
    with running_service() as url:
        port = int(url.rpartition(":")[2])
        alone = outcomes_of(port, healthy)
        for poison in poisons:
            place = random.randrange(HEALTHY + 1)  # noqa: S311 - no secret
            found = outcomes_of(port, [*healthy[:place], b64encode(poison).decode(), *healthy[place:]])
            error = found.pop(place)["error"]
            codes[error["code"] if isinstance(error, dict) else "classified"] += 1
            assert found == alone, "a neighbour's outcome has changed"
    print(f"{len(poisons)} inputs, each beside {HEALTHY} images whose outcomes stayed the same")
    print(f"they themselves: {dict(codes.most_common())}")


if __name__ == "__main__":
    main()
