"""`python -m edgeops` is `edgeops`."""

from edgeops.cli import main

if __name__ == "__main__":
    main()
