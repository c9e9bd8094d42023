"""Every setting of the server, once: a flag `--max-queued` is the variable FLAMINGO_MAX_QUEUED."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from flamingo_model.checkpoints.families import FAMILIES, PARTS, Parts, misfit

from .engine.limits import EngineLimits
from .media.limits import MediaLimits

MIB = 2**20
ADAPTER_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class Settings(BaseSettings):
    """Read from arguments first, then from FLAMINGO_* variables; frozen afterwards."""

    model_config = SettingsConfigDict(env_prefix="FLAMINGO_", frozen=True, extra="forbid")

    model: str = Field(
        "embedded",
        description="checkpoint: folder, published name, openflamingo's file, or 'embedded'",
    )
    lm: str | None = Field(
        None, description="language model, for families that need it: folder or name on the hub"
    )
    vision: str | None = Field(None, description="CLIP model, likewise")
    cross_attention_interval: int | None = Field(
        None, gt=0, description="cross_attn_every_n_layers of its training, likewise"
    )
    lora: str | None = Field(None, description="file of low-rank updates, for openflamingo-v1")
    adapter: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="NAME=PATH of an adapter that requests may name; repeatable"
    )
    adapter_folder: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="folder from which clients may load adapters, and unload any; repeatable, "
        "none by default",
    )
    max_adapters: int = Field(16, gt=0, description="most adapters loaded at once")
    media_rule: str | None = Field(
        None,
        description="which token sees which picture, in place of the checkpoint's own rule: "
        "last, last_in_prompt, until_end_of_text or legacy",
    )
    family: str = Field(
        "auto",
        validate_default=True,
        description=f"what wrote the checkpoint: auto, {', '.join(FAMILIES)}",
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="comma-separated keys; with any set, all routes but health need one"
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="cpu, cuda, cuda:N, or auto: cuda where there is one",
    )
    dtype: str = Field(
        "auto",
        pattern="^(auto|float32|bfloat16|float16)$",
        description="type of the weights; auto: float32 on a CPU, bfloat16 on CUDA",
    )
    quantize: str = Field(
        "none",
        pattern="^(none|int8|nf4)$",
        description="bits of the language model's layers: none, int8 or nf4",
    )
    kernels: str = Field(
        "auto",
        pattern="^(auto|plain|float32|bfloat16|int8|int4)$",
        description="linear layers on a CPU; auto: in their type, packed; int8 and int4 "
        "round all weights and are several times as fast; plain: torch's own",
    )
    threads: int = Field(0, ge=0, description="CPU threads for the model; 0: one per core")
    max_body_bytes: int = Field(32 * MIB, gt=0, description="largest request body")
    max_media_bytes: int = Field(20 * MIB, gt=0, description="largest encoded picture or film")
    max_pixels: int = Field(50_000_000, gt=0, description="largest picture, width times height")
    max_frames: int = Field(512, gt=0, description="longest animation accepted as a picture")
    max_film_seconds: float = Field(600.0, gt=0, description="longest film, in seconds")
    max_film_frames: int = Field(64, gt=0, description="most frames taken from one film")
    max_prompt_frames: int = Field(
        256, gt=0, description="most frames taken from all films of one prompt"
    )
    max_media: int = Field(64, gt=0, description="most pictures and films in a prompt")
    max_tokens: int = Field(1024, gt=1, description="prompt and answer together, in tokens")
    max_n: int = Field(16, gt=0, description="most choices of one request")
    max_beams: int = Field(16, gt=0, description="most beams of one request")
    max_running: int = Field(32, gt=0, description="sequences that run at once")
    cache_bytes: int = Field(
        1024 * MIB, gt=0, description="memory for keys and values of prompts and answers"
    )
    block_size: int = Field(16, gt=0, le=1024, description="tokens in a block of that memory")
    max_step_tokens: int = Field(2048, gt=0, description="tokens computed in one step")
    max_work: int = Field(
        65_536, gt=0, description="tokens that all choices or beams of a request may generate"
    )
    max_candidates: int = Field(10_000, gt=0, description="most candidates of one request")
    max_candidate_tokens: int = Field(
        262_144, gt=0, description="their tokens, once for each order of the examples"
    )
    deterministic: bool = Field(
        False, description="the same numbers whatever else runs, at the cost of speed"
    )
    max_queued: int = Field(128, gt=0, description="requests accepted at once; more get a 429")
    media_workers: int = Field(1, gt=0, description="processes that decode pictures")
    media_slots: int = Field(256, gt=0, description="pictures whose keys and values are kept")
    latents_bytes: int = Field(256 * MIB, gt=0, description="memory for encoded pictures")
    latents_folder: str | None = Field(
        None, description="folder that keeps encoded pictures over a restart; none by default"
    )
    latents_disk_bytes: int = Field(
        4096 * MIB, gt=0, description="most that this folder may take of the disk"
    )
    decode_timeout_s: float = Field(10.0, gt=0, description="longest decoding of one picture")
    drain_timeout_s: float = Field(30.0, ge=0, description="how long a stop waits for answers")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="verbosity")

    @field_validator("family")
    @classmethod
    def check_family(cls, value: str, info: ValidationInfo) -> str:
        given = [name for name in PARTS if info.data.get(name) is not None]
        if problem := misfit(value, given):
            raise ValueError(problem)
        return value

    @field_validator("api_keys", "adapter", "adapter_folder", mode="before")
    @classmethod
    def split_texts(cls, value: object) -> object:
        """Accepts "key1,key2"; blanks around and between are no keys."""
        if isinstance(value, str):
            return tuple(key for part in value.split(",") if (key := part.strip()))
        return value

    @field_validator("adapter")
    @classmethod
    def check_adapters(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [text.partition("=")[0] for text in value]
        for text, name in zip(value, names, strict=True):
            if not re.fullmatch(ADAPTER_NAME, name) or not text.partition("=")[2]:
                raise ValueError(f"{text[:80]!r} is not NAME=PATH with a NAME like pets-2")
            if names.count(name) > 1:
                raise ValueError(f"two adapters are named {name!r}")
        return value

    def adapters(self) -> dict[str, str]:
        """Paths by name."""
        pairs = (text.partition("=") for text in self.adapter)
        return {name: path for name, _, path in pairs}

    def parts(self) -> Parts:
        return Parts(**{name: getattr(self, name) for name in PARTS})

    def media_limits(self) -> MediaLimits:
        return MediaLimits(
            self.max_media_bytes,
            self.max_pixels,
            self.max_frames,
            self.decode_timeout_s,
            self.max_film_seconds,
            self.max_film_frames,
        )

    def engine_limits(self, bytes_per_token: int) -> EngineLimits:
        """At least one longest request fits, however little memory was given."""
        size = self.block_size
        fits = self.cache_bytes // (bytes_per_token * size)
        return EngineLimits(
            max_running=self.max_running,
            max_length=self.max_tokens,
            block_size=size,
            num_blocks=max(fits, 2 * -(-self.max_tokens // size) + 4),
            max_step_tokens=self.max_step_tokens,
            max_work=self.max_work,
            is_deterministic=self.deterministic,
            num_media_slots=max(self.media_slots, self.max_media),
            max_queued=self.max_queued,
            latents_bytes=self.latents_bytes,
        )
