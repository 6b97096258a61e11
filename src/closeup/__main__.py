"""`python -m closeup` is the command `closeup`."""

from closeup.app.cli import main

if __name__ == "__main__":
    main()
