import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.api.body import MAX_GZIP_MEMBERS
from app.main import create_app
from app.pipeline import Pipeline
from app.settings import Settings
from tests.app.forms import post_rows, post_source, strict_json, text_of

OUTCOME_KEYS = [
    "label",
    "confidence",
    "probabilities",
    "abstained",
    "reason",
    "nearest_label",
    "nearest_confidence",
    "evidence",
    "model",
    "error",
]
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def small() -> Iterator[TestClient]:
    """A service with limits that are small enough to exceed."""
    settings = Settings(max_body_bytes=50_000, max_rows=3, max_image_bytes=40_000)
    with TestClient(create_app(settings)) as client:
        yield client


def test_three_forms_give_the_same_outcome(client: TestClient, sample: bytes) -> None:
    batch = post_source(client, text_of(sample))
    raw = client.post("/classify", content=sample, headers={"Content-Type": "image/png"}).json()
    octets = client.post("/classify", content=sample, headers={"Content-Type": "application/octet-stream"})
    uploaded = client.post("/classify", files={"file": ("a.png", sample)}).json()["results"][0]
    assert batch == raw == octets.json()
    assert uploaded == {"filename": "a.png", **batch}


def test_outcome_has_every_key_in_order(client: TestClient, sample: bytes) -> None:
    for source in (text_of(sample), "???"):
        assert list(post_source(client, source)) == OUTCOME_KEYS


def test_classified_image_fills_its_outcome(client: TestClient, sample: bytes) -> None:
    outcome = post_source(client, text_of(sample))
    card = client.get("/model").json()
    probabilities = outcome["probabilities"]
    assert list(probabilities) == card["class_names"]
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert outcome["label"] == max(probabilities, key=probabilities.get)
    assert outcome["confidence"] == probabilities[outcome["label"]]
    assert outcome["nearest_label"] is outcome["nearest_confidence"] is None
    assert outcome["model"] == {"name": card["name"], "version": card["version"]}
    assert outcome["error"] is None
    assert outcome["abstained"] is False


def test_failed_image_says_why(client: TestClient) -> None:
    outcome = post_source(client, "not base64!")
    assert outcome["error"]["code"] == "invalid_base64"
    assert outcome["error"]["retryable"] is False
    assert outcome["label"] is outcome["confidence"] is outcome["probabilities"] is None
    assert outcome["nearest_label"] is outcome["nearest_confidence"] is None


def test_null_answers_null(client: TestClient) -> None:
    assert post_rows(client, [[4, None]]) == [[4, None]]


def test_empty_batch_answers_an_empty_batch(client: TestClient) -> None:
    assert post_rows(client, []) == []


def test_row_numbers_are_echoed_in_order(client: TestClient, sample: bytes) -> None:
    numbers = [7, 0, 2**53 + 1, -1, 2**63 - 1, -(2**63)]
    rows = post_rows(client, [[number, text_of(sample)] for number in numbers])
    assert [number for number, _ in rows] == numbers


def test_bad_rows_do_not_affect_other_rows(client: TestClient, sample: bytes) -> None:
    good = text_of(sample)
    bad = [
        "",
        "%%%",
        text_of(b"GIF89a" + bytes(20)),
        text_of(sample[:500]),
        5,
        [],
        {},
        True,
        "http://a/b",
        "@s/a",
    ]
    sources = [good] * 54
    for place, source in enumerate(bad):
        sources.insert(place * 6, source)
    clean = post_rows(client, [[n, good] for n in range(54)])
    mixed = post_rows(client, [[n, source] for n, source in enumerate(sources)])
    answered = [outcome for _, outcome in mixed if outcome["error"] is None]
    failed = [outcome for _, outcome in mixed if outcome["error"] is not None]
    assert json.dumps(answered) == json.dumps([outcome for _, outcome in clean])
    assert len(failed) == len(bad)


