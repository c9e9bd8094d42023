"""OpenFlamingo as a child process: one JSON object a line in, one a line out.

Run by the environment of `make peers`; `bench.peer` is the other end. Times are seconds around its
own calls and nothing else: pictures are pixels and text is ids before the clock starts.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from bench.openflamingo_model import Network, build

PACKAGES = ("open-flamingo", "open_clip_torch", "torch", "transformers", "pillow")
Prompt = dict[str, Any]  # {"text": with <image> in it, "pictures": base64 of files}


class Peer:
    network: Network

    def load(self, folder: str, threads: int) -> dict[str, Any]:
        torch.set_num_threads(threads)
        self.network = build(Path(folder))
        num = sum(parameter.numel() for parameter in self.network.model.parameters())
        return {"parameters": num, "versions": {name: version(name) for name in PACKAGES}}

    def generate(self, prompt: Prompt, max_tokens: int, num_beams: int) -> dict[str, Any]:
        """`seconds` of a whole `model.generate`, exactly `max_tokens` long."""
        vision_x, lang_x, mask = self.inputs(prompt)
        timer = Timer()
        with torch.inference_mode(), timer.running():
            output = self.network.model.generate(
                vision_x,
                lang_x,
                attention_mask=mask,
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens,
                num_beams=num_beams,
            )
        ids, given = output[0].tolist(), lang_x[0].tolist()
        return {"seconds": timer.seconds, "prompt_ids": given, "token_ids": ids[len(given) :]}

    def rank(self, prompt: Prompt, candidates: list[str]) -> dict[str, Any]:
        """What `get_rank_classifications` of its evaluation does with both of its caches: the
        prompt once, then every candidate alone, token by token; mean log-likelihoods."""
        vision_x, lang_x, _ = self.inputs(prompt)
        context, loop = Timer(), Timer()
        with torch.inference_mode():
            with context.running():
                known = self.read_context(vision_x, lang_x)
            with loop.running():
                scores = [self.score(name, known) for name in candidates]
        self.network.model.uncache_media()
        return {"context_seconds": context.seconds, "seconds": loop.seconds, "scores": scores}

    def read_context(self, vision_x: Tensor, lang_x: Tensor) -> Any:
        model = self.network.model
        model.cache_media(input_ids=lang_x, vision_x=vision_x)
        return model(
            vision_x=None,
            lang_x=lang_x,
            attention_mask=torch.ones_like(lang_x),
            clear_conditioned_layers=False,
            use_cache=True,
        )

    def score(self, candidate: str, context: Any) -> float:
        """The softmax is taken over the whole context every time, as theirs is."""
        encoded = self.network.tokenizer(candidate, add_special_tokens=False, return_tensors="pt")
        ids: Tensor = encoded["input_ids"]  # [1, n]
        logits = torch.cat([context.logits, self.step_through(ids, context.past_key_values)], 1)
        logprobs = torch.log_softmax(logits, dim=-1)[:, -ids.shape[1] - 1 : -1]
        return float(torch.gather(logprobs, 2, ids[:, :, None]).mean())

    def step_through(self, ids: Tensor, past: Any) -> Tensor:
        """Logits [1, n, vocab] of tokens fed one at a time."""
        logits = []
        for token in ids.split(1, dim=1):
            output = self.network.model(
                vision_x=None,
                lang_x=token,
                attention_mask=None,
                clear_conditioned_layers=False,
                past_key_values=past,
                use_cache=True,
            )
            past = output.past_key_values
            logits.append(output.logits)
        return torch.cat(logits, dim=1)

    def inputs(self, prompt: Prompt) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels [1, pictures, 1, 3, H, W], ids and mask [1, tokens]."""
        opened = [Image.open(io.BytesIO(base64.b64decode(p))) for p in prompt["pictures"]]
        pixels = torch.stack([self.network.image_processor(picture) for picture in opened])
        encoded = self.network.tokenizer(prompt["text"], return_tensors="pt")
        return pixels[None, :, None], encoded["input_ids"], encoded["attention_mask"]


class Timer:
    seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds = time.perf_counter() - started


def main() -> None:
    """Libraries print to stdout: it is kept for the answers, theirs goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    peer = Peer()
    calls = {"load": peer.load, "generate": peer.generate, "rank": peer.rank}
    for line in sys.stdin:
        call = json.loads(line)
        try:
            answer: dict[str, Any] = {"answer": calls[call.pop("do")](**call)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
