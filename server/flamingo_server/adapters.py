"""The adapters that are loaded, by name, and the folders that more may come from."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path

from flamingo_model.adapted import adapt
from flamingo_model.adapters import (
    AdapterCard,
    AdapterError,
    base_digest,
    check_base,
    read_adapter,
)
from flamingo_model.checkpoints.weights import Weights
from flamingo_model.flamingo import Flamingo
from flamingo_model.packing import always_one_kernel

from .config import Settings
from .engine.request import LoadedAdapter
from .errors import BadRequest, Conflict, Forbidden, NotFound
from .threads import in_passing_thread

logger = logging.getLogger("flamingo_server")
SHOWN = 20  # names in a message


@dataclass(frozen=True)
class Entry:
    adapter: LoadedAdapter
    card: AdapterCard
    num_parameters: int


class AdapterLibrary:
    """Changed on the event loop alone; files are read and views made in passing threads.

    A request keeps the adapter that it began with: one taken out of here lives until they end.
    """

    def __init__(
        self, base: Flamingo, weights: Weights, kernels: str | None, settings: Settings
    ) -> None:
        """`weights` as they are stored, and the kind that the base was packed with."""
        self.base, self.kernels, self.settings = base, kernels, settings
        self.weights = weights if settings.adapter or settings.adapter_folder else None
        self.folders = [Path(folder).resolve() for folder in settings.adapter_folder]
        self.entries: dict[str, Entry] = {}
        self.reserved = set[str]()  # names of those being loaded
        self.generations = count(1)
        self.one_at_a_time = asyncio.Lock()

    def find(self, name: str | None) -> LoadedAdapter | None:
        """None for the base model. Raises NotFound, which says what names there are."""
        if name is None:
            return None
        return self.entry(name).adapter

    def entry(self, name: str) -> Entry:
        if name in self.entries:
            return self.entries[name]
        known = ", ".join(sorted(self.entries)[:SHOWN]) or "none"
        raise NotFound(
            f"adapter {name[:80]!r} is not loaded here; loaded are: {known}",
            param="adapter",
            code="unknown_adapter",
        )

    # ---- loading

    def load_first(self) -> None:
        """Those that the settings name. Raises AdapterError."""
        for folder in self.folders:
            if not folder.is_dir():
                raise AdapterError(f"--adapter-folder {folder} is no folder")
        if len(self.settings.adapters()) > self.settings.max_adapters:
            raise AdapterError(f"--max-adapters is {self.settings.max_adapters}: more are given")
        for name, path in self.settings.adapters().items():
            self.entries[name] = self.open(name, Path(path), path)

    async def load(self, name: str, path: str) -> Entry:
        """Off the event loop, and without a stop of the engine.

        Raises Forbidden, NotFound, Conflict, and BadRequest for a file that does not fit.
        """
        file = self.allowed(path)
        with self.reserve(name):
            async with self.one_at_a_time:
                entry = await in_passing_thread(lambda: self.try_open(name, file, path))
            self.entries[name] = entry
        return entry

    def allowed(self, path: str) -> Path:
        """A file within one of the allowed folders, links followed; relative to it, or whole."""
        self.check_open()
        try:
            found = {folder: (folder / path).resolve() for folder in self.folders}
            inside = [file for folder, file in found.items() if file.is_relative_to(folder)]
            files = [file for file in inside if file.is_file()]
        except (OSError, ValueError, RuntimeError):  # an odd name, or links that go round
            raise BadRequest("path is no path", param="path", code="bad_path") from None
        if not inside:
            message = "path is outside of the folders that --adapter-folder allows"
            raise Forbidden(message, param="path", code="path_not_allowed")
        if not files:
            message = f"no file {path[:80]!r} is in the folders that --adapter-folder allows"
            raise NotFound(message, param="path", code="unknown_file")
        return files[0]

    def check_open(self) -> None:
        if not self.folders:
            message = (
                "adapters are fixed on this server: start it with --adapter-folder to load and "
                "unload them over HTTP"
            )
            raise Forbidden(message, code="adapters_fixed")

    @contextmanager
    def reserve(self, name: str) -> Iterator[None]:
        if name in self.entries or name in self.reserved:
            message = f"an adapter is named {name!r} already: unload it first, or take another name"
            raise Conflict(message, param="name", code="name_taken")
        if len(self.entries) + len(self.reserved) >= (most := self.settings.max_adapters):
            message = f"{most} adapters are loaded, the limit: unload one first"
            raise Conflict(message, param="name", code="too_many_adapters")
        self.reserved.add(name)
        try:
            yield
        finally:
            self.reserved.remove(name)

    def try_open(self, name: str, file: Path, where: str) -> Entry:
        try:
            return self.open(name, file, where)
        except AdapterError as error:
            raise BadRequest(str(error)[:400], param="path", code="bad_adapter") from None

    def open(self, name: str, file: Path, where: str) -> Entry:
        """Raises AdapterError."""
        assert self.weights is not None
        adapter = read_adapter(file, where)
        check_base(adapter, self.weights.layout, self.digest)
        view = adapt(self.base, self.weights, adapter, self.kernels)
        if self.settings.deterministic:
            always_one_kernel(view.model)
        logger.info("adapter %s: %s parameters", name, f"{adapter.num_parameters:,}")
        loaded = LoadedAdapter(name, next(self.generations), view)
        return Entry(loaded, adapter.card, adapter.num_parameters)

    @cached_property
    def digest(self) -> str:
        assert self.weights is not None
        return base_digest(self.weights)

    # ---- unloading

    def unload(self, name: str) -> LoadedAdapter:
        """No request begins with it any more. Raises Forbidden, NotFound."""
        self.check_open()
        self.entry(name)
        return self.entries.pop(name).adapter
