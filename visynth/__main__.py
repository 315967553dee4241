"""``python -m visynth``."""

from visynth.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
