import base64
import struct
from typing import Any

import pytest

from clients.fake_server import USAGE, Script, SyncWorld, answer
from flamingo_client import AnswerError, Embeddings, ImagePart, Usage

VECTORS = [(0.5, -0.25), (1.0, 0.0)]
PICTURE: ImagePart = {"type": "image", "image": {"data": "iVBOR"}}


def embeddings(*written: str) -> dict[str, Any]:
    data = [
        {"object": "embedding", "index": number, "embedding": text}
        for number, text in enumerate(written)
    ]
    return {"object": "list", "data": data, "model": "tiny", "usage": USAGE}


WHOLE = embeddings(*(base64.b64encode(struct.pack("<2f", *v)).decode() for v in VECTORS))


def test_vectors_come_in_the_order_of_the_pictures(world: type[SyncWorld]) -> None:
    script = Script(answer(json=WHOLE))
    found = world(script).call("embeddings", [PICTURE, PICTURE], model="tiny")
    assert found == Embeddings("tiny", tuple(VECTORS), Usage(9, 2, 4, 1))
    assert script.requests[0].url.path == "/v1/embeddings"
    wanted = {"input": [PICTURE, PICTURE], "encoding_format": "base64", "model": "tiny"}
    assert script.body == wanted


@pytest.mark.parametrize("wrong", ["AAAA", "!", "AAAAA"])
def test_bytes_that_are_no_numbers_raise(world: type[SyncWorld], wrong: str) -> None:
    with pytest.raises(AnswerError, match="'embedding'"):
        world(Script(answer(json=embeddings(wrong)))).call("embeddings", [PICTURE])


def test_a_lone_picture_is_not_taken_for_a_list(world: type[SyncWorld]) -> None:
    with pytest.raises(TypeError, match="takes a list"):
        world(Script()).call("embeddings", PICTURE)
