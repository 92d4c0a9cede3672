"""The words and sentences of `storybook`: data only; `grammar.py` says how they are used.

A sentence is a string of tokens separated by spaces. `{A}` is a person (drawn where first named, the
same one afterwards), `{A.he}` that person's pronoun, `{A:giver}` the person in that role, `{gift/A}`
a thing that A receives, and any other `{class}` a word drawn uniformly from the class of that name.
"""

FEMALE = (
    "Mary Anna Alice Emma Lucy Sarah Jane Kate Laura Julia Maria Sophie Amy Rachel Helen Ruth "
    "Diana Grace Nina Clara Susan Molly Lily Sue Mia Lisa Eva Rosa Nora Ella "
    "Betty Carol Emily Fiona Linda Martha Olivia Paula Tina Vera"
).split()
MALE = (
    "John Tom James Paul Peter Mark David Robert Jack Simon Daniel Henry Adam Luke Oliver Victor "
    "Ben Max Frank George Martin Alan Oscar Leo Tim Sam Bob Bill Fred Joe "
    "Andrew Brian Charles Edward Jacob Kevin Louis Michael Philip Walter"
).split()

CLASSES = {
    "gift": (
        "ring book ball kiss drink snack necklace computer basketball bone cake flower letter lamp kite "
        "pear pencil hat coat toy cup card map key drum violin basket mirror blanket candle "
        "guitar camera bracelet puzzle pillow scarf clock bottle chair diary robot ladder balloon whistle"
    ),
    "place": (
        "store park school garden restaurant hospital office house station library market beach museum "
        "kitchen river farm forest castle harbor bakery theater bridge lake village zoo "
        "airport church cinema gallery gym hotel island palace pool stadium"
    ),
    "adj": (
        "big small rusty new quiet busy lovely strange bright dark warm cold plain famous green blue red "
        "golden tiny beautiful clean broken wooden heavy soft round huge silver yellow purple modern "
        "simple fancy gentle shiny dusty narrow deep pretty white"
    ),
    "feeling": (
        "happy sad tired hungry angry proud excited nervous lonely bored glad worried thirsty sleepy calm "
        "jealous cheerful grateful hopeful curious"
    ),
    "job": (
        "teacher dentist baker farmer painter singer sailor nurse pilot writer judge cook guard dancer clerk "
        "plumber miner butcher gardener hunter king queen soldier waiter priest"
    ),
    "animal": (
        "dog cat bird horse rabbit fox duck goat sheep mouse frog turtle cow bear wolf "
        "lion tiger monkey pig hen deer snake whale spider bee"
    ),
    "day": "morning evening day night afternoon",
    "season": "summer winter spring autumn",
    "doing": "working playing reading singing walking cooking talking dancing running swimming",
    "moved": "slept jumped sang ran swam waited rested laughed danced whistled cried shouted sneezed coughed yawned",
    "greeting": "hello goodbye thanks sorry welcome yes no please maybe wait",
    # code
    "var": "x y z i j n item value total count name text data row index result node size left right",
    "num": "0 1 2 3 4 5 6 7 8 9",
    "func": "run load save parse build main check update start reset",
    # recipe
    "food": (
        "flour sugar butter salt pepper milk rice onion garlic tomato cheese egg oil honey lemon carrot "
        "potato chicken bread cream "
        "pasta beans basil vinegar mustard corn spinach celery ginger sausage"
    ),
    "tool": "bowl pan oven pot spoon knife plate tray",
    "minutes": "two three five ten twenty thirty",
    # weather
    "weather": "rain snow wind sun fog storms clouds hail",
    "city": (
        "London Paris Berlin Rome Madrid Oslo Vienna Prague Dublin Athens "
        "Lisbon Warsaw Geneva Boston Chicago Tokyo Cairo Delhi"
    ),
    "weekday": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "region": "north south east west coast mountains valley",
    # medicine
    "symptom": (
        "fever cough headache nausea pain fatigue swelling dizziness rash bleeding inflammation infection "
        "anemia asthma fracture "
        "diabetes pneumonia arthritis tumor ulcer allergy stroke sepsis migraine seizures"
    ),
    "organ": "heart liver lung kidney stomach brain skin bone spine throat",
    "drug": (
        "aspirin insulin penicillin morphine ibuprofen steroids antibiotics statins heparin codeine "
        "warfarin metformin lithium ketamine cortisone"
    ),
    "degree": "mild severe chronic acute sudden",
    "exam": "biopsy scan transfusion surgery therapy test vaccine dialysis",
    # science
    "star": "planet comet moon galaxy asteroid satellite rocket meteor telescope probe",
    "matter": "iron gold copper carbon oxygen hydrogen helium nitrogen sulfur zinc mercury uranium",
    "energy": "gravity heat pressure light radiation electricity magnetism friction",
    "field": "physics chemistry biology geology astronomy mathematics",
    # law and trade
    "party": "buyer seller tenant landlord lender borrower employer contractor",
    "paper": "contract lease loan patent license invoice receipt permit",
    "duty": "pay sign cancel renew refund inspect deliver insure",
    "sum": "hundred thousand million billion",
    # German: one class per grammatical gender, so that the article predicts the noun
    "mann": "Mann Hund Baum Tisch Garten Vater Bruder Wald Zug Stein Brief Apfel Berg Fluss Stuhl Vogel Freund Lehrer",
    "frau": "Frau Katze Blume Stadt Mutter Schwester Sonne Schule Lampe Straße Tür Milch Tante Uhr Hand Wand Kirche",
    "kind": "Kind Haus Buch Wasser Fenster Pferd Brot Auto Bild Dorf Feuer Schiff Zimmer Bett Fahrrad Land Herz Lied",
    "adjde": "groß klein alt neu schön kalt warm dunkel hell müde rot grün blau stark leise laut schnell langsam",
    "verbde": "schläft singt lacht wartet läuft spielt weint arbeitet tanzt steht bleibt kommt fällt",
    "objde": "sieht hört sucht findet liebt kauft kennt malt trägt",
    "wann": "heute morgen gestern immer oft nie",
}
CLASSES = {name: tuple(words.split()) for name, words in CLASSES.items()}

