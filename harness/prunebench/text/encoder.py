"""A tokenizer as the samplers use it: text in, ids out."""

from __future__ import annotations

from typing import Any

_MARGIN = 64  # words at the end of a text whose ids may change when more text follows


class Encoder:
    """Wraps a transformers tokenizer, which adds special tokens as it does by default."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def bos(self) -> int | None:
        """The id that every text starts with, if the tokenizer adds one."""
        added = self("")
        bos: int | None = self._tokenizer.bos_token_id
        return bos if bos is not None and added[:1] == [bos] else None

    @property
    def eos(self) -> int | None:
        """The id that ends a sequence, if the tokenizer has one."""
        eos: int | None = self._tokenizer.eos_token_id
        return eos

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = self._encode(text)["input_ids"]
        return ids

    def stable_prefix(self, text: str) -> list[int]:
        """The leading ids of ``text`` that no following text can change; maybe none.

        A fast tokenizer first splits text into words (its pre-tokenizer) and then encodes each word
        separately. It splits from left to right and looks ahead no further than one run of white
        space, so following text can change the last few words only. The last 64 words are left out.
        A tokenizer that does not split (Llama 2, Gemma) sees a single word, so nothing is stable.
        """
        if not getattr(self._tokenizer, "is_fast", False):
            return []
        encoding = self._encode(text)
        words: list[int | None] = encoding.word_ids(0)  # None for special tokens
        end = len(words)
        last = next((word for word in reversed(words) if word is not None), 0)
        while end and ((word := words[end - 1]) is None or word > last - _MARGIN):
            end -= 1
        ids: list[int] = encoding["input_ids"][:end]
        return ids

    def _encode(self, text: str) -> Any:
        # verbose=False: no warning for a text longer than the model's context, because it is cut
        # into windows later.
        return self._tokenizer(
            text, return_attention_mask=False, return_token_type_ids=False, verbose=False
        )
