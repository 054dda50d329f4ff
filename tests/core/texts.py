"""Texts that a tokenizer is trained on."""

TEXTS = [
    "The city of Paris, in France, had 2,148,271 inhabitants in 2020; its river is the Seine.",
    "Oslo is the capital of Norway. The river Akerselva runs through the city of Oslo.",
    "Château, naïve, 漢字 and emoji 🧭 need more than one byte.",
    "Rivers, mountains, islands, harbours, bridges and railways are described in other articles.",
] * 20
