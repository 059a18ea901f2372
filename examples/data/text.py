"""Source text for language modelling: the Python standard library that runs the example, or a folder of yours.

The default needs no download. Files, not passages, are split into training, validation and test: a hash of the file's
name decides, so that the split is the same everywhere and no held-out file shares its text with a training file. The
text belongs to the Python release, so perplexities of different releases do not compare; `TextData.source` names it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
END_OF_FILE = "<|endoffile|>"
_ENDINGS = (".py", ".txt", ".md", ".rst")
# Of the standard library: not its own code, tables rather than text, or different on every machine.
LEFT_OUT = re.compile(
    r"(.*/)?((site|dist)-packages|tests?|idlelib|lib2to3|encodings|pydoc_data|turtledemo|config-[^/]*)/.*"
    r"|_sysconfigdata.*|(site|user)customize\.py|.*\.(txt|md|rst)"
)
_HELD_OUT_OF_64 = 3  # of 64 file names, as many go to validation and as many to test


@dataclass(frozen=True)
class TextData:
    """A tokenised corpus.

    Attributes:
      source: where the text came from, for the report.
      tokenizer: byte-level BPE, made from the training files alone.
      train: token ids `(n,)`; `END_OF_FILE` follows each file.
      validation: as `train`, of other files.
      test: as `train`, of other files again.
      token_bytes: how many bytes of text each token stands for, `(vocabulary,)`; 0 for `END_OF_FILE`.
    """

    source: str
    tokenizer: Tokenizer
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    token_bytes: np.ndarray

    def tokens(self, split: Split) -> np.ndarray:
        """The token ids of a split."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[split]

    def fingerprint(self) -> str:
        """A hash of the tokenizer and all tokens: equal for equal data."""
        digest = hashlib.sha256(self.tokenizer.to_str().encode())
        for split in SPLITS:
            digest.update(self.tokens(split).astype("<i4").tobytes())
        return digest.hexdigest()


def load(data_dir: Path | None = None, vocabulary: int = 2_048) -> TextData:
    """Reads, splits and tokenises a corpus; a few seconds for the standard library.

    Args:
      data_dir: a folder of yours with text files (.py, .txt, .md, .rst); by default the standard library's.
      vocabulary: how many tokens the tokenizer has, at least 257.

    Raises:
      ValueError: if the vocabulary is too small for single bytes, or a split is left without text.
    """
    if vocabulary < 257:
        raise ValueError(f"vocabulary is {vocabulary}; 257 or more are needed for all bytes and {END_OF_FILE}")
    root = data_dir or Path(sysconfig.get_path("stdlib"))
    texts: dict[Split, list[str]] = {split: [] for split in SPLITS}
    for name, text in read_files(root, None if data_dir else LEFT_OUT):
        texts[split_of(name)].append(text)
    empty = [split for split in SPLITS if not any(texts[split])]
    if empty:
        raise ValueError(f"{root} leaves no text for {', '.join(empty)}; name a folder with more files")
    tokenizer = train_tokenizer(texts["train"], vocabulary)
    tokens = {split: encode(tokenizer, texts[split]) for split in SPLITS}
    source = f"folder {root.resolve().name}" if data_dir else f"standard library of Python {platform.python_version()}"
    return TextData(source, tokenizer, **tokens, token_bytes=bytes_of_tokens(tokenizer))


def read_files(root: Path, left_out: re.Pattern[str] | None = None) -> Iterator[tuple[str, str]]:
    """Yields the name, relative to `root`, and the text of every text file, ordered by name.

    Args:
      root: a folder.
      left_out: files whose whole name matches are not read, nor folders whose name with a slash at the end does.
    """
    names: list[str] = []
    for folder, folders, files in os.walk(root):
        inside = Path(folder).relative_to(root)
        found = [(inside / file).as_posix() for file in files if file.endswith(_ENDINGS)]
        if left_out is not None:
            found = [name for name in found if not left_out.fullmatch(name)]
            folders[:] = [name for name in folders if not left_out.fullmatch(f"{(inside / name).as_posix()}/")]
        names += found
    for name in sorted(names):
        yield name, _text_of(root / name)


def split_of(name: str) -> Split:
    """The split of a file: a function of its name alone."""
    bucket = hashlib.sha256(name.encode()).digest()[0] % 64
    if bucket < _HELD_OUT_OF_64:
        return "validation"
    return "test" if bucket < 2 * _HELD_OUT_OF_64 else "train"


def train_tokenizer(texts: list[str], vocabulary: int) -> Tokenizer:
    """Makes a byte-level BPE tokenizer; the same texts give the same one.

    Args:
      texts: of the training files.
      vocabulary: the number of tokens.

    Raises:
      ValueError: if the texts are too short for that many.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_FILE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocabulary:
        raise ValueError(f"the text gives {tokenizer.get_vocab_size()} tokens only; ask for no more, not {vocabulary}")
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """The token ids of all texts in a row, `END_OF_FILE` after each, as 32-bit integers."""
    end = tokenizer.token_to_id(END_OF_FILE)
    pieces = [np.asarray([*encoded.ids, end], np.int32) for encoded in tokenizer.encode_batch_fast(texts)]
    return np.concatenate(pieces)


def bytes_of_tokens(tokenizer: Tokenizer) -> np.ndarray:
    """How many bytes of text each token stands for: a byte-level token has one character a byte."""
    lengths = np.zeros(tokenizer.get_vocab_size(), np.int32)
    for token, index in tokenizer.get_vocab().items():
        lengths[index] = 0 if token == END_OF_FILE else len(token)
    return lengths


def _text_of(path: Path) -> str:
    """Reads a file; Python files in the encoding that they declare."""
    try:
        with tokenize.open(path) as stream:
            return stream.read()
    except (SyntaxError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8", errors="replace")
