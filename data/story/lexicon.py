"""The names and nouns of the story world.

First names are common ones; second names are invented. All are short, so that the tokenizer turns each
into one token: a question about a name's second part is then answered by a single token.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GIRLS = _words(
    "Mia Anna Lily Rosa Emma Nora Ella Clara Ruth Ivy Zoe Lena Vera Tara Maya Nina Dora Lucy Olga Sara"
)
BOYS = _words("Tom Ben Max Leo Sam Finn Hugo Jack Noah Otto Paul Rob Adam Karl Ned Ian Felix Theo Luke Omar")

SECOND_NAMES = _words("""
    Talo Brin Velo Dusk Marn Pell Quist Rova Sten Trill Ulma Vang Wick Yarl Zand Bolt
    Corvo Dell Farn Gant Holm Jask Kell Lorn Mavi Nash Orlo Prim Rusk Sorn Tibb Vost
    Wren Zell Bask Crow Dorn Fenn Gull Hask Jute Kova Lund Moss Nell Pike Reed Salt
    Thorn Vale Webb Yost Birk Cobb Dane Frost Glen Hart Kirk Lamb Mott Nook Pogg Rye
""")

COLOURS = _words("red blue green yellow orange purple pink brown black white grey golden")
NUMBERS = _words("two three four five six seven eight nine ten eleven twelve")

# What is said of a thing in passing; each line starts with the thing.
SINGLES: dict[str, tuple[str, ...]] = {
    "kite": ("danced in the wind", "had a very long tail"),
    "ball": ("bounced high into the air", "rolled in a circle and came back"),
    "hat": ("was a little too big", "had a feather on top"),
    "boat": ("was small enough for a bath", "had a paper sail"),
    "drum": ("went boom, boom, boom", "was louder than thunder"),
    "cup": ("smelled of warm milk", "had a tiny crack in it"),
    "lamp": ("glowed like a small moon", "needed only one drop of oil"),
    "box": ("was full of secrets", "opened with a happy click"),
    "scarf": ("was as soft as a kitten", "was longer than a snake"),
    "book": ("was about dragons", "smelled of old paper"),
    "bell": ("rang as clear as water", "said ding and then dong"),
    "ring": ("shone in the light", "was made by a clever old smith"),
    "spoon": ("was good for soup and for music", "was made of wood"),
    "basket": ("smelled of fresh bread", "was as light as a nest"),
    "blanket": ("was warm and soft", "was big enough for two"),
    "whistle": ("sang like a bird", "made every dog look up"),
    "coat": ("had seven pockets", "was warm even in the snow"),
    "flag": ("waved in the breeze", "had a lion on it"),
    "mask": ("looked like a laughing fox", "was funny and not scary at all"),
    "chair": ("was just the right size", "had three legs and a half"),
    "clock": ("was always a little late", "ticked like a happy heart"),
    "puppet": ("could nod and bow", "had a very silly face"),
}
PLURALS: dict[str, tuple[str, ...]] = {
    "apples": ("were sweet and crisp", "shone like little suns"),
    "shells": ("still sounded like the sea", "were smooth and cool"),
    "coins": ("jingled merrily", "had a queen on one side"),
    "buttons": ("came from an old coat", "were as round as peas"),
    "marbles": ("clicked against each other", "rolled about like planets"),
    "stones": ("were flat and smooth", "were good for skipping"),
    "feathers": ("were as light as air", "came from a proud goose"),
    "pears": ("were soft and sweet", "smelled of summer"),
    "keys": ("did not fit any door", "were old and heavy"),
    "eggs": ("were still warm", "had tiny spots"),
    "nuts": ("were hard to crack", "rattled like small drums"),
    "plums": ("were ripe and juicy", "tasted of honey"),
    "stamps": ("came from far away", "showed ships and birds"),
    "acorns": ("wore little caps", "dreamed of being trees"),
    "candles": ("smelled of honey", "were as straight as soldiers"),
    "cakes": ("smelled of cinnamon", "were gone too soon in every dream"),
}
# What is said of a place; "at the ..." must be good English for each.
PLACES: dict[str, tuple[str, ...]] = {
    "pond": ("The ducks were asleep in the reeds.", "A frog jumped in with a splash."),
    "mill": ("The big wheel turned round and round.", "Flour hung in the air like snow."),
    "market": ("It was loud and full of good smells.", "A man was selling cheese and jokes."),
    "barn": ("The hay smelled sweet.", "A cow looked up and said moo."),
    "bridge": ("The water sang below.", "A fish jumped and was gone."),
    "school": ("The windows were open.", "Someone had drawn a whale on the wall."),
    "tower": ("The stairs went up and up.", "An owl was sleeping under the roof."),
    "harbour": ("The ships rocked gently.", "A gull was shouting at the sea."),
    "bakery": ("The air was warm and sweet.", "The bread was just coming out of the oven."),
    "library": ("It was so quiet that you could hear a mouse.", "The books stood in long rows."),
    "well": ("The water was deep and cold.", "An echo lived down there."),
    "station": ("A train puffed and blew its horn.", "The big clock was wrong again."),
    "castle": ("The gate was open and the guard was asleep.", "Ivy grew on the old walls."),
    "farm": ("The hens were busy as ever.", "A pig was enjoying the mud."),
    "lighthouse": ("The waves broke on the rocks.", "The great lamp was turning slowly."),
    "river": ("The water was quick and clear.", "A heron stood on one leg."),
    "fountain": ("The water sparkled.", "A sparrow was taking a bath."),
    "gate": ("It creaked like an old door.", "A cat was sitting on the post."),
    "inn": ("The soup smelled wonderful.", "Somebody was playing a fiddle."),
    "stable": ("The horses were eating oats.", "A pony shook its mane."),
}
