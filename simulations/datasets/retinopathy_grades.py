"""The international scale of diabetic retinopathy, 0 to 4, as two of Kaggle's tables write it."""

from pathlib import Path

from medfed.common.errors import DataError
from medfed.simulations.datasets.tables import Table, line_of_key, read_table

GRADES = ("No DR", "Mild", "Moderate", "Severe", "Proliferative DR")


def read_grades(path: Path, *, image: str, grade: str, how_to_get: str) -> Table:
    """Read a table of graded images.

    Args:
        path: The file.
        image: Column that names the image.
        grade: Column with its grade, 0 to 4.
        how_to_get: The publisher's page, for the error.

    Raises:
        DataError: Not such a table, an image named twice, or another grade. Says file and line.
    """
    table = read_table(path, columns=(image, grade), keys=(image, grade), how_to_get=how_to_get)
    line_of_key(table, image)
    for line, row in table.rows.items():
        if row[grade] not in {str(number) for number in range(len(GRADES))}:
            raise DataError(
                f"{path} line {line}, column {grade}: expected a grade of 0 to {len(GRADES) - 1}, "
                f"got {row[grade]!r}. Mend that line, or fetch the file again."
            )
    return table
