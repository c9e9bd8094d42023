"""What lives as long as the server: model, engine, picture pool, metrics. Loaded off the loop."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from tokenizers import Tokenizer

from flamingo_model.cache import BlockCache
from flamingo_model.checkpoints.weights import CheckpointError
from flamingo_model.flamingo import Flamingo
from flamingo_model.media import Transform
from flamingo_model.packing import always_one_kernel, pack_model
from flamingo_model.prompt import build_renderer
from flamingo_model.templates import Templates

from .adapters import AdapterLibrary
from .checkpoints import load_opened, open_settings
from .config import Settings
from .engine.engine import Engine, EngineStats
from .engine.latents_store import LatentsStore, encoder_digest
from .engine.request import LoadedAdapter
from .engine.runner import Runner
from .errors import Draining, NotFound
from .media.pool import MediaPool
from .metrics import Metrics
from .prompts import PromptBuilder, PromptLimits
from .protocol.generate import ConstraintRule
from .threads import give_way, in_passing_thread

if TYPE_CHECKING:
    from .constraints import ConstraintCompiler
    from .engine.constraints import Grammar

logger = logging.getLogger("flamingo_server")
KERNELS = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
Status = Literal["loading", "ready", "draining", "failed"]


class Service:
    """`load` makes it ready; routes reach it as `app.state.service`."""

    engine: Engine
    prompts: PromptBuilder
    pool: MediaPool
    tokenizer: Tokenizer
    transform: Transform
    adapters: AdapterLibrary

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.model_name = ""
        self.is_loaded = False
        self.load_error: BaseException | None = None
        self.compiler: ConstraintCompiler | None = None  # made with the first constraint
        self.compiler_lock = asyncio.Lock()
        self.spellings: dict[int, str] = {}

    @property
    def status(self) -> Status:
        if not self.is_loaded:
            return "loading" if self.load_error is None else "failed"
        if self.engine.is_draining:
            return "draining"
        return "ready" if self.engine.is_alive else "failed"

    def check_ready(self) -> None:
        if self.status != "ready":
            raise Draining(f"the server is {self.status}: try again in a moment", code=self.status)

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.model_name:
            raise NotFound(
                f"model {name[:80]!r} is not loaded here; {self.model_name!r} is",
                param="model",
                code="unknown_model",
            )

    def adapter(self, name: str | None) -> LoadedAdapter | None:
        """What a request runs with; it keeps it until it has ended. Raises NotFound."""
        found = self.adapters.find(name)
        if found is not None:
            self.metrics.adapter_requests.labels(found.name).inc()
        return found

    def load(self) -> None:
        """Reads the checkpoint and starts the engine; raises CheckpointError, QuantizeError."""
        torch.set_num_threads(self.settings.threads or os.cpu_count() or 1)
        opened = open_settings(self.settings)
        model, self.tokenizer = load_opened(opened, self.settings, self.device()), opened.tokenizer
        config = model.config
        transform = config.vision.pixel_transform()
        limit = min(self.settings.max_tokens, config.decoder.max_positions)
        self.settings = self.settings.model_copy(update={"max_tokens": limit})
        like = model.decoder.embed.weight
        limits = self.settings.engine_limits(BlockCache.bytes_per_token(config, like.dtype))
        store = self.latents_store(model)  # named by the weights, which packing hides
        kernels = self.pack(model)
        self.adapters = AdapterLibrary(model, opened.weights, kernels, self.settings)
        self.adapters.load_first()
        self.engine = Engine(config, Runner(model, limits), self.tokenizer, limits, store)
        self.pool = MediaPool(transform, self.settings.media_limits(), self.settings.media_workers)
        self.prompts = PromptBuilder(
            build_renderer(self.tokenizer, config),
            Templates(config.templates, config.tokens, special_tokens(self.tokenizer)),
            self.pool,
            PromptLimits(limit, self.settings.max_media, self.settings.max_prompt_frames),
        )
        self.transform = transform
        self.pool.warm()
        self.engine.start()
        if like.device.type == "cpu":
            give_way(self.engine.thread)
        self.model_name = config.name
        self.is_loaded = True

    def latents_store(self, model: Flamingo) -> LatentsStore | None:
        """Raises CheckpointError where its folder cannot be used."""
        settings = self.settings
        if settings.latents_folder is None:
            return None
        folder = Path(settings.latents_folder) / f"{encoder_digest(model)}-{settings.kernels}"
        try:
            return LatentsStore(folder, settings.latents_disk_bytes)
        except OSError as error:
            raise CheckpointError(f"--latents-folder cannot be used: {error}") from None

    def pack(self, model: Flamingo) -> str | None:
        """Gives the layers of a model on a CPU its fastest kernels; of which kind, if of any."""
        weight, kind = model.decoder.embed.weight, self.settings.kernels
        kind = KERNELS.get(weight.dtype, "plain") if kind == "auto" else kind
        if kind == "plain" or weight.device.type != "cpu":
            return None
        logger.info("packed: %s", pack_model(model, kind))
        if self.settings.deterministic:
            always_one_kernel(model)
        return kind

    def device(self) -> str:
        if self.settings.device != "auto":
            return self.settings.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    async def close(self) -> None:
        """Lets running requests end, refuses new ones, then frees everything."""
        if self.is_loaded:
            await asyncio.to_thread(self.engine.drain, self.settings.drain_timeout_s)
            await asyncio.to_thread(self.pool.close)
        if self.compiler is not None:
            await asyncio.to_thread(self.compiler.close)

    async def compile(self, rule: ConstraintRule | None) -> Grammar | None:
        """Raises BadRequest for a constraint that is malformed, unsatisfiable or too complex."""
        if rule is None:
            return None
        async with self.compiler_lock:
            if self.compiler is None:
                self.compiler = await in_passing_thread(self.new_compiler)
        from .engine.constraints import Constraint

        return await self.compiler.compile(Constraint(rule.kind, rule.value))

    def new_compiler(self) -> ConstraintCompiler:
        from .constraints import ConstraintCompiler  # its library is loaded for the first one
        from .engine.constraints import Grammars

        vocab_size = self.engine.runner.model.config.decoder.vocab_size
        return ConstraintCompiler(Grammars(self.tokenizer, vocab_size, self.engine.stop_ids))

    def stats(self) -> EngineStats | None:
        return self.engine.stats() if self.is_loaded else None

    def spelling(self, token_id: int) -> str:
        """Kept, because thousands may be asked for at once."""
        found = self.spellings.get(token_id)
        if found is None:
            found = self.tokenizer.decode([token_id], skip_special_tokens=False)
            self.spellings[token_id] = found
        return found


def special_tokens(tokenizer: Tokenizer) -> list[str]:
    return [t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special]
