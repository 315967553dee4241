"""What every text is checked for: length, language, refusals and boilerplate, personal data, copied words, the asked label.

A check gets the reply's fields and its record, and says why the text cannot be used, or nothing. The model is told, and may
try again a bounded number of times.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from visynth.core.errors import MissingExtra, UsageError
from visynth.tabular.text.plan import Record

Check = Callable[[Mapping[str, Any], Record], str]  # why not, or ""
MESSAGES = "messages"  # field of a reply that is a conversation
TEXT = "text"  # field of a reply that is a text and nothing else

WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:['\u2019][^\W\u3040-\u30ff\u3400-\u9fff]+)?"
)
BOILERPLATE = (
    r"\bas an? (?:ai|artificial|language model|large language)\b",
    r"\bi(?:'m| am) (?:an ai|a language model|sorry,? but i (?:can|am|'m|won))",
    r"\bi(?:'m| am) (?:unable|not able) to (?:help|assist|provide|write|create|generate|fulfil|comply)",
    r"\bi (?:cannot|can't|can not|won't|will not) (?:assist with|comply|fulfill?\b|(?:help|provide|write|create|generate|produce)"
    r" (?:you|with|that|this|such|any|content|reviews?|texts?|an? (?:review|text|response))\b)",
    r"\A(?:i apologi[sz]e|unfortunately),? (?:but )?i (?:cannot|can't|am unable|'m unable)",
    r"\A(?:sure|certainly|of course|absolutely)[,!.:]? (?:here(?:'s| is| are)|below (?:is|are)|i can (?:help|write))\b",
    r"\Ahere(?:'s| is| are) (?:a|an|the|your|some|one|my|two|three|four|five|\d+)\b[^.!?\n]{0,80}:",
    r"\[(?:your|insert|name|product|company|date|user)[^\]]{0,40}\]|\{\{?\s*\w+\s*\}?\}",
    r"<\|[a-z_]+\|>|\[/?inst\]|</?s>|</?think>",
    r"\A\W*(?:user|assistant|human|system|customer review|review|title|text|label)\W{0,3}:",
)
CLOSING = (
    r"\b(?:please )?let me know if you(?:'d| would)? (?:need|like|have|want)\b"  # where an assistant does not speak
)
_BOILERPLATE = re.compile("|".join(BOILERPLATE), re.IGNORECASE)
_CLOSING = re.compile(CLOSING, re.IGNORECASE)


def words(text: str) -> list[str]:
    """Words in lower case.

    Example:
        >>> words("Don't buy -- it's BAD.")
        ["don't", 'buy', "it's", 'bad']
    """
    return [word.replace("\u2019", "'") for word in WORD.findall(text.lower())]


def length(least: int = 1, most: int | None = None, attribute: str | None = None, slack: float = 0.5) -> Check:
    """Number of words within limits; where a record says how many it should have, within a part of that.

    Example:
        >>> length(most=3)({"text": "far too many words"}, Record(0, {}, 0))
        'it has 4 words: write at most 3'
    """

    def check(fields: Mapping[str, Any], record: Record) -> str:
        count, low, high = len(words(main_text(fields))), least, most
        if attribute is not None and attribute in record.attributes:
            wanted = int(record.attributes[attribute])
            low, high = max(low, int(wanted * (1 - slack))), int(wanted * (1 + slack)) + 1
        if count < low:
            return f"it has {count} words: write at least {low}"
        return f"it has {count} words: write at most {high}" if high is not None and count > high else ""

    return check


def no_boilerplate(fields: Mapping[str, Any], record: Record) -> str:
    """Refuse what an assistant says about itself, and places that were left to fill in.

    Example:
        >>> no_boilerplate({"text": "As an AI language model I like it."}, Record(0, {}, 0))
        "it says 'As an AI': write the text itself and nothing about it"
    """
    for text in texts_of(fields):
        plain = text.strip().replace("\u2019", "'")
        match = _BOILERPLATE.search(plain) or (_CLOSING.search(plain) if MESSAGES not in fields else None)
        if match:
            return f"it says {match.group()[:40]!r}: write the text itself and nothing about it"
    return ""


def texts_of(fields: Mapping[str, Any]) -> list[str]:
    """The texts of a reply, one by one: of each message of a conversation, of the field "text", or of every field."""
    if MESSAGES in fields:
        return [str(message["content"]) for message in fields[MESSAGES]]
    return [str(fields[TEXT])] if isinstance(fields.get(TEXT), str) else list(strings(list(fields.values())))


def no_personal_data(fields: Mapping[str, Any], record: Record) -> str:
    """Refuse e-mail addresses, telephone and card numbers, IBANs, social security numbers and IP addresses.

    Example:
        >>> no_personal_data({"text": "Write to ann.lee@mail.example today"}, Record(0, {}, 0))
        'it holds personal data (an e-mail address): leave it out'
    """
    found = personal_data(" ".join(strings(fields)))
    return f"it holds personal data ({', '.join(found)}): leave it out" if found else ""


EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*\w")
PHONE = re.compile(
    r"(?<![\w.])(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)[ .-]?)?\d{2,4}(?:[ .-]\d{2,4}){1,4}(?!\w)|\+\d{8,14}\b"
)
DATE = re.compile(r"(?<!\d)(?:\d{4}[.-]\d{1,2}[.-]\d{1,2}|\d{1,2}[.-]\d{1,2}[.-]\d{2,4})(?!\d)")
DIGITS = (10, 15)  # of a telephone number (ITU E.164); two fewer where a country's or an area's marks stand there
CARD = re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b")
SSN = re.compile(r"(?<!\d)(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?!\d)")
IP = re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.])")


def personal_data(text: str) -> list[str]:
    """Kinds of personal data in a text; card numbers and IBANs by their check digits.

    Example:
        >>> personal_data("Card 4111 1111 1111 1111, call +49 30 1234 5678"), personal_data("from 2019-2021 I paid 1,299.00")
        (['a card number', 'a telephone number'], [])
    """
    found = []
    if EMAIL.search(text):
        found.append("an e-mail address")
    cards = [match for match in CARD.finditer(text) if _luhn(re.sub(r"\D", "", match.group()))]
    ibans = [match for match in IBAN.finditer(text) if _iban(match.group().replace(" ", ""))]
    found += ["a card number"] * bool(cards) + ["an IBAN"] * bool(ibans)
    found += ["a social security number"] * bool(SSN.search(text))
    rest = "".join(" " if any(m.start() <= k < m.end() for m in (*cards, *ibans)) else c for k, c in enumerate(text))
    rest = DATE.sub(" ", IP.sub(" ", SSN.sub(" ", rest)))
    if any(_is_phone(match.group()) for match in PHONE.finditer(rest)):
        found.append("a telephone number")
    return [*found, "an IP address"] if IP.search(text) else found


def _is_phone(text: str) -> bool:
    return DIGITS[0] - 2 * ("+" in text or "(" in text) <= sum(c.isdigit() for c in text) <= DIGITS[1]


def _luhn(digits: str) -> bool:
    """Whether a number has the check digit of ISO/IEC 7812."""
    doubled = [int(d) * (2 if place % 2 else 1) for place, d in enumerate(reversed(digits))]
    return len(set(digits)) > 1 and sum(v - 9 if v > 9 else v for v in doubled) % 10 == 0


def _iban(code: str) -> bool:
    """Whether an account number has the check digits of ISO 13616."""
    moved = code[4:] + code[:4]
    return 15 <= len(code) <= 34 and int("".join(str(int(c, 36)) for c in moved)) % 97 == 1


def strings(value: Any, names: bool = True) -> Iterable[str]:
    """All texts in a value of JSON.

    Args:
        value: of lists, objects, texts and others.
        names: whether names of fields are among them.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from map(str, value if names else ())
        for part in value.values():
            yield from strings(part, names)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from strings(part, names)


