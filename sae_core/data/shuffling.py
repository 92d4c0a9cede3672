"""An order of documents drawn by a seed, for more text than fits in memory.

What fits into a buffer is shuffled as a whole. Of more, the document that leaves the buffer is a random one of those in
it, and documents enter it from many files at a time, each file as often as its size says.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import TypeVar

T = TypeVar("T", bound=Sized)
ROOM = 2**27
"""Characters, or tokens, in the buffer for files."""
STREAMED_ROOM = 2**23
"""In the buffer for a stream, that must be filled over the network before anything is trained."""
AT_ONCE = 32
"""Files that are open together."""


def shuffled(items: Iterable[T], rng: random.Random, room: int = ROOM) -> Iterator[T]:
    """All `items` in another order: a uniform one where they fit in `room`, measured by their lengths."""
    buffer: list[T] = []
    size = 0
    for item in items:
        buffer.append(item)
        size += len(item)
        while size > room and len(buffer) > 1:
            place = rng.randrange(len(buffer))
            buffer[place], buffer[-1] = buffer[-1], buffer[place]
            leaving = buffer.pop()
            size -= len(leaving)
            yield leaving
    rng.shuffle(buffer)
    yield from buffer


def interleaved(
    files: Sequence[Path], read: Callable[[Path], Iterator[T]], rng: random.Random, at_once: int = AT_ONCE
) -> Iterator[T]:
    """The items of all `files`, the next always from a file that is drawn by its size among those that are open."""
    waiting, readers, sizes = rng.sample(list(files), len(files)), [], []
    while waiting or readers:
        while waiting and len(readers) < at_once:
            path = waiting.pop()
            readers.append(read(path))
            sizes.append(path.stat().st_size + 1)
        place = rng.choices(range(len(readers)), sizes)[0]
        item = next(readers[place], None)
        if item is None:
            del readers[place], sizes[place]
        else:
            yield item
