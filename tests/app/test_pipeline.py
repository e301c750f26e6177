import asyncio
import gc
import weakref
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from sys import getsizeof
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.admission import PendingBytes
from app.errors import InvalidSource, Overloaded
from app.images.http import ImageFetcher
from app.images.source import Base64Text, HexText, Row, StageFile, Url
from app.outcome import ClassifiedRows, EvidenceDetail, ModelIdentity, Outcome, Step, Steps, blank_outcome
from app.pipeline import PIECE_ROWS, Pipeline, max_fetched_rows
from app.settings import Settings
from app.snowflake.session import SnowflakeSession
from app.snowflake.stage import MAX_STAGES_IN_BATCH, StageReader
from app.workers.classify import ImageClassifier
from app.workers.protocol import ServedModel
from app.workers.queue import Capacity, RowQueue
from model import image as image_module
from model.artifact import load_artifact
from model.defaults import DEFAULT_MODEL_PATH
from model.engines import Answers, LiteRtClassifier, open_classifier
from model.image_limits import ImageLimits
from tests.app.forms import text_of
from tests.app.images.https_server import FixedResolver, HttpsServer, answer
from tests.app.turns import turns_during
from tests.app.workers.in_thread import Served, classifying, served
from tests.model.pictures import encode_array

SETTINGS = Settings()
HOST = "images.example.com"


def classify(rows: list[Row], **changes: Any) -> tuple[list[Outcome | None], Steps]:
    """Classify rows by a pipeline with the shipped artifact."""

    async def run() -> tuple[list[Outcome | None], Steps]:
        artifact = load_artifact(DEFAULT_MODEL_PATH)
        async with ImageFetcher(SETTINGS) as fetcher, SnowflakeSession(SETTINGS) as session:
            stages = StageReader(SETTINGS, session, fetcher)
            classifier = open_classifier(artifact, "litert", 2, SETTINGS.cache_dir)
            given = {"classifier": classifier, "limits": ImageLimits()} | changes
            images = ImageClassifier(artifact, **given)
            queue = RowQueue(Capacity(2, 64))
            async with classifying(queue, images, threads=2):
                pipeline = Pipeline(served(images), queue, fetcher, stages, max_fetched_rows(SETTINGS))
                outcomes, steps, _ = await pipeline.classify_rows(rows)
                return outcomes, steps

    return asyncio.run(run())


def test_outcome_does_not_depend_on_the_batch(sample: bytes) -> None:
    [alone], _ = classify([Row(0, sample)])
    for size in (2, 8, 9, 33):
        outcomes, _ = classify([Row(n, sample) for n in range(size)])
        assert outcomes == [alone] * size


def test_errors_and_nulls_keep_their_place(sample: bytes) -> None:
    sources = [
        None,
        sample,
        Base64Text(b"?"),
        Url("https://a.example.com/b"),
        Base64Text(text_of(sample).encode()),
        StageFile(("DB", "S", "IMAGES"), "a.png"),
        HexText(sample.hex().encode()),
    ]
    outcomes, _ = classify([Row(n, source) for n, source in enumerate(sources)])
    codes = [outcome and outcome["error"] and outcome["error"]["code"] for outcome in outcomes]
    expected = [None, None, "invalid_base64", "url_not_allowed", None, "snowflake_not_configured", None]
    assert codes == expected
    assert outcomes[0] is None
    assert outcomes[1] == outcomes[4] == outcomes[6]


def test_batch_without_urls_spends_no_time_on_fetching(sample: bytes) -> None:
    _, steps = classify([Row(n, sample) for n in range(20)])
    assert steps.fetch == Step()
    assert steps.decode.seconds > 0
    assert steps.predict.seconds > 0