def in_language(code: str, sure: float = 0.95, least: int = 20) -> Check:
    """Refuse texts that are surely in another language, by py3langid; short texts are not judged.

    Args:
        code: ISO 639-1, e.g. ``"en"``.
        sure: probability of the other language.
        least: characters that a text needs to be judged.
    """
    identifier = _identifier()
    if code not in identifier.labels:
        raise UsageError(f"language must be one of {', '.join(sorted(identifier.labels))}, but got {code!r}.")

    def check(fields: Mapping[str, Any], record: Record) -> str:
        text = main_text(fields)
        if len(text) < least:
            return ""
        language, probability = identifier.classify(text)
        return (
            f"it is in the language {language!r}: write in {code!r}" if language != code and probability >= sure else ""
        )

    return check


@functools.cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise MissingExtra("the check of the language needs py3langid: pip install 'visynth[text]'.") from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def mentions(attribute: str) -> Check:
    """Refuse texts that leave out what they should mention: all words of each thing must stand there, with whatever
    English endings.

    Example:
        >>> mentions("features")({"text": "The battery died."}, Record(0, {"features": ["battery life", "screen"]}, 0))
        "it does not mention 'battery life', 'screen'"
    """

    def check(fields: Mapping[str, Any], record: Record) -> str:
        things = record.attributes.get(attribute, [])
        things = [things] if isinstance(things, str) else list(things)
        said = main_text(fields)
        there = {word.removesuffix("'s").removesuffix("s'") for word in words(said)}
        there |= set(words(said.replace("-", "")))
        lost = [thing for thing in things if not _there(str(thing), there)]
        return f"it does not mention {', '.join(map(repr, lost))}" if lost else ""

    return check


