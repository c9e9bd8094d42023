"""Whatever comes, goes and fails, every sequence reads what it would have computed itself."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from block_memory import BlockMemory
from fakes import IdleTask
from flamingo_server.engine.blocks import BlockPool
from flamingo_server.engine.limits import EngineLimits
from flamingo_server.engine.media_cache import MediaCache
from flamingo_server.engine.request import Media, Prompt, Request, Sampling, Sequence, Tree
from flamingo_server.engine.scheduler import Chunk, Plan, Scheduler
from flamingo_server.errors import TooLarge

SEEDS = st.integers(0, 2**16)
NUM_NEW = 5


@dataclass(frozen=True)
class Order:
    """What a client asks for. Few tokens and pictures, so that many prompts begin alike."""

    tokens: list[int]
    digests: list[str]
    salt: str | None
    kind: str
    width: int
    priority: int
    reuses_prefix: bool
    seed: int


ORDERS = st.builds(
    Order,
    tokens=st.lists(st.sampled_from([0, 0, 0, 1]), min_size=1, max_size=24),
    digests=st.lists(st.sampled_from("xxyz"), max_size=2),
    salt=st.sampled_from([None, None, "tenant"]),
    kind=st.sampled_from(["sample", "sample", "beams", "scores"]),
    width=st.integers(1, 3),
    priority=st.sampled_from([0, 0, 0, 1, 2]),
    reuses_prefix=st.sampled_from([True, True, True, False]),
    seed=SEEDS,
)


class Work(IdleTask):
    """What a request does with its logits; dice take the place of a model."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__(width)
        self.kind, self.ready, self.num_parts = kind, set[Sequence](), 3


