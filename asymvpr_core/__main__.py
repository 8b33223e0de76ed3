"""`python -m asymvpr_core` is the command line `asymvpr`."""

from asymvpr_core.cli.main import main

if __name__ == "__main__":
    main()
