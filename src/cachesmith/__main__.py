"""`python -m cachesmith` is the command `cachesmith`."""

from cachesmith.cli import main

if __name__ == "__main__":
    main()