@pytest.mark.slow
def test_corrupt_image_releases_its_pixels(sample: bytes, monkeypatch: Any) -> None:
    opened: list[weakref.ref[Any]] = []
    refuse_costly_content = image_module.refuse_costly_content

    def remember(image: Any, *more: Any) -> None:
        opened.append(weakref.ref(image))
        refuse_costly_content(image, *more)

    monkeypatch.setattr(image_module, "refuse_costly_content", remember)
    gc.collect()
    gc.disable()
    try:
        outcomes, _ = classify([Row(n, sample[:-4000]) for n in range(8)])
        assert [outcome and outcome["error"] is not None for outcome in outcomes] == [True] * 8
        assert [image() for image in opened] == [None] * 8
    finally:
        gc.enable()


def test_nan_of_the_network_is_an_error_of_each_row(sample: bytes) -> None:
    class Nan(LiteRtClassifier):
        def __init__(self) -> None:
            pass

        def answer(self, images: NDArray[np.uint8], *, with_features: bool = False) -> Answers:
            return Answers(np.full((len(images), 6), np.nan, np.float32))

    [outcome], _ = classify([Row(0, sample)], classifier=Nan())
    assert outcome is not None
    assert outcome["error"] is not None
    assert outcome["error"]["code"] == "prediction_failed"


def test_each_request_has_the_statistics_of_its_own_images(sample: bytes) -> None:
    """Rows of several requests share a call, and an image that fails has no statistics."""
    dark = encode_array(np.full((200, 200), 51, np.uint8), "PNG")

    async def run() -> list[ClassifiedRows]:
        artifact = load_artifact(DEFAULT_MODEL_PATH)
        classifier = open_classifier(artifact, "litert", 1, SETTINGS.cache_dir)
        images = ImageClassifier(artifact, classifier, ImageLimits(), measures=True)
        queue = RowQueue(Capacity(1, 64))
        async with ImageFetcher(SETTINGS) as fetcher, SnowflakeSession(SETTINGS) as session:
            stages = StageReader(SETTINGS, session, fetcher)
            pipeline = Pipeline(served(images), queue, fetcher, stages, max_fetched_rows(SETTINGS))
            requests = [
                asyncio.ensure_future(
                    pipeline.classify_rows([Row(n, source) for n, source in enumerate(given)])
                )
                for given in ([dark, None, b"BM"], [sample], [b"BM"], [dark, sample])
            ]
            await asyncio.sleep(0)
            async with classifying(queue, images):
                return await asyncio.gather(*requests)

    brightnesses = [[image.brightness for image in each.statistics] for each in asyncio.run(run())]
    assert brightnesses[0] == [pytest.approx(0.2)]
    assert brightnesses[1] == [pytest.approx(0.307, abs=0.001)]
    assert brightnesses[2] == []
    assert sorted(brightnesses[3]) == brightnesses[0] + brightnesses[1]


def test_images_are_measured_only_if_enabled(sample: bytes) -> None:
    artifact = load_artifact(DEFAULT_MODEL_PATH)
    classifier = open_classifier(artifact, "litert", 1, SETTINGS.cache_dir)
    plain = ImageClassifier(artifact, classifier, ImageLimits()).classify([sample], [False])
    measured = ImageClassifier(artifact, classifier, ImageLimits(), measures=True).classify([sample], [False])
    assert plain.statistics == {}
    assert list(measured.statistics) == [0]
    assert measured.outcomes == plain.outcomes


