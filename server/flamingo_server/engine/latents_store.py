"""Encoded pictures on disk, so that a restart begins warm. Least recently used files go first.

A file is named by the media's digest and lies in a folder named by the weights that encoded it:
another checkpoint never reads it. What cannot be read is as good as absent.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flamingo_model.flamingo import Flamingo

logger = logging.getLogger("flamingo_server.engine")
SUFFIX = ".safetensors"


class LatentsStore:
    """At most `max_bytes` of files. A thread of its own writes them: no step waits for it."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Raises OSError where the folder cannot be made or read."""
        self.folder, self.max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob("*.part"):  # of a process that was killed
            left_over.unlink(missing_ok=True)
        files = sorted(folder.glob(f"*{SUFFIX}"), key=lambda file: file.stat().st_mtime)
        self.sizes = OrderedDict((file.stem, file.stat().st_size) for file in files)
        self.num_bytes = sum(self.sizes.values())
        self.lock = Lock()
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="latents")
        self.drop_oldest()

    def get(self, digest: str) -> Tensor | None:
        """The latents [R, dim] on the CPU, or None."""
        with self.lock:
            if digest not in self.sizes:
                return None
            self.sizes.move_to_end(digest)
        try:
            latents = load_file(self.file(digest))["latents"]
            os.utime(self.file(digest))
            return latents
        except (OSError, SafetensorError, KeyError) as error:
            logger.warning("latents on disk cannot be read, they are made anew: %s", error)
            self.drop(digest)
            return None

    def put(self, digest: str, latents: Tensor) -> None:
        """Soon; a full disk costs the cache only."""
        self.writer.submit(self.write, digest, latents.cpu().contiguous())

    def write(self, digest: str, latents: Tensor) -> None:
        part = self.folder / f"{digest}.part"
        try:
            save_file({"latents": latents}, part)
            size = part.stat().st_size
            part.replace(self.file(digest))
        except OSError as error:
            logger.warning("latents cannot be kept on disk: %s", error)
            part.unlink(missing_ok=True)
            return
        with self.lock:
            self.num_bytes += size - self.sizes.pop(digest, 0)
            self.sizes[digest] = size
        self.drop_oldest()

    def drop_oldest(self) -> None:
        while self.num_bytes > self.max_bytes:
            self.drop(next(iter(self.sizes)))

    def drop(self, digest: str) -> None:
        with self.lock:
            self.num_bytes -= self.sizes.pop(digest, 0)
        self.file(digest).unlink(missing_ok=True)

    def file(self, digest: str) -> Path:
        return self.folder / f"{digest}{SUFFIX}"

    def close(self) -> None:
        """Waits for what is still to be written."""
        self.writer.shutdown()


def encoder_digest(model: Flamingo) -> str:
    """Names all that turns pixels into latents: tower and resampler, their weights and type."""
    found = hashlib.sha256(f"{model.config.vision} {model.config.resampler}".encode())
    for part in (model.vision, model.resampler):
        assert isinstance(part, nn.Module)
        for name, tensor in sorted(part.state_dict().items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()
