from medfed.simulations.reporting.examples import Example


def _example(**probabilities: float) -> Example:
    return Example(b"", "site-1", ("a",), probabilities, correct=True)


def test_example_predicts_the_most_likely_class_or_all_at_one_half() -> None:
    example = _example(a=0.6, b=0.1, c=0.5)
    assert example.predicted("multiclass") == ("a",)
    assert example.predicted("multilabel") == ("a", "c")
    assert _example(a=0.2, b=0.1).predicted("multilabel") == ()


def test_example_ranks_classes_by_probability() -> None:
    assert _example(a=0.2, b=0.7, c=0.1).most_likely(2) == (("b", 0.7), ("a", 0.2))
