"""Porter's stemmer: the examples of his paper run through all steps, and the changes that ROUGE's package has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from closeup.rl.stem import stem

PORTER = """
caresses caress ponies poni ties tie caress caress cats cat feed feed agreed agre plastered plaster bled bled
motoring motor sing sing conflated conflat troubled troubl sized size hopping hop tanned tan falling fall hissing hiss
fizzed fizz failing fail filing file happy happi relational relat conditional condit rational ration valenci valenc
hesitanci hesit digitizer digit conformabli conform radicalli radic differentli differ vileli vile analogousli analog
vietnamization vietnam predication predic operator oper feudalism feudal decisiveness decis hopefulness hope
callousness callous formaliti formal sensitiviti sensit sensibiliti sensibl triplicate triplic formative form
formalize formal electriciti electr electrical electr hopeful hope goodness good revival reviv allowance allow
inference infer airliner airlin gyroscopic gyroscop adjustable adjust defensible defens irritant irrit
replacement replac adjustment adjust dependent depend adoption adopt homologou homolog communism commun
activate activ angulariti angular homologous homolog effective effect bowdlerize bowdler probate probat rate rate
cease ceas controll control roll roll generalizations gener oscillators oscil
"""

ROUGE = """
dies die flies fli died die spied spi enjoy enjoy try tri skies sky news news lying lie innings inning proceed proceed
carefully care geology geolog archaeology archaeolog possibly possibl added ad using use eyes eye yearly yearli
"""


@pytest.mark.parametrize(("word", "expected"), list(zip(PORTER.split()[::2], PORTER.split()[1::2], strict=True)))
def test_the_examples_of_the_paper(word: str, expected: str) -> None:
    assert stem(word) == expected


@pytest.mark.parametrize(("word", "expected"), list(zip(ROUGE.split()[::2], ROUGE.split()[1::2], strict=True)))
def test_the_later_changes(word: str, expected: str) -> None:
    assert stem(word) == expected


@given(st.text(alphabet="abcdeilnostuyz", max_size=12) | st.text(max_size=12))
def test_any_word_has_a_stem_no_longer_than_itself_but_for_an_e(word: str) -> None:
    found = stem(word)
    assert len(found) <= len(word)
    assert bool(found) == bool(word)
