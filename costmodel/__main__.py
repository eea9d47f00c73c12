"""`python -m costmodel`: the command line."""

from .interface.cli import main

if __name__ == "__main__":
    main()
