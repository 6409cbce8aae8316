"""The sentences stories are told in, as data.

`{A}` is the subject (a name, or a pronoun where that is clear), `{A.first}` always the name; B is the
other person, t a thing, p a place ("the pond"). A sentence in which a pronoun of A and B's name both
stand is worded so that the pronoun can only mean A.
"""

from __future__ import annotations

ONCE = (
    "Once upon a time there was a {A.child} called {A.full}.",
    "Once upon a time there lived a {mood} {A.child} named {A.full}.",
    "Once upon a time a {A.child} called {A.full} lived in a small village.",
    "Once upon a time, far away by the sea, there lived a {mood} {A.child} called {A.full}.",
    "Once upon a time, when the world was young, there was a {A.child} named {A.full}.",
)
OPENINGS = (
    "Long ago, in a small village, there was a {A.child} called {A.full}.",
    "One {weather} morning, {A.full} woke up with a smile.",
    "This is the story of a {mood} {A.child} called {A.full}.",
    "Not far from here lived a {A.child} named {A.full}.",
    "It was a {weather} day, and {A.full} was ready for an adventure.",
    "In a house with a crooked chimney lived a {A.child} called {A.full}.",
    "There was once a {mood} {A.child} whose name was {A.full}.",
    "{A.full} was a {mood} {A.child}.",
    "{A.full} woke up early on a {weather} day.",
)
MOODS = ["kind", "brave", "curious", "cheerful", "quiet", "clever", "merry", "dreamy", "polite", "friendly"]
WEATHERS = ["sunny", "windy", "cloudy", "foggy", "snowy", "bright", "fresh", "rainy", "warm", "cold"]