@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress, lambda b: zlib.compress(b, wbits=-15)])
def test_compressed_batch_is_inflated(client: TestClient, sample: bytes, compress: Any) -> None:
    body = json.dumps({"data": [[0, text_of(sample)]]}).encode()
    encoding = "gzip" if compress is gzip.compress else "deflate"
    answer = client.post("/classify", content=compress(body), headers={**JSON, "Content-Encoding": encoding})
    assert answer.json() == client.post("/classify", content=body, headers=JSON).json()


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP", ""])
def test_body_that_a_gateway_inflated_is_accepted(client: TestClient, sample: bytes, encoding: str) -> None:
    body = json.dumps({"data": [[0, text_of(sample)]]}).encode()
    answer = client.post("/classify", content=body, headers={**JSON, "Content-Encoding": encoding})
    assert answer.json()["data"][0][1]["error"] is None


def test_gzip_without_its_header_is_inflated(client: TestClient) -> None:
    body = gzip.compress(b'{"data": [[0, null]]}')
    assert client.post("/classify", content=body, headers=JSON).json() == {"data": [[0, None]]}


@pytest.mark.parametrize("blocks", [2, 50])
def test_gzip_of_several_members_is_inflated(client: TestClient, sample: bytes, blocks: int) -> None:
    """As `cat a.gz b.gz`, bgzip and appending writers make it."""
    body = json.dumps({"data": [[n, text_of(sample)] for n in range(40)]}).encode()
    size = -(-len(body) // blocks)
    members = b"".join(gzip.compress(body[at : at + size], 1) for at in range(0, len(body), size))
    members = gzip.compress(b"") + members + gzip.compress(b"")
    answer = client.post("/classify", content=members, headers={**JSON, "Content-Encoding": "gzip"})
    assert answer.json() == client.post("/classify", content=body, headers=JSON).json()


def test_gzip_of_more_members_than_the_limit_is_refused(client: TestClient) -> None:
    body = gzip.compress(b"") * (MAX_GZIP_MEMBERS + 1)
    answer = client.post("/classify", content=body, headers=JSON)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_body")
    assert "members" in answer.json()["error"]["message"]


@pytest.mark.parametrize("garbage", [b"x", b"garbage", bytes(8), b"\x1f\x8b", b"\x1f\x8bgarbage"])
@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
def test_bytes_after_a_compressed_body_are_refused(client: TestClient, garbage: bytes, compress: Any) -> None:
    headers = {**JSON, "Content-Encoding": "gzip" if compress is gzip.compress else "deflate"}
    answer = client.post("/classify", content=compress(b'{"data": []}') + garbage, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_body")


@pytest.mark.parametrize("rows", [1, 200])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_json_may_begin_with_a_byte_order_mark(
    client: TestClient, sample: bytes, rows: int, compress: Any
) -> None:
    """In one step and in several."""
    body = b"\xef\xbb\xbf" + json.dumps({"data": [[n, text_of(sample)] for n in range(rows)]}).encode()
    answer = client.post("/classify", content=compress(body), headers=JSON)
    assert [outcome["label"] for _, outcome in answer.json()["data"]] == ["Scratches"] * rows


def test_byte_order_mark_elsewhere_is_refused(client: TestClient) -> None:
    for body in (b'\xef\xbb\xbf\xef\xbb\xbf{"data": []}', b'{\xef\xbb\xbf"data": []}', b"\xef\xbb\xbf"):
        assert client.post("/classify", content=body, headers=JSON).status_code == 400


def test_data_url_of_an_image_is_classified(client: TestClient, sample: bytes) -> None:
    outcome = post_source(client, f"data:image/png;base64,{text_of(sample)}")
    assert outcome == post_source(client, text_of(sample))


def test_snowflake_headers_and_charset_are_accepted(client: TestClient) -> None:
    headers = {
        "Content-Type": "Application/JSON; charset=utf-8",
        "sf-external-function-format": "json",
        "sf-external-function-query-batch-id": "01b02bdf-0001:1:1:0:0",
    }
    answer = client.post("/classify", content=b'{\n"data":[\n[0,null]\n]\n}', headers=headers)
    assert answer.json() == {"data": [[0, None]]}


def test_several_files_are_answered_in_order(client: TestClient, sample: bytes) -> None:
    files = [("file", ("b.png", sample)), ("file", ("a.txt", b"no image")), ("other", ("ü.png", sample))]
    results = client.post("/classify", files=files).json()["results"]
    assert [result["filename"] for result in results] == ["b.png", "a.txt", "ü.png"]
    assert [result["error"] is None for result in results] == [True, False, True]


def test_corrupt_raw_image_is_an_outcome(client: TestClient, sample: bytes) -> None:
    answer = client.post("/classify", content=sample[:400], headers={"Content-Type": "image/png"})
    assert answer.status_code == 200
    assert answer.json()["error"]["code"] == "corrupt_image"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed_body"),
        (b"{", 400, "malformed_body"),
        (b'{"data": [[NaN, "a"]]}', 400, "malformed_body"),
        (b'{"data": [[0, "\\ud800"]]}', 400, "malformed_body"),
        (b'{"data": [[' + b"9" * 5000 + b', "a"]]}', 400, "malformed_body"),
        (b'{"data": ' + b"[" * 100_000, 400, "malformed_body"),
        (b'{"data": [[0, "\xff"]]}', 400, "malformed_body"),
        (b"\x1f\x8b garbage", 400, "malformed_body"),
        (gzip.compress(b'{"data": []}', mtime=0)[:-9], 400, "malformed_body"),
        (gzip.compress(b'{"data": []}', mtime=0) + b"x", 400, "malformed_body"),
        (b"[]", 422, "invalid_batch"),
        (b"null", 422, "invalid_batch"),
        (b"{}", 422, "invalid_batch"),
        (b'{"data": {}}', 422, "invalid_batch"),
        (b'{"data": [5]}', 422, "invalid_batch"),
        (b'{"data": [[0]]}', 422, "invalid_batch"),
        (b'{"data": [[0, "a", {}, 4]]}', 422, "invalid_batch"),
        (b'{"data": [["0", "a"]]}', 422, "invalid_batch"),
        (b'{"data": [[true, "a"]]}', 422, "invalid_batch"),
        (b'{"data": [[1.5, "a"]]}', 422, "invalid_batch"),
        (b'{"data": [[1e999, "a"]]}', 422, "invalid_batch"),
        (b'{"data": [[9223372036854775808, "a"]]}', 422, "invalid_batch"),
    ],
)
def test_invalid_batch_is_refused(client: TestClient, body: bytes, status: int, code: str) -> None:
    answer = client.post("/classify", content=body, headers=JSON)
    assert answer.status_code == status
    error = strict_json(answer.content)["error"]
    assert error["code"] == code
    assert list(error) == ["code", "message", "retryable"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json", "Content-Encoding": "br"},
        {"Content-Type": "image/png", "Content-Encoding": "gzip"},
        {"Content-Type": "imagery/png"},
    ],
)
def test_unknown_form_is_refused(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.post("/classify", content=b"{}", headers=headers)
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (None, None),
        ({}, None),
        ({"evidence": True}, None),
        ({"evidence": 1}, "invalid_options"),
        ({"speed": True}, "invalid_options"),
        ("{}", "invalid_options"),
        ([], "invalid_options"),
    ],
)
def test_options_are_checked_row_by_row(
    client: TestClient, sample: bytes, options: object, code: str | None
) -> None:
    rows = post_rows(client, [[0, text_of(sample), options], [1, text_of(sample)]])
    error = rows[0][1]["error"]
    assert (error and error["code"]) == code
    assert rows[1][1]["error"] is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nothing",
        b"--b\r\n",
        b'--b\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\nabc',
        b'--b\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\nabc\r\n--b\r\n',
        b"--b\r\n" + b"a: b\r\n" * 100 + b"\r\nabc\r\n--b--\r\n",
        b"--b\r\na: " + b"b" * 100_000 + b"\r\n\r\nabc\r\n--b--\r\n",
    ],
)
def test_broken_multipart_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post(
        "/classify", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "malformed_body"


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary="])
def test_multipart_without_a_boundary_is_refused(client: TestClient, content_type: str) -> None:
    answer = client.post("/classify", content=b"--b--\r\n", headers={"Content-Type": content_type})
    assert answer.status_code == 400


def test_multipart_must_hold_files_only(client: TestClient, sample: bytes) -> None:
    answer = client.post("/classify", files={"file": ("a.png", sample)}, data={"note": "text"})
    assert answer.status_code == 422
    assert "'note'" in answer.json()["error"]["message"]


def test_multipart_without_parts_is_refused(client: TestClient) -> None:
    answer = client.post(
        "/classify", content=b"--b--\r\n", headers={"Content-Type": "multipart/form-data; boundary=b"}
    )
    assert answer.status_code == 422


@pytest.mark.parametrize("charset", ["utf-8", "nonsense", "base64", "idna", "utf-16"])
def test_multipart_charset_never_breaks_the_service(client: TestClient, sample: bytes, charset: str) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="f"; filename="\xff.png"\r\n\r\n'
        + sample
        + b"\r\n--b--\r\n"
    )
    headers = {"Content-Type": f"multipart/form-data; boundary=b; charset={charset}"}
    answer = client.post("/classify", content=body, headers=headers)
    assert answer.json()["results"][0]["error"] is None


