"""Grades in order: agreement that counts how far apart two grades are, exact on sums.

Shapes: N images, L grades.
"""

import numpy as np
import numpy.typing as npt


def median_grades(probabilities_NL: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the median grade of each image: the highest that is reached with probability >= 1/2.

    It minimises the expected distance to the true grade, as the most probable grade does not.
    """
    reached_NL = probabilities_NL[:, ::-1].cumsum(axis=1)[:, ::-1]
    return np.asarray((reached_NL[:, 1:] >= 0.5).sum(axis=1), dtype=np.int64)


def ordinal_metrics(matrix_LL: npt.NDArray[np.int64]) -> dict[str, float]:
    """Return `kappa` (quadratic weights) and `grade_error`, the mean distance in grades.

    Args:
        matrix_LL: Images of each true grade (rows) by predicted grade.
    """
    grades = range(len(matrix_LL))
    table = matrix_LL.tolist()
    total = sum(map(sum, table))
    if not total:
        return {}
    distance = sum(abs(i - j) * table[i][j] for i in grades for j in grades)
    kappa = quadratic_kappa(matrix_LL)
    return {"grade_error": distance / total} | ({} if kappa is None else {"kappa": kappa})


def quadratic_kappa(matrix_LL: npt.NDArray[np.int64]) -> float | None:
    """Return Cohen's kappa with weights (i - j)**2: 1 is agreement, 0 what chance gives.

    None where chance could not disagree: truth and prediction hold one and the same grade only.

    Reference: Cohen 1968, https://doi.org/10.1037/h0026256
    """
    # Python integers: exact however many images there are.
    table = matrix_LL.tolist()
    rows, columns = (
        [sum(row) for row in table],
        [sum(column) for column in zip(*table, strict=True)],
    )
    cells = [(i, j) for i in range(len(table)) for j in range(len(table))]
    seen = sum((i - j) ** 2 * table[i][j] for i, j in cells)
    by_chance = sum((i - j) ** 2 * rows[i] * columns[j] for i, j in cells)
    return 1 - seen * sum(rows) / by_chance if by_chance else None
