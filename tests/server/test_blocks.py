"""Blocks of the key/value cache: who holds them, and where a prefix is found again."""

import pytest

from flamingo_server.engine.blocks import BlockPool, OutOfBlocks, Places


def chain(pool: BlockPool, text: str, salt: str | None = None) -> list[int]:
    """Blocks that hold the text, computed and found by it."""
    size = pool.block_size
    blocks, node = pool.allocate(len(text) // size), pool.root(salt)
    for number, block in enumerate(blocks):
        node = pool.register(block, node, tuple(text[number * size : (number + 1) * size]))
        node.is_computed = True
    return blocks


def found(pool: BlockPool, text: str, salt: str | None = None) -> list[int]:
    blocks, node, size = list[int](), pool.root(salt), pool.block_size
    for begin in range(0, len(text), size):
        child = node.child(tuple(text[begin : begin + size]))
        if child is None:
            break
        node = child
        blocks.append(node.block)
    return blocks


def test_block_0_is_never_given_out() -> None:
    assert sorted(BlockPool(4, 2).allocate(4)) == [1, 2, 3, 4]


def test_neighbours_are_given_out_where_there_are_some() -> None:
    pool = BlockPool(8, 2)
    pool.allocate(8)
    pool.release([2, 4, 5, 6, 8])
    assert pool.allocate(3) == [4, 5, 6]
    assert pool.allocate(1, after=7) == [8]


def test_too_many_blocks_at_once_take_none() -> None:
    pool = BlockPool(3, 2)
    with pytest.raises(OutOfBlocks):
        pool.allocate(4)
    assert pool.num_available == 3


def test_a_block_is_free_when_its_last_holder_lets_go() -> None:
    pool = BlockPool(2, 2)
    blocks = pool.allocate(1)
    pool.share(blocks)
    pool.release(blocks)
    assert pool.num_used == 1
    pool.release(blocks)
    assert pool.num_used == 0 and pool.num_available == 2
    pool.check_integrity()


def test_what_nobody_uses_is_kept_until_the_room_is_needed() -> None:
    pool = BlockPool(3, 2)
    pool.release(chain(pool, "abcd"))
    assert len(found(pool, "abcd")) == 2
    pool.allocate(3)
    assert not found(pool, "abcd")
    pool.check_integrity()


def test_the_end_of_a_prefix_is_evicted_before_its_beginning() -> None:
    pool = BlockPool(4, 2)
    pool.release(chain(pool, "abcd"))
    pool.allocate(3)
    assert len(found(pool, "abcd")) == 1


def test_the_prefix_longest_unused_is_evicted_first() -> None:
    pool = BlockPool(3, 1)
    for text in "abc":
        pool.release(chain(pool, text))
    pool.release(pool.share(found(pool, "a")))  # used once more
    pool.allocate(1)
    assert [bool(found(pool, text)) for text in "abc"] == [True, False, True]


def test_a_block_in_use_is_never_evicted() -> None:
    pool = BlockPool(3, 1)
    held = chain(pool, "ab")
    with pytest.raises(OutOfBlocks):
        pool.allocate(2)
    assert found(pool, "ab") == held


def test_salts_never_meet() -> None:
    pool = BlockPool(4, 2)
    chain(pool, "ab", "one")
    assert not found(pool, "ab", "two") and not found(pool, "ab")


class Collides:
    """Unequal, with equal hashes."""

    def __hash__(self) -> int:
        return 1


def test_an_equal_hash_is_not_an_equal_content() -> None:
    pool = BlockPool(4, 1)
    one: Places = (Collides(),)
    pool.register(pool.allocate(1)[0], pool.root(None), one)
    assert pool.root(None).child((Collides(),)) is None and pool.root(None).child(one)


def test_the_first_to_register_a_content_stays() -> None:
    pool = BlockPool(4, 2)
    first, second = chain(pool, "ab"), chain(pool, "ab")
    assert first != second and found(pool, "ab") == first
    pool.release([*first, *second])
    pool.check_integrity()


def test_what_follows_a_forgotten_block_is_forgotten_too() -> None:
    pool = BlockPool(4, 1)
    blocks = chain(pool, "abc")
    pool.forget(blocks[1])
    assert found(pool, "abc") == blocks[:1]
    pool.release(blocks)
    assert pool.num_available == 4
    pool.check_integrity()


def test_the_closest_is_the_computed_one_that_shares_most() -> None:
    pool = BlockPool(4, 4)
    root = pool.root(None)
    for block, text in enumerate(("abxx", "abcx", "abcd"), 1):
        pool.allocate(1)
        pool.register(block, root, tuple(text)).is_computed = text != "abcd"
    node, num = root.closest(tuple("abcd"))
    assert node is not None and (node.block, num) == (2, 3)
    assert root.closest(tuple("zzzz")) == (None, 0)


def test_a_block_that_others_hold_or_know_is_copied_before_it_is_written() -> None:
    pool = BlockPool(6, 2)
    mine = pool.allocate(1)
    assert pool.make_own(mine, 0) is None
    shared = pool.share(mine)
    copy = pool.make_own(shared, 0)
    assert copy == (mine[0], shared[0]) and shared != mine
    known = chain(pool, "ab")
    before = list(known)
    assert pool.make_own(known, 0) == (before[0], known[0]) and found(pool, "ab") == before
    pool.check_integrity()


def test_clients_cannot_fill_the_memory_with_salts() -> None:
    pool = BlockPool(2, 1)
    kept = chain(pool, "a", "used")
    for number in range(3000):
        pool.root(str(number))
    assert len(pool.roots) <= 1025 and found(pool, "a", "used") == kept


def test_integrity_sees_a_lost_block() -> None:
    pool = BlockPool(2, 1)
    pool.free.pop()
    with pytest.raises(AssertionError, match="blocks leaked"):
        pool.check_integrity()