def test_only_the_request_that_makes_the_engine_fail_fails(sample: bytes) -> None:
    """Rows of several requests share a call."""

    class Fragile(LiteRtClassifier):
        def answer(self, images: NDArray[np.uint8], *, with_features: bool = False) -> Answers:
            if with_features:
                raise RuntimeError("broken")
            return super().answer(images)

    async def run() -> list[object]:
        artifact = load_artifact(DEFAULT_MODEL_PATH)
        compiled = DEFAULT_MODEL_PATH.with_suffix(".tflite").read_bytes()
        fragile = Fragile(compiled, artifact.card.scale, 1)
        images = ImageClassifier(artifact, fragile, ImageLimits(), measures=True)
        queue = RowQueue(Capacity(1, 64))
        async with ImageFetcher(SETTINGS) as fetcher, SnowflakeSession(SETTINGS) as session:
            stages = StageReader(SETTINGS, session, fetcher)
            pipeline = Pipeline(served(images), queue, fetcher, stages, max_fetched_rows(SETTINGS))
            requests = [
                asyncio.ensure_future(pipeline.classify_rows([Row(0, sample, evidence=place == 3)]))
                for place in range(8)
            ]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            async with classifying(queue, images):
                return await asyncio.gather(*requests, return_exceptions=True)

    answers = asyncio.run(run())
    assert [place for place, answer in enumerate(answers) if isinstance(answer, RuntimeError)] == [3]
    measured = [len(answer.statistics) for answer in answers if isinstance(answer, ClassifiedRows)]
    assert measured == [1] * 7


def shipped_classifier() -> ImageClassifier:
    artifact = load_artifact(DEFAULT_MODEL_PATH)
    classifier = open_classifier(artifact, "litert", 1, SETTINGS.cache_dir)
    return ImageClassifier(artifact, classifier, ImageLimits())


@asynccontextmanager
async def fetching(
    sample: bytes, images: ImageClassifier, max_concurrent_fetches: int
) -> AsyncIterator[tuple[HttpsServer, RowQueue, Pipeline]]:
    """A pipeline whose images are on a server, which sends the sample for each URL."""
    async with HttpsServer(answer(sample), HOST) as server:
        settings = Settings(
            allowed_url_hosts=f"{HOST}:{server.port}",  # type: ignore[arg-type]
            allow_private_addresses=True,
            max_concurrent_fetches=max_concurrent_fetches,
            classifiers=1,
        )
        fetcher = ImageFetcher(
            settings, resolver=FixedResolver("127.0.0.1"), ssl_context=server.client_context
        )
        queue = RowQueue(Capacity(1, 64))
        async with fetcher, SnowflakeSession(settings) as session:
            stages = StageReader(settings, session, fetcher)
            yield (
                server,
                queue,
                Pipeline(served(images), queue, fetcher, stages, max_fetched_rows(settings)),
            )


@pytest.mark.slow
def test_images_that_wait_to_be_decoded_are_bounded(sample: bytes) -> None:
    """A small body can name many large files; only a few are fetched while no process is free."""
    images = shipped_classifier()

    async def run() -> int:
        async with fetching(sample, images, 8) as (server, queue, pipeline):
            rows = [Row(n, Url(f"https://{HOST}:{server.port}/a")) for n in range(200)]
            answering = asyncio.ensure_future(pipeline.classify_rows(rows))
            while len(server.heads) < 10:  # noqa: ASYNC110 - the server is no coroutine of ours
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            fetched = len(server.heads)
            small = asyncio.ensure_future(pipeline.classify_rows(rows[:1]))
            while len(server.heads) == fetched:  # noqa: ASYNC110 - the image is fetched concurrently
                await asyncio.sleep(0.01)
            async with classifying(queue, images):
                outcomes = (await answering).outcomes
                assert (await small).outcomes == outcomes[:1]
            assert [outcome and outcome["label"] for outcome in outcomes] == ["Scratches"] * 200
            return fetched

    assert asyncio.run(run()) == 10


@pytest.mark.slow
def test_images_of_callers_are_fetched_in_turn(sample: bytes) -> None:
    images = shipped_classifier()

    async def run() -> list[str]:
        async with fetching(sample, images, 1) as (server, queue, pipeline):
            requests = [
                asyncio.ensure_future(
                    pipeline.classify_rows(
                        [Row(n, Url(f"https://{HOST}:{server.port}/{caller}")) for n in range(10)],
                        caller=caller,
                    )
                )
                for caller in ["noisy"] * 20 + ["quiet"]
            ]
            while not server.heads:  # noqa: ASYNC110 - the server is no coroutine of ours
                await asyncio.sleep(0.01)
            async with classifying(queue, images):
                await asyncio.gather(*requests)
            return server.heads

    heads = asyncio.run(run())
    assert len(heads) == 210
    assert sum("/quiet" in head for head in heads[:50]) == 10