@pytest.mark.parametrize(("rows", "status"), [(2, 200), (3, 200), (4, 413)])
def test_row_limit_is_exact(small: TestClient, rows: int, status: int) -> None:
    batch = {"data": [[n, None] for n in range(rows)]}
    assert small.post("/classify", json=batch).status_code == status
    files = [("file", (f"{n}.png", b"x")) for n in range(rows)]
    assert small.post("/classify", files=files).status_code == status


def test_far_too_many_files_are_refused_alike(small: TestClient) -> None:
    answer = small.post("/classify", files=[("file", (f"{n}.png", b"x")) for n in range(20)])
    assert answer.status_code == 413


@pytest.mark.parametrize(("size", "status"), [(49_999, 200), (50_000, 200), (50_001, 413)])
def test_body_limit_is_exact(small: TestClient, size: int, status: int) -> None:
    head, tail = b'{"data": [[0, "', b'"]]}'
    body = head + b"A" * (size - len(head) - len(tail)) + tail
    for content in (body, iter([body[:100], body[100:]])):  # with and without a Content-Length
        answer = small.post("/classify", content=content, headers=JSON)
        assert answer.status_code == status
    answer = small.post(
        "/classify", content=gzip.compress(body), headers={**JSON, "Content-Encoding": "gzip"}
    )
    assert answer.status_code == status


