"""``python -m gsavatar`` is the ``gsavatar`` command."""

from gsavatar.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
