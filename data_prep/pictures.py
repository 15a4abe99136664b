"""Pictures of the sources."""

MAX_PIXELS = 50_000_000  # width x height, above which a picture is refused
