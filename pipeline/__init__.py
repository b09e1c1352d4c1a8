"""Setups, plans, runs, and the commands that a user types."""

if __name__ == "pipeline":
    # Imported by the command of an environment that was installed before hoi_distill was the one name.
    import sys

    print(
        "hoi-distill: this environment was installed from an older checkout; run `make setup` (or pip install -e .) again",
        file=sys.stderr,
    )
    raise SystemExit(2)