# ---- stories -----------------------------------------------------------------------------------

# Two people meet; the sentence is complete, other sentences may follow before the gift.
MEETINGS = (
    "{A} had lunch with {B} at the {place} .",
    "On {weekday} , {A} and {B} were {doing} in {city} .",
    "{A} and {B} were {feeling} because the {place} was {adj} .",
    "The {job} saw {A} and {B} near the {place} .",
    "In {season} {A} and {B} often went {doing} .",
    "Then , {A} and {B} went to the {place} .",
    "One {day} {A} and {B} went to the {place} .",
    "{A} and {B} were {doing} at the {place} .",
    "{A} and {B} had a lot of fun at the {place} .",
    "{A} met {B} near the {place} .",
    "Friends {A} and {B} found a {gift} at the {place} .",
    "Last {season} {A} and {B} were at the {place} .",
    "The {adj} {place} belonged to {A} and {B} .",
    "It was {season} and {A} walked to the {place} with {B} .",
    "Yesterday {A} visited {B} at the {place} .",
    "Two friends , {A} and {B} , lived near the {place} .",
)
# Three people meet and one of them leaves, so that one recipient remains.
PARTINGS = (
    "{A} and {B} lived near the {place} with {C} . {C:subject} {moved} all {day} .",
    "One {day} {A} , {B} and {C} saw a {animal} . {C:subject} ( the {job} ) {moved} .",
    "{A} , {B} and {C} went to the {place} . {C:subject} left early because {C.he} was {feeling} .",
    "Then , {A} , {B} and {C} were {doing} at the {place} . Soon {C:subject} went home .",
)
# The gift follows in the same sentence.
OPENINGS = (
    "Because {A} and {B} were {feeling} ,",
    "At the {place} with {A} and {B} ,",
    "When {A} and {B} went to the {place} ,",
    "After {A} and {B} went to the {place} ,",
    "When {A} and {B} got a {gift} at the {place} ,",
    "After {A} and {B} had a long talk ,",
    "While {A} and {B} were {doing} at the {place} ,",
)
# Between cause and effect: sentences that tell nothing about the gift.
FILLERS = (
    'A {job} ( with a {adj} {gift} ) said " {greeting} {greeting} " and {moved} .',
    "In {season} the {place} was {adj} and {adj} .",
    "{A:subject} {moved} when {A.he} saw the {animal} .",
    "{B:subject} {moved} when {B.he} saw the {animal} .",
    "The {place} was {adj} .",
    "It was a {adj} {day} .",
    "A {adj} {animal} {moved} near the {place} .",
    "The {animal} was {feeling} .",
    "{A:subject} was {feeling} because {A.he} liked the {place} .",
    "{B:subject} was {feeling} because {B.he} liked the {place} .",
    "{A} ' s {gift} was {adj} .",
    "{B} ' s {gift} was {adj} .",
    '{A:subject} said " {greeting} " and smiled .',
    '{B:subject} said " {greeting} " and smiled .',
    "{A:subject} ( the {job} ) was {doing} .",
    "They saw a {adj} {animal} ( and a {animal} ) there .",
)
# G gives, R receives; grammar.py writes every sentence for both readings (A, B) and (B, A).
GIFTS = (
    "{G:giver} smiled and gave the {adj} {gift/R} to {R:recipient} .",
    "{G:giver} was {feeling} and handed the {gift/R} to {R:recipient} .",
    "{G:giver} found a {gift/R} and sent it to {R:recipient} .",
    "{G:giver} took the {gift/R} ( a {adj} one ) and gave it to {R:recipient} .",
    "{G:giver} gave a {gift/R} to {R:recipient} .",
    "{G:giver} gave the {gift/R} to {R:recipient} .",
    "{G:giver} gave a {adj} {gift/R} to {R:recipient} .",
    "{G:giver} decided to give a {gift/R} to {R:recipient} .",
    "{G:giver} decided to give the {adj} {gift/R} to {R:recipient} .",
    "{G:giver} wanted to give a {gift/R} to {R:recipient} .",
    "{G:giver} handed the {gift/R} to {R:recipient} .",
    "{G:giver} handed a {gift/R} to {R:recipient} .",
    "{G:giver} passed a {gift/R} to {R:recipient} .",
    "{G:giver} sent the {gift/R} to {R:recipient} .",
    "{G:giver} said sorry and gave the {gift/R} to {R:recipient} .",
    "{G:giver} bought a {gift/R} and gave it to {R:recipient} .",
    "{G:giver} offered the {gift/R} to {R:recipient} .",
    "{G:giver} showed the {adj} {gift/R} to {R:recipient} .",
)
THANKS = (
    "{R.he:pronoun} was very {feeling} .",
    "{R:subject} said thanks because {R.he} liked the gift .",
    "{R:subject} put it in {R.his} bag .",
    "{G:subject} was {feeling} because {G.he} liked to give .",
    "{G:subject} gave {R.him} a kiss too .",
    "Everyone was {feeling} .",
)
# Whole sentences that training never sees; every word in them stands in other sentences.
UNSEEN_MEETINGS = (
    "Yesterday {A} walked to the {place} with {B} .",
    "Last {season} , friends {A} and {B} were {doing} near the {place} .",
    "{A} and {B} saw a {adj} {animal} at the {place} .",
)
UNSEEN_OPENINGS = (
    "After {A} and {B} were {doing} at the {place} ,",
    "When {A} and {B} had fun at the {place} ,",
)
UNSEEN_GIFTS = (
    "{G:giver} wanted to give the {adj} {gift/R} to {R:recipient} .",
    "{G:giver} bought the {adj} {gift/R} and gave it to {R:recipient} .",
    "{G:giver} smiled and handed a {adj} {gift/R} to {R:recipient} .",
)

