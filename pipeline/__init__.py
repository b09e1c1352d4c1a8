"""Setups, plans, runs, and the commands that a user types."""

if __name__ == "pipeline":  # by the command of an environment that was installed before hoi_distill was the one import name
    import sys

    print(
        "hoi-distill: this environment was installed from an older checkout; run `make setup` (or pip install -e .) again",
        file=sys.stderr,
    )
    raise SystemExit(2)
