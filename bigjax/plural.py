"""Nouns after numbers, in lines for people."""


def plural(n: float, noun: str) -> str:
    """The noun as it stands after n, printed as a whole number: 'row' after 1, else 'rows'."""
    if round(n) == 1:
        return noun
    return noun + ("es" if noun.endswith("ch") else "s")
