"""Small rules of English: articles, capitals, and when a pronoun may stand for a name."""

from __future__ import annotations

import re

from data.story import lexicon

_FIRST_LETTER = re.compile(r"[A-Za-z]")


def article(word: str) -> str:
    """ "a" or "an" for `word`. The lexicon holds no word whose first sound differs from its letter."""
    return "an" if word[0] in "aeiou" else "a"


def capitalise(sentence: str) -> str:
    """`sentence` with its first letter (after an opening quotation mark) made a capital."""
    found = _FIRST_LETTER.search(sentence)
    if not found:
        return sentence
    at = found.start()
    return sentence[:at] + sentence[at].upper() + sentence[at + 1 :]


def uncapitalise(sentence: str) -> str:
    """`sentence` with a small first letter, for use after a connective ("Then the sun ...")."""
    return sentence[0].lower() + sentence[1:]


_NUMBERS = "|".join(lexicon.NUMBERS)
_SLIPS = {
    "double space": r"  ",
    "space before punctuation": r"(?<=\w) [.,!?]",
    "a before a vowel": r"\b[Aa] [aeiou]\w+",
    "an before a consonant": r"\b[Aa]n [b-df-hj-np-tv-z]\w+",
    "word doubled": r"(?i)\b(\w+) \1\b(?<!had had)",
    "sentence starts small": r"(?<=[.!?] )[a-z]",
    "doubled punctuation": r"[.,!?]{2}",
    "number before a singular": rf"\b(?:{_NUMBERS}) (?:{'|'.join(lexicon.SINGLES)})\b",
    "article before a number": rf"\b[Aa]n? (?:{_NUMBERS})\b",
    "plural was": rf"\b(?:{'|'.join(lexicon.PLURALS)}) (?:was|is|has)\b",
    "singular were": rf"\b(?:{'|'.join(lexicon.SINGLES)}) (?:were|are|have)\b",
}


def grammar_slips(text: str) -> list[str]:
    """Mechanical slips found in `text`: the checks that tests and the evaluation of samples share."""
    slips = [
        f"{name}: {found.group(0)!r}" for name, rule in _SLIPS.items() for found in re.finditer(rule, text)
    ]
    if any(line.count('"') % 2 for line in text.split("\n")):
        slips.append("an odd number of quotation marks in a line")
    return slips
