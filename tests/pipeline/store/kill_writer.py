"""The process that test_recovery kills: appends, and tells the last offset of each acknowledged batch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.store import DeadLetter, StoreRecord
from tests.pipeline.store import make

NUM_BATCHES = 400


def records(seed: int) -> Iterator[list[StoreRecord]]:
    """Batches of every kind of record over a few ids; the same for the same seed."""
    generator = random.Random(seed)
    offset = 0
    for _ in range(NUM_BATCHES):
        batch: list[StoreRecord] = []
        for _ in range(generator.randint(1, 5)):
            number = generator.randrange(12)
            name, version = f"n{number}", generator.randrange(200)
            kind = generator.choice("uuuuudlx")
            if kind == "u":
                batch.append(make.upsert(name, offset, version, generator.randrange(4), hours=number))
            elif kind == "d":
                batch.append(make.delete(name, offset))
            elif kind == "l":
                batch.append(make.link(name, offset, "canon", version, hours=number))
            else:
                batch.append(DeadLetter(coordinate=make.at(offset), reason="not_json"))
            offset += 1
        yield batch


def main(root: Path, seed: int, sender: Connection) -> None:
    """Go on where the shard's offsets say, sealing and compacting now and then."""
    shard = make.open_shard(root)
    sender.send("open")
    begin = shard.offsets().get((make.TOPIC, 0), 0)
    for number, batch in enumerate(records(seed)):
        last = batch[-1].coordinate.offset
        if last < begin:
            continue
        make.put(shard, *batch)
        sender.send(last)
        if number % 7 == 0:
            shard.seal()
        if number % 11 == 0:
            shard.compact()
