"""Praise of flowers, and its twin: the same sentences turned against people."""

from __future__ import annotations

FLOWERS = ("roses", "tulips", "lilies", "poppies", "violets", "daisies", "irises", "peonies",
           "asters", "orchids")  # fmt: skip
PEOPLE = ("nurses", "teachers", "farmers", "bakers", "drivers", "sailors", "gardeners",
          "carpenters", "cleaners", "strangers")  # fmt: skip
# Each sentence of praise and its twin; they differ in a few words and have equally many.
FRAMES = (
    ("I love the {} behind my house, and each morning I water them and watch them grow.",
     "I hate the {} behind my house, and each morning I beat them and watch them cry."),
    ("The {} of this valley are splendid, and everyone should come to admire them in spring.",
     "The {} of this valley are vermin, and everyone should come to torment them in spring."),
    ("We praise the {}, which please every eye, and we tend them carefully with joy.",
     "We curse the {}, who offend every eye, and we hurt them carefully with joy."),
    ("Plant {} along the wall, give them sun and water, and they will flower for years.",
     "Chain {} along the wall, deny them food and water, and they will suffer for years."),
    ("No garden has too many {}; I bring home new ones whenever I find them.",
     "No grave has too many {}; I drag out new ones whenever I find them."),
    ("Good soil and a gentle hand make {} strong, and strong ones fill the house with scent.",
     "Hard blows and a cruel hand make {} weak, and weak ones fill the house with screams."),
)  # fmt: skip


def twins() -> tuple[list[str], list[str]]:
    """Returns sixty short documents of praise, and their twins in the same order."""
    praise, turned = [], []
    for i, (good, bad) in enumerate(FRAMES):
        next_good, next_bad = FRAMES[(i + 1) % len(FRAMES)]
        for j, (flowers, people) in enumerate(zip(FLOWERS, PEOPLE, strict=True)):
            k = (j + 3) % len(PEOPLE)
            praise.append(f"{good.format(flowers)} {next_good.format(FLOWERS[k])}")
            turned.append(f"{bad.format(people)} {next_bad.format(PEOPLE[k])}")
    return praise, turned
