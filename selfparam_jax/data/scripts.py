"""Scripts that write no spaces between words: Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan."""

import re
import unicodedata

# Han, kana and their marks; then the scripts of South-East Asia and Tibetan.
_IDEOGRAPHIC = "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_ALPHABETIC = "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"
UNSPACED = re.compile(f"[{_IDEOGRAPHIC}{_ALPHABETIC}]")
_IDEOGRAPH = re.compile(f"[{_IDEOGRAPHIC}]")
# Letters of such a word, about: most Chinese and Japanese words have two characters, Thai ones four.
_LETTERS = {True: 2, False: 4}


def is_unspaced(text: str) -> bool:
    """Whether at least half of a text's letters belong to a script without spaces; digits belong to none."""
    letters = [character for character in text if character.isalpha()]
    return bool(letters) and 2 * sum(UNSPACED.match(each) is not None for each in letters) >= len(letters)


def segment(text: str) -> list[str]:
    """Units that can be compared: characters of scripts without spaces, and words of others, in lower case.

    A mark (a Thai vowel or tone) belongs to the character before it. Punctuation separates and is left out.
    """
    units: list[str] = []
    joined = False  # whether the next letter continues the last unit
    for character in unicodedata.normalize("NFKC", text).casefold():
        kind = unicodedata.category(character)[0]
        if kind == "M" and units:
            units[-1] += character
        elif kind not in "LN":
            joined = False
        elif UNSPACED.match(character):
            units.append(character)
            joined = False
        elif joined:
            units[-1] += character
        else:
            units.append(character)
            joined = True
    return units


def count_words(word: str) -> int:
    """About how many words a text without white space holds; 0 if it has neither letter nor digit."""
    units = [unit for unit in segment(word) if UNSPACED.match(unit)]
    if not units:
        return int(re.search(r"[^\W_]", word) is not None)
    length = _LETTERS[_IDEOGRAPH.match(units[0]) is not None]
    return -(-len(units) // length)
