"""Format, lint, types, import graph and documents as tests, so that one command decides."""
