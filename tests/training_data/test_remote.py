"""Shards fetched over HTTP."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flamingo_model.training.data import remote
from flamingo_model.training.data.document import BadRecord
from flamingo_model.training.data.problems import Missing, SourceError
from flamingo_model.training.data.remote import fetch
from flamingo_model.training.data.source import open_source
from training_data.fake_host import Host, hosting
from training_data.made import documents, pairs, records, tar


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(remote, "_WAIT_S", 0.001)
    shards = {
        f"s-{number}.tar": tar(tmp_path / f"s-{number}.tar", pairs([number, 9])).read_bytes()
        for number in range(3)
    }
    with hosting(Host(shards)) as found:
        yield found


def fetched(host: Host, name: str = "s-0.tar") -> bytes:
    file = io.BytesIO()
    fetch(f"{host.url}/{name}", file)
    return file.getvalue()


def test_fetched_shards_give_what_the_same_shards_here_give(host: Host, tmp_path: Path) -> None:
    there = open_source(f"{host.url}/s-{{0..2}}.tar")
    here = open_source(f"{tmp_path}/s-{{0..2}}.tar")
    assert documents(there) == documents(here)
    for start in (0, 4):
        assert [found.place for found in records(there, start)] == [
            found.place for found in records(here, start)
        ]


def test_a_download_that_breaks_off_is_taken_up_where_it_broke(host: Host) -> None:
    host.breaks = [1000, 1500]
    assert fetched(host) == host.files["s-0.tar"]
    assert [wanted for _, wanted in host.asked] == [None, "bytes=1000-", "bytes=2500-"]


def test_a_server_without_ranges_is_asked_for_all_of_it_again(host: Host) -> None:
    host.breaks, host.with_ranges = [1000], False
    assert fetched(host) == host.files["s-0.tar"]


def test_a_busy_server_is_asked_again_and_one_that_stays_away_ends_the_run(host: Host) -> None:
    host.statuses = [503, 429, 500]
    assert fetched(host) == host.files["s-0.tar"]
    host.statuses = [503] * 4
    with pytest.raises(SourceError, match="127.0.0.1 was tried 4 times: answers 503"):
        fetched(host)


def test_nobody_there_ends_the_run(host: Host) -> None:
    with pytest.raises(SourceError, match="tried 4 times"):
        fetch("http://127.0.0.1:1/a.tar", io.BytesIO())


def test_a_shard_that_is_not_there_is_asked_for_once_and_is_a_bad_record(host: Host) -> None:
    del host.files["s-1.tar"]
    source = open_source(f"{host.url}/s-{{0..2}}.tar?key=secret")
    bad = [record for record in records(source) if record.place == "s-1.tar"]
    assert len(bad) == 1 and len(records(source)) == 5
    with pytest.raises(BadRecord, match="^s-1.tar: 127.0.0.1 answers 404$"):
        bad[0].read()
    assert len([path for path, _ in host.asked if path == "s-1.tar"]) == 2  # once an epoch


def test_errors_never_show_the_keys_in_an_address(host: Host) -> None:
    host.statuses = [403]
    with pytest.raises(Missing) as caught:
        fetch(host.url.replace("//", "//user:secret@") + "/s-0.tar?token=secret", io.BytesIO())
    assert "secret" not in str(caught.value)


def test_a_cache_keeps_shards_for_later_epochs_and_other_runs(host: Host, tmp_path: Path) -> None:
    for _ in range(2):
        source = open_source(f"{host.url}/s-{{0..2}}.tar", cache=str(tmp_path / "cache"))
        first = documents(source)
    assert sorted(path for path, _ in host.asked) == ["s-0.tar", "s-1.tar", "s-2.tar"]
    host.files.clear()
    assert documents(source) == first


def test_a_broken_download_leaves_nothing_in_the_cache(host: Host, tmp_path: Path) -> None:
    host.breaks = [700] * 4
    with pytest.raises(SourceError):
        records(open_source(f"{host.url}/s-0.tar", cache=str(tmp_path / "cache")))
    assert not list((tmp_path / "cache").iterdir())


def test_without_a_cache_nothing_stays_open_once_records_are_gone(host: Host) -> None:
    source = open_source(f"{host.url}/s-{{0..2}}.tar")
    before = len(os.listdir("/proc/self/fd"))
    held = records(source)
    assert len(os.listdir("/proc/self/fd")) == before + 3
    held.clear()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_next_shards_are_fetched_while_these_are_read(host: Host) -> None:
    """Two groups at most: a third would fill the disk."""
    source = open_source(f"{host.url}/s-{{0..2}}.tar", mix=1)
    going = source.epoch(0, 0)
    next(going)
    deadline = time.monotonic() + 20
    while len(host.asked) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(host.asked) == 2
    assert len(list(going)) == 5 and len(host.asked) == 3


def test_only_shards_are_read_from_afar(host: Host) -> None:
    with pytest.raises(SourceError, match="only shards"):
        open_source(f"{host.url}/a.jsonl")
