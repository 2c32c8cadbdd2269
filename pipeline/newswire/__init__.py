"""The newswire: a seeded small world whose facts change, its news, and questions with gold answers.

for event in generate(seed=7, num_articles=1_000): publish(event.record)
questions(seed=7, num_articles=1_000, num_questions=24)
"""

from pipeline.newswire.demo import DemoSet, demo_set
from pipeline.newswire.questions import KINDS, SPLITS, Hop, Question, questions, split_of
from pipeline.newswire.simulate import ARTICLES_A_YEAR, NewsEvent, Simulation, first_day, generate
from pipeline.newswire.truth import Truth, gather
from pipeline.newswire.world import World

__all__ = [
    "ARTICLES_A_YEAR",
    "KINDS",
    "SPLITS",
    "DemoSet",
    "Hop",
    "NewsEvent",
    "Question",
    "Simulation",
    "Truth",
    "World",
    "demo_set",
    "first_day",
    "gather",
    "generate",
    "questions",
    "split_of",
]