@pytest.mark.parametrize(("size", "code"), [(40_000, "unsupported_format"), (40_001, "image_too_large")])
def test_image_limit_is_exact_and_a_row_error(small: TestClient, size: int, code: str) -> None:
    answer = small.post("/classify", content=b"A" * size, headers={"Content-Type": "image/png"})
    assert answer.json()["error"]["code"] == code


def test_length_of_too_many_digits_is_refused(client: TestClient) -> None:
    headers = {**JSON, "Content-Length": "0" * 5000 + "2"}
    assert client.post("/classify", content=b"{}", headers=headers).status_code == 400


@pytest.mark.slow
def test_gzip_bomb_is_refused(client: TestClient) -> None:
    bomb = gzip.compress(bytes(200 * 1024 * 1024))
    answer = client.post("/classify", content=bomb, headers={**JSON, "Content-Encoding": "gzip"})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "payload_too_large"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("PUT", "/classify", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/classify/", 404, "not_found"),
    ],
)
def test_every_refusal_has_the_same_shape(
    client: TestClient, method: str, path: str, status: int, code: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["message"].endswith(f"Received: {method} '{path}'.")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/classify", "GET, HEAD, POST"), ("/healthz", "GET, HEAD"), ("/docs", "GET, HEAD")],
)
def test_wrong_method_lists_the_allowed_ones(client: TestClient, path: str, allowed: str) -> None:
    answer = client.request("PATCH", path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed


def test_unexpected_error_leaks_nothing(monkeypatch: pytest.MonkeyPatch, sample: bytes) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("/secret/path")

    with TestClient(create_app(Settings()), raise_server_exceptions=False) as client:
        monkeypatch.setattr(Pipeline, "classify_rows", fail)
        answer = client.post("/classify", json={"data": [[0, text_of(sample)]]})
        loud = TestClient(client.app)
        with pytest.raises(RuntimeError, match="secret"):  # for the server to log
            loud.post("/classify", json={"data": [[0, text_of(sample)]]})
    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "code": "internal_error",
        "message": "The service failed.",
        "retryable": True,
    }
