"""`python -m medfed` is the `medfed` command."""

from medfed.cli import main

if __name__ == "__main__":
    main()