async def classify_without_processes(rows: list[Row]) -> list[Outcome | None]:
    """A pipeline for rows that need no process."""
    async with ImageFetcher(SETTINGS) as fetcher, SnowflakeSession(SETTINGS) as session:
        network = Served(ServedModel(ModelIdentity(name="m", version="v"), {}))
        queue = RowQueue(Capacity(1, 64))
        pipeline = Pipeline(network, queue, fetcher, StageReader(SETTINGS, session, fetcher), 66)
        return (await pipeline.classify_rows(rows)).outcomes


def test_equal_errors_share_one_outcome() -> None:
    """A few compressed bytes can hold thousands of rows without a source."""
    rows = [Row(n, InvalidSource(f"No source {n % 2}.")) for n in range(2000)]
    outcomes = asyncio.run(classify_without_processes(rows))
    messages = [outcome and outcome["error"] and outcome["error"]["message"] for outcome in outcomes]
    assert messages == ["No source 0.", "No source 1."] * 1000
    assert len(set(map(id, outcomes))) == 2


@pytest.mark.parametrize("source", [Url("http://a"), InvalidSource("No source."), None])
def test_other_requests_are_served_while_rows_fail(source: Any) -> None:
    """Rows that fail at once take several turns of the event loop."""
    turns = asyncio.run(turns_during(classify_without_processes([Row(n, source) for n in range(4096)])))
    assert turns >= 4096 // PIECE_ROWS


def test_stages_beyond_the_limit_take_no_task_each() -> None:
    rows = [Row(n, StageFile(("DB", "S", f"STAGE{n}"), "a.png")) for n in range(4096)]
    rows += [Row(4096, Url("http://a"))]

    async def check() -> tuple[int, list[Outcome | None]]:
        answering = asyncio.ensure_future(classify_without_processes(rows))
        most_tasks = 0
        while not answering.done():
            most_tasks = max(most_tasks, len(asyncio.all_tasks()))
            await asyncio.sleep(0)
        return most_tasks, await answering

    most_tasks, outcomes = asyncio.run(check())
    assert most_tasks < 200
    codes = Counter(outcome and outcome["error"] and outcome["error"]["code"] for outcome in outcomes)
    refused = 4096 - MAX_STAGES_IN_BATCH
    assert codes == {
        "snowflake_not_configured": MAX_STAGES_IN_BATCH,
        "stage_not_allowed": refused,
        "url_not_allowed": 1,
    }


def test_answered_row_releases_its_bytes() -> None:
    """Other rows of its request may wait for a slow host."""

    async def check() -> None:
        async with ImageFetcher(SETTINGS) as fetcher, SnowflakeSession(SETTINGS) as session:
            network = Served(ServedModel(ModelIdentity(name="m", version="v"), {}))
            queue = RowQueue(Capacity(2, 64))
            pipeline = Pipeline(network, queue, fetcher, StageReader(SETTINGS, session, fetcher), 66)
            refused, *texts = Url("http://a/" + "b" * 1000), *[Base64Text(b"?" * 1000)] * 2
            rows = [Row(n, source) for n, source in enumerate([refused, *texts])]
            pending = PendingBytes(100_000).reserve()
            pending.take(sum(row.source_bytes for row in rows))
            answering = asyncio.ensure_future(pipeline.classify_rows(rows, pending))
            for _ in range(20):
                await asyncio.sleep(0)
            [queued] = queue.next_rows()
            assert pending.held_bytes == 2 * getsizeof(texts[0].text)
            queued.group.answer(queued.place, None)
            assert pending.held_bytes == getsizeof(texts[1].text)
            assert [row.source for row in rows] == [None, None, texts[1]]
            answering.cancel()

    asyncio.run(asyncio.wait_for(check(), 20))


