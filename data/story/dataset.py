"""Training rows: documents as tokens, one a row, padded to the length of their bucket.

Documents are not packed together: the names and things of one story must not look like those of another.
"""

from __future__ import annotations

import re
from multiprocessing import Pool
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from data.story.lists import make_list
from data.story.questions import Document, make_document
from data.story.tokens import BOS, EOS, load_tokenizer

BUCKETS = (64, 128, 256, 512)
ANSWER_WEIGHT = 10
# The second part of a name that was told before: as good a lesson in recall as an answer, and more common.
NAME_WEIGHT = 5
DENSE_SHARE = 0.4
LIST_SHARE = 0.4
LIST_LENGTH = 120  # tokens, at most
_CHUNK_ROWS = 2048


def encode(document: Document, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """(token ids with bos and eos, loss weight of each token): an answer's token weighs tenfold."""
    encoding = tokenizer.encode(document.text, add_special_tokens=False)
    weights = [1] * len(encoding.ids)
    for _, end in document.retold:
        weights[encoding.char_to_token(end - 1)] = ANSWER_WEIGHT
    for end in _names_again(document) if not document.retold else ():
        weights[encoding.char_to_token(end - 1)] = NAME_WEIGHT
    for recall in document.recalls:
        for token in range(encoding.char_to_token(recall.start), encoding.char_to_token(recall.end - 1) + 1):
            weights[token] = ANSWER_WEIGHT
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    return [bos, *encoding.ids, eos], [0, *weights, 1]


def _names_again(document: Document) -> list[int]:
    """Where full names end that were told before."""
    names = {f"{event.subject} {event.value}" for _, event in document.events if event.kind == "name"}
    again = [list(re.finditer(rf"\b{name}\b", document.text))[1:] for name in sorted(names)]
    return [found.end() for places in again for found in places]


def _draw(rng: Random, seed: str, length: int) -> Document:
    """A list (only short ones), a dense story or an ordinary one."""
    kind = rng.random()
    if length < LIST_LENGTH and kind < LIST_SHARE:
        return make_list(seed, length)
    return make_document(seed, length, dense=kind > 1 - DENSE_SHARE)


def make_rows(tokenizer: Tokenizer, bucket: int, rows: int, seed: str) -> NDArray[np.uint16]:
    """(2, rows, bucket): token ids and their loss weights (0: padding). A pure function of its arguments."""
    out = np.zeros((2, rows, bucket), dtype=np.uint16)
    rng = Random(f"rows {seed} {bucket}")
    row = attempt = 0
    while row < rows:
        attempt += 1
        length = rng.randint(bucket * 55 // 100, bucket * 92 // 100)
        ids, weights = encode(_draw(rng, f"{seed}/{attempt}", length), tokenizer)
        if len(ids) <= bucket:
            out[0, row, : len(ids)], out[1, row, : len(ids)] = ids, weights
            row += 1
    return out


def _make_chunk(job: tuple[Path, int, int]) -> NDArray[np.uint16]:
    tokenizer_path, bucket, chunk = job
    return make_rows(load_tokenizer(tokenizer_path), bucket, _CHUNK_ROWS, f"train {chunk}")


def write_bucket(tokenizer_path: Path, folder: Path, bucket: int, tokens: int, processes: int) -> Path:
    """Write about `tokens` tokens of `bucket` to a .npy file of shape (chunks, 2, rows, bucket), once."""
    path = folder / f"rows-{bucket}.npy"
    chunks = max(1, round(tokens / (_CHUNK_ROWS * bucket)))
    if path.exists() and np.load(path, mmap_mode="r").shape[0] >= chunks:
        return path
    jobs = [(tokenizer_path, bucket, chunk) for chunk in range(chunks)]
    with Pool(processes) as pool:
        parts = np.stack(list(pool.imap(_make_chunk, jobs)))
    partial = path.with_suffix(".part.npy")
    np.save(partial, parts)
    partial.rename(path)
    return path
