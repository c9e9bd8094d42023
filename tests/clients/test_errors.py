import pickle

import pytest

import flamingo_client as fc
from clients.fake_server import NOW, Script, SyncWorld, answer, refusal, streamed

STATUSES = {
    302: fc.APIError,
    400: fc.BadRequestError,
    401: fc.AuthenticationError,
    403: fc.ForbiddenError,
    404: fc.NotFoundError,
    408: fc.DeadlineError,
    409: fc.BadRequestError,
    413: fc.TooLargeError,
    415: fc.UnsupportedMediaError,
    422: fc.BadRequestError,
    429: fc.RateLimitError,
    500: fc.ServerError,
    503: fc.UnavailableError,
    599: fc.ServerError,
}


@pytest.mark.parametrize(("status", "kind"), STATUSES.items())
def test_a_status_has_its_class(world: type[SyncWorld], status: int, kind: type) -> None:
    with pytest.raises(fc.APIError) as caught:
        world(Script(refusal(status, "make it smaller")), max_retries=0).call("generate", "hi")
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.message) == (status, "make it smaller")
    assert (error.type, error.param, error.code) == ("t", "p", "c")


def test_the_message_shows_the_status_and_the_parameter() -> None:
    body = b'{"error": {"message": "too high", "param": "top_p"}}'
    assert str(fc.error_from(422, body, {})) == "too high (HTTP 422, top_p)"
    assert str(fc.error_from(500, b"", {})) == "Internal Server Error (HTTP 500)"


@pytest.mark.parametrize("body", [b"<h1>Bad gateway</h1>", b'"oops"', b"[]", b'{"error": "oops"}'])
def test_a_body_without_an_error_object_is_shown_as_it_is(body: bytes) -> None:
    assert fc.error_from(502, body, {}).message == body.decode()


def test_a_page_of_a_proxy_is_shown_in_part() -> None:
    assert len(fc.error_from(502, b"x" * 10_000, {}).message) == 500


def test_a_status_nobody_knows_has_a_message() -> None:
    assert fc.error_from(599, b"", {}).message == "the server gave no reason"


def test_bytes_that_are_no_utf8_make_an_error_all_the_same() -> None:
    assert fc.error_from(500, b"\xff\xfe", {}).message == "\ufffd\ufffd"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("Tue, 14 Nov 2023 22:13:32 GMT", 12.0),
        ("Tue, 14 Nov 2023 25:13:32 GMT", None),
        ("Tue, 14 Nov 2023 22:13:00 GMT", 0.0),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    error = fc.error_from(429, b"", {"retry-after": value}, clock=lambda: NOW)
    assert error.retry_after == seconds


def test_without_the_header_there_is_no_retry_after() -> None:
    assert fc.error_from(503, b"", {}).retry_after is None


def test_errors_survive_pickling() -> None:
    error = fc.error_from(429, b'{"error": {"message": "full", "code": "c"}}', {"Retry-After": "2"})
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.code) == (fc.RateLimitError, str(error), "c")
    assert copy.retry_after == 2.0


def test_every_error_is_a_flamingo_error() -> None:
    errors = [getattr(fc, name) for name in fc.__all__ if name.endswith(("Error", "Failed", "Out"))]
    assert len(errors) == 16
    assert all(issubclass(error, fc.FlamingoError) for error in errors)


@pytest.mark.parametrize("content", [b"<html>", b"[]", b"{}", b"\xff"])
def test_an_answer_that_is_not_one_is_an_answer_error(
    world: type[SyncWorld], content: bytes
) -> None:
    with pytest.raises(fc.AnswerError):
        world(Script(streamed(content, "application/json"))).call("generate", "hi")


def test_an_answer_error_names_the_field(world: type[SyncWorld]) -> None:
    wrong = {"id": "gen-1", "model": 5}
    with pytest.raises(fc.AnswerError, match="'model' in the answer has a wrong type: 5"):
        world(Script(answer(json=wrong))).call("generate", "hi")
