"""The bundled model's tokenizer: byte-level BPE, small, with the words of its world as single tokens.

Design note. Any text can be written (all 256 bytes are tokens), but the tokens are spent on what the model reads and
writes: numbers up to 128, colours, the wording of questions, thoughts and tool calls. Numbers are split off as runs of
up to three digits, so that a time such as 104 is one token. Special tokens come first; ids never depend on the machine.

Invariants
1. Every number 0..128, every colour (with its leading space) and every option letter is exactly one token.
2. Text between special tokens is tokenised on its own: tokens never cross them.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from closeup.rl.data.needle_world import COLOURS, LONGEST

SPECIAL = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|im_start|>",
)
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
PAD, END, IMAGE_PAD, VIDEO_PAD, VISION_START, VISION_END = range(6)
ROWS = 640  # embedding rows: the vocabulary rounded up
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SENTENCES = (
    "system\nuser\nassistant\nYou answer questions about a video. Error: the time must be a number.\n",
    "\nWhich digit is in the box?\nA. red\nB. blue\nC. white\nD. pink\n",
    "\nWhich colour shows digit 7?\nWhen does the box appear?\nA. 23.4 s\nB. 23.5 s\nC. 23.6 s\nD. 23.7 s\n",
    "\nHow often does the green light flash between 20 s and 22 s?\n",
    "The red box is at 12s.",
    "I see a red box: 7 (B).",
    "I see a red box: 4. The blue box is at 40s.",
    "I see an orange box: 7 (B).",
    "I see no box. The red box is at 40s.",
    "The options need a closer look.",
    "It is there in 2 of 4 looks (C).",
    "That stretch needs a denser look.",
    "Flashes counted: 3 (B).",
    '\n{"name": "zoom_clip", "arguments": {"start": 12, "end": 13}}\n',
    '\n{"name": "resample_frames", "arguments": {"start": 11.6, "end": 11.9, "num_frames": 7}}\n',
    '\n{"name": "answer", "arguments": {"choice": "B", "evidence": [[12, 13]]}}\n',
)


def build_tokenizer() -> Tokenizer:
    """The tokenizer, built from nothing but the wording above; the same every time.

    Raises:
        RuntimeError: a word that must be one token is not (the corpus above no longer forces it).
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    words = [f" {colour}" for colour in (*COLOURS, "green", "no")]
    trainer = BpeTrainer(
        vocab_size=ROWS,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(text, special=True) for text in SPECIAL]
        + [AddedToken(text, special=False, normalized=False) for text in MARKS],
    )
    numbers = [str(number) for number in range(LONGEST + 1)]
    tokenizer.train_from_iterator([*_SENTENCES * 9, *words * 9, *numbers * 9], trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in MARKS])
    for text in (*words, *numbers, "A", "B", "C", "D", *SPECIAL, *MARKS):
        if len(tokenizer.encode(text).ids) != 1:
            raise RuntimeError(f"{text!r} takes {tokenizer.encode(text).tokens}, not one token")
    if tokenizer.get_vocab_size() > ROWS:
        raise RuntimeError(f"the vocabulary has {tokenizer.get_vocab_size()} tokens, more than {ROWS} embedding rows")
    return tokenizer


def save_tokenizer(folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` into `folder`."""
    build_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": False,
        "model_max_length": 8192,
        "additional_special_tokens": list(SPECIAL[2:]),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
