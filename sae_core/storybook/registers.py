"""Sentences of the other registers of `storybook`: letters, recipes, weather, medicine, science, law, German."""

LETTER = (
    "Dear {A} , thank you for the {gift} . I liked the {adj} {gift} . Love , {B}",
    "Dear {A} , I am at the {place} . It is {adj} here . See you on {weekday} . Yours , {B}",
    "Dear {A} , please send me the {gift} ( and the {gift} ) on {weekday} . Yours , {B}",
)
RECIPE = (
    "Mix the {food} with the {food} in a {tool} .",
    "Add {food} and {food} to the {tool} .",
    "Cut the {food} with a {tool} .",
    "Cook the {food} for {minutes} minutes .",
    "Bake it ( with {food} ) for {minutes} minutes .",
    "Serve with {food} , {food} or {food} .",
)
WEATHER = (
    "On {weekday} we expect {weather} in {city} .",
    "The {region} will see {weather} and {weather} until {weekday} .",
    "In {city} it stays {adj} with some {weather} .",
    "More {weather} ( from the {region} ) will reach {city} .",
    "Temperatures fall in the {region} on {weekday} .",
)
MEDICINE = (
    "The patient has {degree} {symptom} and {symptom} .",
    "The patient was treated with {drug} for {degree} {symptom} .",
    "Symptoms include {symptom} , {symptom} and {symptom} .",
    "A {exam} of the {organ} showed {degree} {symptom} .",
    "The doctor prescribed {drug} ( and {drug} ) against {symptom} .",
    "Chronic {symptom} of the {organ} requires {exam} .",
    "Blood pressure was high after {exam} .",
    "Doses of {drug} reduce {symptom} in the {organ} .",
)
SCIENCE = (
    "The {star} moves because of {energy} .",
    "A {star} is made of {matter} and {matter} .",
    "In {field} , {energy} acts on {matter} .",
    "Scientists sent a {star} to study {energy} ( and {matter} ) .",
    "Here {energy} changes {matter} into {matter} .",
    "Modern {field} explains {energy} , {energy} and {matter} .",
)
LAW = (
    "The {party} shall {duty} the {paper} until {weekday} .",
    "Each {party} may {duty} the {paper} ( or the {paper} ) .",
    "The {party} owes the {party} {minutes} {sum} for the {paper} .",
    "This {paper} binds the {party} and the {party} .",
    "If the {party} does not {duty} the {paper} , the {party} shall {duty} it .",
    'The word " {paper} " means a {paper} of the {party} .',
)
GERMAN = (
    "Ein {mann} und eine {frau} kommen {wann} .",
    "Warum {verbde} die {frau} ?",
    'Er sagt " danke " und kauft das {kind} .',
    "Das {kind} ist {adjde} , aber der {mann} ist {adjde} .",
    "Der {mann} ist {adjde} .",
    "Die {frau} ist {adjde} .",
    "Das {kind} ist {adjde} .",
    "Der {mann} {verbde} {wann} .",
    "Die {frau} {verbde} {wann} .",
    "Das {kind} {verbde} {wann} .",
    "Der {mann} {objde} die {frau} .",
    "Die {frau} {objde} das {kind} .",
    "Das {kind} {objde} den {mann} .",
    "Wir sehen das {kind} und die {frau} .",
    "Ich kaufe ein {kind} und eine {frau} .",
    "Wo ist der {mann} ?",
    "Der {mann} ( nicht die {frau} ) {verbde} .",
)
