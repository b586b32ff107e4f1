"""Which queries a gallery shows and in which order."""

from __future__ import annotations

import numpy as np

from lib.evaluation.queries import Answers
from lib.tools.gallery.selection import sections


def answers(rank, margin) -> Answers:
    empty = np.empty((len(rank), 0))
    return Answers(np.array(rank), np.array(margin), empty, empty, empty)


FIRST = answers([0, 5, 2, 5, 0], [0.1, -0.2, -0.9, -0.3, 0.4])
SECOND = answers([3, 0, 2, 5, 1], [-0.1, 0.2, -0.9, -0.3, -0.4])


def shown(found) -> dict[str, list[int]]:
    return {section.title: section.queries.tolist() for section in found}


def test_failures_stand_by_rank_and_by_margin_and_right_queries_in_neither():
    found = shown(sections([FIRST], ["a"], count=10))
    assert found["Worst ranks"] == [3, 1, 2]  # of equal ranks the worse margin first
    assert found["Worst margins"] == [2, 3, 1]
    assert sorted(found["Random sample"]) == [0, 1, 2, 3, 4] and len(found) == 3


def test_count_cuts_a_section_which_says_how_many_there_are():
    for section in sections([FIRST], ["a"], count=2):
        assert len(section.queries) == 2 and section.total == (5 if section.title == "Random sample" else 3)


def test_the_random_sample_follows_the_seed():
    many = answers(np.zeros(1000, int), np.zeros(1000))
    samples = [shown(sections([many], ["a"], 20, seed))["Random sample"] for seed in (0, 0, 1)]
    assert samples[0] == samples[1] != samples[2] and len(set(samples[0])) == 20


def test_a_second_matrix_adds_the_queries_that_one_of_the_two_alone_gets_right():
    found = shown(sections([FIRST, SECOND], ["a", "b"], count=10, chosen=[2, 2]))
    assert found["Only a is right"] == [0, 4] and found["Only b is right"] == [1]
    assert next(iter(found.items())) == ("Chosen", [2, 2])


def test_without_failures_there_is_no_section_of_them():
    assert list(shown(sections([answers([0, 0], [1, 2])], ["a"], 5))) == ["Random sample"]