class Machine(RuleBasedStateMachine):
    @initialize(
        block_size=st.integers(1, 4),
        num_blocks=st.integers(8, 40),
        max_running=st.integers(3, 8),
        max_step_tokens=st.integers(1, 12),
        is_deterministic=st.booleans(),
        sees_all=st.booleans(),
    )
    def begin(
        self,
        block_size: int,
        num_blocks: int,
        max_running: int,
        max_step_tokens: int,
        is_deterministic: bool,
        sees_all: bool,
    ) -> None:
        self.limits = EngineLimits(
            max_running, 64, block_size, num_blocks, 3, max_step_tokens, trie_at_once=NUM_NEW
        )
        self.sees_all, self.is_deterministic = sees_all, is_deterministic
        self.media, self.pool = MediaCache(3), BlockPool(num_blocks, block_size)
        self.scheduler = Scheduler(
            max_running, max_step_tokens, self.pool, self.media, is_deterministic
        )
        self.memory = BlockMemory(block_size, is_deterministic)

    # ---- what clients do

    @rule(orders=st.lists(ORDERS, min_size=1, max_size=6))
    def submit(self, orders: list[Order]) -> None:
        for order in orders:
            request = self.request(order)
            try:
                sampling = Sampling(max_tokens=NUM_NEW, n=request.task.width)
                self.limits.check(len(order.tokens), len(order.digests), sampling)
            except TooLarge:
                continue
            self.scheduler.add(request)

    def request(self, order: Order) -> Request:
        dice = random.Random(order.seed)
        index = sorted(dice.randrange(-1, len(order.digests)) for _ in order.tokens)
        media = [Media(np.zeros(1, np.uint8), digest) for digest in order.digests]
        prompt = Prompt(order.tokens, index, media, dice.choice([None, -1]), order.salt)
        request = Request("test", prompt, lambda event: None, order.priority)
        request.sees_all_media, request.reuses_prefix = self.sees_all, order.reuses_prefix
        request.sequences = [Sequence(request, list(order.tokens))]
        if not order.reuses_prefix:
            request.sequences[0].logits_from = 0
        request.task = Work(order.kind, 1 if order.kind == "scores" else order.width)
        return request

    @rule(seed=SEEDS)
    def abort(self, seed: int) -> None:
        if request := self.anyone(seed):
            self.scheduler.remove(request)

    @rule(seed=SEEDS)
    def expire(self, seed: int) -> None:
        """A deadline passes: what there is is kept."""
        if request := self.anyone(seed):
            for sequence in list(request.sequences):
                self.scheduler.tables.finish(sequence)
            self.scheduler.remove(request)

    @rule(seed=SEEDS)
    def displace(self, seed: int) -> None:
        request = self.anyone(seed)
        if request in self.scheduler.running:
            self.scheduler.preempt(request)

    @precondition(lambda self: self.pool.idle)
    @rule()
    def evict(self) -> None:
        self.pool.evict()

    @rule(seed=SEEDS)
    def fail_alone(self, seed: int) -> None:
        if request := self.anyone(seed):
            self.fail(request)

    # ---- what the engine does

    @rule(seed=SEEDS, fails=st.booleans())
    def step(self, seed: int, fails: bool) -> None:
        dice = random.Random(seed)
        self.scheduler.admit()
        self.load_media(dice)
        plan = self.scheduler.schedule()
        if fails:
            self.memory.spoil(plan)
            for request in plan.requests():
                self.fail(request)
            return
        self.check_plan(plan)
        self.memory.run(plan)
        self.scheduler.commit(plan)
        chunks = [chunk for chunk in plan.in_order() if chunk.wanted]
        for chunk in chunks:
            if self.scheduler.holds(chunk.sequence.request):
                self.take(chunk, dice)

    @rule(seed=SEEDS)
    def steps(self, seed: int) -> None:
        for number in range(8):
            self.step(seed + number, fails=False)

    def load_media(self, dice: random.Random) -> None:
        """One request's pictures at a time; now and then they cannot be encoded."""
        waiting = [r for r in self.scheduler.running if not r.has_media]
        for request in waiting:
            if dice.random() < 0.1:
                self.fail(request)
            elif dice.random() < 0.7:
                self.media.filled.update(m.digest for m in self.media.missing([request]))
                request.has_media = True
        self.memory.fill_slots(self.media)

    def check_plan(self, plan: Plan) -> None:
        assert plan.num_tokens <= self.limits.max_step_tokens
        assert all(chunk.begin < chunk.end for chunk in plan.chunks)
        for chunk in plan.chunks if self.is_deterministic else []:
            assert chunk.end == self.deterministic_end(chunk)

    def deterministic_end(self, chunk: Chunk) -> int:
        """Each token is computed beside the same others, whatever else is in the step."""
        sequence, size = chunk.sequence, self.limits.block_size
        if chunk.begin >= sequence.num_prompt and sequence.tree is None:
            return chunk.begin + 1
        last = sequence.num_prompt if chunk.begin < sequence.num_prompt else len(sequence.tokens)
        whole = (chunk.begin // size + 1) * size
        return min(last, whole, chunk.begin + self.limits.max_step_tokens)

    def fail(self, request: Request) -> None:
        self.scheduler.tables.forget(request)
        self.scheduler.remove(request)

    def take(self, chunk: Chunk, dice: random.Random) -> None:
        sequence, request = chunk.sequence, chunk.sequence.request
        assert isinstance(request.task, Work)
        if chunk.end < len(sequence.tokens):
            return
        is_first, request.first_token = request.first_token is None, 1.0
        if request.task.kind == "scores":
            self.score(sequence, request.task, dice)
        elif request.task.kind == "beams":
            self.search(sequence, request.task, dice)
        else:
            self.sample(sequence, is_first, dice)
        if not request.sequences:
            self.scheduler.remove(request)

    def sample(self, sequence: Sequence, is_first: bool, dice: random.Random) -> None:
        mine, sequence.logits_from = [sequence], None
        if is_first:
            for _ in range(sequence.request.task.width - 1):
                mine.append(self.scheduler.tables.fork(sequence))
        for one in mine:
            self.append(one, dice)

    def append(self, sequence: Sequence, dice: random.Random) -> None:
        sequence.tokens.append(dice.randint(0, 1))
        if len(sequence.tokens) - sequence.num_prompt >= NUM_NEW or dice.random() < 0.1:
            self.scheduler.tables.finish(sequence)

    def search(self, sequence: Sequence, work: Work, dice: random.Random) -> None:
        request, tables, sequence.logits_from = sequence.request, self.scheduler.tables, None
        work.ready.add(sequence)
        if not work.ready >= set(request.sequences):
            return
        old, parents = list(request.sequences), list[Sequence]()
        for _ in range(work.width):
            parents.append(dice.choice(old))
        children = [p if p not in parents[:i] else tables.fork(p) for i, p in enumerate(parents)]
        for beam in old:
            if beam not in children:
                tables.drop(beam)
        for beam in children:
            beam.tokens.append(dice.randint(0, 1))
        work.ready.clear()
        if len(children[0].tokens) - sequence.num_prompt >= NUM_NEW:
            for beam in children:
                tables.drop(beam)

    def score(self, sequence: Sequence, work: Work, dice: random.Random) -> None:
        work.num_parts -= 1
        if not work.num_parts:
            self.scheduler.tables.finish(sequence)
            return
        parents = [dice.randrange(-1, node) for node in range(dice.randint(1, NUM_NEW))]
        sequence.tree = Tree([dice.randint(0, 1) for _ in parents], parents)
        sequence.tokens = sequence.request.prompt.token_ids + sequence.tree.token_ids
        sequence.num_computed = sequence.logits_from = sequence.num_prompt

    # ---- what always holds

    def anyone(self, seed: int) -> Request | None:
        requests = list(self.scheduler.requests())
        return random.Random(seed).choice(requests) if requests else None

    @invariant()
    def is_consistent(self) -> None:
        running = self.scheduler.running
        self.scheduler.check_integrity()
        assert running == sorted(running, key=lambda r: r.rank)
        assert sum(r.task.width for r in running) <= self.limits.max_running
        for request in running:
            for index, slot in request.slots.items():
                assert self.media.slot_of[request.prompt.media[index].digest] == slot
        pins = sum(len(r.slots) for r in running)
        assert pins == sum(self.media.pins.values())

    def teardown(self) -> None:
        """Everybody gets on, and in the end everything is back."""
        if not hasattr(self, "scheduler"):
            return
        num_steps = 0
        while list(self.scheduler.requests()):
            self.step(num_steps, fails=False)
            num_steps += 1
            assert num_steps < 3000, "nobody gets on"
        self.is_consistent()
        self.media.check_integrity()
        assert not self.pool.references and self.pool.num_available == self.pool.num_blocks


Machine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestWhateverComes = Machine.TestCase