HAS = (
    "{A} had {t.a}.",
    "{A} owned {t.a} and loved {t.it} very much.",
    "{A} always carried {t.a}.",
    "{A} had found {t.a} that morning.",
    "{A} had bought {t.a} at the fair.",
    "{A} never left home without {t.a}.",
    "With great care, {A} carried {t.a}.",
    "In a bag on {A.his} back, {A.first} kept {t.a}.",
    "For {A.his} birthday, {A.first} had been given {t.a}.",
    "What {A} loved most {t.was} {t.a}.",
    "{A} was holding {t.a} with both hands.",
    "{A} showed everyone {A.his} treasure: {t.a}.",
)
STARTS = (
    "{A} was at {p}.",
    "That day {A} was playing at {p}.",
    "{A} was waiting at {p}.",
    "{A} stood at {p} and looked around.",
    "{A} was sitting at {p}, humming a tune.",
    "The day began at {p}, where {A} was having breakfast.",
)
MOVES = (
    "{A} walked to {p}.",
    "{A} ran all the way to {p}.",
    "Then {A} went to {p}.",
    "After that, {A} hurried to {p}.",
    "{A} skipped along the path to {p}.",
    "{A} set off for {p} and was there in no time.",
    "{A} was curious, so {A.he} walked to {p}.",
    "Because there was plenty of time, {A} strolled over to {p}.",
    "After a little rest, {A} wandered to {p}.",
    "{A} took the short way to {p}.",
    "{A} followed a butterfly to {p}.",
    "{A} rode an old donkey to {p}.",
)
MOVES_BOTH = (
    "{A.first} and {B.first} walked to {p} together.",
    "Side by side, {A.first} and {B.first} went to {p}.",
    "{A.first} took {B.first} by the hand, and they ran to {p}.",
    "Then {A.first} and {B.first} raced each other to {p}.",
    "{A.first} and {B.first} marched to {p}, singing.",
)
MEETS = (
    "At {p} stood a {B.child} called {B.full}.",
    "A {B.child} named {B.full} was already at {p}.",
    "There was a {B.child} at {p}, and {B.his} name was {B.full}.",
    "Who was standing at {p}? It was a {mood} {B.child} called {B.full}.",
    "A {mood} {B.child} was sitting at {p}. {B.his} name was {B.full}.",
)
GIVES = (
    "{A} gave {t.the} to {B.first}.",
    "{A} handed {t.the} to {B.first}.",
    "{A} smiled and gave {t.the} to {B.first}.",
    "{A} passed {t.the} to {B.first} with a laugh.",
    "So {A} gave {B.first} {t.the}.",
    "Very gently, {A} handed {B.first} {t.the}.",
    "{A} thought for a moment and gave {t.the} to {B.first}.",
    "{A} let {B.first} have {t.the}.",
    "Without a word, {A} passed {t.the} to {B.first}.",
    "{A} made a deep bow and offered {t.the} to {B.first}, who took {t.it}.",
)
# Said by B, who will be given t.
ASKS = (
    '"May I have {t.the}, please?" asked {B.first}.',
    '"I like {t.the} so much," said {B.first}.',
    '"Could I look after {t.the} for a while?" asked {B.first}.',
    '"I have always dreamed of {t.that}," said {B.first}, pointing at {t.the}.',
    '"Please, {A.first}, may I borrow {t.the}?" asked {B.first}.',
)
THANKS = (
    '"Thank you, {A.first}!" said {B.first}.',
    '"You are very kind, {A.full}," said {B.first}.',
    '"I will take good care of {t.it}," said {B.first}.',
    "{B.first} was so happy that {B.he} danced.",
    "{B.first} laughed and said thank you three times over.",
    '"What a lovely gift!" cried {B.first}.',
)
GREETINGS = (
    '"Good morning, {B.full}!" said {A.first}. "Hello, {A.full}!" said {B.first}.',
    '"Hello, {A.full}," said {B.first}. "How nice to see you, {B.full}!" said {A.first}.',
    '"My name is {A.full}," said {A.first}. "And mine is {B.full}," said {B.first}.',
    '"Are you {B.full}?" asked {A.first}. "Yes, and you must be {A.full}," said {B.first}.',
)
TALKS = (
    '"How are you today, {B.full}?" asked {A.first}. "Very well, thank you," said {B.first}.',
    '"Do you hear the birds?" asked {A.first}. "They are singing for us," said {B.first}.',
    '"Will it rain?" asked {A.first}. "Only a little," said {B.first}.',
    '"I could eat a whole cheese," said {A.first}. "So could I," said {B.first}.',
    '"Let us count the clouds," said {A.first}. "There are too many," said {B.first} with a laugh.',
    '"Can you keep a secret?" asked {A.first}. "Of course I can," said {B.first}.',
    '"Tell me a joke, {B.full}," said {A.first}. "I only know sad ones," said {B.first}.',
    '"I am a little tired," said {A.first}. "Then let us rest," said {B.first}.',
    '"Are you afraid of the dark?" asked {A.first}. "Not when you are here," said {B.first}.',
    '"What is your favourite colour?" asked {A.first}. "I like them all," said {B.first}.',
    '"Did you sleep well, {B.full}?" asked {A.first}. "Like a stone," said {B.first}.',
    '"Is it true that cats can dream?" asked {A.first}. "They dream of fish," said {B.first}.',
    '"You are my best friend, {B.full}," said {A.first}. "And you are mine," said {B.first}.',
    '"What shall we do now?" asked {A.first}. "Let us sing," said {B.first}, and they did.',
    '"Where do the stars go in the day?" asked {A.first}. "They sleep," said {B.first}.',
)
SHOWS = (
    '"Look at my {t.noun}!" said {A.first}.',
    '"Do you like my {t.noun}?" asked {A.first}.',
    "{A} looked at {t.the} for a long time.",
    "{A} held {t.the} up high.",
    "{A} was careful with {t.the}.",
    "{A} counted {A.his} fingers and then looked at {t.the}.",
)
FEELINGS = (
    "{A} was happy.",
    "{A} laughed out loud.",
    "{A} sang a little song.",
    "{A} looked up at the clouds.",
    "{A} sat down and took a deep breath.",
    "{A} told a story about a goose.",
    "{A} whistled like a blackbird.",
    "{A} felt as brave as a lion.",
    "{A} ate a piece of bread with honey.",
    "{A} thought about supper.",
    "{A} made a wish and told nobody.",
    "{A} tied {A.his} shoes again.",
    "{A} waved at a snail, but the snail was busy.",
    "{A} did not want to be anywhere else.",
    "{A} closed {A.his} eyes and listened.",
    "{A} picked a flower and smelled it.",
)
WEATHER = (
    "The sun was warm.",
    "A soft wind blew.",
    "It began to rain, but nobody minded.",
    "The clouds looked like sheep.",
    "Somewhere a dog barked.",
    "A bee hummed past.",
    "The leaves whispered.",
    "The air smelled of grass.",
    "Far away a horn was calling.",
    "The world was very quiet.",
    "A rainbow stood over the hills.",
    "The morning was cool and clear.",
)
CONNECTIVES = (
    "Then",
    "Soon",
    "Later",
    "A little later",
    "Suddenly",
    "After a while",
    "At last",
    "Before long",
)
ENDINGS = (
    "And that was the end of a very good day.",
    "The sun went down, and the stars came out one by one.",
    "They remembered that day for a long time.",
    "What a day it had been!",
    "And if the wind has not stopped, it is still blowing there.",
    "That night the moon smiled down on them all.",
    "And so the day ended as it had begun, with a song.",
    "Nobody wanted the day to end, but it did.",
)
THE_END = "The end."
