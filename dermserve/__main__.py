"""`python -m dermserve`: the same as the command `dermserve`."""

from dermserve.cli import main

if __name__ == "__main__":
    main()