def _there(thing: str, there: set[str]) -> bool:
    """Whether all words of a thing are among some words, whatever their endings."""
    joined = words(thing.replace("-", "").replace(" ", ""))
    if joined and joined[0] in there:
        return True
    return all(any(_stem(word) == _stem(own) for own in there) for word in words(thing.replace("'s", "")))


def _stem(word: str) -> str:
    """A word without the commonest English endings."""
    for ending in ("ies", "es", "s", "ing", "ed", "ly", "y", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


class Overlap:
    """Refuse texts that copy so many words in a row from other texts, or the whole of one.

    Args:
        texts: real texts: those that the prompt shows, and those that were trained on.
        run: words in a row.
        short: texts of fewer than ``run`` words, but of at least so many, must not stand in a text either; None lets them.

    Example:
        >>> Overlap(["the quick brown fox jumps over it"], run=4)({"text": "A quick brown fox jumps."}, Record(0, {}, 0))
        "it copies 'quick brown fox jumps' from a real text: use other words"
    """

    def __init__(self, texts: Iterable[str], run: int = 8, short: int | None = None) -> None:
        if run < 2:
            raise UsageError(f"run must be at least 2 words, but got {run}.")
        self.run = run
        own = [words(text) for text in texts]
        self.runs = {hash(gram) for text in own for gram in grams(text, run)}
        self.whole = {hash(tuple(text)) for text in own if text}
        self.short: dict[int, set[int]] = {}
        for text in own if short is not None else []:
            if (short or 0) <= len(text) < run:
                self.short.setdefault(len(text), set()).add(hash(tuple(text)))

    def __call__(self, fields: Mapping[str, Any], record: Record) -> str:
        copied = next(filter(None, map(self.copied, texts_of(fields))), "")
        return f"it copies {copied!r} from a real text: use other words" if copied else ""

    def copied(self, text: str) -> str:
        """The first words that are copied, or nothing."""
        own = words(text)
        if hash(tuple(own)) in self.whole:
            return " ".join(own[:12])
        found = [gram for gram in grams(own, self.run) if hash(gram) in self.runs][:1]
        for length, known in self.short.items():
            found += [gram for gram in grams(own, length) if hash(gram) in known][:1]
        return " ".join(found[0]) if found else ""


def grams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Runs of ``n`` tokens."""
    return [tuple(tokens[k : k + n]) for k in range(len(tokens) - n + 1)]


class Scorer(Protocol):
    """A classifier of texts."""

    @property
    def classes(self) -> Sequence[str]:
        """Names, in the order of the probabilities."""

    def probabilities(self, texts: Sequence[str]) -> Any:
        """``[N, K]``."""


def label_agrees(classifier: Scorer, attribute: str, least: Mapping[str, float]) -> Check:
    """Refuse texts of whose asked label a classifier of real texts is not even so sure.

    Args:
        classifier: fitted to real texts.
        attribute: the record's label.
        least: probability of it, by label.
    """

    def check(fields: Mapping[str, Any], record: Record) -> str:
        wanted = str(record.attributes[attribute])
        chance = classifier.probabilities([main_text(fields)])[0]
        own = float(chance[list(classifier.classes).index(wanted)])
        if own >= least.get(wanted, 0.0):
            return ""
        other = classifier.classes[int(chance.argmax())]
        return f"it reads like {attribute} {other!r}, not {wanted!r}"

    return check


def main_text(fields: Mapping[str, Any]) -> str:
    """What a reply's fields say, one after the other.

    Example:
        >>> main_text({"title": "Fine", "stars": 5}), main_text({"text": "Fine", "stars": 5})
        ('Fine 5', 'Fine')
    """
    return str(fields[TEXT]) if isinstance(fields.get(TEXT), str) else " ".join(_flat(fields))


def _flat(value: Any) -> list[str]:
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else None
    return [str(value)] if parts is None else [word for part in parts for word in _flat(part)]


def run_checks(checks: Mapping[str, Check], fields: Mapping[str, Any], record: Record) -> tuple[str, str]:
    """Name and reason of the first check that fails, or two empty texts."""
    for name, check in checks.items():
        why = check(fields, record)
        if why:
            return name, why
    return "", ""
