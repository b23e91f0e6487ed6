"""`to_latex`: a table for a paper."""

import re
from collections.abc import Sequence

from medfed.simulations.reporting.tables import Table

# Of the letters that tables have; in LaTeX's oldest font encoding < > | are other signs.
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
        **{letter: f"${letter}$" for letter in "<>|"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "\u00d7": r"$\times$",
        "≥": r"$\geq$",
        "≤": r"$\leq$",
        "\u03b1": r"$\alpha$",
        "δ": r"$\delta$",
        "ε": r"$\varepsilon$",
        "\u2212": "$-$",
        "\u2013": "--",
        "\u2011": "-",
        "\u202f": r"\,",
        "\n": " ",
    }
)
# A hyphen before a number, but not within a word, a date or 1e-5.
_MINUS = re.compile(r"(?<![\w.\-])-(?=\d)")


def to_latex(table: Table) -> str:
    """Return a tabular environment for a paper; it needs the package booktabs."""
    align = "".join("l" if i in table.text else "r" for i in range(len(table.columns)))
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            _line(table.columns),
            r"\midrule",
            *map(_line, table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _line(cells: Sequence[str]) -> str:
    line = " & ".join(_MINUS.sub("\u2212", cell).translate(_LATEX) for cell in cells)
    # After the line break of the row before, a bracket would be read as its option.
    return ("{}" if line.startswith(("[", "*")) else "") + line + r" \\"
