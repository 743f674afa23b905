"""The command ``sinterlm``, also as ``python -m sinterlm``."""

from sinterlm.cli import main

if __name__ == "__main__":
    main()
