"""What the stories of `induction` are told with: sentences with gaps, and words for the gaps.

`{a}` and `{b}` are characters, whose names have two words. Everything else in braces is a word of that kind.
"""

from __future__ import annotations

_KINDS = {
    "animal": "cat dog horse rabbit duck goat sheep frog bird fox owl mouse turtle pony hen fish bee bear hedgehog "
    "squirrel swan donkey snail cow",
    "thing": "ball kite drum book lamp hat boat box bell rope basket map coin shell button blanket mirror candle flute "
    "wheel spoon cup stone feather key ribbon bucket ladder lantern puzzle",
    "place": "park garden forest river market school farm beach hill barn lake bridge castle cave meadow library "
    "kitchen village mill harbour tower field island orchard",
    "food": "bread soup cake apple pear cheese honey pie milk plum corn jam rice nut berry carrot cookie porridge",
    "quality": "red blue old new small big shiny broken warm soft heavy strange golden wooden green quiet tiny yellow "
    "round bright",
    "feeling": "happy sad tired brave proud afraid hungry calm curious angry glad shy lonely surprised sleepy grateful",
    "action": "dance sing swim read draw climb cook play run paint count whistle dig sew build fly",
    "weather": "sunny rainy windy cold snowy foggy cloudy hot",
    "time": "morning evening afternoon night summer winter spring autumn",
    "family": "mother father sister brother aunt uncle grandmother grandfather cousin teacher",
}
WORDS = {kind: tuple(words.split()) for kind, words in _KINDS.items()}

OPENINGS = (
    "One {weather} {time}, {a} went to the {place}.",
    "Once upon a time, {a} lived near a {quality} {place}.",
    "{a} was a {feeling} child who loved to {action}.",
    "It was a {weather} {time}, and {a} wanted to {action}.",
    "There was a {quality} {place} where {a} liked to {action}.",
    "Every {time}, {a} walked to the {place} with a {quality} {thing}.",
)
MEETINGS = (
    "At the {place}, {a} met {b}.",
    "Soon {b} came along with a {quality} {thing}.",
    "There {a} saw {b}, who was very {feeling}.",
    "A {quality} {animal} ran by, and behind it came {b}.",
    "{b} was already there, and {b} had a {thing}.",
    "The {family} of {b} had sent {b} to the {place}.",
)
EVENTS = (
    "{a} gave {b} a {quality} {thing}.",
    "{a} asked {b} to {action} with the {animal}.",
    "{b} found a {thing} under the {quality} {thing}.",
    "{a} and {b} shared some {food} by the {place}.",
    "The {animal} looked at {a} and ran to the {place}.",
    "{b} was {feeling}, because the {thing} was {quality}.",
    "Then {a} said to {b}, let us {action} at the {place}.",
    "The {family} of {a} brought {food} and a {thing}.",
    "{a} wanted the {quality} {thing}, but {b} had lost it.",
    "A {quality} {animal} took the {food} from {b}.",
    "{b} told {a} about the {animal} in the {place}.",
    "It was {weather}, so {a} put on a {quality} hat.",
    "{a} could not {action}, and that made {a} {feeling}.",
    "Nobody but {b} knew how to {action}.",
    "In the {place}, {b} heard a {quality} {thing}.",
    "{a} helped the {animal}, and {b} held the {thing}.",
    "The {thing} fell, and {a} called for {b}.",
    "{b} laughed, for {a} had {food} on the {thing}.",
    "Without a word, {a} opened the {quality} box.",
    "They all thought that {b} was {feeling}.",
    "At {time}, {a} still looked for the {thing}.",
    "{b} hid behind the {place} until {a} came.",
    "The {family} asked {a} where the {animal} was.",
    "With a {thing}, {b} tried to {action}.",
)
ENDINGS = (
    "In the end, {a} and {b} went home and were {feeling}.",
    "At {time}, {a} thanked {b} for the {thing}.",
    "From that day on, {b} and {a} were friends.",
    "{a} slept well, and the {animal} slept beside {a}.",
    "And so {a} learned to {action}, and {b} was {feeling}.",
    "The {family} of {b} was {feeling}, and so was {a}.",
)
