"""What the synthetic voices say: sentences of our own and random words of the system's dictionaries."""

from __future__ import annotations

from pathlib import Path

import numpy as np

DICTIONARIES = {  # language: word list of the Debian packages wspanish, witalian, ...
    "es": "spanish", "it": "italian", "pt-br": "brazilian", "fr": "french", "nl": "dutch", "pl": "polish",
    "de": "ngerman", "ca": "catalan", "sv": "swedish",
}  # fmt: skip

# fmt: off
SENTENCES: dict[str, list[str]] = {
    "en": [
        "Maybe Bob bought five big purple umbrellas before the farm fair.",
        "Would you move the blue boat over by the bridge, please?",
        "My father found a warm yellow room above the coffee shop.",
        "Every morning we walk past the pool and watch the birds wake up.",
        "The weather was awful, so we put off the picnic until Thursday.",
    ],
    "es": [
        "Mi familia vive en una pequeña ciudad cerca del mar.", "Por favor, ¿puede ayudarme a buscar la estación?",
        "Mañana vamos a comprar pan, fruta y un poco de vino.", "El perro bebe agua fresca bajo el árbol viejo.",
    ],
    "fr": [
        "Bonjour, je voudrais un peu de pain et une bouteille d'eau.",
        "Nous avons vu un beau film avec nos amis hier soir.",
        "Le petit garçon mange une pomme rouge sur la plage.", "Pouvez-vous m'aider à trouver la rue du marché?",
    ],
    "it": [
        "Buongiorno, vorrei bere un bicchiere d'acqua fresca.", "Mia madre prepara la pasta con il pomodoro.",
        "Dove posso comprare un biglietto per Firenze?", "Il bambino gioca con la palla nel giardino.",
    ],
    "pt-br": ["Bom dia, meu nome é Paulo e moro perto da praia.", "A menina bebeu um copo de leite e foi embora."],
    "nl": ["Goedemorgen, hoe gaat het met u vandaag?", "Wij wonen in een mooi huis met een blauwe voordeur."],
    "sv": ["God morgon, hur mår du idag min vän?", "Mamma köpte fem böcker om blommor och fåglar."],
    "pl": ["Dzień dobry, bardzo mi miło pana poznać.", "Mama kupiła nowy piękny obraz do pokoju."],
    "ru": ["Доброе утро, как вы поживаете?", "Мама купила большую белую вазу, а папа поймал рыбу."],
    "cs": ["Dobrý den, kde prosím najdu náměstí?", "Babička pekla koláč s povidly pro vnuka."],
    "tr": ["Merhaba, bugün hava çok güzel değil mi?", "Babam pazardan taze balık ve meyve aldı."],
    "hi": ["नमस्ते, आप कैसे हैं?", "मेरी बहन बाज़ार से फल और फूल लाई।"],
    "ar": ["صباح الخير، كيف حالك اليوم؟", "أبي يشرب القهوة في البيت كل صباح."],
    "ko": ["안녕하세요, 만나서 반갑습니다.", "우리 가족은 바다 옆에 살아요."],
    "ja": ["おはようございます、おげんきですか。", "ぼくのともだちはふねでうみをわたりました。"],
    "vi": ["Chào bạn, hôm nay bạn có khỏe không?", "Mẹ tôi mua một con cá và năm quả cam."],
    "id": ["Selamat pagi, apa kabar semuanya?", "Ibu membeli buah dan bunga di pasar."],
    "fi": ["Hyvää päivää, missä on lähin pankki?", "Pieni poika piirtää puuta vihkoon."],
    "el": ["Καλημέρα, πώς είστε σήμερα;", "Ο μπαμπάς μου αγόρασε ένα μεγάλο βιβλίο."],
    "ro": ["Bună ziua, mă bucur să vă cunosc.", "Fata bea apă proaspătă din fântână."],
    "hu": ["Jó napot kívánok, hogy vannak ma?", "A fiú vett egy piros almát a piacon."],
}
# fmt: on


def word_salad(language: str, count: int, rng: np.random.Generator) -> list[str]:
    """`count` lines of four to nine dictionary words, all sounds of the language in every order."""
    lines = Path("/usr/share/dict", DICTIONARIES[language]).read_text("utf-8", "replace").split("\n")
    words = np.array([word for word in lines if word.isalpha() and 2 < len(word) < 13 and word.islower()])
    return [", ".join(" ".join(rng.choice(words, rng.integers(2, 5))) for _ in range(2)) + "." for _ in range(count)]
