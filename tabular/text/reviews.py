"""Customer reviews of products by sentiment, length and features to mention, each combination equally often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from visynth.core.errors import UsageError, raise_all
from visynth.tabular.text.prompts import Prompt
from visynth.tabular.text.spec import TextSpec, Wanted

SENTIMENTS = ("positive", "negative")
PROMPT = Prompt(
    system="You write what customers write about products. You reply with the review itself: no title, no comment, no quotes.",
    user=(
        "Write one {{ sentiment }} customer review of {{ product }}, about {{ words }} words long."
        "{% if features is defined %} It mentions: {{ features | join(', ') }}.{% endif %}"
        "{% if style is defined %} Its style is {{ style }}.{% endif %}"
        "{% if persona is defined %} The customer is {{ persona }}.{% endif %}"
        "{% if examples is defined %}\n\nReal reviews of that kind, for the tone alone; use none of their words:\n"
        "{% for example in examples %}- {{ example }}\n{% endfor %}{% endif %}"
    ),
)


def review_spec(
    products: Sequence[str],
    *,
    sentiments: Sequence[str] = SENTIMENTS,
    words: tuple[int, int] = (8, 30),
    features: Sequence[str] | Mapping[str, Sequence[str]] = (),
    mention: int = 1,
    styles: Sequence[str] = (),
    personas: Sequence[str] = (),
    language: str | None = "en",
    shown: int = 0,
    prompt: Prompt | None = None,
    attempts: int = 3,
    rounds: int = 3,
) -> TextSpec:
    """The generator of a set of reviews.

    Args:
        products: each equally often.
        sentiments: each equally often with each product, style and persona.
        words: least and most words, spread evenly.
        features: to mention, of all products or by product.
        mention: features in each review.
        styles: such as "terse" or "a story".
        personas: such as "a retired teacher".
        language: that a review must be in; None does not ask.
        shown: real reviews of the sentiment in each prompt.
        prompt: instead of the built-in one, over the same names.
        attempts: at a review, the first and those with the error told.
        rounds: in which reviews that could not be had are written anew.

    Raises:
        UsageError: all that is wrong.

    Example:
        >>> spec = review_spec(["a lamp"], features=["light", "price"], styles=["terse", "long-winded"])
        >>> spec.label, sorted(spec.attributes)
        ('sentiment', ['features', 'product', 'sentiment', 'style', 'words'])
    """
    problems = [] if products else ["products must name at least one"]
    by_product = isinstance(features, Mapping)
    if by_product and set(features) != set(products):
        problems.append(f"features are of {sorted(features)}, but the products are {sorted(products)}")
    own = list(features.values()) if isinstance(features, Mapping) else [features] if features else []
    problems += [f"mention must be from 1 to {len(f)}, but got {mention}" for f in own if not 1 <= mention <= len(f)]
    if not 1 <= words[0] <= words[1]:
        problems.append(f"words must be two numbers, the lower first, but got {list(words)}")
    raise_all("the reviews", problems, UsageError)
    attributes: dict[str, Any] = {"product": list(products), "sentiment": list(sentiments)}
    attributes |= {name: list(levels) for name, levels in (("style", styles), ("persona", personas)) if levels}
    if isinstance(features, Mapping):
        table = {product: {"choose": mention, "of": list(f)} for product, f in features.items()}
        attributes["features"] = {"given": "product", "table": table}
    elif features:
        attributes["features"] = {"choose": mention, "of": list(features)}
    attributes["words"] = {"range": list(words)}
    wanted = Wanted(words="words", mentions="features" if own else None, language=language, least_words=2)
    return TextSpec(
        prompt or PROMPT, attributes, "sentiment", wanted=wanted, shown=shown, attempts=attempts, rounds=rounds
    )
