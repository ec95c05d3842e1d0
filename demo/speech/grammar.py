"""What the household says: a grammar of home commands, and the names that came later.

Every sentence is already normalised (lower case, no punctuation). The sports carriers are in the
base grammar with other names, so that an update has to learn names, not sentences.
"""

import random

BASE_NAMES = "federer phelps bolt messi serena kipchoge ronaldo nadal hamilton williams".split()
UPDATE_NAMES = {
    "ledecky": "ledecky kalisz dressel osaka".split(),
    "biles": "biles duplantis ingebrigtsen thiam".split(),
}
SPORTS = (
    "how did {name} do",
    "how did {name} do {day}",
    "show me {name}",
    "show me {name} and {name}",
    "did {name} win",
    "did {name} win {day}",
    "when does {name} play",
    "tell me about {name}",
    "{name} against {name}",
)
HOME = (
    "turn {onoff} the {device}",
    "turn {onoff} the {device} in the {room}",
    "{onoff} with the {room} {device}",
    "is the {device} {onoff}",
    "open the {cover} in the {room}",
    "close the {room} {cover}",
    "set the volume to {number}",
    "turn the volume {updown}",
    "set a timer for {number} minutes",
    "set an alarm for {number}",
    "cancel the {clock}",
    "wake me at {number}",
    "play some {music}",
    "play {music} in the {room}",
    "{transport} the music",
    "next song please",
    "call {person}",
    "send a message to {person}",
    "call {person} {day}",
    "what is the weather in {city}",
    "will it rain {day}",
    "will it snow in {city} {day}",
    "what time is it in {city}",
    "dial {digit} {digit} {digit} {digit}",
)
WORDS = {
    "onoff": "on off",
    "device": "light lamp heating fan oven kettle television radio",
    "room": "kitchen bedroom bathroom garage hall office garden",
    "cover": "door window blinds",
    "updown": "up down",
    "number": "one two three four five six seven eight nine ten twelve fifteen twenty thirty",
    "digit": "zero one two three four five six seven eight nine",
    "clock": "timer alarm",
    "music": "jazz rock classical blues news",
    "transport": "stop pause start",
    "person": "mother father anna peter grandma|the doctor|the office",
    "city": "london paris berlin tokyo madrid",
    "day": "today tomorrow tonight yesterday",
}
SPORTS_SHARE = 0.25


def home_sentence(rng: random.Random) -> str:
    """Draws one sentence of the base grammar: a home command, or sports with a known name."""
    if rng.random() < SPORTS_SHARE:
        return sports_sentence(rng, BASE_NAMES)
    return _fill(rng.choice(HOME), rng, BASE_NAMES)


def sports_sentence(rng: random.Random, names: list[str]) -> str:
    """Draws one sports sentence about one or two of `names`."""
    return _fill(rng.choice(SPORTS), rng, names)


def _fill(carrier: str, rng: random.Random, names: list[str]) -> str:
    words = []
    for word in carrier.split():
        slot = word.strip("{}")
        if slot == word:
            words.append(word)
        elif slot == "name":
            words.append(rng.choice([name for name in names if name not in words]))
        else:
            words.append(rng.choice(_choices(slot)))
    return " ".join(words)


def _choices(slot: str) -> list[str]:
    plain, *phrases = WORDS[slot].split("|")
    return plain.split() + phrases
