"""How classes are said in English: the sentences that teachers score against images.

The form is that of GEN-VLKT and UPT's ``prompts.json`` ("a photo of a person riding a bicycle"), with the article and the
preposition that a native writer would use. A prompt is the name of a cache column, so changing one drops its column.
"""

from __future__ import annotations

import re

NO_INTERACTION = "no_interaction"
"""The verb of a person and an object that do nothing with each other."""

_NOUN_PHRASES = {  # where neither "a" nor "an" will do
    "person": "another person",
    "broccoli": "broccoli",
    **{
        name: f"a pair of {name.replace('_', ' ')}"
        for name in ("scissors", "skis", "binoculars", "pliers", "shears", "pruning_shears", "spectacles")
    },
}
_AN = re.compile(r"(?!u(ni[^mn]|r[ai]|s[ei])|eu)[aeiou]|hour", re.IGNORECASE)  # by sound: a uniform, a urinal

_PHRASES = {  # (verb, object) where "participle + object" would say something else, or nothing; meant as list_action has it
    ("blow", "cake"): "blowing out candles on {}",
    ("grind", "skateboard"): "grinding on {}",
    ("grind", "snowboard"): "grinding on {}",
    ("light", "cake"): "lighting candles on {}",
    ("pour", "bottle"): "pouring from {}",
    ("read", "laptop"): "reading on {}",
    ("ride", "airplane"): "riding in {}",
    ("ride", "boat"): "riding in {}",
    ("ride", "car"): "riding in {}",
    ("ride", "truck"): "riding in {}",
    ("set", "umbrella"): "setting up {}",
    ("sip", "cup"): "sipping from {}",
    ("sip", "spoon"): "sipping from {}",
    ("sip", "wine_glass"): "sipping from {}",
    ("stick", "fork"): "sticking {} into something",
    ("stick", "knife"): "sticking {} into something",
    ("stir", "bowl"): "stirring food in {}",
    ("tie", "boat"): "tying up {}",
    ("toast", "wine_glass"): "toasting with {}",
    ("wave", "bus"): "waving at {}",
}


def noun_phrase(name: str) -> str:
    """An object's name (underscores or spaces) with its article: "an umbrella", "a sports ball", "a pair of skis"."""
    words = name.replace("_", " ")
    return _NOUN_PHRASES.get(words.replace(" ", "_")) or f"{'an' if _AN.match(words) else 'a'} {words}"


def interaction_prompt(verb: str, participle: str, name: str) -> str:
    """ "a photo of a person riding a bicycle", or "... and a bicycle" for no_interaction.

    Args:
        verb: As in a vocabulary ("sit_on").
        participle: As in a vocabulary ("sitting_on").
        name: The object's.
    """
    return f"a photo of a person {action_phrase(verb, participle, name).format(noun_phrase(name))}"


def action_phrase(verb: str, participle: str, name: str) -> str:
    """ "riding {}", "riding in {}" (an airplane): what a person does with the object that stands for ``{}``."""
    return _PHRASES.get((verb, name)) or f"{_doing(verb, participle)} {{}}"


def this_one(name: str) -> str:
    """An object that was pointed at: "this umbrella", "this pair of skis", "this other person"."""
    words = noun_phrase(name)
    for article in ("a ", "an "):
        words = words.removeprefix(article)
    return f"this {'other person' if name == 'person' else words}"


def interaction_question(verb: str, participle: str, name: str) -> str:
    """ "is there anybody riding a bicycle?": a question to be answered with yes or no (not of no_interaction)."""
    phrase = interaction_prompt(verb, participle, name).removeprefix("a photo of a person ")
    return f"is there anybody {phrase}?"


def verb_prompt(verb: str, participle: str, takes_object: bool = True) -> str:
    """ "a photo of a person riding something", or "... standing" for a verb that takes no object."""
    return f"a photo of a person {_doing(verb, participle)}{' something' if takes_object else ''}"


def object_prompt(name: str) -> str:
    """ "a photo of a bicycle"."""
    return f"a photo of {'a person' if name == 'person' else noun_phrase(name)}"


def printed_prompt(verb: str, name: str) -> str:
    """ "A person ride a bicycle": VLM-HOI's Eq. 2 in its own words. The verb is not inflected, the article is always "a"."""
    for suffix in _ROLES:
        verb = verb.removesuffix(suffix)
    return f"A person {verb.replace('_', ' ')} a {name.replace('_', ' ')}"


def printed_verb_prompt(participle: str) -> str:
    """ "A person is riding": VLM-HOI's table 4, where only the verb is said."""
    return f"A person is {participle.replace('_', ' ')}"


def printed_object_prompt(name: str) -> str:
    """ "A person bicycle": VLM-HOI's table 4, where only the object is said."""
    return f"A person {name.replace('_', ' ')}"


_ROLES = ("_obj", "_instr")
"""Ends of V-COCO's verbs, which say what the object is to them."""


def _doing(verb: str, participle: str) -> str:
    return "and" if verb == NO_INTERACTION else participle.replace("_", " ")


PREFIX_END = re.compile(r"[?:.!]\s*$")
