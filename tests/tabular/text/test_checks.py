"""Replies read and checked: whatever comes is data, and what cannot be used is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from visynth.core.errors import UsageError
from visynth.tabular.text.backends import Reply
from visynth.tabular.text.checks import (
    Overlap,
    in_language,
    label_agrees,
    length,
    mentions,
    no_boilerplate,
    no_personal_data,
    personal_data,
)
from visynth.tabular.text.classifier import TextClassifier, least_probabilities
from visynth.tabular.text.duplicates import Deduplication, repeats
from visynth.tabular.text.embedding import Latent
from visynth.tabular.text.plan import Record
from visynth.tabular.text.replies import Unusable, check_schema, read_reply

SCHEMA = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "stars": {"type": "integer", "minimum": 1, "maximum": 5}},
    "required": ["text", "stars"],
    "additionalProperties": False,
}
RECORD = Record(0, {"label": "bad", "words": 10, "features": ["battery life", "price"]}, 1)


@pytest.mark.parametrize(
    "said",
    [
        '{"text": "Fine.", "stars": 4}',
        '```json\n{"text": "Fine.", "stars": 4}\n```',
        'Sure! {"text": "Fine.", "stars": 4} I hope that helps.',
        '<think>4 of 5 {"stars": 1}</think>{"text": "Fine.", "stars": 4}',
    ],
)
def test_json_is_found_where_models_put_it(said: str) -> None:
    assert read_reply(Reply(said), SCHEMA) == {"text": "Fine.", "stars": 4}


@pytest.mark.parametrize(
    ("reply", "check", "why"),
    [
        (Reply(""), "empty", "empty"),
        (Reply("{", "length"), "cut off", "write less"),
        (Reply("I like it"), "JSON", "no JSON object"),
        (Reply('{"text": "a", "stars": NaN}'), "JSON", "NaN"),
        (Reply('{"text": "a'), "JSON", "cannot be read"),
        (Reply('{"text": "a", "stars": 9}'), "schema", "field 'stars': 9 is greater than the maximum of 5"),
        (Reply('{"text": "a", "stars": 3, "path": "../x"}'), "schema", "'path'"),
        (Reply('{"stars": "many"}'), "schema", "'text' is a required property"),
        (Reply("[" * 5000 + '{"a":' * 5000), "JSON", ""),
        (Reply('{"text": ' + '{"a":' * 50 + "1" + "}" * 51), "JSON", "nested"),
        (Reply('{"text": "\\ud800", "stars": 3}'), "characters", "'\\ud800'"),
        (Reply('{"text": "a\\u0000b", "stars": 3}'), "characters", "'\\x00'"),
    ],
)
def test_replies_that_cannot_be_used(reply: Reply, check: str, why: str) -> None:
    with pytest.raises(Unusable) as error:
        read_reply(reply, SCHEMA)
    assert error.value.check == check
    assert why in str(error.value)


def test_a_plain_text_that_was_cut_off_ends_at_a_whole_sentence() -> None:
    assert read_reply(Reply("It broke. I was not am", "length"), None) == {"text": "It broke."}
    with pytest.raises(Unusable, match="write less"):
        read_reply(Reply("It broke and I was", "length"), None)
    with pytest.raises(Unusable, match="write less"):
        read_reply(Reply('{"text": "a", "stars": 3}. And', "length"), SCHEMA)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ('"Fine."', "Fine."),
        ("\u201cFine.\u201d", "Fine."),
        ('"Good" and "bad"', '"Good" and "bad"'),
        ("{{ 7 * 7 }}", "{{ 7 * 7 }}"),
    ],
)
def test_plain_replies_lose_only_their_quotes(said: str, text: str) -> None:
    assert read_reply(Reply(said), None) == {"text": text}


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "array"}, "of type object"),
        ({"type": "object", "properties": {"a": {"type": "texts"}}}, "is not valid"),
        ({"type": "object", "properties": {}, "required": ["a"], "additionalProperties": False}, "requires ['a']"),
    ],
)
def test_schemas_that_no_reply_could_meet(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError) as error:
        check_schema(schema)
    assert why in str(error.value)


@pytest.mark.parametrize(
    "said",
    [
        "As an AI language model, I cannot have opinions.",
        "I'm sorry, but I can't write that.",
        "Sure! Here is a review of the phone",
        "Here's a negative review: It broke.",
        "I bought it from [company name] in May.",
        "It broke.<|im_end|>",
        "Review: it broke.",
        "I can\u2019t assist with that.",
        "I cannot fulfill this request.",
        "I apologize, but I can't produce such content.",
        "<think>\nThe user wants a review",
        "**Review:** good",
        "Title: Good\nReview: It broke.",
        "Here are three reviews: one",
        "Certainly, below is a text",
        "The {product} is fine",
        "{{ product }} is fine",
    ],
)
def test_boilerplate_is_refused(said: str) -> None:
    assert no_boilerplate({"text": said}, RECORD)


@pytest.mark.parametrize(
    "said",
    [
        "Sure, it broke after a day.",
        "I can't recommend it.",
        "Here is where it fails.",
        "I can't help but love it.",
        "Of course I returned it.",
        "Sure, I was sceptical.",
        "I'm not able to hear anyone.",
        "I can't create a playlist on it.",
    ],
)
def test_ordinary_words_are_no_boilerplate(said: str) -> None:
    assert no_boilerplate({"text": said}, RECORD) == ""


@pytest.mark.parametrize(
    ("said", "kinds"),
    [
        ("ann@mail.example", ["an e-mail address"]),
        ("4111 1111 1111 1111", ["a card number"]),
        ("4111 1111 1111 1112 parts", []),
        ("DE89 3704 0044 0532 0130 00", ["an IBAN"]),
        ("078-05-1120", ["a social security number"]),
        ("+1 (212) 555-0187", ["a telephone number"]),
        ("server 192.168.0.12", ["an IP address"]),
        ("I paid $1,299.99 on 2021-03-04 for 2 of 10, version 1.2.3", []),
        ("0000 0000 0000 0000", []),
        ("from 2015 to 2017, 100-200-300 mg", []),
    ],
)
def test_personal_data_by_kind(said: str, kinds: list[str]) -> None:
    assert personal_data(said) == kinds
    assert bool(no_personal_data({"note": said}, RECORD)) == bool(kinds)


def test_lengths_follow_the_record() -> None:
    check = length(attribute="words", slack=0.5)
    assert check({"text": "one two three four"}, RECORD) == "it has 4 words: write at least 5"
    assert check({"text": " ".join("abcdefghij")}, RECORD) == ""
    assert check({"text": "a " * 17}, RECORD) == "it has 17 words: write at most 16"


def test_what_must_be_mentioned_may_be_inflected() -> None:
    check = mentions("features")
    assert check({"text": "The batteries' life was short, but priced well."}, RECORD) == ""
    assert check({"text": "The battery was fine."}, RECORD) == "it does not mention 'battery life', 'price'"


def test_other_languages_are_refused_when_sure() -> None:
    check = in_language("en")
    assert check({"text": "The screen of this telephone broke after two days of use."}, RECORD) == ""
    assert "'de'" in check({"text": "Der Bildschirm dieses Telefons ist nach zwei Tagen kaputt gegangen."}, RECORD)
    assert check({"text": "Kaputt."}, RECORD) == ""
    with pytest.raises(UsageError, match="language must be one of"):
        in_language("english")


def test_copied_words_are_found_whatever_their_dress() -> None:
    overlap = Overlap(["The quick brown fox jumps over the lazy dog.", "Bad phone!"], run=5)
    assert overlap.copied("see the QUICK brown, fox jumps") == "the quick brown fox jumps"
    assert overlap.copied("bad PHONE") == "bad phone"
    assert overlap.copied("the quick brown fox sleeps, a bad phone") == ""


def test_the_label_is_checked_by_a_classifier_of_real_texts() -> None:
    texts = [
        f"{word} {thing}"
        for word in ("great", "lovely", "awful", "broken")
        for thing in ("phone", "lamp", "car", "day")
    ]
    model = TextClassifier(texts, ["good"] * 8 + ["bad"] * 8)
    check = label_agrees(model, "label", {"bad": 0.5})
    assert check({"text": "an awful lamp"}, RECORD) == ""
    assert check({"text": "a great lamp"}, RECORD) == "it reads like label 'good', not 'bad'"


def test_a_classifiers_weights_count() -> None:
    texts, labels = ["a x", "a x", "b y", "a y"], ["1", "2", "2", "1"]
    heavy = [
        TextClassifier(texts, labels, balanced=False, weights=w, penalty=1.0) for w in ([9, 1, 1, 1], [1, 9, 1, 1])
    ]
    first, second = (model.probabilities(["a x"])[0, 0] for model in heavy)
    assert first > 0.5 > second
    assert np.allclose(heavy[0].probabilities(["a x", "z"]).sum(axis=1), 1)


def test_repeats_are_found_three_ways_and_the_first_stays() -> None:
    texts = [
        "The battery of this phone is dead after two days",
        "the battery of this phone is dead, after two days!",
        "The battery of this phone was dead after two days",
        "A lamp that I like very much indeed",
    ]
    assert repeats(texts, Deduplication(minhash=None, cosine=None)) == {1: "equal"}
    assert repeats(texts, Deduplication(minhash=0.6, cosine=None)) == {1: "equal", 2: "near by MinHash"}
    embed = Latent([*texts, "other words about a film", "some more about food"])
    assert repeats(texts, Deduplication(minhash=None, cosine=0.8), embed) == {1: "equal", 2: "near in the embedding"}
    assert repeats(texts[3:], Deduplication(minhash=None, cosine=None), before=[texts[3].upper()]) == {0: "equal"}


def test_a_schemas_reference_is_not_fetched() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema"}}}
    with pytest.raises(Exception, match=r"[Uu]nresolvable|NoSuchResource|127"):
        read_reply(Reply(json.dumps({"a": 1})), schema)


def test_an_assistant_may_say_in_a_conversation_what_it_may_not_in_a_review() -> None:
    said = "Let me know if you need more."
    talk = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": said}]}
    assert no_boilerplate({"text": said}, RECORD)
    assert no_boilerplate(talk, RECORD) == ""
    talk["messages"][1]["content"] = "I cannot assist with that."
    assert no_boilerplate(talk, RECORD)


@pytest.mark.data
def test_ordinary_sentences_pass_the_checks(real_data: Callable[[str], Path]) -> None:
    texts = pd.read_csv(real_data("tabular") / "review_sentences.csv")["text"].tolist()
    english = in_language("en")
    for check, most in ((no_boilerplate, 0), (no_personal_data, 0), (english, 0)):
        refused = [text for text in texts if check({"text": text}, RECORD)]
        assert len(refused) <= most, refused[:5]
    some = texts[::6]
    found = repeats(some, Deduplication())
    assert len(found) <= 5, [(some[place], how) for place, how in found.items()]


def test_short_questions_of_a_benchmark_are_found_in_a_conversation() -> None:
    overlap = Overlap(["What is the capital of old Bavaria?", "And why?"], run=13, short=5)
    asked = {"role": "user", "content": "Tell me: what is the capital of old Bavaria? And why?"}
    assert overlap({"messages": [asked, {"role": "assistant", "content": "Munich."}]}, RECORD)
    assert overlap({"messages": [{"role": "user", "content": "And why? Say."}]}, RECORD) == ""


def test_mentions_are_seen_in_possessives_and_joined_words() -> None:
    record = Record(0, {"features": ["battery life", "Wi-Fi"]}, 0)
    assert mentions("features")({"text": "The battery's life is short and the WiFi slow."}, record) == ""
    assert mentions("features")({"text": "The battery\u2019s life is short and the Wi-Fi slow."}, record) == ""


def test_characters_of_languages_without_spaces_are_counted() -> None:
    assert (
        length(most=20)({"text": "\u3053\u308c\u306f\u3068\u3066\u3082\u826f\u3044\u96fb\u8a71\u3067\u3059"}, RECORD)
        == ""
    )
    assert (
        length(least=8)({"text": "\u3053\u308c\u306f\u3068\u3066\u3082\u826f\u3044\u96fb\u8a71\u3067\u3059"}, RECORD)
        == ""
    )


def test_what_is_asked_of_the_label_loses_few_real_texts() -> None:
    rng = np.random.default_rng(0)
    sides = {"good": ("great", "lovely", "fine"), "bad": ("awful", "dull", "broken")}
    texts = [
        f"{rng.choice(sides[label])} {rng.choice(['phone', 'lamp', 'day'])} {k}"
        for label, n in (("good", 90), ("bad", 12))
        for k in range(n)
    ]
    labels = ["good"] * 90 + ["bad"] * 12
    least = least_probabilities(texts, labels, 0.9)
    assert 0 < least["bad"] <= 0.9
    assert least_probabilities(texts, labels, 0.01) == {"bad": 0.01, "good": 0.01}
    assert least_probabilities(["a", "b", "c"], ["x", "x", "y"], 0.3) == {"x": 0.0, "y": 0.0}
