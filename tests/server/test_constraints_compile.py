"""Strangers' constraints cost a bounded time, in a process that can be killed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from flamingo_server import constraint_trial
from flamingo_server.constraints import MIB, ConstraintCompiler
from flamingo_server.engine.constraints import Constraint, ConstraintError, Grammars, Matcher
from flamingo_server.errors import Draining, QueueFull
from tiny import tiny_tokenizer

GOOD = Constraint("regex", "[a-z]+")
HANGS = Constraint("json_schema", json.dumps({"type": "integer", "multipleOf": 1_000_003}))
"""Takes llguidance six seconds and more, whatever its limits."""


def many(schema: str, count: int) -> str:
    return json.dumps(
        {"type": "object", "properties": {f"p{i}": json.loads(schema) for i in range(count)}}
    )


NODE = {"type": "array", "items": {"$ref": "#/$defs/n"}}
BOMBS = {
    "repeat": Constraint("regex", "a{1,1000000}"),
    "nested repeats": Constraint("regex", "((((a{1,999}b?){1,999}){1,999}.*){1,999}c){1,999}"),
    "optional repeats": Constraint("regex", "(a?){2000}a{2000}"),
    "exponential states": Constraint("regex", r"(.|\n)*a(.|\n){2000}"),
    "backtracking": Constraint("regex", "((a+)+)+b"),
    "many unicode classes": Constraint("regex", r"(\w|\p{L}|\p{Greek}|\d){1,1000}" * 100),
    "many wildcards": Constraint("regex", "|".join(f".*{i}" for i in range(600))),
    "10,000 choices": Constraint(
        "choices", json.dumps([f"choice, {i * 7919}" for i in range(10_000)])
    ),
    "wide schema": Constraint("json_schema", many('{"type":"string"}', 450)),
    "deep schema": Constraint("json_schema", '{"items":' * 100 + "{}" + "}" * 100),
    "many patterns": Constraint(
        "json_schema", many(r'{"type":"string","pattern":".*a.{99}b"}', 250)
    ),
    "long arrays": Constraint(
        "json_schema", '{"type":"array","minItems":99999,"maxItems":999999,"items":true}'
    ),
    "product of alternatives": Constraint(
        "json_schema",
        json.dumps(
            {
                "allOf": [
                    {"anyOf": [{"properties": {f"p{i}{j}": {"const": j}}} for j in range(5)]}
                    for i in range(5)
                ]
            }
        ),
    ),
    "ambiguous recursion": Constraint(
        "json_schema", json.dumps({"$defs": {"n": {"anyOf": [NODE] * 100}}, "$ref": "#/$defs/n"})
    ),
    "multiple of": HANGS,
    "multiples of": Constraint("json_schema", many('{"type":"integer","multipleOf":10007}', 300)),
}


@pytest.fixture
def compiler() -> Iterator[ConstraintCompiler]:
    compiler = ConstraintCompiler(new_grammars(), timeout_s=1.0)
    yield compiler
    compiler.close()


def new_grammars() -> Grammars:
    return Grammars(tiny_tokenizer(), 264, [0, 1])


def test_what_compiles_is_found_by_the_engine_without_compiling(
    compiler: ConstraintCompiler,
) -> None:
    grammar = asyncio.run(compiler.compile(GOOD))
    assert compiler.grammars.find(GOOD) is grammar
    assert grammar.start().allowed().sum() == 26


def test_what_is_compiled_already_needs_no_process(compiler: ConstraintCompiler) -> None:
    grammar = compiler.grammars.compile(GOOD)
    assert asyncio.run(compiler.compile(GOOD)) is grammar
    assert compiler._trial._process is None


def test_a_bad_constraint_says_why_and_its_process_lives_on(compiler: ConstraintCompiler) -> None:
    async def scenario() -> None:
        for _ in range(2):
            with pytest.raises(ConstraintError, match="unclosed group") as caught:
                await compiler.compile(Constraint("regex", "(a"))
            assert caught.value.param == "constraint"
        process = compiler._trial._process
        await compiler.compile(GOOD)
        assert compiler._trial._process is process

    asyncio.run(scenario())


def test_a_compile_that_hangs_is_killed_and_the_next_one_works(
    compiler: ConstraintCompiler,
) -> None:
    async def scenario() -> None:
        compiler.warm()
        await compiler.compile(Constraint("regex", "warm"))
        started, beats = time.monotonic(), 0

        async def beat() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.01)
                beats += 1

        beating = asyncio.create_task(beat())
        with pytest.raises(ConstraintError, match="too complex"):
            await compiler.compile(HANGS)
        assert 0.9 < time.monotonic() - started < 5
        beating.cancel()
        assert beats > 30  # the event loop went on meanwhile
        assert compiler.grammars.find(HANGS) is None
        await compiler.compile(GOOD)

    asyncio.run(scenario())


def test_bombs_end_within_the_bound_and_cost_the_engine_little(
    compiler: ConstraintCompiler,
) -> None:
    async def scenario() -> None:
        await compiler.compile(GOOD)
        for name, bomb in BOMBS.items():
            started = time.monotonic()
            try:
                matcher = (await compiler.compile(bomb)).start()
            except ConstraintError:
                continue
            finally:
                elapsed = time.monotonic() - started
                assert elapsed < 10, name  # 1 s, a new process, and a busy machine
            assert worst_step(matcher) < 0.5, name

    asyncio.run(scenario())


def worst_step(matcher: Matcher) -> float:
    """Seconds, over an answer of twenty tokens or until it ends."""
    worst, random = 0.0, torch.Generator().manual_seed(0)
    for _ in range(20):
        started = time.monotonic()
        try:
            if matcher.is_finished:
                break
            mask = matcher.allowed()
            logits = torch.rand(len(mask), generator=random) + 1
            matcher.accept(int((logits * mask).argmax()))
        except ConstraintError:
            break
        finally:
            worst = max(worst, time.monotonic() - started)
    return worst


def test_a_compile_out_of_memory_is_an_error_and_the_next_one_works() -> None:
    compiler = ConstraintCompiler(new_grammars(), timeout_s=60, memory_bytes=32 * MIB)

    async def scenario() -> None:
        with pytest.raises(ConstraintError, match="too complex"):
            await compiler.compile(HANGS)
        await compiler.compile(GOOD)

    try:
        asyncio.run(scenario())
    finally:
        compiler.close()


def test_a_process_that_died_unasked_is_replaced(compiler: ConstraintCompiler) -> None:
    async def scenario() -> None:
        await compiler.compile(GOOD)
        process = compiler._trial._process
        assert process is not None
        process.kill()
        process.join()
        await compiler.compile(Constraint("regex", "b"))

    asyncio.run(scenario())


def test_more_than_may_wait_are_turned_away(compiler: ConstraintCompiler) -> None:
    compiler.max_waiting = 2

    async def scenario() -> list[object]:
        patterns = [Constraint("regex", text) for text in "abc"]
        return list(await asyncio.gather(*map(compiler.compile, patterns), return_exceptions=True))

    a, b, refused = asyncio.run(scenario())
    assert isinstance(refused, QueueFull)
    assert not isinstance(a, Exception) and not isinstance(b, Exception)
    asyncio.run(compiler.compile(Constraint("regex", "c")))  # the places are free again


def test_a_client_that_leaves_frees_its_place(compiler: ConstraintCompiler) -> None:
    async def scenario() -> None:
        tasks = [asyncio.create_task(compiler.compile(Constraint("regex", t))) for t in "abc"]
        await asyncio.sleep(0)
        for task in tasks[1:]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert tasks[1].cancelled() and not tasks[0].cancelled()
        await asyncio.sleep(0.01)
        assert not compiler._under_way

    asyncio.run(scenario())


def test_closing_ends_what_is_under_way_and_refuses_the_rest(
    compiler: ConstraintCompiler,
) -> None:
    async def scenario() -> None:
        await compiler.compile(GOOD)
        tasks = [
            asyncio.create_task(compiler.compile(c)) for c in (HANGS, Constraint("regex", "b"))
        ]
        await asyncio.sleep(0.2)
        compiler.close()
        compiler.close()
        for task in tasks:
            with pytest.raises(Draining):
                await asyncio.wait_for(task, 5)
        with pytest.raises(Draining):
            await compiler.compile(Constraint("regex", "c"))

    asyncio.run(scenario())


def test_the_process_loads_neither_torch_nor_the_server() -> None:
    script = f"import sys, {constraint_trial.__name__}; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    loaded = {name.partition(".")[0] for name in out.stdout.split()}
    assert "llguidance" in loaded and not loaded & {"torch", "numpy", "fastapi", "av", "PIL"}
