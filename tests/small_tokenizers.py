"""Small tokenizers of the kinds that matter to the samplers, trained when they are needed."""

from __future__ import annotations

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXT = (
    "The quick brown fox jumps over the lazy dog, and 12345 other animals don't. \n\n = Heading = \n\n\n"
    "  Indented   text\twith tabs; naïve café — “quoted” 2024-01-31. 漢字 and кириллица mix here!\n"
) * 40


def wrap(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special)


def trained(
    pre_tokenizer: pre_tokenizers.PreTokenizer | None,
    normalizer: normalizers.Normalizer | None = None,
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if pre_tokenizer else [],
        show_progress=False,
        max_token_length=8,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def gpt2_like() -> PreTrainedTokenizerFast:
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.decoder = decoders.ByteLevel()
    return wrap(tokenizer, unk_token="<unk>")


def llama3_like() -> PreTrainedTokenizerFast:
    """Splits by a pattern that looks ahead over white space; starts every text with <s>."""
    pattern = Regex(
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    split = pre_tokenizers.Split(pattern, behavior="isolated")
    tokenizer = trained(
        pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return wrap(tokenizer, unk_token="<unk>", bos_token="<s>")


def llama2_like() -> PreTrainedTokenizerFast:
    """Does not split text into words, so that a merge may depend on any text around it."""
    tokenizer = trained(
        None, normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return wrap(tokenizer, unk_token="<unk>", bos_token="<s>")


KINDS = {"gpt2": gpt2_like, "llama3": llama3_like, "llama2": llama2_like}
