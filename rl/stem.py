"""English words without their endings: the stemmer that ROUGE is computed with, by rules and tables.

Porter, "An algorithm for suffix stripping" (Program 14.3, 1980, 130-137), with the changes that the `rouge_score`
package's stemmer has (NLTK's): words of `_ALONE`, "-ies" and "-ied" of four letters, "y" after a consonant only,
"-bli", "-alli", "-fulli", "-logi", and a short stem that is a vowel and a consonant keeps its "e".

A stem is read as C?(VC){m}V? with C a run of consonants and V a run of vowels; m is its measure. "y" is a vowel after a
consonant.

Invariant: total for any lower-case text; time is linear in its length.
"""

from __future__ import annotations

_ALONE = {
    **dict.fromkeys(("sky", "skies"), "sky"),
    **{word: word[:-1] for word in ("innings", "outings", "cannings")},
    **{word: word for word in ("news", "howe", "inning", "outing", "canning", "proceed", "exceed", "succeed")},
    **{"dying": "die", "lying": "lie", "tying": "tie"},
}
"""Words that the rules would spoil, and what they become."""

Rules = tuple[tuple[str, str], ...]
_DOUBLE: Rules = (
    ("ational", "ate"), ("tional", "tion"), ("enci", "ence"), ("anci", "ance"), ("izer", "ize"), ("bli", "ble"),
    ("fulli", "ful"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous"), ("ization", "ize"), ("ation", "ate"),
    ("ator", "ate"), ("alism", "al"), ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous"), ("aliti", "al"),
    ("iviti", "ive"), ("biliti", "ble"),
)  # fmt: skip
_SINGLE: Rules = (
    ("icate", "ic"), ("ative", ""), ("alize", "al"), ("iciti", "ic"), ("ical", "ic"), ("ful", ""), ("ness", ""),
)  # fmt: skip
_LAST = (
    "ement", "ance", "ence", "able", "ible", "ment", "ant", "ent", "ion", "ism", "ate", "iti", "ous", "ive", "ize",
    "al", "er", "ic", "ou",
)  # fmt: skip


def stem(word: str) -> str:
    """The stem of a lower-case word; words of up to two letters are their own."""
    if len(word) <= 2 or word in _ALONE:
        return _ALONE.get(word, word)
    word = _past(_plural(word))
    if len(word) > 2 and word.endswith("y") and not _vowels(word)[-2]:
        word = word[:-1] + "i"
    word = _replaced(_doubled(word), _SINGLE)
    return _final(_bare(word))


def _plural(word: str) -> str:
    """Step 1a."""
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _past(word: str) -> str:
    """Step 1b."""
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    ending = next((ending for ending in ("ed", "ing") if word.endswith(ending)), "")
    rest = word.removesuffix(ending)
    if not ending or not _has_vowel(rest):
        return word
    if rest.endswith(("at", "bl", "iz")):
        return rest + "e"
    if len(rest) > 1 and rest[-1] == rest[-2] and not _vowels(rest)[-1]:
        return rest if rest[-1] in "lsz" else rest[:-1]
    return rest + "e" if _measure(rest) == 1 and _is_short(rest) else rest


def _doubled(word: str) -> str:
    """Step 2: two endings become one."""
    if word.endswith("alli") and _measure(word[:-4]) > 0:
        return _doubled(word[:-2])
    if word.endswith("logi"):  # the "l" counts as part of the stem
        return word[:-1] if _measure(word[:-3]) > 0 else word
    return _replaced(word, _DOUBLE)


def _replaced(word: str, rules: Rules) -> str:
    """The word by the first rule that its end fits, if what stands before has a measure above 0."""
    for ending, instead in rules:
        if word.endswith(ending):
            rest = word.removesuffix(ending)
            return rest + instead if _measure(rest) > 0 else word
    return word


def _bare(word: str) -> str:
    """Step 4: the last ending goes, if what stands before has a measure above 1."""
    ending = next((ending for ending in _LAST if word.endswith(ending)), "")
    rest = word.removesuffix(ending)
    if not ending or _measure(rest) < 2 or (ending == "ion" and not rest.endswith(("s", "t"))):
        return word
    return rest


def _final(word: str) -> str:
    """Step 5: a last "e", and one of two last "l"."""
    if word.endswith("e"):
        rest = word[:-1]
        measure = _measure(rest)
        if measure > 1 or (measure == 1 and not _is_short(rest)):
            word = rest
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


def _vowels(word: str) -> list[bool]:
    found: list[bool] = []
    for letter in word:
        found.append(letter in "aeiou" or (letter == "y" and bool(found) and not found[-1]))
    return found


def _has_vowel(word: str) -> bool:
    return any(_vowels(word))


def _measure(word: str) -> int:
    """How often a consonant follows a vowel."""
    vowels = _vowels(word)
    return sum(before and not after for before, after in zip(vowels, vowels[1:], strict=False))


def _is_short(word: str) -> bool:
    """It ends as a short syllable does: consonant, vowel, consonant but w, x, y; or it is a vowel and a consonant."""
    vowels = _vowels(word)
    if len(word) == 2:
        return vowels == [True, False]
    return vowels[-3:] == [False, True, False] and word[-1] not in "wxy"
