"""What is read out of an arm set: pairs, claims, dose families, and which claims speak of place and dose."""

from __future__ import annotations

import pytest

from steerdec.benchmarks.verdicts.expectations import DesignError, read_design


def arm(name, role="treatment", temperature=1.0, **steering):
    return {"name": name, "role": role, "temperature": temperature, "steering": steering or None}


def claim(name, of, against, direction="greater"):
    return {"id": name, "statement": f"{of} and {against}.", "arm": of, "against": against, "direction": direction}


BASELINE = arm("B", "baseline")


def design(*arms, claims=(), **more):
    return read_design({"name": "x", "baseline": "B", "arms": [BASELINE, *arms], "claims": list(claims), **more})


def test_every_arm_is_compared_with_the_baseline_and_then_as_asked():
    found = design(
        arm("F", fork_temperature=2.0),
        arm("N", other_temperature=2.0),
        claims=[claim("a", "F", "B"), claim("b", "F", "N")],
        comparisons=[{"arm": "N", "baseline": "F"}, {"arm": "F", "baseline": "N"}],
    )
    assert found.pairs == (("F", "B"), ("N", "B"), ("F", "N"), ("N", "F"))


@pytest.mark.parametrize(
    ("word", "direction"), [("greater", "greater"), ("higher", "greater"), ("less", "less"), ("lower", "less")]
)
def test_directions(word, direction):
    assert design(arm("F"), claims=[claim("a", "F", "B", word)]).claims[0].direction == direction


def test_a_claim_may_call_its_other_arm_baseline_as_arm_files_do():
    written = {"id": "a", "statement": "s", "arm": "F", "baseline": "B", "direction": "lower"}
    assert design(arm("F"), claims=[written]).claims[0].against == "B"


def test_arms_that_check_the_instrument():
    found = design(arm("A/A", "identity"), arm("B2", "replicate"), arm("B3", "replica"), arm("F"))
    assert (found.identities, found.repeats) == (("A/A",), ("B2", "B3"))
    assert design(arm("F")).identities == ()
    assert design(arm("same"), identity="same").identities == ("same",)


def test_arms_after_prefixes_are_compared_with_the_plain_arm_after_the_same_prefixes():
    up = {"select": "first", "first_tokens": 1, "fork_temperature": 2.0}
    found = design(
        arm("F", fork_temperature=2.0),
        arm("A/A", "identity", fork_temperature=1.0),
        *(arm(name, "replay") | {"replay": name} for name in ("L", "M", "R")),
        arm("L-same", "identity", fork_temperature=1.0) | {"replay": "L"},
        arm("L-up", **up) | {"replay": "L"},
        arm("M-up", **up | {"fork_temperature": 3.0}) | {"replay": "M"},
        arm("R-up", "placebo", **up) | {"replay": "R"},
    )
    assert found.pairs == (
        *(("F", "B"), ("A/A", "B"), ("L", "B"), ("M", "B"), ("R", "B")),
        *(("L-same", "L"), ("L-up", "L"), ("M-up", "M"), ("R-up", "R")),
    )
    assert found.identities == ("A/A", "L-same")
    assert found.contrasts == (("L-up", "L", "R-up", "R"),), "M-up is raised by more"
    assert found.families == (), "what follows a prefix is no dose of the baseline's"


def test_delta_is_two_points_unless_the_set_says_otherwise():
    assert design().delta == 0.02
    assert design(delta=0.05).delta == 0.05


def test_families_are_doses_at_the_same_tokens_in_one_direction():
    found = design(
        arm("A/A", "identity", fork_temperature=1.0, other_temperature=1.0),
        arm("F@3", fork_temperature=3.0),
        arm("F@2", fork_temperature=2.0),
        arm("F@0", fork_temperature=0.0),
        arm("F@0.5", fork_temperature=0.5),
        arm("N@2", other_temperature=2.0),
        arm("N-m", "matched", other_temperature=1.7),
        arm("P@2", "placebo", fork_temperature=2.0, select="random", fork_rate=0.2),
        arm("P@3", "placebo", fork_temperature=3.0, select="random", fork_rate=0.2),
        arm("1@2", fork_temperature=2.0, select="first", first_tokens=1),
        arm("1@3", fork_temperature=3.0, select="first", first_tokens=1),
        arm("8@3", fork_temperature=3.0, select="first", first_tokens=8),
        arm("G", "global", select="all", fork_temperature=1.2),
        arm("G-plain", "global", temperature=1.4),
        arm("both", fork_temperature=2.0, other_temperature=0.5),
        arm("edt", policy="edt", theta=0.1),
    )
    assert {family.name: (family.arms, family.doses) for family in found.families} == {
        "forks raised": (("F@2", "F@3"), (1.0, 2.0)),
        "forks lowered": (("F@0.5", "F@0"), (0.5, 1.0)),
        "others raised": (("N-m", "N@2"), (0.7, 1.0)),
        "random tokens raised": (("P@2", "P@3"), (1.0, 2.0)),
        "first tokens (1) raised": (("1@2", "1@3"), (1.0, 2.0)),
        "all tokens raised": (("G", "G-plain"), (0.2, 0.4)),
    }


def test_a_place_claim_goes_with_the_effect_of_its_own_arm():
    claims = [
        claim("other-effect", "F-small", "B"),
        claim("effect", "F", "B"),
        claim("place", "F", "N-m"),
        claim("not-matched", "F", "N"),
        claim("matched-effect", "N-m", "B"),
    ]
    found = design(
        arm("F-small", fork_temperature=1.2),
        arm("F", fork_temperature=2.0),
        arm("N", other_temperature=2.0),
        arm("N-m", "matched", other_temperature=3.0),
        claims=claims,
    )
    assert [(effect.id, place.id) for effect, place in found.combined] == [("effect", "place")]


def test_a_matched_arm_borrows_the_effect_of_an_arm_at_the_same_tokens_in_the_same_direction():
    arms = (
        arm("F-up", fork_temperature=2.0),
        arm("F-down", fork_temperature=0.5),
        arm("N-down", other_temperature=0.5),
        arm("F-down-m", "matched", fork_temperature=0.9),
    )
    place = claim("place", "F-down-m", "N-down", "less")
    found = design(*arms, claims=[claim("up", "F-up", "B"), claim("down", "F-down", "B", "less"), place])
    assert [(effect.id, place.id) for effect, place in found.combined] == [("down", "place")]
    assert design(*arms, claims=[claim("up", "F-up", "B", "less"), place]).combined == ()
    assert design(*arms, claims=[claim("n", "N-down", "B", "less"), place]).combined == ()
    assert design(*arms, claims=[claim("down", "F-down", "B", "greater"), place]).combined == ()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"claims": [claim("a", "B", "Q")]}, '"Q" is compared but is not an arm of the run \\(there are: B\\)'),
        ({"claims": [claim("a", "B", "B", "up")]}, 'claim "a": direction "up" is none of greater, higher, less, lower'),
        ({"delta": 0}, "delta is 0; a fraction between 0 and 1"),
        ({"delta": 2}, "delta is 2; a fraction between 0 and 1"),
    ],
)
def test_bad_designs_are_refused_in_one_line(change, line):
    with pytest.raises(DesignError, match=line):
        design(**change)