@pytest.mark.parametrize("source", [InvalidSource("No source."), None])
def test_rows_that_need_no_process_delay_no_other_request(source: Any) -> None:
    async def check() -> None:
        async with ImageFetcher(SETTINGS) as fetcher, SnowflakeSession(SETTINGS) as session:
            network = Served(ServedModel(ModelIdentity(name="m", version="v"), {}))
            queue = RowQueue(Capacity(1, 64))
            pipeline = Pipeline(network, queue, fetcher, StageReader(SETTINGS, session, fetcher), 66)
            rows = [Row(n, source) for n in range(4095)] + [Row(4095, Base64Text(b"?"))]
            answering = asyncio.ensure_future(pipeline.classify_rows(rows))
            await asyncio.sleep(0)
            assert queue.unanswered_rows == 1
            answering.cancel()
            await asyncio.wait({answering})
            assert queue.unanswered_rows == 0

    asyncio.run(check())


@pytest.mark.parametrize("room_bytes", [1000, 999])
def test_evidence_is_counted_until_the_request_is_answered(room_bytes: int) -> None:
    async def check() -> None:
        async with ImageFetcher(SETTINGS) as fetcher, SnowflakeSession(SETTINGS) as session:
            network = Served(ServedModel(ModelIdentity(name="m", version="v"), {}))
            queue = RowQueue(Capacity(2, 64))
            pipeline = Pipeline(network, queue, fetcher, StageReader(SETTINGS, session, fetcher), 66)
            room = PendingBytes(room_bytes)
            others, pending = room.reserve(), room.reserve()
            others.take(1)
            answering = asyncio.ensure_future(pipeline.classify_rows([Row(0, b""), Row(1, b"")], pending))
            await asyncio.sleep(0)
            outcome = blank_outcome(network.model.identity)
            outcome["evidence"] = EvidenceDetail(box=(0, 0, 1, 1), heatmap_png="A" * 999)
            [first], [second] = queue.next_rows(), queue.next_rows()
            first.group.answer(first.place, outcome)
            assert pending.held_bytes == (999 if room_bytes == 1000 else 0)
            second.group.answer(second.place, None)
            if room_bytes == 1000:
                assert (await answering).outcomes == [outcome, None]
            else:
                with pytest.raises(Overloaded):
                    await answering
            assert queue.unanswered_rows == 0

    asyncio.run(asyncio.wait_for(check(), 20))


@pytest.mark.parametrize("end", ["cancel", "fail"])
def test_row_answered_after_its_request_has_ended_is_not_counted(end: str) -> None:
    async def check() -> None:
        async with ImageFetcher(SETTINGS) as fetcher, SnowflakeSession(SETTINGS) as session:
            network = Served(ServedModel(ModelIdentity(name="m", version="v"), {}))
            queue = RowQueue(Capacity(1, 64))
            pipeline = Pipeline(network, queue, fetcher, StageReader(SETTINGS, session, fetcher), 66)
            pending = PendingBytes(10_000).reserve()
            rows = [Row(n, b"") for n in range(2 * PIECE_ROWS)]
            answering = asyncio.ensure_future(pipeline.classify_rows(rows, pending))
            for _ in range(5):
                await asyncio.sleep(0)
            taken = [queued for _ in range(2 * PIECE_ROWS) for queued in queue.next_rows()]
            if end == "cancel":
                answering.cancel()
            else:
                taken[0].group.fail(ValueError("broken"))
            await asyncio.wait({answering})
            assert answering.cancelled() or answering.exception()
            outcome = blank_outcome(network.model.identity)
            outcome["evidence"] = EvidenceDetail(box=(0, 0, 1, 1), heatmap_png="A" * 999)
            taken[-1].group.answer(taken[-1].place, outcome)
            assert pending.held_bytes == 0
            assert queue.unanswered_rows == 0

    asyncio.run(asyncio.wait_for(check(), 20))
