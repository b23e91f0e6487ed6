import pytest

from medfed.simulations.reporting.examples import (
    ClassificationExample,
    ReportExample,
    SegmentationExample,
)


def test_example_ranks_classes_by_probability() -> None:
    probabilities = {"a": 0.2, "b": 0.7, "c": 0.1}
    example = ClassificationExample(b"", "site-1", "", ("a",), ("b",), probabilities, correct=False)
    assert example.most_likely(2) == (("b", 0.7), ("a", 0.2))


@pytest.mark.parametrize(
    ("missed", "false_alarms", "correct"),
    [((), (), True), (("a",), (), False), ((), ("b",), False)],
)
def test_segmentation_example_is_right_when_what_is_there_was_found(
    missed: tuple[str, ...], false_alarms: tuple[str, ...], correct: bool
) -> None:
    example = SegmentationExample(
        b"", "site-1", "", {"a": 0.5, "b": 1.0}, ("a",), missed, false_alarms
    )
    assert example.mean_dice == 0.75
    assert example.correct is correct


@pytest.mark.parametrize(
    ("findings", "correct"),
    [
        ({}, True),
        ({"a": "found"}, True),
        ({"a": "found", "b": "missed"}, False),
        ({"a": "invented"}, False),
    ],
)
def test_report_example_is_right_when_just_the_true_findings_are_mentioned(
    findings: dict[str, str], correct: bool
) -> None:
    assert ReportExample(b"", "site-1", "", (), (), findings, 0.5).correct is correct
