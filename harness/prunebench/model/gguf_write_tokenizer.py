"""The vocabulary of a GGUF file, from a tokenizer.json.

llama.cpp has its own tokenizers: `gpt2` for byte-level BPE, which needs the name of the rule that
cuts text into words, and `llama` for BPE with byte fallback, which merges the pair whose token has
the highest score.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunebench.errors import PrunebenchError
from prunebench.model.wrong_file import read_json

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
"""Types of a token, as llama.cpp numbers them."""
# How words are cut: a part of the regular expression in tokenizer.json -> llama.cpp's name.
_CUTS = (
    (r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*", "llama-bpe"),
    (r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*", "qwen2"),
)


@dataclass(frozen=True)
class GGUFVocabulary:
    """Tokens and how text becomes tokens."""

    folder: Path | None
    """Where special tokens and merges are; None if there are none."""
    model: str
    """'gpt2', 'llama' or 'rwkv'."""
    cut: str
    """How llama.cpp calls the rule that cuts text into words."""
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float] = ()
    """Only of 'llama'."""
    space_first: bool = False

    def describe(self, writer: Any) -> None:
        """Add the vocabulary to a gguf.GGUFWriter."""
        import gguf

        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.cut)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.space_first)
        if self.folder is None:
            return
        logger = logging.getLogger("gguf.vocab")
        level = logger.level
        logger.setLevel(logging.ERROR)  # it warns of templates for pairs of texts
        try:
            special = gguf.SpecialVocab(
                self.folder, load_merges=not self.scores, n_vocab=len(self.tokens)
            )
            special.add_to_gguf(writer, quiet=True)
        finally:
            logger.setLevel(level)


def read_vocabulary(folder: Path, size: int) -> GGUFVocabulary:
    """The vocabulary of a checkpoint with ``size`` embeddings.

    Raises PrunebenchError if llama.cpp has no tokenizer like this one.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise PrunebenchError(
            f"{folder} has no tokenizer.json, which the GGUF file's vocabulary is made from",
            hint="AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes one",
        )
    tokenizer = read_json(path)
    model = tokenizer["model"]
    if model.get("type") != "BPE":
        raise _other_tokenizer(path, f"a {model.get('type')} model")
    bytewise = bool(model.get("byte_fallback"))
    tokens, types = _tokens(tokenizer, size, bytewise=bytewise)
    if bytewise:
        return GGUFVocabulary(
            folder,
            "llama",
            "default",
            tokens,
            types,
            _scores(model, tokens),
            _space_first(tokenizer),
        )
    return GGUFVocabulary(folder, "gpt2", _cut(path, tokenizer), tokens, types)


def id_vocabulary(size: int) -> GGUFVocabulary:
    """A vocabulary whose tokens are their ids.

    It is of RWKV's kind because that has no special tokens; llama.cpp gives the other kinds some
    that end a text, whatever the file says.
    """
    tokens = [f"{index} " for index in range(size)]
    return GGUFVocabulary(None, "rwkv", "default", tokens, [_NORMAL] * size)


def _other_tokenizer(path: Path, what: str) -> PrunebenchError:
    return PrunebenchError(
        f"{path} has {what}, and no tokenizer of llama.cpp is known here to be like it",
        hint="convert the model with llama.cpp's own convert_hf_to_gguf.py",
    )


def _tokens(
    tokenizer: Mapping[str, Any], size: int, *, bytewise: bool
) -> tuple[list[str], list[int]]:
    """Token and type of each row of the embeddings; some families have more rows than tokens."""
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [_UNUSED] * size
    unknown = tokenizer["model"].get("unk_token")
    for token, index in tokenizer["model"]["vocab"].items():
        if index < size:
            byte = bytewise and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
            tokens[index] = token
            types[index] = _UNKNOWN if token == unknown else _BYTE if byte else _NORMAL
    for added in tokenizer.get("added_tokens") or ():
        if (index := added["id"]) < size:
            tokens[index] = added["content"]
            if types[index] != _UNKNOWN:
                types[index] = _CONTROL if added.get("special") else _USER
    return tokens, types


def _scores(model: Mapping[str, Any], tokens: Sequence[str]) -> list[float]:
    """A score by which llama.cpp merges in the order of the list of merges."""
    rank: dict[str, int] = {}
    for index, pair in enumerate(model["merges"]):
        rank.setdefault("".join(pair.split(" ") if isinstance(pair, str) else pair), index)
    return [-float(rank.get(token, len(rank))) for token in tokens]


def _parts(section: Any, key: str) -> list[Mapping[str, Any]]:
    """The steps of a normaliser or pre-tokenizer, which may be one step or a sequence."""
    if not section:
        return []
    return list(section[key]) if section.get("type") == "Sequence" else [section]


def _space_first(tokenizer: Mapping[str, Any]) -> bool:
    """Whether text gets a space before its first word."""
    steps = _parts(tokenizer.get("normalizer"), "normalizers")
    if any(step["type"] == "Prepend" for step in steps):
        return True
    cuts = _parts(tokenizer.get("pre_tokenizer"), "pretokenizers")
    return any(cut.get("prepend_scheme", "never") != "never" for cut in cuts)


def _cut(path: Path, tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for how words are cut before byte-level BPE."""
    steps = _parts(tokenizer.get("pre_tokenizer"), "pretokenizers")
    kinds = [step["type"] for step in steps]
    if not kinds or kinds[-1] != "ByteLevel" or steps[-1].get("add_prefix_space"):
        raise _other_tokenizer(path, f"the pre-tokenizer {' + '.join(kinds) or 'none'}")
    if kinds == ["ByteLevel"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    pattern = str(steps[0].get("pattern", {}).get("Regex", "")) if kinds[0] == "Split" else ""
    for part, name in _CUTS:
        if len(kinds) == 2 and part in pattern:
            return name
    raise _other_tokenizer(path, f"the pre-tokenizer {' + '.join(kinds)}")