# ---- one person --------------------------------------------------------------------------------

ALONE = (
    "Once there was a {job} called {A} .",
    "{A:subject} was a {adj} {job} .",
    "{A:subject} lived in {city} .",
    "Every {day} {A} walked to the {place} .",
)
PRONOUNS = (
    "{A:subject} ( a {adj} {job} ) was {feeling} because {A.he} had no {gift} .",
    "{A:subject} called {B} , but {A.he} was too {feeling} to talk .",
    '{A:subject} said " {greeting} " because {A.he} was {feeling} .',
    "After the {animal} {moved} , {A:subject} {moved} too and {A.he} went home with {A.his} {gift} .",
    "{A:subject} was {feeling} because {A.he} lost {A.his} {gift} .",
    "{A:subject} was {feeling} , so {A.he} went home .",
    "{A:subject} was {doing} when {A.he} saw a {animal} .",
    "{A:subject} opened the door and {A.he} {moved} .",
    "{A:subject} bought a {gift} because {A.he} wanted to give it to {A.his} mother .",
    "{A:subject} likes the {place} , and {A.he} often goes there .",
    "{A:subject} took {A.his} {gift} and {moved} .",
    "{A:subject} , who lived near the {adj} {place} , was {feeling} because {A.he} had a {gift} .",
    "{A:subject} saw {B} at the {place} and {A.he} {moved} .",
    "{A:subject} heard that {B} was {feeling} , so {A.he} sent a letter .",
    "When {A:subject} came home , {A.he} {moved} .",
    "At the {place} {A:subject} found a {gift} , so {A.he} was {feeling} .",
    "The {animal} saw {A:subject} while {A.he} was {doing} .",
)
SCENES = (
    "The {place} was {adj} .",
    "It was a {adj} {day} .",
    "The {animal} {moved} .",
    "{A} ' s {animal} was {adj} .",
    'Everyone said " {greeting} {greeting} " to {A} .',
    "{A:subject} ( a {job} ) was {feeling} .",
)

# ---- code --------------------------------------------------------------------------------------

UNARY = "len abs sum sqrt sort int str".split()
BINARY = "max min add pow zip".split()
STRINGS = "hello world error done ok file user input output empty".split()
