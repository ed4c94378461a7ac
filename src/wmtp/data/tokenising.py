"""Tokenising in several processes, in the order of the records.

A worker is given the tokenizer's fast backend as JSON and needs no transformers, so it starts at once. It reads texts
from a pipe and ends when the pipe is closed, however the process at the other end came to its end.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from typing import Any

from wmtp.data.records import Record
from wmtp.data.stored import blocks
from wmtp.data.text import Encoder, Tokens, tokenised
from wmtp.errors import ModelError, WmtpError

CHUNK = 256
"""Records that a worker is given at once."""


def with_tokens(records: Iterable[Record], encoder: Encoder, workers: int) -> Iterator[tuple[Record, Tokens]]:
    """Every record with what the tokenizer makes of it, in order.

    Args:
        workers: processes beside this one; 0 tokenises here.

    Raises:
        ModelError: the tokenizer's backend does not give what the tokenizer gives.
        WmtpError: a worker ended.
    """
    if not workers:
        for chunk in blocks(records, CHUNK):
            yield from zip(chunk, encoder.tokens(chunk), strict=True)
        return
    given: deque[list[Record]] = deque()
    with ExitStack() as stack:
        pipes: deque[Connection] = deque()
        for chunk in blocks(records, CHUNK):
            if len(pipes) < workers:
                _check_backend(encoder, chunk[:4])
                pipe = stack.enter_context(_worker(encoder.tokenizer))
            else:
                pipe = pipes.popleft()
                yield from zip(given.popleft(), _answer(pipe), strict=True)
            _ask(pipe, [encoder.texts(record) for record in chunk])
            pipes.append(pipe)
            given.append(chunk)
        while given:
            yield from zip(given.popleft(), _answer(pipes.popleft()), strict=True)


def tokens_of(backend: Any, texts: Sequence[tuple[str, str]]) -> list[Tokens]:
    """What a backend makes of (prompt, response) pairs."""
    encodings = backend.encode_batch([prompt + response for prompt, response in texts], add_special_tokens=False)
    pairs = ((encoding.ids, encoding.offsets) for encoding in encodings)
    return tokenised(pairs, (len(prompt) for prompt, _ in texts))


def _check_backend(encoder: Encoder, records: Sequence[Record]) -> None:
    texts = [encoder.texts(record) for record in records]
    if encoder.tokens(records) != tokens_of(encoder.tokenizer.backend_tokenizer, texts):
        raise ModelError(
            "this tokenizer does not leave all work to its fast backend, so it cannot work in other processes; set "
            "data.workers=0"
        )


@contextmanager
def _worker(tokenizer: Any) -> Iterator[Connection]:
    """A process that answers texts with tokens, until the block ends."""
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks of torch's and gloo's threads
    ours, theirs = context.Pipe()
    backend = tokenizer.backend_tokenizer.to_str()
    process = context.Process(target=_serve, args=(theirs, backend), name="wmtp-tokeniser", daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join()
        process.close()


def _serve(pipe: Connection, backend: str) -> None:
    """The work of a process: it stops when nobody is left to ask. Ctrl-C is for the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process, one core
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(backend)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        while True:
            pipe.send(tokens_of(tokenizer, pipe.recv()))
    except (EOFError, ConnectionError):
        return


def _ask(pipe: Connection, texts: list[tuple[str, str]]) -> None:
    with _alive():
        pipe.send(texts)


def _answer(pipe: Connection) -> list[Tokens]:
    with _alive():
        found: list[Tokens] = pipe.recv()
        return found


@contextmanager
def _alive() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError) as problem:
        raise WmtpError(
            "a process that tokenises has ended (killed, or out of memory?); run it again, with fewer workers"
        ) from problem
